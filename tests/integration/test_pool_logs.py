"""What the logs say of jobs and tasks that fail: each dead letter once, with the user's frames and not the pool's."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import pytest

from flotta.errors import TaskFailed
from flotta.pool import Backoff, Job, PoolOptions, Retry, RetryTask, WorkerPool


class Log:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def bind(self, **_: Any) -> Log:
        return self

    def __getattr__(self, level: str) -> Any:
        return lambda event, **facts: self.lines.append((level, event, facts))

    def of(self, event: str) -> list[tuple[str, dict[str, Any]]]:
        return [(level, facts) for level, said, facts in self.lines if said == event]


def frames(facts: dict[str, Any]) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(facts["exc_info"][2])]


async def test_a_task_that_fails_for_good_is_an_error_with_the_frames_of_its_code(valkey_url: str, unique: str) -> None:
    log = Log()
    pool = WorkerPool(unique, options=PoolOptions(worker_ttl_s=5), logger=log)

    @pool.task(retry=Retry(1, backoff=Backoff(first_s=0)))
    async def charge(order: int) -> None:
        raise ValueError(f"no order {order}")

    async with pool.running(valkey_url):
        handle = await charge.enqueue(7)
        with pytest.raises(TaskFailed) as caught:
            await handle.result(timeout_s=10)
    [(level, again)] = log.of("a task failed and runs again")
    assert (level, again["task"], again["error"], again["attempt"]) == (
        "warning",
        "charge",
        "ValueError: no order 7",
        1,
    )
    assert again["at"].startswith(__file__)
    [(level, dead)] = log.of("a task is a dead letter now")
    assert (level, dead["task"], dead["id"], dead["attempt"]) == ("error", "charge", handle.id, 2)
    assert frames(dead) == ["charge"]
    assert "execution.py" not in caught.value.trace
    assert __file__ in caught.value.trace
    assert "after 2 attempts: ValueError" in str(caught.value)


async def test_a_task_that_asks_for_another_run_or_succeeds_is_not_logged(valkey_url: str, unique: str) -> None:
    log = Log()
    pool = WorkerPool(unique, options=PoolOptions(worker_ttl_s=5), logger=log)
    runs: list[int] = []

    @pool.task(retry=Retry(1))
    async def poll() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise RetryTask(after_s=0)
        return len(runs)

    async with pool.running(valkey_url):
        assert await (await poll.enqueue()).result(timeout_s=10) == 2
    assert not [line for line in log.lines if "task" in line[2]]


async def test_a_job_that_crashes_is_logged_where_its_code_raised(valkey_url: str, unique: str) -> None:
    log = Log()
    pool = WorkerPool(unique, options=PoolOptions(worker_ttl_s=5), logger=log)

    @pool.job(key="main", crashes_max=0)
    async def broken(job: Job) -> None:
        await job.checkpoint(object())  # what MessagePack cannot hold

    async with pool.running(valkey_url):
        await broken.dispatch()
        while not log.of("a job is a dead letter now"):
            await pool.jobs()  # a round trip
        await pool.shutdown()
    [(_, crashed)] = log.of("a job crashed")
    assert crashed["at"].startswith(__file__)
    [(level, dead)] = log.of("a job is a dead letter now")
    assert level == "error"
    assert frames(dead)[0] == "broken"


async def test_an_outage_is_no_line_for_each_beat(own_valkey: Any, unique: str) -> None:
    log = Log()
    pool = WorkerPool(unique, options=PoolOptions(worker_ttl_s=1), logger=log)
    async with pool.running(own_valkey.url):
        own_valkey.kill()
        async with asyncio.timeout(10):
            while not log.of("a worker is fenced"):
                await asyncio.sleep(0.01)
        beats = log.of("a heartbeat failed")
        await own_valkey.restart()
    assert len(beats) == 1
