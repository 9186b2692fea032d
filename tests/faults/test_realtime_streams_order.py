"""What a server emits around the loss of Redis, as its own clients get it: in order and once, as far as it is known
that Redis has not got it. What may be in the stream is left to the stream.

With ``in_flight_max=1`` a Redis that stands still has been given the first event, and the link holds the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from flotta.realtime import Server
from flotta.realtime.adapters import AdapterStats
from flotta.redis import LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy
from free_ports import free_port
from realtime_fixtures import serving, until
from realtime_recovery_places import connections
from realtime_recovery_stage import Raw

__all__ = ["connections"]

pytestmark = pytest.mark.faults

LOST = "a broadcast was lost on its way"


class Logs:
    """What a server says, with all that it says of it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda what, **facts: self.said.append((level, what, facts))


class Narrow(NamedTuple):
    """A server whose link lets one command at a time through."""

    sio: Server
    redis: Redis
    client: Raw
    logs: Logs

    @property
    def stats(self) -> AdapterStats:
        found = self.sio.stats.adapter
        assert found is not None
        return found

    async def emit(self, *numbers: int, **options: Any) -> None:
        for number in numbers:
            await self.sio.emit("n", number, **options)

    async def hear(self, *numbers: int) -> None:
        """The client gets exactly these next."""
        assert [(await self.client.event())[:2] for _ in numbers] == [["n", number] for number in numbers]

    async def stand_still(self, valkey: EmbeddedRedis) -> None:
        """Redis says nothing any more; what is in flight now is event 0."""
        valkey.pause()
        await self.emit(0)
        await until(lambda: self.redis.link.stats.in_flight == 1)


@asynccontextmanager
async def narrow(url: str, prefix: str, *, timeout_s: float = 20.0, **options: Any) -> AsyncIterator[Narrow]:
    link = LinkOptions(in_flight_max=1, command_timeout_s=timeout_s, reconnect_max_s=0.2)
    logs = Logs()
    async with await Redis.from_url(url, options=link).connect() as redis:
        names = {"adapter": "streams", "stream_name": prefix, "channel_prefix": prefix}
        sio = Server(redis, relay=False, logger=logs, **{**names, **options})
        async with serving(sio, native=True) as port:
            yield Narrow(sio, redis, await Raw.join(port), logs)


async def test_what_the_link_held_when_redis_died_comes_before_what_is_emitted_afterwards(unique: str) -> None:
    with EmbeddedRedis(port=free_port()) as valkey:
        async with narrow(valkey.url, unique) as one:
            await one.emit(-2, -1)
            await one.hear(-2, -1)
            await one.stand_still(valkey)
            await one.emit(1, 2, 3)
            valkey.kill()
            await until(lambda: not one.redis.link.connected)
            await one.emit(4, 5)
            await one.hear(1, 2, 3, 4, 5)  # 0 was written, and may have run: it is in no stream, and lost
            await until(lambda: one.stats.in_flight == 0)
            assert one.stats.publish_lost == 6
            await valkey.start()
            await until(lambda: one.stats.connected)
            await one.emit(6)
            await one.hear(6)  # and nothing twice
            told = [(facts["so_far"], facts["reason"]) for _, what, facts in one.logs.said if what == LOST]
            assert [so_far for so_far, _ in told] == [1, 2, 4]
            assert "may have run" in told[0][1]
            assert told[1][1] == "the connection broke before it was written"


async def test_what_the_link_held_reaches_a_client_before_it_leaves_the_room(unique: str) -> None:
    with EmbeddedRedis() as valkey:
        async with narrow(valkey.url, unique, recovery_s=None) as one:
            sid = one.client.ids["sid"]
            await one.sio.enter_room(sid, "r")
            await one.stand_still(valkey)
            await one.emit(1, room="r")
            valkey.kill()
            await until(lambda: not one.redis.link.connected)
            async with asyncio.timeout(5):  # it is not waited for Redis
                await one.sio.leave_room(sid, "r")
            await one.emit(2)
            await one.hear(1, 2)


async def test_what_the_link_held_goes_into_the_stream_if_redis_is_back_before_the_next_event(unique: str) -> None:
    with EmbeddedRedis() as valkey:
        async with (
            FaultProxy(valkey.url) as proxy,
            narrow(proxy.url, unique) as one,
            narrow(valkey.url, unique) as other,
        ):
            await one.stand_still(valkey)
            await one.emit(1, 2)
            proxy.cut()
            await until(lambda: not one.redis.link.connected)
            valkey.resume()
            await one.hear(0, 1, 2)  # Redis had got 0
            await other.hear(0, 1, 2)
            await until(lambda: one.stats.connected)
            await one.emit(3)
            await one.hear(3)
            await other.hear(3)
            assert one.stats.publish_lost == 1  # nobody has said that 0 ran


async def test_what_waited_too_long_reaches_the_own_clients_in_its_order(unique: str) -> None:
    with EmbeddedRedis() as valkey:
        async with narrow(valkey.url, unique, timeout_s=1.0) as one:
            await one.stand_still(valkey)
            await one.emit(1, 2, 3)
            await one.hear(1, 2, 3)
            valkey.resume()
            await one.hear(0)  # it was in the stream all the time
            await until(lambda: one.stats.connected)
            await one.emit(4)
            await one.hear(4)


@pytest.mark.parametrize("adapter", ["classic", "sharded", "streams"])
async def test_what_is_lost_on_its_way_is_told_with_its_number_and_a_cure_and_never_with_what_it_said(
    unique: str, adapter: str
) -> None:
    with EmbeddedRedis() as valkey:
        async with narrow(valkey.url, unique, adapter=adapter, timeout_s=1.0) as one:
            valkey.pause()
            for _ in range(9):
                await one.sio.emit("secret", "hush", room="private")
            await until(lambda: one.stats.publish_lost == 9)
            told = [(level, facts) for level, what, facts in one.logs.said if what == LOST]
            assert [(level, facts["so_far"]) for level, facts in told] == [("warning", n) for n in (1, 2, 4, 8)]
            assert all(facts["cure"] and facts["reason"] for _, facts in told)
            everything = repr(one.logs.said)
            assert not any(word in everything for word in ("secret", "hush", "private"))
            valkey.resume()
            await until(lambda: one.stats.connected)
