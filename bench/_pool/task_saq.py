"""SAQ's side: `task_saq.py produce` and `task_saq.py work`."""

from __future__ import annotations

import asyncio
import logging
import sys

import uvloop
from harness import RESULTS, URL, counter, produce
from saq import Queue, Worker

done = counter()
TTL_S = 3600 if RESULTS else -1  # -1: the record goes when the task is done


async def noop(_context: object) -> None:
    done.add()


async def main() -> None:
    queue = Queue.from_url(URL, max_concurrent_ops=100)
    await queue.connect()
    if sys.argv[1] == "produce":
        await produce(lambda: queue.enqueue("noop", ttl=TTL_S))
    else:
        await Worker(queue, functions=[noop], concurrency=50).start()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    uvloop.install()
    asyncio.run(main())
