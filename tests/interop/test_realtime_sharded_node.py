"""The sharded adapter beside Node's: what only this adapter has. What all adapters do is in the cluster's matrix."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flotta.realtime import Server
from flotta.redis import Redis
from realtime_fixtures import NodePeer, node, node_modules, serving, start_node

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node

MODES = ["static", "dynamic", "dynamic-private"]


def _server(**options: Any) -> Server:
    sio = Server(adapter="sharded", **options)

    @sio.event
    async def join(sid: str, room: str) -> None:
        await sio.enter_room(sid, room)

    @sio.event
    async def leave(sid: str, room: str) -> None:
        await sio.leave_room(sid, room)

    return sio


@pytest.fixture(params=MODES)
async def cluster(
    request: pytest.FixtureRequest, start_node: Callable[[], Awaitable[NodePeer]], valkey_url: str, unique: str
) -> Any:
    """Two Flotta instances and one Node server in one Redis, a client on each, in every mode."""
    peer = await start_node()
    one, two = (_server(redis=valkey_url, sharded_mode=request.param, channel_prefix=unique) for _ in range(2))
    async with serving(one, native=True) as port_one, serving(two, native=False) as port_two:
        options = {"channelPrefix": unique, "subscriptionMode": request.param}
        port_node = await peer.do("serve", redis=valkey_url, adapter="sharded", options=options)
        sids = {
            "one": await peer.connect("one", port_one),
            "two": await peer.connect("two", port_two),
            "node": await peer.connect("node", port_node),
        }
        yield peer, one, two, sids, request.param


async def _until_subscribed(redis: Redis, **counts: int) -> None:
    """Node does not say when its subscriptions are up; Redis does."""
    async with asyncio.timeout(10):
        for channel, count in counts.items():
            while (await redis.link.call("PUBSUB", "SHARDNUMSUB", channel))[1] < count:
                await asyncio.sleep(0.005)


async def test_broadcasts_rooms_and_single_clients_are_reached_in_every_mode(
    cluster: Any, redis: Redis, unique: str
) -> None:
    peer, one, two, sids, mode = cluster
    blob = bytes(range(256))
    for name in ("two", "node"):
        await peer.do("ask", name=name, args=["join", "r"])
    in_room, own = int(mode != "static") * 2, int(mode == "dynamic-private")
    wanted = {f"{unique}#/#": 3, f"{unique}#/#r#": in_room, f"{unique}#/#{sids['node']}#": own}
    await _until_subscribed(redis, **wanted)
    await one.emit("all", ("x", blob))
    await one.emit("room", {"n": 1}, room="r")
    await one.emit("not-two", 2, room="r", skip_sid=sids["two"])
    await one.emit("direct", 3, to=sids["node"])
    await two.emit("direct", 4, to=sids["one"])
    await peer.do("broadcast", args=["all", "node", blob])
    await peer.do("broadcast", rooms=["r"], args=["room", {"n": 2}])
    await peer.do("broadcast", rooms=[sids["one"]], args=["direct", 5])
    await one.emit("end")
    await two.emit("end")
    await peer.do("broadcast", args=["end"])
    for name in sids:
        await peer.wait_event(name, "end", 3)
    assert sorted(peer.events("one", "all"), key=str) == sorted(peer.events("node", "all"), key=str)
    assert sorted(peer.events("two", "all"), key=str) == [["node", blob], ["x", blob]]
    both = [[{"n": 1}], [{"n": 2}]]  # from two senders: in any order
    assert [sorted(peer.events(name, "room"), key=str) for name in sids] == [[], both, both]
    assert [peer.events(name, "not-two") for name in sids] == [[], [], [[2]]]
    assert sorted(peer.events("one", "direct")) == [[4], [5]]
    assert peer.events("node", "direct") == [[3]]
