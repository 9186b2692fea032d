"""Sinks on a real server: sharing, acks, redelivery, dead consumers, dead letters, gaps, leaving."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from flotta.errors import Closed, CommandError, NotStarted
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.rmap import Map
from flotta.streaming import Sink, SinkOptions, Stream
from flotta.streaming.event import keepalive_map_name

GRACE_S = 0.3
FAR_NS = 4_102_444_800 * 10**9


@pytest.fixture
async def stream(unique: str, redis: Redis) -> AsyncIterator[Stream[bytes]]:
    async with await Stream.open(f"sink-{unique}", redis) as opened:
        yield opened


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def pending(stream: Stream[bytes], sink: str) -> int:
    return (await stream.info()).sinks[sink].pending


async def lone_consumer(redis: Redis, stream: Stream[bytes], sink: str, count: int = 100) -> str:
    """A consumer that reads and is never heard of again: what a killed process leaves."""
    await redis.link.call("XREADGROUP", "GROUP", sink, "01GONE", "COUNT", count, "STREAMS", stream.key, ">")
    return "01GONE"


async def test_each_event_goes_to_one_consumer(stream: Stream[bytes]) -> None:
    async with (
        stream.sink("k", polled_max=10, buffer_max=10) as one,
        stream.sink("k", polled_max=10, buffer_max=10) as two,
    ):
        seen: Counter[str] = Counter()
        takers: Counter[str] = Counter()

        async def take(sink: Sink[bytes]) -> None:
            async for event in sink:
                seen[event.id] += 1
                takers[sink.consumer] += 1
                await sink.ack(event)

        tasks = [asyncio.create_task(take(one)), asyncio.create_task(take(two))]
        ids: list[str] = []
        for _ in range(50):
            ids += await stream.add_many([("n", b"")] * 10)
            await asyncio.sleep(0)
        await until(lambda: len(seen) == 500)
        assert seen == Counter(ids)
        assert len(takers) == 2
        assert await pending(stream, "k") == 0
    await asyncio.gather(*tasks)


async def test_every_sink_gets_every_event(stream: Stream[bytes]) -> None:
    async with stream.sink("a") as a, stream.sink("b") as b:
        ids = await stream.add_many([("n", b"")] * 20)
        for sink in (a, b):
            assert [(await anext(sink)).id for _ in range(20)] == ids


async def test_acks_of_one_tick_leave_in_one_command(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k") as sink:
        await stream.add_many([("n", b"")] * 100)
        events = [await anext(sink) for _ in range(100)]
        before = redis.link.stats.commands
        await asyncio.gather(*(sink.ack(event) for event in events))
        assert redis.link.stats.commands - before <= 3
        assert await pending(stream, "k") == 0
        assert sink.stats.acked == 100


async def test_no_ack_leaves_nothing_pending(stream: Stream[bytes]) -> None:
    async with stream.sink("k", no_ack=True) as sink:
        await stream.add("n", b"")
        event = await anext(sink)
        await sink.ack(event)
        assert await pending(stream, "k") == 0


async def test_an_event_not_acked_comes_again_after_the_grace_period(stream: Stream[bytes]) -> None:
    async with stream.sink("k", ack_grace_s=GRACE_S) as sink:
        began_s = asyncio.get_running_loop().time()
        await stream.add("n", b"")
        first = await anext(sink)
        again = await anext(sink)
        waited_s = asyncio.get_running_loop().time() - began_s
        assert (again.id, first.deliveries, again.deliveries) == (first.id, 1, 2)
        assert GRACE_S * 0.9 <= waited_s < GRACE_S + 5
        await sink.ack(again)
        assert sink.stats.redelivered == 1


async def test_an_event_that_waits_in_a_buffer_is_not_delivered_twice(stream: Stream[bytes]) -> None:
    async with stream.sink("k", ack_grace_s=GRACE_S) as slow, stream.sink("k", ack_grace_s=GRACE_S) as idle:
        await stream.add_many([("n", b"")] * 100)
        await until(lambda: slow.stats.buffered + idle.stats.buffered == 100)
        await asyncio.sleep(4 * GRACE_S)  # the fact under test is that nothing happens in this time
        assert slow.stats.redelivered + idle.stats.redelivered == 0
        for sink in (slow, idle):
            while sink.stats.buffered:
                event = await anext(sink)
                assert event.deliveries == 1
                await sink.ack(event)


async def test_a_buffered_event_that_somebody_took_over_is_not_handed_out(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k", ack_grace_s=GRACE_S, max_deliveries=None) as sink:
        await stream.add_many([("n", b"")] * 10)
        await until(lambda: sink.stats.buffered == 10)
        ids = [entry[0] for entry in await redis.link.call("XRANGE", stream.key, "-", "+")]
        await redis.link.call("XCLAIM", stream.key, "k", "another", 0, *ids[:5], "JUSTID")
        await until(lambda: sink.stats.buffered == 5)
        assert [(await anext(sink)).id.encode() for _ in range(5)] == ids[5:]


async def test_a_dead_consumers_events_are_claimed_before_it_is_deleted(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k", start="oldest", ack_grace_s=GRACE_S) as sink:
        await sink.remove_stream(stream)  # so that the lone consumer gets all
        await redis.link.call("XGROUP", "SETID", stream.key, "k", "$")
        ids = await stream.add_many([("n", b"%d" % n) for n in range(100)])
        await lone_consumer(redis, stream, "k")
        await sink.add_stream(stream)
        events = [await anext(sink) for _ in range(100)]
        assert [event.id for event in events] == ids
        assert {event.deliveries for event in events} == {2}
        await sink.ack(*events)
        await until(lambda: sink.stats.forgotten == 1)
        assert (await stream.info()).sinks["k"].consumers == 1


async def test_a_silent_consumer_with_a_fresh_keepalive_is_not_deleted(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k", ack_grace_s=GRACE_S) as sink:
        await lone_consumer(redis, stream, "k", 0)
        keepalive: Map[str] = await Map.join(keepalive_map_name("k"), redis)
        await keepalive.set("01GONE", str(FAR_NS))
        await redis.link.call("XGROUP", "CREATECONSUMER", stream.key, "k", "01GONE")
        await asyncio.sleep(4 * GRACE_S)  # the fact under test is that nothing happens in this time
        assert sink.stats.forgotten == 0
        assert (await stream.info()).sinks["k"].consumers == 2
        await keepalive.set("01GONE", "0")
        await until(lambda: sink.stats.forgotten == 1)
        await until(lambda: keepalive.get("01GONE") is None)  # this copy hears of it a moment later
        await keepalive.aclose()


async def test_after_max_deliveries_an_event_is_a_dead_letter_and_can_be_redriven(stream: Stream[bytes]) -> None:
    options = {"ack_grace_s": GRACE_S, "max_deliveries": 2}
    async with stream.sink("k", **options) as sink, stream.sink("other", **options) as other:
        event_id = await stream.add("poison", b"\xff", topic="t")
        await stream.add("good", b"")
        await other.ack(*[await anext(other), await anext(other)])
        seen = []
        async for event in sink:
            seen.append(event.name)
            if event.name == "good":
                await sink.ack(event)
            if seen.count("poison") == 2:
                break
        await until(lambda: sink.stats.buried == 1)
        assert await pending(stream, "k") == 0
        (letter,) = await stream.dead_letters("k")
        assert (letter.origin_id, letter.name, letter.data, letter.topic) == (event_id, "poison", b"\xff", "t")
        assert letter.deliveries == 2
        assert letter.reason == "not acked after 2 deliveries"

        assert await stream.redrive("k", "1-1") == 0
        assert await stream.redrive("k") == 1
        assert await stream.dead_letters("k") == []
        back = await anext(sink)
        assert (back.name, back.data, back.topic, back.deliveries) == ("poison", b"\xff", "t", 1)
        await sink.ack(back)
        await until(lambda: other.stats.filtered == 1)


async def test_an_event_can_be_given_up_at_once(stream: Stream[bytes]) -> None:
    async with stream.sink("k") as sink:
        event_id = await stream.add("n", b"x")
        event = await anext(sink)
        assert await sink.dead_letter(event, "no such device")
        assert not await sink.dead_letter(event, "no such device")
        assert [(letter.origin_id, letter.reason) for letter in await stream.dead_letters("k")] == [
            (event_id, "no such device")
        ]
        assert await pending(stream, "k") == 0


async def test_an_entry_that_is_no_event_goes_to_the_dead_letters(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k") as sink:
        await redis.link.call("XADD", stream.key, "*", "foreign", "1")
        good = await stream.add("n", b"")
        assert (await anext(sink)).id == good
        (letter,) = await stream.dead_letters("k")
        assert letter.reason.startswith("malformed")


async def test_what_a_filter_drops_is_acked(stream: Stream[bytes]) -> None:
    async with stream.sink("k", topic="b") as sink:
        for topic in ("a", "b", None):
            await stream.add("n", b"", topic=topic)
        event = await anext(sink)
        assert event.topic == "b"
        await until(lambda: sink.stats.filtered == 2)
        await sink.ack(event)
        assert await pending(stream, "k") == 0


async def test_one_sink_of_several_streams(unique: str, redis: Redis, stream: Stream[bytes]) -> None:
    async with (
        await Stream.open(f"other-{unique}", redis) as other,
        await Stream.open(f"third-{unique}", redis) as third,
        stream.sink("k", other) as sink,
    ):
        await stream.add("n", b"1")
        await other.add("n", b"2")
        events = [await anext(sink), await anext(sink)]
        assert {event.stream for event in events} == {stream.name, other.name}
        await sink.ack(*events)
        await sink.add_stream(third)
        await third.add("n", b"3")
        await sink.ack(await anext(sink))
        await sink.remove_stream(other)
        await other.add("n", b"not taken")
        await stream.add("n", b"4")
        event = await anext(sink)
        assert event.payload == b"4"
        await sink.ack(event)
        for each in (stream, other, third):
            assert await pending(each, "k") == 0


async def test_leaving_hands_everything_to_the_others_at_once(stream: Stream[bytes]) -> None:
    async with stream.sink("k", start="oldest") as stays:
        leaves = stream.sink("k")
        await leaves.start()
        ids: set[str] = set()
        while not (leaves.stats.buffered > 3):
            ids |= set(await stream.add_many([("n", b"")] * 5))
            await asyncio.sleep(0)
        handed_out = await anext(leaves)
        await leaves.aclose()
        seen: dict[str, int] = {}
        async with asyncio.timeout(5):  # far below the grace period of 20 s
            while len(seen) < len(ids):
                event = await anext(stays)
                seen[event.id] = event.deliveries
                stays.ack(event)
        assert seen.pop(handed_out.id) == 2
        assert set(seen.values()) == {1}, "a delivery that nobody saw does not count"


async def test_leaving_with_nothing_in_hand_leaves_no_trace(stream: Stream[bytes], redis: Redis, unique: str) -> None:
    async with stream.sink(f"k-{unique}") as sink:
        consumer = sink.consumer.encode()
        await stream.add("n", b"")
        sink.ack(await anext(sink))
    info = (await stream.info()).sinks[f"k-{unique}"]
    assert (info.consumers, info.pending) == (0, 0)
    left = await redis.link.call("HGETALL", f"map:{keepalive_map_name(f'k-{unique}')}:content")
    assert consumer not in left
    sinks = await redis.link.call("HGET", f"map:stream:{stream.name}:sinks:content", f"k-{unique}")
    assert sinks is None or consumer not in sinks


async def test_a_foreign_trim_is_counted_as_a_gap(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k", start="oldest", buffer_max=10) as sink:
        await stream.add_many([("n", b"")] * 10)
        await until(lambda: sink.stats.buffered == 10)
        await stream.add_many([("n", b"")] * 500)
        trimmed = await redis.link.call("XTRIM", stream.key, "MAXLEN", 100)
        assert trimmed == 410
        seen = 0
        while seen < 110:
            await sink.ack(await anext(sink))
            seen += 1
        assert sink.stats.gap == 400
        await until(lambda: sink.stats.buffered == 0)
        await stream.add_many([("n", b"")] * 60)
        await until(lambda: sink.stats.buffered == 10)
        assert await redis.link.call("XTRIM", stream.key, "MAXLEN", 20) == 140
        for _ in range(30):
            await sink.ack(await anext(sink))
        assert sink.stats.gap == 430
        assert ((await stream.info()).sinks["k"].lag or 0) <= 20
    async with stream.sink("k", buffer_max=10) as later:  # the group has passed all of it
        await stream.add_many([("n", b"")] * 30)
        for _ in range(30):
            await later.ack(await anext(later))
        assert later.stats.gap == 0


async def test_gap_behind_a_group_that_was_made_anew_is_counted_whole(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k", buffer_max=10) as sink:

        async def take(count: int) -> None:
            for _ in range(count):
                await sink.ack(await anext(sink))

        async def trim(added: int, kept: int) -> None:
            await stream.add_many([("n", b"")] * added)
            await until(lambda: sink.stats.buffered == 10)
            await redis.link.call("XTRIM", stream.key, "MAXLEN", kept)
            await take(10 + kept)

        await trim(500, 90)
        await redis.link.call("DEL", stream.key)
        await until(lambda: sink.stats.regroups == 1)
        await stream.add_many([("n", b"")] * 30)
        await take(30)
        assert sink.stats.gap == 400
        await trim(100, 40)
        assert sink.stats.gap == 450


async def test_pending_events_that_were_trimmed_are_counted_as_a_gap(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k", ack_grace_s=GRACE_S) as sink:
        await stream.add_many([("n", b"")] * 10)
        for _ in range(10):
            await anext(sink)
        await redis.link.call("XTRIM", stream.key, "MAXLEN", 0)
        await until(lambda: sink.stats.gap == 10)
        assert await pending(stream, "k") == 0


async def test_a_destroyed_stream_is_noticed_and_its_sink_goes_on(stream: Stream[bytes]) -> None:
    async with stream.sink("k") as sink:
        await stream.add("n", b"1")
        await sink.ack(await anext(sink))
        await stream.destroy()
        await stream.add("n", b"2")
        event = await anext(sink)
        assert event.payload == b"2"
        await sink.ack(event)
        assert sink.stats.regroups >= 1
        assert await pending(stream, "k") == 0


async def test_a_sign_of_life_takes_no_event(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k") as sink:
        await redis.link.call("XGROUP", "CREATE", stream.key, "other", "0")
        await stream.add("n", b"")
        sink._member.sink = "other"  # a group in which nobody reads
        await sink._member.beat()
        sink._member.sink = "k"
        assert await pending(stream, "other") == 0


async def test_a_destroyed_group_is_made_anew_where_its_consumer_was(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k", start="oldest") as sink:
        await stream.add_many([("n", b"%d" % n) for n in range(5)])
        for _ in range(5):
            await sink.ack(await anext(sink))
        await redis.link.call("XGROUP", "DESTROY", stream.key, "k")
        await stream.add("n", b"next")
        assert (await anext(sink)).payload == b"next"


@pytest.mark.parametrize("late", [False, True])
async def test_what_was_buffered_outlives_its_group(stream: Stream[bytes], redis: Redis, late: bool) -> None:
    async with stream.sink("k", ack_grace_s=GRACE_S, max_deliveries=None) as sink:
        ids = await stream.add_many([("n", b"")] * 50)
        await until(lambda: sink.stats.buffered == 50)
        await redis.link.call("XGROUP", "DESTROY", stream.key, "k")
        await until(lambda: sink.stats.regroups == 1)
        if late:
            time.sleep(2 * GRACE_S)  # the process is held up: others may think it dead
        async with asyncio.timeout(10):  # they are pending again, so that a crash from here on loses none
            while await pending(stream, "k") < 50:
                await asyncio.sleep(0.01)
        events = [await anext(sink) for _ in range(50)]
        assert [event.id for event in events] == ids
        await sink.ack(*events)
        assert await pending(stream, "k") == 0


async def test_taking_over_counts_no_delivery_but_handing_out_does(stream: Stream[bytes], redis: Redis) -> None:
    async def counts() -> set[int]:
        return {item[3] for item in await redis.link.call("XPENDING", stream.key, "k", "-", "+", 100)}

    async with stream.sink("k", start="oldest"):
        pass
    ids = await stream.add_many([("n", b"")] * 10)
    await lone_consumer(redis, stream, "k")
    async with stream.sink("k", ack_grace_s=GRACE_S) as sink:
        for _ in range(3):  # as if consumers died with all of it in their buffers
            await until(lambda: sink.stats.buffered == 10)
            assert await counts() == {1}
            sink._custody.remove(stream.name)
            claim = ("XCLAIM", stream.key, "k", "01GONE", 0, *ids, "IDLE", 60_000, "JUSTID")
            await redis.link.call(*claim)
        event = await anext(sink)
        assert event.deliveries == 2
        assert await counts() == {1, 2}
        waiting = asyncio.create_task(anext(sink))
        await asyncio.sleep(0)
        waiting.cancel()  # while its delivery is being counted
        await asyncio.gather(waiting, return_exceptions=True)
        batch = await sink.batch()
        assert [event.id, *(each.id for each in batch)] == ids
        assert {each.deliveries for each in batch} == {2}
        assert await counts() == {2}
        await sink.ack(event, *batch)


async def test_the_last_delivery_is_handed_out_alone(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k", start="oldest"):
        pass
    ids = await stream.add_many([("n", b"")] * 4)
    await lone_consumer(redis, stream, "k")
    claim = ("XCLAIM", stream.key, "k", "01GONE", 0)
    await redis.link.call(*claim, ids[1], ids[2], "RETRYCOUNT", 2, "JUSTID")
    async with stream.sink("k", ack_grace_s=GRACE_S, max_deliveries=3) as sink:
        await until(lambda: sink.stats.buffered == 4)
        batches = []
        while sum(map(len, batches)) < 4:
            batches.append([event.id for event in await sink.batch()])
        assert batches == [[ids[0]], [ids[1]], [ids[2]], [ids[3]]]


async def test_a_consumer_that_was_held_up_asks_what_is_still_its_own(stream: Stream[bytes]) -> None:
    async with (
        stream.sink("k", start="oldest", ack_grace_s=GRACE_S) as slow,
        await Stream.open(stream.name, stream.redis) as again,
    ):
        ids = await again.add_many([("n", b"")] * 20)
        await until(lambda: slow.stats.buffered == 20)
        first = await anext(slow)
        slow._tasks[1].cancel()  # as if the process stood still: it shows no life and touches nothing
        async with again.sink("k", ack_grace_s=GRACE_S) as quick:
            taken = [(await anext(quick)) for _ in range(20)]
            assert sorted(event.id for event in taken) == sorted(ids)
            await quick.ack(*taken)
            waits = [asyncio.create_task(anext(sink)) for sink in (slow, quick)]
            fresh = str(await again.add("n", b""))
            done, left = await asyncio.wait(waits, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert [each.result().id for each in done] == [fresh], f"handed out again, after {first.id}"
            for each in left:
                each.cancel()
            await asyncio.gather(*left, return_exceptions=True)


async def test_a_stream_may_be_left_while_it_is_looked_after(unique: str, redis: Redis, stream: Stream[bytes]) -> None:
    async with await Stream.open(f"left-{unique}", redis) as other, stream.sink("k", other, ack_grace_s=0.1) as sink:
        for _ in range(20):
            await sink.remove_stream(other)
            await sink.add_stream(other)
            await asyncio.sleep(0.02)
        await other.add("n", b"still")
        event = await anext(sink)
        assert event.data == b"still"
        await sink.ack(event)


async def test_destroying_again_and_again_under_load_stops_nobody(stream: Stream[bytes]) -> None:
    async with stream.sink("k", block_s=0.5) as one, stream.sink("k", block_s=0.5) as two, stream.reader() as reader:
        seen: set[bytes] = set()
        read: set[bytes] = set()

        async def take(sink: Sink[bytes]) -> None:
            async for event in sink:
                seen.add(event.data)
                sink.ack(event)

        async def follow() -> None:
            async for event in reader:
                read.add(event.data)

        tasks = [asyncio.create_task(work) for work in (take(one), take(two), follow())]
        for n in range(300):
            await stream.add("n", b"%d" % n)
            if n % 60 == 59:
                await stream.destroy()
        last = {b"last %d" % n for n in range(50)}
        await stream.add_many([("n", data) for data in sorted(last)])
        await until(lambda: last <= seen and last <= read)
        await one.ack()
        await two.ack()
        assert await pending(stream, "k") == 0
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True)
        )


async def test_a_cancelled_wait_takes_no_event_with_it(stream: Stream[bytes]) -> None:
    async with stream.sink("k") as sink:
        seen: list[str] = []
        ids: list[str] = []
        for n in range(200):
            waiting = asyncio.create_task(sink.batch(3, wait_s=0.001) if n % 2 else anext(sink))
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
            seen.append((await anext(sink)).id)
        assert seen == ids


async def test_cancelling_one_ack_cancels_no_other(stream: Stream[bytes]) -> None:
    async with stream.sink("k") as sink:
        await stream.add_many([("n", b"")] * 2)
        one, two = await anext(sink), await anext(sink)
        cancelled, kept = sink.ack(one), sink.ack(two)
        cancelled.cancel()
        await kept
        assert await pending(stream, "k") == 0


async def test_a_full_buffer_stops_reading(stream: Stream[bytes]) -> None:
    await stream.add_many([("n", b"")] * 500)
    async with stream.sink("k", start="oldest", buffer_max=20, polled_max=15) as sink:
        for _ in range(500):
            event = await anext(sink)
            assert sink.stats.buffered <= 20
            sink.ack(event)
        await sink.ack()
        assert await pending(stream, "k") == 0


async def test_a_sink_that_is_not_started_says_so(stream: Stream[bytes]) -> None:
    sink = stream.sink("k")
    with pytest.raises(NotStarted):
        await anext(sink)
    with pytest.raises(NotStarted):
        sink.ack()
    await sink.aclose()
    await sink.aclose()


async def test_a_sink_may_have_any_name_that_pulse_allows(stream: Stream[bytes]) -> None:
    async with stream.sink("caffè-\u4e2d") as sink:
        await stream.add("n", b"")
        await sink.ack(await anext(sink))
        assert await pending(stream, "caffè-\u4e2d") == 0


async def test_a_sink_closes_also_after_its_client(unique: str, valkey_url: str) -> None:
    redis = await Redis.from_url(valkey_url).connect()
    stream = await Stream.open(f"orphan-{unique}", redis)
    sink, reader = stream.sink("k"), stream.reader(block_s=0.3)
    await sink.start()
    await reader.start()
    await redis.aclose()
    with pytest.raises(Closed):
        await anext(reader)
    async with asyncio.timeout(10):
        await sink.aclose()
        await reader.aclose()


async def test_a_closed_server_does_not_hold_up_closing(unique: str) -> None:
    with EmbeddedRedis() as server:
        async with await Stream.open(unique, server.url) as stream, stream.sink("k") as sink, stream.reader():
            await stream.add("n", b"")
            sink.ack(await anext(sink))
            server.kill()
            began_s = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began_s < 15


async def test_an_error_that_would_come_again_reaches_who_iterates(stream: Stream[bytes], redis: Redis) -> None:
    async with stream.sink("k", block_s=0.1) as sink:
        await redis.link.call("SET", stream.key, "text")
        with pytest.raises(CommandError, match="WRONGTYPE"):
            await anext(sink)
        await redis.link.call("DEL", stream.key)


@pytest.mark.parametrize("wrong", [{"block_s": 0}, {"ack_grace_s": 0}, {"max_deliveries": 0}, {"dead_maxlen": 0}])
def test_options_that_make_no_sense_stop_at_birth(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SinkOptions(**wrong)
