"""Flotta's side: `task_flotta.py produce` and `task_flotta.py work`."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog
import uvloop
from harness import RESULTS, URL, counter, produce

from flotta.pool import WorkerPool

done = counter()
pool = WorkerPool("bench-results" if RESULTS else "bench")


async def noop() -> None:
    done.add()


task = pool.task(name="noop") if RESULTS else pool.task(name="noop", result_ttl_s=None)
enqueue = task(noop).enqueue


async def main() -> None:
    await pool.start(URL)
    try:
        if sys.argv[1] == "produce":
            await produce(enqueue)
        else:
            await pool.work()
            ended = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
            await ended.wait()
    finally:
        await pool.close()


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    uvloop.run(main())
