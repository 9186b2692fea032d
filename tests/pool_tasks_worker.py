"""A process that works on a pool until it is killed: ``python pool_tasks_worker.py <url> <pool>``. Says ``ready``."""

from __future__ import annotations

import asyncio
import os
import sys

from flotta.pool import PoolOptions, WorkerPool
from flotta.redis import Redis

__all__ = ["declare"]

OPTIONS = PoolOptions(worker_ttl_s=1.0, tasks_max=20)


def declare(pool: WorkerPool, redis: Redis | None = None):
    """The task of this test; who runs it gives the connection that it writes its history to."""

    @pool.task()
    async def step(n: int) -> int:
        await redis.link.call_many([("RPUSH", f"{pool.name}:begun", n), ("INCR", f"{pool.name}:{os.getpid()}")])
        await asyncio.sleep(0.1)
        return n

    return step


async def main(url: str, name: str) -> None:
    redis = Redis.from_url(url)
    pool = WorkerPool(name, options=OPTIONS)
    declare(pool, redis)
    async with pool.running(redis):
        print("ready", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
