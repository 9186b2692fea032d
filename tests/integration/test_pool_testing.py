"""``flotta.testing.PoolStage`` and ``FakeClock`` as a user's tests use them, on a pool declared for all of them."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flotta.errors import StateError
from flotta.pool import Job, Plan, PoolOptions, Retry, StopReason, WorkerPool
from flotta.testing import FakeClock, PoolStage

pool = WorkerPool("orders")
ended: list[tuple[str, int, StopReason | None]] = []
charged: list[str] = []
reported: list[str] = []
wanted: list[int] = []


@pool.job(key="vessel:{mmsi}")
async def watch(job: Job[int], mmsi: int) -> None:
    await job.checkpoint((job.state or 0) + 1)
    try:
        await asyncio.Event().wait()
    finally:
        ended.append((job.key, job.fence, job.stop_reason))


@pool.task(retry=Retry(1))
async def charge(tenant: str) -> str:
    if tenant == "poor":
        raise ValueError("no money")
    charged.append(tenant)
    return f"charged {tenant}"


@pool.cron("0 3 * * *", tz="Europe/Rome")
@pool.task()
async def report() -> None:
    reported.append("ran")


@pool.schedule(every_s=60)
async def fleet() -> Plan:
    return Plan(desired=[watch.call(mmsi) for mmsi in wanted])


@pytest.fixture(autouse=True)
def empty():
    for each in (ended, charged, reported, wanted):
        each.clear()


async def test_tasks_run_until_none_is_left(valkey_url):
    async with PoolStage(pool, url=valkey_url) as stage:
        handles = [await charge.enqueue(f"t{n}") for n in range(50)]
        await stage.drained()
        assert sorted(charged) == sorted(f"t{n}" for n in range(50))
        assert await handles[7].result() == "charged t7"
        assert (await stage.view.summary()).tasks_waiting == 0


async def test_pool_is_as_it_was_declared_after_each_stage(valkey_url):
    for _ in range(2):
        async with PoolStage(pool, url=valkey_url, workers=2):
            await watch.dispatch(1)
            with pytest.raises(StateError, match="runs: close it first"):
                async with PoolStage(pool, url=valkey_url):
                    pass
        assert pool.options == PoolOptions()
        assert not pool.started


async def test_stage_starts_a_server_of_its_own():
    async with PoolStage(pool) as stage:
        await charge.enqueue("acme")
        await stage.drained()
    assert charged == ["acme"]


async def test_task_that_fails_for_good_is_a_dead_letter(valkey_url):
    async with PoolStage(pool, url=valkey_url) as stage:
        await charge.enqueue("poor")
        await stage.until(stage.dead_letters)
        [letter] = await stage.dead_letters()
        assert (letter.name, letter.attempts, letter.error) == ("charge", 2, "ValueError: no money")


async def test_jobs_of_a_killed_worker_run_on_another_with_their_checkpoints(valkey_url):
    async with PoolStage(pool, url=valkey_url) as stage:
        first = stage.workers[0]
        handle = await watch.dispatch(1)
        await stage.running("vessel:1")
        second = await stage.add_worker()
        await first.kill()
        began = time.monotonic()
        await stage.until(lambda: second.running == {"vessel:1"})
        assert time.monotonic() - began < 10, "the time to live is one second on a stage, not 30"
        await stage.until(lambda: ended)
        assert ended == [("vessel:1", handle.fence, StopReason.FENCED)]
        [job] = await stage.jobs()
        assert job.fence > handle.fence


async def test_what_a_paused_worker_still_does_is_fenced(valkey_url):
    async with PoolStage(pool, url=valkey_url) as stage:
        first = stage.workers[0]
        await watch.dispatch(1)
        await stage.running("vessel:1")
        second = await stage.add_worker()
        first.pause()
        await stage.until(lambda: "vessel:1" in second.running)
        first.resume()
        await stage.until(lambda: not first.running)
        await stage.running("vessel:1")
        assert [reason for _, _, reason in ended] == [StopReason.FENCED]


async def test_worker_that_leaves_hands_its_jobs_over(valkey_url):
    async with PoolStage(pool, url=valkey_url, workers=2) as stage:
        for mmsi in range(10):
            await watch.dispatch(mmsi)
        keys = [f"vessel:{mmsi}" for mmsi in range(10)]
        await stage.running(*keys)
        await stage.workers[0].leave()
        await stage.running(*keys)
        assert stage.workers[1].running == set(keys)
        assert {reason for _, _, reason in ended} <= {StopReason.HANDOVER}


async def test_cron_task_comes_round_when_the_clock_is_turned(valkey_url):
    clock = FakeClock(datetime(2026, 3, 29, 0, 50, tzinfo=UTC))
    async with PoolStage(pool, url=valkey_url, clock=clock) as stage:
        await clock.armed(2)  # the cron tasks and the schedule of one worker
        await clock.advance(540)
        await stage.drained()
        assert reported == []
        await clock.advance(60)  # 03:00 in Rome, right after 01:59:59 by its clocks
        await stage.until(lambda: reported)
        await clock.advance(3600)
        await stage.drained()
        assert reported == ["ran"]


async def test_schedule_plans_when_the_clock_is_turned(valkey_url):
    clock = FakeClock()
    wanted[:] = [1, 2]
    async with PoolStage(pool, url=valkey_url, clock=clock, workers=2) as stage:
        await stage.running("vessel:1", "vessel:2")
        await clock.armed(4)
        wanted[:] = [2, 3]
        await clock.advance(60)
        await stage.running("vessel:2", "vessel:3")
        await stage.until(lambda: any(key == "vessel:1" for key, _, _ in ended))


async def test_time_out_says_that_it_was_one(valkey_url):
    async with PoolStage(pool, url=valkey_url, workers=0) as stage:
        await charge.enqueue("acme")
        with pytest.raises(TimeoutError):
            await stage.drained(timeout_s=0.1)


async def test_clock_wakes_what_is_due_in_the_order_of_time():
    clock, order = FakeClock(), []

    async def wait(name: str, *delays_s: float) -> None:
        for delay_s in delays_s:
            await clock.timer(name, delay_s)
            order.append((name, (clock.now_ms() - start_ms) // 1000))
        clock.release(name)

    start_ms = clock.now_ms()
    tasks = [asyncio.create_task(wait("a", 10, 20)), asyncio.create_task(wait("b", 15, 5))]
    await clock.armed(2)
    await clock.advance(9)
    assert order == []
    await clock.advance(60)
    assert order == [("a", 10), ("b", 15), ("b", 20), ("a", 30)]
    assert (clock.now_ms() - start_ms) == 69_000
    await asyncio.gather(*tasks)


_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "testing.md"
_BLOCKS = [b for b in re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL) if "Stage" in b]


@pytest.mark.parametrize("block", _BLOCKS, ids=["PoolStage", "FakeClock"])
async def test_page_is_right(block):
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block, str(_PAGE), "exec", dont_inherit=True), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        await test()
