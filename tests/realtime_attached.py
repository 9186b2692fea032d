"""Clients without a network: a transport that keeps what it is sent, on a real session of a real server."""

from __future__ import annotations

from typing import Any

from flotta.realtime import Server
from flotta.realtime.engineio.handshake import Facts
from flotta.realtime.request import Request

__all__ = ["Member", "attach"]


class Member:
    """Enough of a transport to be a member of rooms: it keeps what it is sent."""

    name = "websocket"

    def __init__(self) -> None:
        self.got: list[str] = []
        self.client: Any = None

    def write(self, packet: Any) -> None:
        self.got.append(packet.text.decode())

    def write_volatile(self, packet: Any) -> bool:
        self.write(packet)
        return True

    def write_control(self, text: str) -> None: ...
    def close(self, code: int, reason: str) -> None: ...


def attach(sio: Server) -> Member:
    """A client of ``sio`` in the namespace ``/``."""
    transport = Member()
    facts = Facts("GET", True, "4", "websocket", "", None, "x")
    scope = {"type": "websocket", "path": "/socket.io/", "query_string": b"", "headers": []}
    client, _ = sio._core.open(transport, Request(scope=scope), facts)  # type: ignore[arg-type]
    transport.client = client
    client.receive("40")
    return transport
