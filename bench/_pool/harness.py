"""What the producer and the worker of every task queue share: a counter that both see, and the producer's protocol.

Owns: how a finished task is counted, equally for all and cheaply: the body of the task adds one to a number in
shared memory, which the benchmark reads. Only the standard library: this runs in each peer's own environment.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import mmap
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

__all__ = ["CALLERS", "RESULTS", "URL", "Counter", "counter", "produce", "produce_in_threads"]

URL = os.environ.get("BENCH_REDIS_URL", "")
RESULTS = os.environ.get("BENCH_RESULTS") == "1"
"""Whether results are stored."""
CALLERS = 50


class Counter:
    """Tasks that have run. One process adds, others read."""

    def __init__(self, path: str | Path) -> None:
        place = Path(path)
        if not place.exists():
            place.write_bytes(bytes(8))
        with place.open("r+b") as file:
            self._cell = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")

    def add(self) -> None:
        self._cell[0] += 1

    @property
    def value(self) -> int:
        return self._cell[0]


def counter() -> Counter:
    """The counter of this benchmark run."""
    return Counter(os.environ["BENCH_COUNTER"])


async def produce(enqueue: Callable[[], Awaitable[object]]) -> None:
    """Read a number, enqueue so many tasks by fifty callers that each wait for their own, answer the seconds."""
    loop = asyncio.get_running_loop()
    _say("ready")
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        numbers = iter(range(int(line)))

        async def caller(numbers: object = numbers) -> None:
            for _ in numbers:  # type: ignore[attr-defined]
                await enqueue()

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        _say(f"{time.perf_counter() - began:.6f}")


def produce_in_threads(enqueue: Callable[[], object], *, threads: int) -> None:
    """The same for a library that is not asynchronous."""

    def caller(numbers: object) -> None:
        for _ in numbers:  # type: ignore[attr-defined]
            enqueue()

    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        _say("ready")
        for line in sys.stdin:
            shares = [range(share, int(line), threads) for share in range(threads)]
            began = time.perf_counter()
            list(executor.map(caller, shares))
            _say(f"{time.perf_counter() - began:.6f}")


def _say(text: str) -> None:
    print(text, flush=True)
