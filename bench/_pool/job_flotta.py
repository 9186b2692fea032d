"""Flotta's pool behind the same line protocol as the Go peer: `job_flotta.py URL`.

Owns: one node of a pool. The operations, their arguments and their answers are those of ``tests/interop/go/pool.go``,
so that one driver measures both; the loops that are timed run here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import uvloop

from flotta.pool import Job, PoolOptions, WorkerPool

PAYLOAD = b"x" * 100


class PoolNode:
    """The one node of this process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._running = 0

    async def node(self, name: str, *, client_only: bool = False, **_: Any) -> None:
        self._pool = pool = WorkerPool(name, options=PoolOptions(client_only=client_only))

        @pool.job(key="job-{number}")
        async def idle(job: Job[None], number: int, payload: bytes) -> None:  # noqa: ARG001
            self._running += 1
            try:
                await asyncio.Event().wait()
            finally:
                self._running -= 1

        self._job = idle
        await pool.start(self._url)

    async def worker(self, **_: Any) -> None:
        await self._pool.work()

    async def dispatch(self, *, first: int, jobs: int, callers: int, **_: Any) -> dict[str, float]:
        latencies: list[float] = []

        async def one(number: int) -> None:
            called = time.perf_counter()
            await self._job.dispatch(number, PAYLOAD)
            latencies.append((time.perf_counter() - called) * 1000)

        seconds = await spread(one, first, jobs, callers)
        latencies.sort()
        last = len(latencies) - 1
        return {"seconds": seconds, "p50_ms": latencies[last // 2], "p99_ms": latencies[last * 99 // 100], "lost": 0}

    async def stop(self, *, first: int, jobs: int, callers: int, **_: Any) -> None:
        await spread(lambda number: self._pool.stop(f"job-{number}"), first, jobs, callers)

    async def settle(self, *, running: int, **_: Any) -> None:
        async with asyncio.timeout(60):
            while self._running != running:
                await asyncio.sleep(0.005)


async def spread(work: Callable[[int], Awaitable[object]], first: int, jobs: int, callers: int) -> float:
    """Do it for the numbers from ``first`` on, by callers that each wait for their own; the seconds."""
    numbers = iter(range(first, first + jobs))

    async def caller() -> None:
        for number in numbers:
            await work(number)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return time.perf_counter() - began


async def main() -> None:
    node = PoolNode(sys.argv[1])
    operations = {
        "pool.node": node.node, "pool.worker": node.worker, "pool.bench.dispatch": node.dispatch,
        "pool.bench.stop": node.stop, "pool.bench.settle": node.settle,
    }  # fmt: skip
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        number, operation = request.pop("id"), request.pop("op")
        answer: dict[str, Any] = {"id": number, "ok": None}
        try:
            if operation != "ping":
                answer["ok"] = await operations[operation](**request)
        except Exception as error:  # noqa: BLE001 - the driver raises it
            answer = {"id": number, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    uvloop.run(main())
