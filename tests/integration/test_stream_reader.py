"""Readers on a real server: where they start, filters, several streams, back-pressure, one connection for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from flotta.errors import Closed, CommandError, NotStarted
from flotta.redis import Redis
from flotta.streaming import ReaderOptions, Stream


@pytest.fixture
async def stream(unique: str, redis: Redis) -> AsyncIterator[Stream[bytes]]:
    async with await Stream.open(f"read-{unique}", redis) as opened:
        yield opened


async def blocked_clients(redis: Redis, name: str) -> int:
    """Connections called ``name`` that wait in a blocking command now."""
    listed = await redis.link.call("CLIENT", "LIST")
    lines = (listed if isinstance(listed, bytes) else str(listed).encode()).decode().splitlines()
    return sum(f"name={name} " in line and "flags=b" in line for line in lines)


async def until_blocked(redis: Redis, name: str = "readers", count: int = 1) -> None:
    async with asyncio.timeout(5):
        while await blocked_clients(redis, name) != count:
            await asyncio.sleep(0)


async def test_a_new_reader_sees_what_is_added_from_its_start_on(stream: Stream[bytes]) -> None:
    await stream.add("old", b"")
    async with stream.reader() as reader:
        ids = [await stream.add("n", b"%d" % n) for n in range(20)]
        assert [(await anext(reader)).id for _ in range(20)] == ids


async def test_new_is_resolved_once_also_on_a_stream_that_is_not_there_yet(stream: Stream[bytes]) -> None:
    async with stream.reader() as reader:
        assert reader.cursors == {stream.name: "0-0"}
        first = await stream.add("n", b"")
        assert (await anext(reader)).id == first


async def test_every_reader_sees_every_event(stream: Stream[bytes]) -> None:
    async with stream.reader() as one, stream.reader() as two:
        ids = await stream.add_many([("n", b"")] * 50)
        for reader in (one, two):
            assert [(await anext(reader)).id for _ in range(50)] == ids
            assert reader.stats.delivered == 50


async def test_where_a_reader_starts(stream: Stream[bytes], redis: Redis) -> None:
    for ms in (1000, 2000, 2000, 3000):
        await redis.link.call("XADD", stream.key, f"{ms}-*", "n", "n", "p", b"")
    all_ids = ["1000-0", "2000-0", "2000-1", "3000-0"]
    async with stream.reader(start="oldest") as reader:
        events = [await anext(reader) for _ in range(4)]
        assert [event.id for event in events] == all_ids
    async with stream.reader(start="2000-0") as reader:
        assert [(await anext(reader)).id for _ in range(2)] == all_ids[2:]
    async with stream.reader(start=events[1].time) as reader:
        assert [(await anext(reader)).id for _ in range(3)] == all_ids[1:]
    async with stream.reader(start=events[1].time + timedelta(milliseconds=1)) as reader:
        assert (await anext(reader)).id == "3000-0"


async def test_topic_and_pattern(stream: Stream[bytes]) -> None:
    async with stream.reader(topic="b") as named, stream.reader(pattern="^[ab]$") as matched:
        for topic in ("a", "b", "c", None, "b"):
            await stream.add("n", b"", topic=topic)
        assert [(await anext(named)).topic for _ in range(2)] == ["b", "b"]
        assert [(await anext(matched)).topic for _ in range(3)] == ["a", "b", "b"]
        assert named.stats.filtered == 3


async def test_one_reader_of_several_streams(unique: str, redis: Redis, stream: Stream[bytes]) -> None:
    async with (
        await Stream.open(f"other-{unique}", redis) as other,
        await Stream.open(f"third-{unique}", redis) as third,
        stream.reader(other) as reader,
        asyncio.timeout(3),  # less than a blocking read lasts: a change of streams ends the one under way
    ):
        await stream.add("n", b"1")
        assert (await anext(reader)).stream == stream.name
        await other.add("n", b"2")
        assert (await anext(reader)).stream == other.name
        await until_blocked(redis)
        reads = reader.stats.reads
        await reader.add_stream(third)
        await reader.add_stream(third)
        while reader.stats.reads == reads:
            await asyncio.sleep(0)
        await third.add("n", b"3")
        assert (await anext(reader)).payload == b"3"
        await reader.remove_stream(other)
        await other.add("n", b"not read")
        await stream.add("n", b"4")
        assert (await anext(reader)).payload == b"4"
        assert set(reader.cursors) == {stream.name, third.name}


async def test_all_readers_of_a_process_wait_on_one_connection(unique: str, valkey_url: str) -> None:
    async with Redis.from_url(valkey_url) as own:
        streams = [await Stream.open(f"many-{unique}-{n}", own) for n in range(20)]
        readers = [stream.reader() for stream in streams]
        for reader in readers:
            await reader.start()
        await until_blocked(own)
        for _ in range(3):
            for stream, reader in zip(streams, readers, strict=True):
                event_id = await stream.add("n", b"")
                assert (await anext(reader)).id == event_id
        await until_blocked(own)
        for reader in readers:
            await reader.aclose()
        await until_blocked(own, count=0)


async def test_a_replay_does_not_hold_up_a_reader_at_the_end(stream: Stream[bytes]) -> None:
    for _ in range(10):
        await stream.add_many([("old", b"")] * 1000)
    async with stream.reader() as live, stream.reader(start="oldest", buffer_max=10) as replay:
        await anext(replay)
        new = await stream.add("new", b"")
        assert (await anext(live)).id == new
        assert replay.stats.delivered < 100


async def test_a_full_buffer_stops_reading_and_loses_nothing(stream: Stream[bytes]) -> None:
    ids = await stream.add_many([("n", b"")] * 300)
    async with stream.reader(start="oldest", buffer_max=10, polled_max=7) as reader:
        seen = []
        async for event in reader:
            seen.append(event.id)
            assert reader.stats.buffered <= 10
            if len(seen) == 300:
                break
    assert seen == ids


async def test_a_cancelled_wait_takes_no_event_with_it(stream: Stream[bytes]) -> None:
    async with stream.reader(start="oldest") as reader:
        seen: list[str] = []
        ids: list[str] = []
        for n in range(200):
            waiting = asyncio.create_task(reader.batch(3, wait_s=0.001) if n % 2 else anext(reader))
            ids.append(str(await stream.add("n", b"")))
            if n % 3:
                await asyncio.sleep(0)
            waiting.cancel()
            try:
                found = await waiting
            except asyncio.CancelledError:
                continue
            seen += [event.id for event in found] if isinstance(found, list) else [found.id]
        while len(seen) < 200:
            seen.append((await anext(reader)).id)
        assert seen == ids


async def test_a_batch_ends_when_full_or_when_its_time_is_over(stream: Stream[bytes]) -> None:
    async with stream.reader() as reader:
        await stream.add_many([("n", b"")] * 10)
        assert len(await reader.batch(4, wait_s=5)) == 4
        assert len(await reader.batch(4, wait_s=5)) == 4
        assert len(await reader.batch(4, wait_s=0.05)) == 2
        waiting = asyncio.create_task(reader.batch(4))
        await stream.add("n", b"")
        assert len(await waiting) == 1
        ended = asyncio.create_task(reader.batch(4))
        await asyncio.sleep(0)
    assert await ended == []


async def test_iterating_ends_when_the_reader_is_closed(stream: Stream[bytes]) -> None:
    reader = stream.reader()
    with pytest.raises(NotStarted):
        await anext(reader)
    await reader.start()
    await reader.start()
    waiting = asyncio.create_task(anext(reader, None))
    await asyncio.sleep(0)
    await reader.aclose()
    await reader.aclose()
    assert await waiting is None
    with pytest.raises(Closed):
        await reader.start()


async def test_a_destroyed_stream_begins_anew_for_its_readers(stream: Stream[bytes], redis: Redis) -> None:
    await redis.link.call("XADD", stream.key, "9000000000000-0", "n", "n", "p", b"from the future")
    async with stream.reader(block_s=0.1) as reader:
        await stream.destroy()
        first = await stream.add("n", b"again")
        event = await anext(reader)
        assert (event.id, event.payload) == (first, b"again")
        assert reader.stats.resets == 1


async def test_an_error_that_would_come_again_reaches_who_iterates(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.reader(block_s=0.1) as reader:
        await stream.add("n", b"")
        await anext(reader)
        await redis.link.call("SET", stream.key, "text")
        with pytest.raises(CommandError, match="WRONGTYPE"):
            await anext(reader)


@pytest.mark.parametrize(
    "wrong",
    [{"block_s": 0}, {"polled_max": 0}, {"buffer_max": 0}, {"topic": ""}, {"start": "yesterday"}, {"pattern": "["}],
)
def test_options_that_make_no_sense_stop_at_birth(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ReaderOptions(**wrong)
