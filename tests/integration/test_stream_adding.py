"""Streams on a real server: adding, limits, times to live, retention, removing, describing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest

from flotta.errors import Closed, CommandError, InvalidName, NotStarted, PayloadTooLarge, StreamFull
from flotta.redis import Redis
from flotta.streaming import JSON, TEXT, DataclassCodec, RetentionPolicy, Stream


@pytest.fixture
async def stream(unique: str, redis: Redis) -> AsyncIterator[Stream[bytes]]:
    async with await Stream.open(f"add-{unique}", redis) as opened:
        yield opened


async def test_an_event_is_stored_as_pulse_stores_it(stream: Stream[bytes], redis: Redis) -> None:
    plain = await stream.add("created", b"\x00\xff")
    with_topic = await stream.add("created", b"2", topic="orders")
    assert await redis.link.call("XRANGE", f"pulse:stream:{stream.name}", "-", "+") == [
        [str(plain).encode(), [b"n", b"created", b"p", b"\x00\xff"]],
        [str(with_topic).encode(), [b"n", b"created", b"p", b"2", b"t", b"orders"]],
    ]


async def test_only_if_exists_adds_nothing_to_no_stream(stream: Stream[bytes]) -> None:
    assert await stream.add("a", b"", only_if_exists=True) is None
    assert not (await stream.info()).exists
    first = await stream.add("a", b"")
    second = await stream.add("b", b"", only_if_exists=True)
    assert second is not None
    assert (await stream.info()).length == 2
    assert first != second


async def test_many_events_keep_their_order(stream: Stream[bytes]) -> None:
    ids = await stream.add_many([("n", b"%d" % n) if n % 2 else ("n", b"%d" % n, "odd") for n in range(500)])
    async with stream.reader(start="oldest") as reader:
        events = [await anext(reader) for _ in range(500)]
    assert [event.id for event in events] == ids
    assert [event.payload for event in events] == [b"%d" % n for n in range(500)]
    assert await stream.add_many([]) == []


async def test_typed_payloads(unique: str, redis: Redis) -> None:
    @dataclasses.dataclass
    class Position:
        lat: float
        lon: float

    async with await Stream.open(f"typed-{unique}", redis, codec=DataclassCodec(Position)) as typed:
        await typed.add("moved", Position(44.4, 8.9))
        async with typed.reader(start="oldest") as reader:
            assert (await anext(reader)).payload == Position(44.4, 8.9)
    async with await Stream.open(f"typed-{unique}", redis, codec=JSON) as loose, loose.reader(start="oldest") as reader:
        assert (await anext(reader)).payload == {"lat": 44.4, "lon": 8.9}


async def test_too_large_an_event_is_refused_before_it_is_sent(unique: str, redis: Redis) -> None:
    async with await Stream.open(f"large-{unique}", redis, event_bytes_max=10) as small:
        await small.add("n", b"123456789")
        with pytest.raises(PayloadTooLarge) as caught:
            await small.add("n", b"1234567890")
        assert (caught.value.size, caught.value.size_max) == (11, 10)
        with pytest.raises(PayloadTooLarge):
            await small.add_many([("n", b""), ("n", b"1234567", "topic")])
        assert (await small.info()).length == 1


async def test_pulse_retention_keeps_about_maxlen(unique: str, redis: Redis) -> None:
    async with await Stream.open(f"maxlen-{unique}", redis, retain="maxlen", maxlen=200) as short:
        await short.add_many([("n", b"")] * 1000)
        assert 200 <= (await short.info()).length < 400


async def test_without_sinks_the_newest_maxlen_stay(unique: str, redis: Redis) -> None:
    async with await Stream.open(f"kept-{unique}", redis, maxlen=500) as kept:
        for _ in range(40):
            await kept.add_many([("n", b"")] * 100)
        assert 500 <= (await kept.info()).length <= 800
        assert kept.policy.check_every == 50


async def test_until_acked_keeps_what_a_sink_needs_and_trims_after_the_ack(unique: str, redis: Redis) -> None:
    async with await Stream.open(f"needed-{unique}", redis, maxlen=100) as kept, kept.sink("slow") as slow:
        first = await kept.add("first", b"")
        for _ in range(30):
            await kept.add_many([("n", b"")] * 100)
        info = await kept.info()
        assert info.first_id == first
        assert info.length == 3001
        taken = 0
        while taken < 3001:
            batch = await slow.batch()
            taken += len(batch)
            await slow.ack(*batch)
        await kept.add_many([("n", b"")] * 25)
        await kept.add("n", b"")  # its write follows the check that the 25 started
        assert (await kept.info()).length < 400


async def test_a_full_backlog_refuses_and_opens_again(unique: str, redis: Redis) -> None:
    options = {"maxlen": 50, "backlog_max": 500}
    async with await Stream.open(f"full-{unique}", redis, **options) as full, full.sink("slow") as slow:

        async def add_until_refused() -> None:
            for _ in range(1000):
                await full.add("n", b"")

        with pytest.raises(StreamFull) as caught:
            await add_until_refused()
        assert caught.value.backlog_max == 500
        length = (await full.info()).length
        assert 500 <= length <= 500 + 2 * full.policy.check_every
        taken = 0
        while taken < length:
            batch = await slow.batch()
            taken += len(batch)
            await slow.ack(*batch)
        async with asyncio.timeout(5):
            while True:
                try:
                    await full.add("n", b"")
                    break
                except StreamFull:
                    await asyncio.sleep(0.01)  # the full state is looked at 20 times a second
        info = await full.info()
        assert info.length < 200
        assert info.retention is not None
        assert info.retention.refused > 0
        assert info.retention.dropped == 0


async def test_a_full_backlog_goes_on_refusing(unique: str, redis: Redis) -> None:
    async with await Stream.open(f"full-{unique}", redis, maxlen=100, backlog_max=200) as full, full.sink("k"):
        refused = 0
        for n in range(1_000):
            try:
                await full.add("n", b"")
            except StreamFull:
                refused += 1
                if refused % 20 == 0:  # let some of the looks at the full stream fall due
                    await asyncio.sleep(0.06)
            if n == 500:
                with pytest.raises(StreamFull):
                    await full.add_many([("n", b"")])
        length = (await full.info()).length
        assert 200 <= length <= 200 + 2 * full.policy.check_every
        assert refused == 1_000 - length


async def test_overflow_drop_drops_the_oldest_and_counts(unique: str, redis: Redis) -> None:
    options = {"maxlen": 50, "backlog_max": 500, "overflow": "drop"}
    async with await Stream.open(f"drop-{unique}", redis, **options) as dropping, dropping.sink("never", buffer_max=1):
        for _ in range(200):
            await dropping.add_many([("n", b"")] * 10)
        info = await dropping.info()
        assert info.retention is not None
        assert 500 <= info.length <= 500 + 2 * dropping.policy.check_every + 10
        assert info.retention.dropped == 2000 - info.length


async def test_a_fixed_time_to_live_is_never_extended(unique: str, redis: Redis) -> None:
    async with await Stream.open(f"ttl-{unique}", redis, ttl_s=100) as fixed:
        await fixed.add("n", b"")
        await redis.link.call("PEXPIRE", fixed.key, 50_000)
        await fixed.add("n", b"")
        assert await redis.link.call("PTTL", fixed.key) <= 50_000


async def test_a_sliding_time_to_live_starts_anew_with_each_event(unique: str, redis: Redis) -> None:
    async with await Stream.open(f"ttl-{unique}", redis, ttl_s=100, sliding=True) as sliding:
        await sliding.add("n", b"")
        await redis.link.call("PEXPIRE", sliding.key, 50_000)
        await sliding.add_many([("n", b"")])
        assert await redis.link.call("PTTL", sliding.key) > 90_000


async def test_a_sink_gives_a_new_stream_its_time_to_live(unique: str, redis: Redis) -> None:
    async with await Stream.open(f"ttl-{unique}", redis, ttl_s=100) as fixed, fixed.sink("k"):
        assert 0 < await redis.link.call("PTTL", fixed.key) <= 100_000
        assert 0 < await redis.link.call("PTTL", f"map:stream:{fixed.name}:sinks:content") <= 100_000


async def test_removed_events_are_gone(stream: Stream[bytes]) -> None:
    ids = await stream.add_many([("n", b"1"), ("n", b"2"), ("n", b"3")])
    assert await stream.remove(ids[1], "1-1") == 1
    assert await stream.remove() == 0
    async with stream.reader(start="oldest") as reader:
        assert [(await anext(reader)).id, (await anext(reader)).id] == [ids[0], ids[2]]


async def test_destroying_leaves_nothing_but_the_maps_revision(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k"):
        await stream.add("n", b"")
    await stream.destroy()
    assert not (await stream.info()).exists
    left = await redis.link.call("HKEYS", f"map:stream:{stream.name}:sinks:content")
    assert set(left) <= {b"=rev", b"=kind"}
    await stream.destroy()


async def test_a_removed_sink_holds_nothing_back(unique: str, redis: Redis) -> None:
    async with await Stream.open(f"unsunk-{unique}", redis, maxlen=100) as kept:
        async with kept.sink("gone"):
            pass
        await kept.add_many([("n", b"")] * 1000)
        assert (await kept.info()).sinks["gone"].lag == 1000
        assert await kept.remove_sink("gone")
        assert not await kept.remove_sink("gone")
        await kept.add_many([("n", b"")] * 10)
        await kept.add("n", b"")
        assert (await kept.info()).length < 400


async def test_lag_and_pending_are_told(stream: Stream[bytes]) -> None:
    async with stream.sink("k", start="oldest", buffer_max=4) as sink:
        ids = await stream.add_many([("n", b"")] * 10)
        first = await anext(sink)
        info = (await stream.info()).sinks["k"]
        assert info.consumers == 1
        assert info.oldest_pending_id == first.id == ids[0]
        assert info.lag is not None
        assert info.pending + info.lag == 10


async def test_a_namespace_keeps_streams_apart(unique: str, valkey_url: str, redis: Redis) -> None:
    staging = Redis.from_url(valkey_url, namespace=f"staging-{unique}:")
    async with staging, await Stream.open(unique, staging) as inside, inside.sink("k") as sink:
        assert inside.key == f"staging-{unique}:pulse:stream:{unique}"
        await inside.add("n", b"x")
        await sink.ack(await anext(sink))
        keys = await redis.link.call("KEYS", f"*{unique}*")
    assert all(key.startswith(f"staging-{unique}:".encode()) for key in keys)
    assert len(keys) >= 2


async def test_a_stream_before_start_and_after_close(unique: str, valkey_url: str, redis: Redis) -> None:
    unstarted: Stream[str] = Stream(unique, codec=TEXT)
    with pytest.raises(NotStarted):
        await unstarted.add("n", "x")
    await unstarted.start(valkey_url)
    await unstarted.start(valkey_url)
    assert await unstarted.add("n", "x")
    await unstarted.aclose()
    await unstarted.aclose()
    with pytest.raises(Closed):
        await unstarted.add("n", "x")
    never: Stream[bytes] = Stream(unique)
    await never.aclose()
    with pytest.raises(Closed):
        await never.start(redis)


async def test_another_kind_of_key_is_the_servers_error(unique: str, redis: Redis) -> None:
    await redis.link.call("SET", f"pulse:stream:{unique}", "text")
    async with await Stream.open(unique, redis, retain="maxlen") as wrong:
        with pytest.raises(CommandError, match="WRONGTYPE"):
            await wrong.add("n", b"")


@pytest.mark.parametrize(
    "wrong",
    [
        {"maxlen": 0},
        {"retain": "all"},
        {"overflow": "wait"},
        {"backlog_max": 10_000},
        {"ttl_s": 0},
        {"event_bytes_max": 0},
    ],
)
def test_options_that_make_no_sense_stop_at_birth(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Stream("s", **wrong)


def test_a_name_that_pulse_refuses_stops_at_birth() -> None:
    with pytest.raises(InvalidName):
        Stream("a b")


def test_the_check_interval_is_a_tenth_of_the_room() -> None:
    assert RetentionPolicy().check_every == 1000
    assert RetentionPolicy(maxlen=100, backlog_max=150).check_every == 5
    assert RetentionPolicy(maxlen=1, backlog_max=2).check_every == 1
