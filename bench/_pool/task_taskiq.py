"""Taskiq's side: `task_taskiq.py produce`; its worker is `taskiq worker task_taskiq:broker`."""

from __future__ import annotations

import asyncio

import uvloop
from harness import RESULTS, URL, counter, produce
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

done = counter()
broker = RedisStreamBroker(URL, consumer_id="0")
if RESULTS:
    broker = broker.with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=3600))


@broker.task(task_name="noop")
async def noop() -> None:
    done.add()


async def main() -> None:
    await broker.startup()
    await produce(noop.kiq)


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
