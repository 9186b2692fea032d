"""Clients without a web server, for tests of adapters: a transport that keeps what it is sent."""

from __future__ import annotations

from typing import Any, final

from flotta.realtime import Server
from flotta.realtime.engine.request import Request
from flotta.realtime.engineio.handshake import Facts
from realtime_fixtures import until

__all__ = ["Member", "attach"]

_HEAD = b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\n\r\n"


@final
class Member:
    """One client in the main namespace of a server in this process."""

    name = "websocket"

    def __init__(self) -> None:
        self.sid = ""
        self.got: list[str] = []
        """The text of every packet since it has joined."""
        self.client: Any = None

    def write(self, packet: Any) -> None:
        self.got.append(packet.text.decode())

    def write_volatile(self, packet: Any) -> bool:
        self.write(packet)
        return True

    def leave(self) -> None:
        """Its connection ends."""
        self.client.lost()

    def write_control(self, text: str) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


async def attach(sio: Server, namespace: str = "/") -> Member:
    """A client that has joined ``namespace``."""
    member = Member()
    facts = Facts("GET", True, "4", "websocket", "", None, "x")
    request = Request(head=_HEAD, client=("127.0.0.1", 1))
    member.client, _ = sio._core.open(member, request, facts)  # type: ignore[arg-type]
    member.client.receive("40" if namespace == "/" else f"40{namespace},")
    await until(lambda: member.got)
    member.sid = member.client.sockets[namespace].sid
    member.got.clear()
    return member
