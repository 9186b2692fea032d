"""Tasks of workers that are killed, and of connections that are cut: nothing is lost, what ran twice is counted."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

import pytest

from flotta.errors import AmbiguousOutcome, LinkUnavailable
from flotta.pool import PoolOptions, WorkerPool
from flotta.pool.tasks import TaskContext, runner
from flotta.redis import Redis
from flotta.testing import FaultProxy
from pool_tasks_harness import TaskPool
from pool_tasks_worker import OPTIONS, declare

TASKS = 200
STEPS_MAX = 10_000
PROGRAM = Path(__file__).parent.parent / "pool_tasks_worker.py"


async def spawn(url: str, name: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), url, name, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
    return process


async def test_tasks_of_a_killed_worker_run_again(redis: Redis, valkey_url: str, unique: str):
    pool = WorkerPool(unique, options=PoolOptions(worker_ttl_s=OPTIONS.worker_ttl_s, client_only=True))
    step = declare(pool)
    victim, survivor = await asyncio.gather(spawn(valkey_url, unique), spawn(valkey_url, unique))
    try:
        await pool.start(redis)
        handles = await pool.enqueue_many([step.call(n) for n in range(TASKS)])
        while int(await redis.link.call("GET", f"{unique}:{victim.pid}") or 0) < OPTIONS.tasks_max // 2:
            await asyncio.sleep(0.001)
        victim.kill()
        assert await asyncio.gather(*(handle.result(30) for handle in handles)) == list(range(TASKS))
        begun = Counter(await redis.link.call("LRANGE", f"{unique}:begun", 0, -1))
        again = sum(count - 1 for count in begun.values())
        assert set(begun) == {b"%d" % n for n in range(TASKS)}, "tasks were lost"
        assert 0 < again <= OPTIONS.tasks_max, "only what the killed worker held may run twice"
        infos = [await handle.status() for handle in handles]
        assert sum(info.failures for info in infos) == 0
        assert sum(info.losses for info in infos) in (0, again)  # 0: the coordinator blames no worker of a young server
    finally:
        await pool.close()
        for process in (victim, survivor):
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_answers_that_are_lost_lose_no_task_and_run_none_twice(valkey_url: str, redis: Redis, unique: str):
    """The connection of the worker and of the enqueuer is cut again and again, in the middle of turns."""
    begun: Counter[int] = Counter()

    async with FaultProxy(valkey_url) as proxy:
        cut = Redis.from_url(proxy.url)
        async with TaskPool(cut, unique) as pool:

            @pool.task()
            async def step(n: int) -> int:
                begun[n] += 1
                await asyncio.sleep(0.001)
                return n

            worker = await pool.work(audit_s=0.2, tasks_max=4)
            cutting = asyncio.create_task(cut_often(proxy))
            try:
                handles = []
                while worker.stats.retries < 3 and len(handles) < STEPS_MAX:
                    calls = [step.call(len(handles) + n) for n in range(100)]
                    handles += await enqueue_stubbornly(pool, calls)
                    await asyncio.sleep(0.02)
            finally:
                cutting.cancel()
                await asyncio.wait({cutting})
            await asyncio.wait_for(all_done(redis, pool, handles), 30)
            assert worker.stats.retries >= 3, "no turn was hit: the test shows nothing"
            assert set(begun) == set(range(len(handles)))
            assert begun.total() == len(handles), "a lost answer let a task run twice"
            await worker.drain(5)
        await cut.aclose()


async def cut_often(proxy: FaultProxy) -> None:
    while True:
        await asyncio.sleep(0.15)
        proxy.cut()


async def enqueue_stubbornly(pool: TaskPool, calls):
    while True:
        try:
            return await pool.client.enqueue_many(calls)
        except (AmbiguousOutcome, LinkUnavailable):
            await asyncio.sleep(0.01)


async def all_done(redis: Redis, pool: TaskPool, handles) -> None:
    keys = [pool.keys.task(handle.id) for handle in handles]
    while True:
        states = await redis.link.call_many([("HGET", key, "s") for key in keys])
        if set(states) == {b"done"}:
            return
        await asyncio.sleep(0.02)


async def test_ready_tasks_are_shared_among_idle_workers(redis: Redis, unique: str, monkeypatch: pytest.MonkeyPatch):
    """A burst does not go to the first worker that hears of it. Nobody looks by itself here: they must be rung."""
    monkeypatch.setattr(runner, "_POLL_S", 60.0)
    async with TaskPool(redis, unique) as pool:
        running, enough = Counter(), asyncio.Event()

        @pool.task()
        async def step() -> None:
            running[pool_worker()] += 1
            if running.total() == 40:
                enough.set()
            await enough.wait()  # nobody ends before all have begun

        for _ in range(4):
            await pool.work(tasks_max=40)
        while await redis.link.call("HLEN", pool.keys.idle) < 4:
            await asyncio.sleep(0.005)
        await pool.client.enqueue_many([step.call() for _ in range(40)])
        await asyncio.wait_for(enough.wait(), 5)
        assert len(running) >= 3, running
        assert max(running.values()) <= 25, running


def pool_worker() -> str:
    return TaskContext.current().worker
