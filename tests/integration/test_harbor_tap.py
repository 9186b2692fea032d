"""Harbor's tap on a real stream: a follower gets every fix of its vessel once, in order, wherever it begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from flotta.redis import Redis
from flotta.streaming import JSON, Stream
from harbor.positions import tap as tap_module
from harbor.positions.fix import Fix, fixes_to_wire
from harbor.positions.tap import Follower, Place, Tap, place_of

START: Place = (0, 0)


class Feed:
    """Events with a fix of each of some vessels, numbered by their times."""

    def __init__(self, stream: Stream[Any], vessels: tuple[str, ...] = ("a", "b")) -> None:
        self.stream = stream
        self._vessels = vessels
        self.count = 0
        self.places: list[Place] = []

    async def add(self, events: int) -> None:
        for _ in range(events):
            self.count += 1
            fixes = [Fix(vessel, self.count, 40.0, -74.0) for vessel in self._vessels]
            event_id = await self.stream.add("positions", fixes_to_wire(fixes))
            assert event_id is not None
            self.places.append(place_of(event_id))


@asynccontextmanager
async def tapped(redis: Redis, unique: str) -> AsyncIterator[tuple[Feed, Tap]]:
    stream: Stream[Any] = await Stream.open(f"positions-{unique}", redis, codec=JSON)
    tap = Tap(stream)
    running = asyncio.create_task(tap.run(), name="the tap of the test")
    try:
        yield Feed(stream), tap
    finally:
        running.cancel()
        await asyncio.wait({running})
        await stream.destroy()
        await stream.aclose()


async def times(follower: Follower, up_to: int) -> list[int]:
    """The times of the fixes that come, until the one of ``up_to``."""
    seen: list[int] = []
    async with asyncio.timeout(10):
        while not seen or seen[-1] < up_to:
            seen += [fix.time_ms for fix in await follower.batch(1.0)]
    return seen


async def until_read(tap: Tap, place: Place) -> None:
    async with asyncio.timeout(10):
        async with tap.following("whoever", after=START):
            pass
        while tap.place is None or tap.place < place:
            await asyncio.sleep(0)


@pytest.mark.parametrize("kept", [0, 1, 7, 20])
async def test_a_follower_goes_on_after_the_event_at_which_another_stopped(
    redis: Redis, unique: str, kept: int
) -> None:
    async with tapped(redis, unique) as (feed, tap):
        await feed.add(20)
        await until_read(tap, feed.places[-1])
        async with tap.following("a", after=feed.places[kept - 1] if kept else START) as follower:
            await feed.add(5)
            assert await times(follower, 25) == list(range(kept + 1, 26))
            assert follower.place == feed.places[-1]


async def test_many_that_begin_at_once_read_the_past_together(redis: Redis, unique: str) -> None:
    async with tapped(redis, unique) as (feed, tap):
        await feed.add(30)
        await until_read(tap, feed.places[-1])

        async def one(kept: int) -> None:
            async with tap.following("ab"[kept % 2], after=feed.places[kept - 1]) as follower:
                assert await times(follower, 30) == list(range(kept + 1, 31))

        await asyncio.gather(*(one(kept) for kept in range(1, 30) for _ in range(4)))
        assert tap.again.passes <= 3


async def test_who_cannot_keep_up_is_put_back_to_the_stream_and_misses_nothing(
    redis: Redis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_module, "WAITING_MAX", 10)
    async with tapped(redis, unique) as (feed, tap):
        await feed.add(1)
        await until_read(tap, feed.places[-1])
        async with tap.following("a", after=START) as follower:
            assert await times(follower, 1) == [1]
            await feed.add(35)
            await until_read(tap, feed.places[-1])
            assert await times(follower, 36) == list(range(2, 37))
            assert tap.again.passes >= 2


async def test_a_follower_that_is_ahead_of_the_tap_waits_for_it(redis: Redis, unique: str) -> None:
    async with tapped(redis, unique) as (feed, tap):
        await feed.add(1)
        await until_read(tap, feed.places[-1])
        ahead = (feed.places[0][0] + 3_600_000, 0)
        async with tap.following("a", after=ahead) as follower:
            await feed.add(3)
            await until_read(tap, feed.places[-1])
            assert await follower.batch(0.01) == []
            assert follower.place == ahead


async def test_waiting_ends_when_nothing_comes(redis: Redis, unique: str) -> None:
    async with tapped(redis, unique) as (feed, tap):
        await feed.add(2)
        await until_read(tap, feed.places[-1])
        async with tap.following("of nobody", after=START) as follower:
            assert await follower.batch(0.01) == []
            assert await follower.batch(0.01) == []
            assert follower.place == feed.places[-1]


async def test_a_tap_that_crashed_goes_on_where_it_was(redis: Redis, unique: str) -> None:
    async with tapped(redis, unique) as (feed, _):
        tap = Tap(feed.stream)
        first = asyncio.create_task(tap.run())
        await feed.add(1)
        await until_read(tap, feed.places[-1])
        async with tap.following("a", after=START) as follower:
            assert await times(follower, 1) == [1]
            first.cancel()
            await asyncio.wait({first})
            await feed.add(3)
            second = asyncio.create_task(tap.run())
            assert await times(follower, 4) == [2, 3, 4]
            second.cancel()
            await asyncio.wait({second})
