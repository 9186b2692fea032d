"""What joins, leaves and a rolling restart cost ten workers, and how evenly they are loaded: real pools, one process.

``POOL_ROLLING_JOBS`` (default 2,000) makes the rolling restart bigger; ``make chaos`` has 10,000.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from flotta.pool.jobs.job import Job
from flotta.pool.node import JobHandle, Node
from flotta.pool.options import PoolOptions
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from pool_herd import until

pytestmark = pytest.mark.faults

WORKERS = 10
LOAD_JOBS = 10_000
ROLLING_JOBS = int(os.environ.get("POOL_ROLLING_JOBS", "2000"))
MOVES_MAX = 2.2
SHARE_MAX = 0.12
SPREAD_MAX = 0.10


class Holder:
    """A handler whose jobs do nothing but be there. ``runs``: key -> the holder that runs it; shared by all."""

    def __init__(self, runs: dict[str, Holder], starts: Counter[str]) -> None:
        self._runs = runs
        self._starts = starts

    async def start(self, job: Job[None]) -> None:
        self._starts[job.key] += 1
        self._runs[job.key] = self

    async def stop(self, job: Job[None]) -> None:
        if self._runs.get(job.key) is self:
            del self._runs[job.key]


class Ten:
    """Ten nodes, each with a worker. ``starts``: how often each job began."""

    def __init__(self, redis: Redis, name: str) -> None:
        self.redis = redis
        self.name = name
        self.nodes: dict[int, Node] = {}
        self.runs: dict[str, Holder] = {}
        self.starts: Counter[str] = Counter()

    async def start(self, place: int) -> None:
        """A new worker in ``place``."""
        options = PoolOptions(worker_ttl_s=6.0, queue_max_per_worker=10_000, rebalance_debounce_s=0.05)
        self.nodes[place] = await Node.join(self.name, self.redis, options=options)
        await self.nodes[place].add_worker(Holder(self.runs, self.starts))

    async def dispatch(self, count: int) -> None:
        node = next(iter(self.nodes.values()))
        for first in range(0, count, 500):
            for answer in await node.dispatch_many([(f"job {n}", b"") for n in range(first, min(first + 500, count))]):
                assert isinstance(answer, JobHandle), answer

    async def settle(self, count: int) -> None:
        """Every job runs, and every one where the slot table wants it."""
        await until(lambda: len(self.runs) == count, f"{count} jobs run", 60, poll_s=0.05)
        moved = -1
        while moved != sum(self.starts.values()):
            moved = sum(self.starts.values())
            await asyncio.sleep(1.5)  # the coordinator's look at the balance, and nothing has moved
            await until(lambda: len(self.runs) == count, f"{count} jobs run", 60, poll_s=0.05)

    def spread(self) -> float:
        """The largest difference from the mean load, as a part of it."""
        loads = Counter(self.runs.values())
        mean = len(self.runs) / len(self.nodes)
        assert len(loads) == len(self.nodes), "somebody has nothing"
        return max(abs(load - mean) for load in loads.values()) / mean


@pytest.fixture
async def ten(own_valkey: EmbeddedRedis, unique: str) -> AsyncIterator[Ten]:
    async with Redis.from_url(own_valkey.url) as redis:
        made = Ten(redis, f"ten-{unique}")
        for place in range(WORKERS):
            await made.start(place)
        yield made
        await made.nodes.popitem()[1].shutdown()
        await asyncio.gather(*(node.close() for node in made.nodes.values()))


async def test_ten_workers_carry_ten_thousand_jobs_evenly(ten: Ten) -> None:
    await ten.dispatch(LOAD_JOBS)
    await ten.settle(LOAD_JOBS)
    print(f"{LOAD_JOBS} jobs on {WORKERS} workers: {ten.spread():.1%} from the mean at most")
    assert ten.spread() <= SPREAD_MAX


async def test_a_join_or_a_leave_moves_a_tenth(ten: Ten) -> None:
    await ten.dispatch(ROLLING_JOBS)
    await ten.settle(ROLLING_JOBS)
    before = sum(ten.starts.values())
    leaver = ten.nodes.pop(0)
    await leaver.close()
    await ten.settle(ROLLING_JOBS)
    left = sum(ten.starts.values()) - before
    await ten.start(0)
    await ten.settle(ROLLING_JOBS)
    joined = sum(ten.starts.values()) - before - left
    print(f"a leave moved {left / ROLLING_JOBS:.1%}, a join {joined / ROLLING_JOBS:.1%} of {ROLLING_JOBS} jobs")
    assert 0 < left <= SHARE_MAX * ROLLING_JOBS
    assert 0 < joined <= SHARE_MAX * ROLLING_JOBS


@pytest.mark.timeout(60 + ROLLING_JOBS // 20)
async def test_a_rolling_restart_of_ten_moves_each_job_about_twice(ten: Ten) -> None:
    await ten.dispatch(ROLLING_JOBS)
    await ten.settle(ROLLING_JOBS)
    before = sum(ten.starts.values())
    for place in range(WORKERS):  # the old one first: so each job of it moves away, and as many move to the new one
        await ten.nodes.pop(place).close()
        await ten.start(place)
    await ten.settle(ROLLING_JOBS)
    moves = (sum(ten.starts.values()) - before) / ROLLING_JOBS
    print(f"a rolling restart of {WORKERS} moved each of {ROLLING_JOBS} jobs {moves:.2f} times on average")
    assert moves <= MOVES_MAX
    assert ten.spread() <= SPREAD_MAX
