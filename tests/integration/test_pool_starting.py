"""A pool that is started, put to work and closed by several callers at once."""

from __future__ import annotations

import asyncio

import pytest

from flotta.errors import Closed
from flotta.pool import PoolOptions, WorkerPool

OPTIONS = PoolOptions(worker_ttl_s=2.0)


async def test_callers_that_start_at_once_make_one_node_and_one_worker(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(f"start-{unique}", options=OPTIONS)
    try:
        await asyncio.gather(*(pool.start(valkey_url, work=True) for _ in range(5)), return_exceptions=False)
        workers = await asyncio.gather(*(pool.work() for _ in range(5)))
        assert len(set(map(id, workers))) == 1
        assert [worker.id for worker in await pool.workers()] == [workers[0].id]
    finally:
        await pool.close()


async def test_a_pool_that_is_closed_while_it_starts_leaves_nothing_behind(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(f"start-{unique}", options=OPTIONS)
    starting = asyncio.create_task(pool.start(valkey_url))
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(Closed):
        await starting
    assert not pool.started
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
