"""Dynamic namespaces over a real Redis: what crosses instances, and what is left there when they are gone."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect

from flotta.realtime import Server
from flotta.redis import Redis
from realtime_fixtures import serving, until
from realtime_moves import Wanderer

ADAPTERS = ["classic", "sharded", "streams"]


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def pair(
    adapter: str, redis: Redis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Server, Server, int, int]]:
    """Two instances with a prefix of their own and the ports that they serve."""
    monkeypatch.setattr("flotta.realtime.namespaces.EMPTY_S", 0.05)
    async with AsyncExitStack() as stack:
        servers, ports = [], []
        for _ in range(2):
            sio = Server(
                redis,
                adapter=adapter,
                channel_prefix=unique,
                stream_name=unique,
                recovery_key_prefix=f"{unique}:",
                namespaces_max=2,
            )
            sio.on("ask", lambda namespace, sid, *data: (namespace, *data), namespace=re.compile(r"/room-\d+"))
            servers.append(sio)
            ports.append(await stack.enter_async_context(serving(sio, native=True)))
        yield servers[0], servers[1], ports[0], ports[1]


async def _join(port: int, namespace: str) -> tuple[ClientConnection, str]:
    socket = await ws_connect(f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket")
    await socket.recv()
    await socket.send(f"40{namespace},")
    answer = str(await asyncio.wait_for(socket.recv(), 5))
    assert answer.startswith(f"40{namespace},"), answer
    return socket, json.loads(answer.partition(",")[2])["sid"]


async def _event(socket: ClientConnection) -> list[Any]:
    """The next event's name and first argument."""
    packet = str(await asyncio.wait_for(socket.recv(), 5))
    assert packet.startswith("42"), packet
    return list(json.loads(packet.partition(",")[2]))[:2]


async def _heard(redis: Redis, unique: str) -> set[str]:
    """What is subscribed for this test: channels, shard channels; patterns only as their number."""
    channels = await redis.link.call("PUBSUB", "CHANNELS", f"*{unique}*")
    shards = await redis.link.call("PUBSUB", "SHARDCHANNELS", f"*{unique}*")
    patterns = await redis.link.call("PUBSUB", "NUMPAT")
    return {name.decode() for name in (*channels, *shards)} | {f"{patterns} patterns"}


async def test_events_rooms_and_ends_cross_instances(pair: tuple[Server, Server, int, int]) -> None:
    one, two, first, second = pair
    ada, ada_sid = await _join(first, "/room-1")
    await one.enter_room(ada_sid, "harbour", namespace="/room-1")
    # Nobody is in the namespace at the second instance, but it may send there.
    await two.emit("news", 1, namespace="/room-1")
    assert await _event(ada) == ["news", 1]
    await two.emit("news", 2, room="harbour", namespace="/room-1")
    assert await _event(ada) == ["news", 2]
    await two.emit("news", 3, to=ada_sid, namespace="/room-1")
    assert await _event(ada) == ["news", 3]
    assert [found.id for found in await two.fetch_sockets(namespace="/room-1")] == [ada_sid]
    ben, ben_sid = await _join(second, "/room-1")
    await one.emit("news", 4, namespace="/room-1", skip_sid=ada_sid)
    assert await _event(ben) == ["news", 4]
    assert {found.id for found in await one.fetch_sockets(namespace="/room-1")} == {ada_sid, ben_sid}
    await one.disconnect(ben_sid, namespace="/room-1")
    assert await asyncio.wait_for(ben.recv(), 5) == "41/room-1,"
    for socket in (ada, ben):
        await socket.close()


async def test_nothing_is_subscribed_for_namespaces_that_are_gone(
    pair: tuple[Server, Server, int, int], redis: Redis, unique: str
) -> None:
    one, _, first, _ = pair
    before = await _heard(redis, unique)
    for at in range(20):  # more than there may be at once: the empty ones make room
        socket, sid = await _join(first, f"/room-{at}")
        await one.enter_room(sid, "harbour", namespace=f"/room-{at}")
        await socket.close()
        await until(lambda sid=sid, at=at: not one.is_connected(sid, namespace=f"/room-{at}"))  # type: ignore[misc]
    await until(lambda: set(one._core.spaces) == {"/"})

    async def quiet() -> None:
        while await _heard(redis, unique) != before:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(quiet(), 5)
    socket, _ = await _join(first, "/room-3")  # and it can come back
    await one.emit("news", 1, namespace="/room-3")
    assert await _event(socket) == ["news", 1]
    await socket.close()


@pytest.mark.parametrize("adapter", ["streams"])
async def test_client_of_a_dynamic_namespace_recovers_on_another_instance(
    pair: tuple[Server, Server, int, int],
) -> None:
    one, two, first, second = pair
    ada = await ws_connect(f"ws://127.0.0.1:{first}/socket.io/?EIO=4&transport=websocket")
    await ada.recv()
    await ada.send("40/room-1,")
    session = json.loads(str(await asyncio.wait_for(ada.recv(), 5)).partition(",")[2])
    await one.enter_room(session["sid"], "harbour", namespace="/room-1")
    await one.emit("news", 1, room="harbour", namespace="/room-1")
    offset = json.loads(str(await asyncio.wait_for(ada.recv(), 5)).partition(",")[2])[-1]
    ada.transport.abort()
    await until(lambda: not one.is_connected(session["sid"], namespace="/room-1"))
    await until(lambda: "/room-1" not in one._core.spaces)
    await two.emit("news", 2, room="harbour", namespace="/room-1")  # nobody is in it anywhere
    back = await ws_connect(f"ws://127.0.0.1:{second}/socket.io/?EIO=4&transport=websocket")
    await back.recv()
    await back.send("40/room-1," + json.dumps({"pid": session["pid"], "offset": offset}))
    answer = json.loads(str(await asyncio.wait_for(back.recv(), 5)).partition(",")[2])
    assert answer == session
    assert await _event(back) == ["news", 2]
    await one.emit("news", 3, room="harbour", namespace="/room-1")
    assert await _event(back) == ["news", 3]
    await back.close()


async def test_client_of_a_dynamic_namespace_moves_to_another_instance(pair: tuple[Server, Server, int, int]) -> None:
    one, two, _, second = pair
    wanderer = Wanderer(one)
    wanderer.client.receive("40/room-1,")
    await until(lambda: wanderer.client.sockets and not wanderer.client.sockets["/room-1"].connecting)
    await one.enter_room(wanderer.socket_sid, "harbour", namespace="/room-1")
    await wanderer.polling.take()
    wanderer.upgrade_at(two)
    await until(lambda: wanderer.websocket.got == ["3probe"])
    wanderer.switch()
    await until(lambda: two._core.clients and wanderer.websocket.is_read)
    await until(lambda: set(one._core.spaces) == {"/"})
    # It was never asked for here, and nobody else is in it: it must not be taken for empty.
    socket, _ = await _join(second, "/room-2")
    await socket.close()
    await until(lambda: "/room-2" not in two._core.spaces)
    await one.emit("news", 1, room="harbour", namespace="/room-1")
    await until(lambda: wanderer.events)
    assert wanderer.events[0][:2] == ["news", 1]
    wanderer.near.lost("transport close")
    await until(lambda: set(two._core.spaces) == {"/"})
