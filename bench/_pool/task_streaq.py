"""Streaq's side: `task_streaq.py produce` and `task_streaq.py work`."""

from __future__ import annotations

import logging
import sys

import anyio
from harness import RESULTS, URL, counter, produce
from streaq import Worker

done = counter()
logging.getLogger("streaq").setLevel(logging.WARNING)
worker = Worker(redis_url=URL, anyio_kwargs={"use_uvloop": True})  # 16 at a time, the default, was best here


@worker.task(ttl=3600 if RESULTS else 0, silent=True)
async def noop() -> None:
    done.add()


async def main() -> None:
    async def enqueue() -> None:
        await noop.enqueue()

    async with worker:
        await produce(enqueue)


if __name__ == "__main__":
    if sys.argv[1] == "produce":
        anyio.run(main, backend_options={"use_uvloop": True})
    else:
        worker.run_sync()
