"""What a user gets wrong while a pool runs, or after it has closed, is said plainly and typed."""

from __future__ import annotations

import pytest

from flotta.errors import Closed, ConfigError, InvalidName
from flotta.pool import Job, Node, PoolOptions, WorkerPool


async def watch(job: Job, mmsi: int) -> None:
    async for _ in job.notifications():
        pass


async def charge(order: int) -> int:
    return order


async def test_after_the_close_everything_says_closed(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique)
    job, task = pool.job(key="{mmsi}")(watch), pool.task()(charge)
    await pool.start(valkey_url)
    await pool.close()
    for call in (job.dispatch(1), task.enqueue(1), pool.work(), pool.jobs(), pool.start(valkey_url)):
        with pytest.raises(Closed, match=unique):
            await call
    with pytest.raises(Closed):
        task.handle("known")


async def test_a_renewed_pool_enqueues_again(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique)
    task = pool.task()(charge)
    async with pool.running(valkey_url):
        assert await (await task.enqueue(1)).result(timeout_s=10) == 1
    pool.renew(options=PoolOptions())
    async with pool.running(valkey_url):
        assert await (await task.enqueue(2)).result(timeout_s=10) == 2


async def test_payloads_are_bytes_and_keys_are_text(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique)
    job = pool.job(key="vessel:{mmsi}")(watch)
    async with pool.running(valkey_url):
        handle = await job.dispatch(1)
        with pytest.raises(TypeError, match=r"'vessel:1' must be bytes, not str"):
            await handle.notify("moored")  # type: ignore[arg-type]
        with pytest.raises(InvalidName, match="job key"):
            await pool.stop(1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must be bytes, not dict"):
            await pool.node.dispatch("raw", {"a": 1})  # type: ignore[arg-type]
        await handle.stop()


async def test_what_is_enqueued_together_are_calls(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique)
    job, task = pool.job(key="{mmsi}")(watch), pool.task()(charge)
    async with pool.running(valkey_url):
        with pytest.raises(TypeError, match=r"task\.call\(\.\.\.\), not PlannedJob"):
            await pool.enqueue_many([job.call(1)])  # type: ignore[list-item]
        handle = await task.enqueue(1)
        for after in (handle, handle.id):
            with pytest.raises(ConfigError, match=r"after=\[handle\]"):
                task.options(after=after)  # type: ignore[arg-type]


async def test_a_handler_is_an_object_with_both_methods(valkey_url: str, unique: str) -> None:
    class Feeds:
        async def start(self, job: Job) -> None: ...

        async def stop(self, job: Job) -> None: ...

    async with await Node.join(unique, valkey_url) as node:
        for wrong in (object(), Feeds):
            with pytest.raises(ConfigError, match="start"):
                await node.add_worker(wrong)  # type: ignore[arg-type]
        await node.add_worker(Feeds())
        await node.dispatch("ais")
        await node.stop("ais")


@pytest.mark.parametrize("redis", [None, 6379])
async def test_a_pool_starts_on_a_url_or_a_client(redis: object, unique: str) -> None:
    with pytest.raises(ConfigError, match=r"redis .* a URL or a flotta\.redis\.Redis"):
        await WorkerPool(unique).start(redis)  # type: ignore[arg-type]
