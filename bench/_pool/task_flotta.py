"""Flotta's side: `task_flotta.py produce` and `task_flotta.py work`."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from harness import RESULTS, URL, counter, produce

from flotta.pool import WorkerPool

done = counter()
pool = WorkerPool("bench-results" if RESULTS else "bench")


@pool.task(name="noop", result_ttl_s=3600 if RESULTS else None)
async def noop() -> None:
    done.add()


async def main() -> None:
    await pool.start(URL)
    try:
        if sys.argv[1] == "produce":
            await produce(noop.enqueue)
        else:
            await pool.work()
            await asyncio.Event().wait()
    finally:
        await pool.close()


if __name__ == "__main__":
    uvloop.run(main())
