"""Replicated maps beside a plain dict and Go Pulse: `make bench-map`.

Reads are held against ``dict.get``; writes and visibility against the real Go Pulse on the same server, one core for
either. Then the curves: keys per map up to 100,000, and 50 joined copies. ``ROUNDS`` sets the rounds (default five).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import sys
import time
import timeit
import tracemalloc
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _common import Result, compete, pin, print_versions, report, rounds_from, run, skip
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.rmap import Map
from interop.peer import GoPeer, PeerMissingError, pulse_version

WRITERS = 50
WRITES = 20_000
VALUE = "x" * 100
VISIBLE = 1_000
CURVE_KEYS = (1_000, 10_000, 100_000)
COPIES = 50
COPIES_WRITES = 2_000


async def main() -> None:
    async with EmbeddedRedis() as server, contextlib.AsyncExitStack() as stack:
        pin([server.pid])
        peer = await peer_or_none(stack, server.url)
        await print_all_versions(server.url, with_pulse=peer is not None)
        await bench_read(server.url)
        await bench_set(server.url, peer)
        await bench_visible(server.url, peer)
        await curve_keys(server.url, peer)
        await curve_copies(server.url, peer)


async def print_all_versions(url: str, *, with_pulse: bool) -> None:
    async with Redis.from_url(url) as redis:
        await redis.connect()
        servers = {"Valkey": ".".join(map(str, redis.link.server_version))}
    peers = {"pulse": pulse_version()} if with_pulse else {}
    print_versions("flotta", "redis", "hiredis", "uvloop", **servers, **peers)


async def peer_or_none(stack: contextlib.AsyncExitStack, url: str) -> GoPeer | None:
    try:
        return await stack.enter_async_context(GoPeer.start(url, pool=WRITERS + COPIES))
    except PeerMissingError as error:
        skip("pulse", str(error))
        return None


# --- points ----------------------------------------------------------------------------------------------------------


async def bench_read(url: str) -> None:
    """Nanoseconds of one lookup; the key is there (map-read) or not (map-read-miss)."""
    async with await Map.join("bench-read", url) as joined:
        await asyncio.gather(*(joined.set(f"key-{i}", VALUE) for i in range(1_000)))
        await joined.refresh()
        plain = joined.snapshot()
        for name, key in (("map-read", "key-500"), ("map-read-miss", "absent")):
            sides = {"flotta": reading(joined.get, key), "dict": reading(plain.get, key)}
            report(name, await compete(sides, rounds=rounds_from()), unit="ns")


def reading(get: Callable[[str], object], key: str) -> Callable[[], object]:
    # The attribute lookup belongs to a read: `map.get(key)` is what a user writes.
    holder = get.__self__

    async def measure() -> float:
        count = 500_000
        return timeit.timeit("m.get(k)", globals={"m": holder, "k": key}, number=count) / count * 1e9

    return measure


async def bench_set(url: str, peer: GoPeer | None) -> None:
    """Writes per second, 50 callers, values of 100 B."""
    async with await Map.join("bench-set", url) as joined:

        async def flotta() -> float:
            return await write(joined, WRITES)

        sides = {"flotta": flotta}
        if peer is not None:
            await peer.call("map.join", handle="set", name="bench-set-go")
            sides["pulse"] = lambda: go_write(peer, "set", WRITES)
        report("map-set", await compete(sides, rounds=rounds_from()), unit="writes/s")


async def write(joined: Map[str], count: int) -> float:
    async def writer(key: str) -> None:
        for _ in range(count // WRITERS):
            await joined.set(key, VALUE)

    start = time.perf_counter()
    await asyncio.gather(*(writer(f"bench-{i}") for i in range(WRITERS)))
    return count / (time.perf_counter() - start)


async def go_write(peer: GoPeer, handle: str, count: int) -> float:
    done = await peer.call("map.bench_set", handle=handle, writers=WRITERS, count=count, size=len(VALUE), timeout_s=120)
    return done["count"] / done["elapsed_s"]


async def bench_visible(url: str, peer: GoPeer | None) -> None:
    """Microseconds from the call of set to the new value being read, woken by a notification, on another copy."""
    async with await Map.join("bench-visible", url) as writer, await Map.join("bench-visible", url) as reader:
        times: dict[str, list[list[float]]] = {"flotta": [], "pulse": []}

        async def flotta() -> float:
            times["flotta"].append(await visible(writer, reader))
            return percentile(times["flotta"][-1], 99)

        async def pulse() -> float:
            assert peer is not None
            times["pulse"].append(await peer.call("map.bench_visible", handle="visible", count=VISIBLE, timeout_s=120))
            return percentile(times["pulse"][-1], 99)

        sides = {"flotta": flotta}
        if peer is not None:
            await peer.call("map.join", handle="visible", name="bench-visible-go")
            sides["pulse"] = pulse
        results = await compete(sides, rounds=rounds_from())
        report("map-visible-p99", results, unit="us")
        medians = {side: Result(tuple(percentile(found, 50) for found in times[side][1:])) for side in sides}
        report("map-visible-p50", medians, unit="us")


async def visible(writer: Map[str], reader: Map[str]) -> list[float]:
    events = reader.subscribe()
    found = []
    for number in range(VISIBLE):
        want = str(number)
        start = time.perf_counter()
        writing = asyncio.ensure_future(writer.set("visible", want))
        while reader.get("visible") != want:
            await anext(events)
        found.append((time.perf_counter() - start) * 1e6)
        await writing
    return found


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


# --- curves ----------------------------------------------------------------------------------------------------------


async def curve_keys(url: str, peer: GoPeer | None) -> None:
    """Joining a map of so many keys: time, the longest that the loop stood still, memory per key."""
    redis = await Redis.from_url(url).connect()
    for keys in CURVE_KEYS:
        name = f"bench-keys-{keys}"
        async with await Map.join(name, redis) as writer:
            for first in range(0, keys, 5_000):
                await asyncio.gather(
                    *(writer.set(f"key-{i:06}", VALUE) for i in range(first, min(first + 5_000, keys)))
                )
        stalls: list[float] = []

        async def flotta(name: str = name, stalls: list[float] = stalls) -> float:
            gc.collect()
            watching = asyncio.create_task(longest_stall())
            await asyncio.sleep(0)
            start = time.perf_counter()
            joined = await Map.join(name, redis)
            elapsed_ms = (time.perf_counter() - start) * 1e3
            watching.cancel()
            stalls.append(await watching * 1e3)
            await joined.aclose()
            return elapsed_ms

        sides = {"flotta": flotta}
        if peer is not None:

            async def pulse(name: str = name) -> float:
                start = time.perf_counter()
                await peer.call("map.join", handle="curve", name=name)
                elapsed_ms = (time.perf_counter() - start) * 1e3
                await peer.call("map.close", handle="curve")
                return elapsed_ms

            sides["pulse"] = pulse
        report(f"map-join-{keys}", await compete(sides, rounds=rounds_from()), unit="ms")
        report(f"map-join-stall-{keys}", {"flotta": Result(tuple(stalls[1:]))}, unit="ms")
        used = await memory_per_key(name, redis, keys)
        report(f"map-memory-per-key-{keys}", {"flotta": Result((used,))}, unit="B")
    await redis.aclose()


async def longest_stall() -> float:
    """How long the loop was away at most, until cancelled."""
    longest = 0.0
    try:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)
    except asyncio.CancelledError:
        return longest


async def memory_per_key(name: str, redis: Redis, keys: int) -> float:
    """Bytes that a joined map keeps per key (10 B of key, 100 B of value), once it has been read whole."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    async with await Map.join(name, redis):
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / keys


async def curve_copies(url: str, peer: GoPeer | None) -> None:
    """Writes per second of 50 callers while 50 copies of the map, each with connections of its own, follow."""
    async with contextlib.AsyncExitStack() as stack:
        start = time.perf_counter()
        joined = [await Map.join("bench-copies", url) for _ in range(COPIES)]
        copies = [await stack.enter_async_context(copy) for copy in joined]
        report(f"map-join-{COPIES}-copies", {"flotta": Result(((time.perf_counter() - start) * 1e3,))}, unit="ms")
        followed: list[float] = []

        async def flotta() -> float:
            start = time.perf_counter()
            rate = await write(copies[0], COPIES_WRITES)
            last = copies[0].revision
            for copy in copies:
                events = copy.subscribe()
                while copy.revision < last:
                    await anext(events)
            followed.append(COPIES_WRITES * COPIES / (time.perf_counter() - start))
            return rate

        sides = {"flotta": flotta}
        if peer is not None:
            for number in range(COPIES):
                await peer.call("map.join", handle=f"copy-{number}", name="bench-copies-go")
            sides["pulse"] = lambda: go_write(peer, "copy-0", COPIES_WRITES)
        report(f"map-set-{COPIES}-copies", await compete(sides, rounds=rounds_from()), unit="writes/s")
        report(f"map-follow-{COPIES}-copies", {"flotta": Result(tuple(followed[1:]))}, unit="changes applied/s")


if __name__ == "__main__":
    run(main)
