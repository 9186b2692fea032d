"""The classic adapter on a real Redis: what crosses instances, and what junk on its channels does."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgpack
import pytest

from flotta.realtime import Server
from flotta.realtime.engineio.handshake import Facts
from flotta.redis import Redis
from realtime_fixtures import until
from realtime_members import attach


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.fixture
async def pair(redis: Redis, unique: str) -> Any:
    """Two instances with a prefix of their own, a client on each."""
    one, two = Server(redis, channel_prefix=unique), Server(redis, channel_prefix=unique)
    await one.start()
    await two.start()
    yield one, two, await attach(one), await attach(two)
    await one.aclose()
    await two.aclose()


async def test_junk_on_the_channels_is_counted_and_the_next_broadcast_arrives(
    pair: Any, redis: Redis, unique: str
) -> None:
    one, two, _, second = pair
    nan = msgpack.packb(["other", {"type": 2, "data": ["e", float("nan")], "nsp": "/"}, {"rooms": [], "except": []}])
    junk = [
        b"",
        b"{",
        b"\xc1",
        b"\x93\x01\x02\x03",
        msgpack.packb(["u", {"type": 2, "data": []}, {}]),
        nan,
        b"x" * 10_000,
        b"\x91" * 900 + b"\x01",  # deep
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million
        msgpack.packb(["u", {"type": 2, "data": ["e", _deep(500)], "nsp": "/"}, {"rooms": [_deep(400)]}]),
        msgpack.packb(["u", {"type": 2, "data": ["e"], "nsp": "/"}, {"rooms": [{}]}]),
        msgpack.packb(["u", {"type": 2, "data": ["e"], "nsp": "/"}, {"flags": 5}]),
    ]
    requests = [
        b'{"type":99}',
        b"junk",
        b"[" * 50_000,
        b'{"type":2,"opts":{"rooms":[]},"rooms":5}',
        b'{"type":2,"opts":{"rooms":[]},"rooms":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"type":3,"opts":[1]}',
        b'{"type":4,"uid":[]}',
        b'{"type":4,"sid":{}}',
        b'{"type":5,"requestId":{},"opts":{}}',
        b'{"type":7,"requestId":"a","opts":{"flags":{"timeout":1}},"packet":{"data":["e",NaN]}}',
    ]
    for payload in junk:
        await redis.publish(f"{unique}#/#", payload)
    for payload in requests:
        await redis.publish(f"{unique}-request#/#", payload)
    for timeout in (math.nan, -1, math.inf, 1e300, "x"):  # the question is good, its timeout is not
        question = {"type": 7, "requestId": "a", "opts": {"flags": {"timeout": timeout}}, "packet": {"data": ["q"]}}
        await redis.publish(f"{unique}-request#/#", msgpack.packb(question))
    await one.emit("after", 1)
    await until(lambda: '42["after",1]' in second.got[-1:])
    assert [packet for packet in second.got if '["q"]' not in packet] == ['42["after",1]']
    assert two.stats.adapter.junk == len(junk) + len(requests)
    assert two.stats.adapter.received == 2  # the one with NaN is well-formed, and cannot be sent on


async def test_broadcast_for_a_room_without_members_here_is_not_even_read(pair: Any) -> None:
    one, two, *_ = pair
    await one.emit("e", 1, room="empty")
    await one.emit("e", 2)
    await until(lambda: two.stats.adapter.received == 1)
    assert one.stats.adapter.published == 2


async def test_url_may_be_given_by_name(valkey_url: str, unique: str) -> None:
    async with (
        Server(redis_url=valkey_url, channel_prefix=unique) as one,
        Server(valkey_url, channel_prefix=unique) as two,
    ):
        assert await one.server_count() == await two.server_count() == 2
    with pytest.raises(TypeError, match="either redis or redis_url="):
        Server(valkey_url, redis_url=valkey_url)


async def test_server_that_shares_a_redis_serves_polling_if_it_relays_or_is_told(redis: Redis, unique: str) -> None:
    polling = Facts("GET", upgrade=False, version="4", transport="polling", sid="", origin=None, host="x")
    for options, allowed in (({"relay": False}, False), ({"transports": ("polling", "websocket")}, True), ({}, True)):
        sio = Server(redis, channel_prefix=unique, **options)
        await sio.start()
        assert (sio._core.admit(polling) is None) is allowed
        await sio.aclose()
    alone = Server()
    await alone.start()
    assert alone._core.admit(polling) is None
    await alone.aclose()


async def test_local_emit_and_emit_to_an_own_client_publish_nothing(pair: Any) -> None:
    one, two, first, second = pair
    sid = next(iter(one._core.spaces["/"].rooms))
    await one.emit("local", local=True)
    await one.emit("direct", to=sid)
    await one.emit("end")
    await until(lambda: '42["end"]' in second.got)
    assert first.got == ['42["local"]', '42["direct"]', '42["end"]']
    assert second.got == ['42["end"]']
    assert one.stats.adapter.published == 1
    assert two.stats.adapter.published == 0


async def test_emit_waits_when_too_many_broadcasts_are_in_flight(redis: Redis, unique: str) -> None:
    sio = Server(redis, channel_prefix=unique, publish_in_flight_max=10)
    await sio.start()
    most = 0

    async def emit(number: int) -> None:
        nonlocal most
        await sio.emit("e", number)
        assert sio.stats.adapter is not None
        most = max(most, sio.stats.adapter.in_flight)

    for number in range(500):
        await emit(number)
    assert most <= 10
    adapter = sio.stats.adapter
    assert adapter is not None
    assert (adapter.published, adapter.publish_lost) == (500, 0)
    await sio.aclose()


async def test_close_room_and_disconnect_reach_the_other_instance(pair: Any) -> None:
    one, two, _, second = pair
    sid = next(iter(two._core.spaces["/"].rooms))
    await two.enter_room(sid, "r")
    await one.close_room("r")
    await until(lambda: two.rooms(sid) == [sid])
    await one.disconnect(sid)
    await until(lambda: not two.is_connected(sid))
    assert second.got[-1] == "41"
    await asyncio.sleep(0)


async def test_numbers_and_strings_of_javascript_reach_the_other_instance(pair: Any) -> None:
    one, _two, first, second = pair
    await one.emit("e", (2**70, "\ud800 alone", {1: None}))
    await until(lambda: len(second.got) == 1)
    assert first.got == ['42["e",1180591620717411303424,"\\ud800 alone",{"1":null}]']
    assert second.got == ['42["e",1.1805916207174113e+21,"\\ud800 alone",{"1":null}]']
    for wrong in (_deep(5_000), 10**400, float("nan"), object()):
        with pytest.raises((TypeError, ValueError)):
            await one.emit("wrong", wrong)
    await one.emit("end")
    await until(lambda: '42["end"]' in second.got)
    assert first.got[1:] == second.got[1:] == ['42["end"]']


async def test_drain_ends_for_its_caller_when_the_server_is_closed_meanwhile(valkey_url: str, unique: str) -> None:
    sio = Server(valkey_url, channel_prefix=unique, drain_clients_per_s=1)
    await sio.start()
    for _ in range(20):
        await attach(sio)
    draining = asyncio.create_task(sio.drain(30))
    await until(lambda: not sio.running)
    closing = asyncio.create_task(sio.aclose())
    await asyncio.sleep(0)
    closing.cancel()  # who is cancelled half way leaves the rest to the next
    await asyncio.gather(closing, sio.aclose(), sio.aclose(), return_exceptions=True)
    await asyncio.wait_for(draining, 5)
    assert sio._redis_owned is None
    assert sio.stats.connections == 0
