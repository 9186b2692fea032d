"""Arq's side: `task_arq.py produce` and `task_arq.py work`."""

from __future__ import annotations

import asyncio
import logging
import sys

import uvloop
from arq import Worker, create_pool
from arq.connections import RedisSettings
from arq.worker import func
from harness import RESULTS, URL, counter, produce

done = counter()


async def noop(_context: object) -> None:
    done.add()


async def main() -> None:
    settings = RedisSettings.from_dsn(URL)
    if sys.argv[1] == "produce":
        pool = await create_pool(settings)
        await produce(lambda: pool.enqueue_job("noop"))
        return
    worker = Worker(
        functions=[func(noop, keep_result=3600 if RESULTS else 0)], redis_settings=settings,
        max_jobs=100,
        poll_delay=0.01, log_results=False,
    )  # fmt: skip
    await worker.async_run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    uvloop.install()
    asyncio.run(main())
