"""Who hangs through the shutdown of its pool, or dies over it: what it finds and does when it wakes, what others do."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flotta.pool import Node, WorkerPool
from flotta.pool.keys import PoolKeys
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from pool_crew import leftovers
from pool_jobs_harness import FAST, Recorder, WorkerProcess, declare, joined, until

pytestmark = pytest.mark.faults


@contextlib.asynccontextmanager
async def shut_down_while_it_hangs(pool: str, url: str, how: str) -> AsyncIterator[WorkerProcess]:
    """A process that has a job and hangs, and a shutdown by another node that has not waited for it."""
    hung = await WorkerProcess.start(pool, url, shutdown_ttl_s=0.5)
    try:
        async with joined(pool, url, shutdown_ttl_s=0.5) as node:
            client: Any = WorkerPool(pool, options=FAST)
            unit = declare(client, print)
            async with Redis.from_url(url) as redis:
                await client.start(redis)
                await unit.dispatch(1)
                await client.close()
                await until(lambda: hung.about("run"))
                while await uptime_s(redis) < 4:  # so that it is seen that the server ran all the time
                    await asyncio.sleep(0.1)
            if how == "stopped":
                hung.signal(signal.SIGSTOP)
            else:
                hung.tell("block")
            await node.shutdown()
        yield hung
    finally:
        await hung.kill()


async def uptime_s(redis: Redis) -> int:
    info = await redis.link.call("INFO", "server")
    line = next(line for line in info.decode().splitlines() if line.startswith("uptime_in_seconds:"))
    return int(line.partition(":")[2])


async def wake(hung: WorkerProcess, how: str) -> None:
    if how == "stopped":
        hung.signal(signal.SIGCONT)
    else:
        hung.tell("go on")
    async with asyncio.timeout(15):
        while not hung.about("end"):  # its job was fenced
            await asyncio.sleep(0.01)
    assert [said[3] for said in hung.about("end")] == ["fenced"]


@pytest.mark.parametrize("how", ["stopped", "blocked"])
async def test_who_hung_through_a_shutdown_leaves_nothing_when_it_wakes(how: str, valkey_url: str, unique: str) -> None:
    async with (
        Redis.from_url(valkey_url) as redis,
        shut_down_while_it_hangs(unique, valkey_url, how) as hung,
    ):
        assert await leftovers(redis, unique) == []
        await wake(hung, how)
        hung.tell("close")
        assert await hung.ended() == 0
        assert await leftovers(redis, unique) == []


async def test_who_hung_through_a_shutdown_leaves_the_pool_alone_that_was_opened_meanwhile(
    valkey_url: str, unique: str
) -> None:
    async with (
        Redis.from_url(valkey_url) as redis,
        shut_down_while_it_hangs(unique, valkey_url, "stopped") as hung,
        joined(unique, valkey_url) as anew,
    ):
        recorder = Recorder()
        worker = await anew.add_worker(recorder)
        await anew.dispatch("new")
        await wake(hung, "stopped")
        hung.tell("close")
        assert await hung.ended() == 0
        assert await redis.link.call("ZRANGE", anew.keys.nodes, 0, -1) == [anew.id.encode()]
        assert await redis.link.call("HKEYS", anew.keys.workers) == [worker.id.encode()]
        assert (recorder.keys("started"), recorder.keys("stopped")) == (["new"], [])
        assert [info.key for info in await anew.jobs()] == ["new"]


CLEAR_AWAY = """
import asyncio, sys
from flotta.pool.jobs.store import JobStore
from flotta.redis import Redis

async def main():
    async with Redis.from_url(sys.argv[1]) as redis:
        print("go", flush=True)
        await JobStore(redis, sys.argv[2]).clear_away("doomed")

asyncio.run(main())
"""
FILL = "for n = 1, 100000 do redis.call('SET', ARGV[1] .. n, '') end"


async def test_the_next_to_join_ends_a_clean_up_whose_process_was_killed(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    keys = PoolKeys(unique)
    async with Redis.from_url(own_valkey.url) as redis:
        await redis.link.call("EVAL", FILL, 1, keys.meta, keys.prefix + "job:")
        await redis.link.call("HSET", keys.meta, "shutdown", "dead", "shutdown_until", 1)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", CLEAR_AWAY, own_valkey.url, unique)
        while int(await redis.link.call("DBSIZE")) >= 100_000:
            await asyncio.sleep(0.0005)
        process.kill()
        await process.wait()
        assert await redis.link.call("EXISTS", keys.meta, keys.clearing) == 2, "it was killed in the middle"
        left = int(await redis.link.call("DBSIZE"))
        assert 1_000 < left < 100_000
        assert 5_000 < int(await redis.link.call("PTTL", keys.clearing)) <= 10_000
        await redis.link.call("PEXPIRE", keys.clearing, 1_000)
        async with asyncio.timeout(20):  # the lock of the dead ends by its time
            node = await Node.join(unique, own_valkey.url, options=FAST)
        await node.add_worker(Recorder())
        await node.dispatch("new")
        assert [key for key in await leftovers(redis, unique) if key.startswith("job:")] == ["job:new"]
        await node.close()
