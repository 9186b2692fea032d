"""Streams, readers and sinks shared with the real Go Pulse, both ways, also when one side is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from peer import GoPeer, require_peer

from flotta.redis import Redis
from flotta.streaming import Stream

pytestmark = pytest.mark.interop

GRACE_S = 1.0


@pytest.fixture
async def go(valkey_url: str) -> AsyncIterator[GoPeer]:
    require_peer()
    async with GoPeer.start(valkey_url) as peer:
        yield peer


@pytest.fixture
async def stream(unique: str, redis: Redis) -> AsyncIterator[Stream[bytes]]:
    async with await Stream.open(f"both-{unique}", redis) as opened:
        yield opened


async def next_events(go: GoPeer, count: int) -> list[dict[str, Any]]:
    found = []
    while len(found) < count:
        event = await go.event()
        assert event["event"] == "stream.event", event
        found.append(event)
    return found


def as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


async def test_what_go_adds_a_python_reader_reads(go: GoPeer, stream: Stream[bytes]) -> None:
    await go.call("stream.open", handle="s", name=stream.name)
    async with stream.reader() as reader, stream.reader(topic="t\u00fc") as filtered:
        ids = []
        for n, payload in enumerate([b"", b"plain", bytes(range(256)), "ü".encode()]):
            topic = "tü" if n % 2 else ""
            ids.append(await go.call("stream.add", handle="s", name=f"n{n}", payload=payload, topic=topic))
        events = [await anext(reader) for _ in range(4)]
        assert [event.id for event in events] == ids
        assert [event.payload for event in events] == [b"", b"plain", bytes(range(256)), "ü".encode()]
        assert [event.topic for event in events] == [None, "tü", None, "tü"]
        assert [(await anext(filtered)).id for _ in range(2)] == [ids[1], ids[3]]


async def test_what_python_adds_a_go_reader_reads(go: GoPeer, stream: Stream[bytes]) -> None:
    await go.call("stream.open", handle="s", name=stream.name)
    payloads = [b"", b"plain", bytes(range(256))]
    ids = [await stream.add(f"n{n}", payload, topic="t" if n else None) for n, payload in enumerate(payloads)]
    await go.call("stream.reader", handle="r", streams=["s"], start="oldest")
    events = await next_events(go, 3)
    assert [event["id"] for event in events] == ids
    assert [as_bytes(event["payload"]) for event in events] == payloads
    assert [event["topic"] for event in events] == ["", "t", "t"]
    await go.call("stream.reader.close", handle="r")


async def test_only_if_exists_remove_and_destroy_mean_the_same(go: GoPeer, stream: Stream[bytes]) -> None:
    await go.call("stream.open", handle="s", name=stream.name)
    assert await go.call("stream.add", handle="s", name="n", payload="", only_if_exists=True) == ""
    one = await stream.add("n", b"1")
    two = await go.call("stream.add", handle="s", name="n", payload="2", only_if_exists=True)
    await go.call("stream.remove", handle="s", ids=[one])
    async with stream.reader(start="oldest") as reader:
        assert (await anext(reader)).id == two
    await go.call("stream.destroy", handle="s")
    assert not (await stream.info()).exists


@pytest.mark.parametrize("first", ["go", "python"])
async def test_one_sink_shared_by_both_languages(go: GoPeer, stream: Stream[bytes], unique: str, first: str) -> None:
    await go.call("stream.open", handle="s", name=stream.name)
    name = f"shared-{unique}"
    sink = stream.sink(name, start="oldest", ack_grace_s=GRACE_S, polled_max=5, buffer_max=5)

    async def join_go() -> None:
        await go.call("stream.sink", handle="k", name=name, streams=["s"], start="oldest", grace_ms=1000, auto_ack=True)

    if first == "go":
        await join_go()
        await sink.start()
    else:
        await sink.start()
        await join_go()
    async with sink:
        ids: list[str] = []
        seen: Counter[str] = Counter()
        by_python = 0
        for round_number in range(60):
            ids.append(str(await stream.add("n", b"%d" % round_number)))
            ids.append(await go.call("stream.add", handle="s", name="n", payload="x"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    event = await anext(sink)
                    seen[event.id] += 1
                    by_python += 1
                    sink.ack(event)
        async with asyncio.timeout(20):
            while len(seen) < len(ids):
                while not go.events.empty():
                    seen[go.events.get_nowait()["id"]] += 1
                if sink.stats.buffered:
                    event = await anext(sink)
                    seen[event.id] += 1
                    by_python += 1
                    sink.ack(event)
                await asyncio.sleep(0.001)
        await sink.ack()
        assert seen == Counter(ids)
        assert 0 < by_python < len(ids), "both took part"
        assert (await stream.info()).sinks[name].pending == 0
        await go.call("stream.sink.close", handle="k")


async def test_a_killed_go_consumers_events_are_taken_over_by_python(
    valkey_url: str, stream: Stream[bytes], unique: str
) -> None:
    require_peer()
    name = f"takeover-{unique}"
    async with GoPeer.start(valkey_url) as go:
        await go.call("stream.open", handle="s", name=stream.name)
        await go.call("stream.sink", handle="k", name=name, streams=["s"], start="oldest", grace_ms=1000)
        ids = await stream.add_many([("n", b"%d" % n) for n in range(200)])
        held = await next_events(go, 200)
        await go.call("stream.sink.ack", handle="k", ids=[event["id"] for event in held[:50]])
        go.kill()
    async with stream.sink(name, ack_grace_s=GRACE_S) as sink:
        events = [await anext(sink) for _ in range(150)]
        assert [event.id for event in events] == ids[50:]
        assert {event.deliveries for event in events} == {2}
        await sink.ack(*events)
        async with asyncio.timeout(10):
            while sink.stats.forgotten != 1:  # the dead Go consumer, once it holds nothing
                await asyncio.sleep(0.02)
        info = (await stream.info()).sinks[name]
        assert (info.consumers, info.pending) == (1, 0)


HOLDER = """
import asyncio, sys
from flotta.streaming import Stream

async def main(url, name, sink_name):
    async with await Stream.open(name, url) as stream, stream.sink(
        sink_name, start="oldest", ack_grace_s=1.0, block_s=0.5
    ) as sink:
        events = [await anext(sink) for _ in range(200)]
        await sink.ack(*events[:50])
        print("holding", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_python_consumers_events_are_taken_over_by_go(
    go: GoPeer, stream: Stream[bytes], unique: str, valkey_url: str
) -> None:
    name = f"takeover-{unique}"
    ids = await stream.add_many([("n", b"%d" % n) for n in range(200)])
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, valkey_url, stream.name, name, stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    assert holder.stdout is not None
    assert (await holder.stdout.readline()).strip() == b"holding"
    await go.call("stream.open", handle="s", name=stream.name)
    await go.call("stream.sink", handle="k", name=name, streams=["s"], grace_ms=1000, auto_ack=True)
    holder.kill()
    await holder.wait()
    events = await next_events(go, 150)
    assert [event["id"] for event in events] == ids[50:]
    await go.call("ping")
    async with asyncio.timeout(10):
        while (await stream.info()).sinks[name].pending:
            await asyncio.sleep(0.02)
    await go.call("stream.sink.close", handle="k")


async def test_one_consumer_of_several_streams_in_both_languages(go: GoPeer, unique: str, redis: Redis) -> None:
    names = [f"multi-{unique}-{n}" for n in range(3)]
    for name in names:
        await go.call("stream.open", handle=name, name=name)
    await go.call("stream.reader", handle="r", streams=names, start="oldest")
    opened = [await Stream.open(name, redis) for name in names]
    async with opened[0].sink(f"p-{unique}", *opened[1:], start="oldest") as sink:
        ids = {str(await each.add("n", b"")) + each.name for each in opened}
        events = [await anext(sink) for _ in range(3)]
        assert {event.id + event.stream for event in events} == ids
        await sink.ack(*events)
        assert {event["id"] + event["stream"] for event in await next_events(go, 3)} == ids
    await go.call("stream.reader.close", handle="r")


async def test_one_sink_of_several_streams_shared_by_both_languages(go: GoPeer, unique: str, redis: Redis) -> None:
    names = [f"shared-{unique}-{n}" for n in range(3)]
    for name in names:
        await go.call("stream.open", handle=name, name=name)
    opened = [await Stream.open(name, redis) for name in names]
    sink_name = f"k-{unique}"
    await go.call("stream.sink", handle="k", name=sink_name, streams=names, start="oldest", auto_ack=True)
    ids: set[tuple[str, str]] = set()
    seen: Counter[tuple[str, str]] = Counter()
    async with opened[0].sink(sink_name, *opened[1:], polled_max=2, buffer_max=6) as sink:
        for n in range(100):
            each = opened[n % 3]
            ids.add((each.name, str(await each.add("n", b""))))
        taken = 0
        async with asyncio.timeout(20):
            while len(seen) < len(ids):
                while not go.events.empty():
                    event = go.events.get_nowait()
                    seen[event["stream"], event["id"]] += 1
                if sink.stats.buffered:
                    ours = await anext(sink)
                    seen[ours.stream, ours.id] += 1
                    taken += 1
                    sink.ack(ours)
                await asyncio.sleep(0.001)
        await sink.ack()
        assert seen == Counter(ids)
        assert 0 < taken < len(ids), "both took part"
        for each in opened:
            assert (await each.info()).sinks[sink_name].pending == 0
    await go.call("stream.sink.close", handle="k")


async def test_times_to_live_are_alike(go: GoPeer, unique: str, redis: Redis) -> None:
    for sliding in (False, True):
        name = f"ttl-{unique}-{sliding}"
        await go.call("stream.open", handle=name, name=name, ttl_ms=100_000, sliding=sliding)
        async with await Stream.open(name, redis, ttl_s=100, sliding=sliding) as ours:
            await go.call("stream.add", handle=name, name="n", payload="")
            await redis.link.call("PEXPIRE", ours.key, 50_000)
            await ours.add("n", b"")
            assert (await redis.link.call("PTTL", ours.key) > 60_000) == sliding
            await redis.link.call("PEXPIRE", ours.key, 50_000)
            await go.call("stream.add", handle=name, name="n", payload="")
            assert (await redis.link.call("PTTL", ours.key) > 60_000) == sliding
