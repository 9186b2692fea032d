"""Streams beside Go Pulse and FastStream on one server: `make bench-stream`.

Publishing: 50 callers in one process, one event of 100 B per call. Consuming: one consumer of a group over a stream
that holds the events already; every event is handed to the program and acked, and the time ends when the server has all
acks. Flotta acks without waiting for each (`sink.ack(event)`), Pulse from 50 goroutines, FastStream after each handler
by itself. Payloads are bytes for all. ``ROUNDS`` sets the rounds (default five).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _common import compete, is_installed, pin, print_versions, report, rounds_from, run, skip
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.streaming import Item, Sink, Stream
from interop.peer import GoPeer, PeerMissingError, pulse_version

CALLERS = 50
EVENTS = 50_000
EVENTS_PULSE = 20_000
EVENTS_FASTSTREAM = 5_000
PAYLOAD = b"x" * 100
MAXLEN = 1_000_000  # nobody trims: the cost of trimming is measured by itself
number = itertools.count()


async def main() -> None:
    async with (
        EmbeddedRedis() as server,
        contextlib.AsyncExitStack() as stack,
        Redis.from_url(server.url) as redis,
    ):
        pin([server.pid])
        go = await peer_or_none(stack, server.url)
        peers = {"pulse": pulse_version()} if go is not None else {}
        await redis.connect()
        version = ".".join(map(str, redis.link.server_version))
        print_versions("flotta", "redis", "hiredis", "uvloop", "faststream", Valkey=version, **peers)
        fast = is_installed("faststream", "faststream")
        await bench_publish(redis, server.url, go, fast=fast)
        await bench_consume(redis, server.url, go, fast=fast)
        await bench_forms(redis)


async def peer_or_none(stack: contextlib.AsyncExitStack, url: str) -> GoPeer | None:
    try:
        return await stack.enter_async_context(GoPeer.start(url, pool=CALLERS + 10))
    except PeerMissingError as error:
        skip("pulse", str(error))
        return None


async def timed(work: Awaitable[object], events: int) -> float:
    began = time.perf_counter()
    await work
    return events / (time.perf_counter() - began)


async def spread(call: Callable[[], Awaitable[object]], events: int) -> None:
    """``events`` calls by 50 callers, each waiting for its own."""

    async def caller(count: int) -> None:
        for _ in range(count):
            await call()

    await asyncio.gather(*(caller(events // CALLERS) for _ in range(CALLERS)))


# --- publish ---------------------------------------------------------------------------------------------------------


async def bench_publish(redis: Redis, url: str, go: GoPeer | None, *, fast: bool) -> None:
    async def flotta() -> float:
        async with await Stream.open(f"publish-{next(number)}", redis, maxlen=MAXLEN, backlog_max=2 * MAXLEN) as stream:
            rate = await timed(spread(lambda: stream.add("bench", PAYLOAD), EVENTS), EVENTS)
            await stream.destroy()
            return rate

    async def pulse() -> float:
        assert go is not None
        name = f"publish-{next(number)}"
        arguments = {"callers": CALLERS, "maxlen": MAXLEN, "payload_bytes": len(PAYLOAD), "timeout_s": 120}
        seconds = await go.call("stream.bench.publish", name=name, events=EVENTS_PULSE, **arguments)
        await redis.link.call("DEL", f"pulse:stream:{name}")
        return EVENTS_PULSE / seconds

    async def faststream() -> float:
        from faststream.redis import RedisBroker

        name = f"fs-publish-{next(number)}"
        async with RedisBroker(url, logger=None) as broker:
            await broker.publish(PAYLOAD, stream=name)
            rate = await timed(
                spread(lambda: broker.publish(PAYLOAD, stream=name), EVENTS_FASTSTREAM), EVENTS_FASTSTREAM
            )
        await redis.link.call("DEL", name)
        return rate

    sides = {"flotta": flotta}
    if go is not None:
        sides["pulse"] = pulse
    if fast:
        sides["faststream"] = faststream
    report("stream-publish", await compete(sides, rounds=rounds_from()), unit="events/s")


# --- consume ---------------------------------------------------------------------------------------------------------


async def fill(redis: Redis, key: str, fields: list[bytes], events: int) -> None:
    for _ in range(0, events, 1000):
        await redis.link.call_many([("XADD", key, "*", *fields)] * 1000)


PULSE_FIELDS = [b"n", b"bench", b"p", PAYLOAD]


async def consume_one_by_one(stream: Stream[bytes], sink_name: str, events: int) -> None:
    async with stream.sink(sink_name, start="oldest") as sink:
        left = events
        async for event in sink:
            sink.ack(event)
            left -= 1
            if not left:
                break
        await sink.ack()
    assert (await stream.info()).sinks[sink_name].pending == 0


async def bench_consume(redis: Redis, url: str, go: GoPeer | None, *, fast: bool) -> None:
    async with await Stream.open("consume", redis, maxlen=MAXLEN, backlog_max=2 * MAXLEN) as stream:
        await fill(redis, stream.key, PULSE_FIELDS, EVENTS)

        async def flotta() -> float:
            name = f"sink-{next(number)}"
            rate = await timed(consume_one_by_one(stream, name, EVENTS), EVENTS)
            await stream.remove_sink(name)
            return rate

        async def pulse() -> float:
            assert go is not None
            name = f"sink-{next(number)}"
            arguments = {"callers": CALLERS, "maxlen": MAXLEN, "timeout_s": 120}
            call = go.call("stream.bench.consume", name="consume", sink=name, events=EVENTS, **arguments)
            seconds = await call
            await stream.remove_sink(name)
            return EVENTS / seconds

        sides = {"flotta": flotta}
        if go is not None:
            sides["pulse"] = pulse
        if fast:
            await fill_faststream(redis, url)
            sides["faststream"] = lambda: faststream_consume(redis, url)
        report("stream-consume", await compete(sides, rounds=rounds_from()), unit="events/s")
        await stream.destroy()


async def fill_faststream(redis: Redis, url: str) -> None:
    """The stream "fs" full of copies of one message that FastStream itself has written."""
    from faststream.redis import RedisBroker

    async with RedisBroker(url, logger=None) as broker:
        await broker.publish(PAYLOAD, stream="fs-one")
    ((_, fields),) = await redis.link.call("XRANGE", "fs-one", "-", "+")
    await fill(redis, "fs", fields, EVENTS_FASTSTREAM)


async def faststream_consume(redis: Redis, url: str) -> float:
    from faststream.redis import RedisBroker, StreamSub

    group = f"group-{next(number)}"
    await redis.link.call("XGROUP", "CREATE", "fs", group, "0")
    broker = RedisBroker(url, logger=None)
    finished = asyncio.Event()
    left = EVENTS_FASTSTREAM

    @broker.subscriber(stream=StreamSub("fs", group=group, consumer="bench", max_records=1_000, polling_interval=10))
    async def handle(_: bytes) -> None:
        nonlocal left
        left -= 1
        if not left:
            finished.set()

    async def consume() -> None:
        await broker.start()
        await finished.wait()
        while (await redis.link.call("XPENDING", "fs", group))[0]:
            await asyncio.sleep(0)

    rate = await timed(consume(), EVENTS_FASTSTREAM)
    await broker.stop()
    await redis.link.call("XGROUP", "DESTROY", "fs", group)
    return rate


# --- forms of use ----------------------------------------------------------------------------------------------------


async def bench_forms(redis: Redis) -> None:
    """Flotta alone, so that the forms can be compared: batches, every ack awaited, trimming, a reader."""
    async with await Stream.open("forms", redis, maxlen=MAXLEN, backlog_max=2 * MAXLEN) as stream:
        await fill(redis, stream.key, PULSE_FIELDS, EVENTS)
        for name, side in (
            ("stream-publish-many", lambda: publish_many(redis)),
            ("stream-publish-and-consume-trimmed", lambda: publish_trimmed(redis)),
            ("stream-consume-batch", lambda: consumed(stream, take_batches, EVENTS)),
            ("stream-consume-awaited", lambda: consumed(stream, take_awaiting, EVENTS // 10)),
            ("stream-read", lambda: read(stream)),
        ):
            report(name, await compete({"flotta": side}, rounds=rounds_from()), unit="events/s")


async def publish_many(redis: Redis) -> float:
    async with await Stream.open(f"many-{next(number)}", redis, maxlen=MAXLEN, backlog_max=2 * MAXLEN) as stream:
        items: list[Item[bytes]] = [("bench", PAYLOAD)] * 500

        async def add() -> None:
            for _ in range(EVENTS // 500):
                await stream.add_many(items)

        rate = await timed(add(), EVENTS)
        await stream.destroy()
        return rate


async def publish_trimmed(redis: Redis) -> float:
    async with await Stream.open(f"trim-{next(number)}", redis, maxlen=1_000) as stream:
        async with stream.sink("k") as sink:
            taking = asyncio.create_task(take_batches(sink, EVENTS))
            adding = spread(lambda: stream.add("bench", PAYLOAD), EVENTS)
            rate = await timed(asyncio.gather(adding, taking), EVENTS)
        await stream.destroy()
        return rate


async def take_batches(sink: Sink[bytes], events: int) -> None:
    while events > 0:
        batch = await sink.batch()
        events -= len(batch)
        sink.ack(*batch)
    await sink.ack()


async def take_awaiting(sink: Sink[bytes], events: int) -> None:
    for _ in range(events):
        await sink.ack(await anext(sink))


async def consumed(stream: Stream[bytes], take: Callable[[Sink[bytes], int], Awaitable[None]], events: int) -> float:
    name = f"sink-{next(number)}"
    async with stream.sink(name, start="oldest") as sink:
        rate = await timed(take(sink, events), events)
    await stream.remove_sink(name)
    return rate


async def read(stream: Stream[bytes]) -> float:
    async with stream.reader(start="oldest") as reader:

        async def all_of_it() -> None:
            for _ in range(EVENTS):
                await anext(reader)

        return await timed(all_of_it(), EVENTS)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    run(main)
