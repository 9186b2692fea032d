"""A fleet for tests of what servers do together: two Flotta instances, a Node server, a client on each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from flotta.realtime import Server
from realtime_fixtures import NodePeer, serving

__all__ = ["ADAPTERS", "BLOB", "Fleet", "fleet_of", "make_server", "node_options", "settle"]

ADAPTERS = ["classic", "sharded", "streams"]
BLOB = bytes(range(256))


class Fleet(NamedTuple):
    """Two Flotta instances, a Node server, and the clients ``one``, ``two`` and ``node``, one on each."""

    peer: NodePeer
    one: Server
    two: Server
    sids: dict[str, str]


def make_server(adapter: str, prefix: str, **options: Any) -> Server:
    """A server whose handlers and whose ``sio.told`` the tests use."""
    sio = Server(adapter=adapter, channel_prefix=prefix, stream_name=prefix, recovery_s=None, **options)  # type: ignore[arg-type]
    told: list[Any] = []
    sio.told = told  # type: ignore[attr-defined]

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        await sio.save_session(sid, dict((auth or {}).get("data") or {}))

    @sio.event
    async def join(sid: str, room: str) -> None:
        await sio.enter_room(sid, room)

    @sio.on_server_side("told")
    def hear(*args: Any) -> None:
        told.append(list(args))

    @sio.on_server_side("sum")
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    @sio.on_server_side("echo")
    def echo(value: Any) -> Any:
        return value

    @sio.on_server_side("fails")
    def fail() -> None:
        raise RuntimeError("the handler's own fault")

    return sio


def node_options(adapter: str, prefix: str) -> dict[str, Any]:
    """The same prefix for Node's adapter."""
    names = {"classic": {"key": prefix}, "sharded": {"channelPrefix": prefix}}
    return names.get(adapter, {"channelPrefix": prefix, "streamName": prefix})


@asynccontextmanager
async def fleet_of(adapter: str, url: str, prefix: str, peer: NodePeer, **options: Any) -> AsyncIterator[Fleet]:
    """Start them, and return when every server hears every other one."""
    one, two = make_server(adapter, prefix, **options), make_server(adapter, prefix, **options)
    await one.start(url)
    await two.start(url)
    async with serving(one, native=True) as port_one, serving(two, native=False) as port_two:
        ports = {"one": port_one, "two": port_two}
        ports["node"] = await peer.do("serve", redis=url, adapter=adapter, options=node_options(adapter, prefix))
        sids = {name: await peer.connect(name, port, auth={"data": {"at": name}}) for name, port in ports.items()}
        for name in sids:
            await peer.do("ask", name=name, args=["join", "r"])
        await settle(Fleet(peer, one, two, sids))
        yield Fleet(peer, one, two, sids)


async def settle(fleet: Fleet) -> None:
    """Node's adapters do not say when their subscriptions and readers are up: try until all hear all."""
    heard: set[str] = set()
    for _ in range(200):
        await fleet.one.emit("settle", room="r")
        await fleet.peer.do("broadcast", rooms=["r"], args=["settle-node"])
        heard = {
            name for name in fleet.sids if fleet.peer.events(name, "settle") and fleet.peer.events(name, "settle-node")
        }
        if heard == set(fleet.sids) and await fleet.one.server_count() == 3:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"only {sorted(heard)} hear the others")
