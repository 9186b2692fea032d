"""What a pool leaves in Redis: nothing after a shutdown, and of ended tasks nothing once their results have expired."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flotta.errors import NoResult, TaskFailed
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from pool_crew import Crewman, crewman, history_of, leftovers
from pool_driver import Driver
from pool_herd import herd, until
from pool_journal import Journal
from pool_worker import Setup

pytestmark = pytest.mark.faults

TTL_S = 1.0


@pytest.fixture
def setup(own_valkey: EmbeddedRedis, valkey_url: str, unique: str, tmp_path: Path) -> Setup:
    return Setup(
        url=own_valkey.url,
        ledger_url=valkey_url,
        pool=f"leak-{unique}",
        folder=str(tmp_path),
        process="",
        ttl_s=TTL_S,
        every_s=0.2,
        options={"close_timeout_s": 5.0, "handover_timeout_s": 2.0, "shutdown_ttl_s": 5.0},
    )


async def busy(a: Crewman) -> None:
    """A bit of everything: jobs that run, crash and are dead; tasks done, dead, waiting, due, unique and in lanes."""
    for number in range(20):
        await a.dispatch(number, "crash:1000" if number < 2 else "stay")
    await a.declared.poison.dispatch(1, 1)
    declared = a.declared
    calls = [declared.charge.options(id=f"c{n}", result_ttl_s=1).call(f"c{n}") for n in range(100)]
    calls += [declared.post.options(id=f"p{n}", result_ttl_s=1).call(f"p{n}", f"lane{n % 3}") for n in range(30)]
    calls += [declared.charge.options(id=f"d{n}", delay_s=3_600).call(f"d{n}") for n in range(10)]
    calls += [declared.charge.options(id=f"s{n}").call(f"s{n}", "sleep:3600") for n in range(10)]
    calls += [declared.post.options(id=f"w{n}").call(f"w{n}", "long", "sleep:3600") for n in range(10)]
    calls += [declared.charge.options(unique="one").call(f"u{n}", "sleep:3600") for n in range(3)]
    handles = await a.pool.enqueue_many(calls)
    for handle in handles[:130]:
        await handle.result(timeout_s=20)
    doomed = await declared.doomed.options(result_ttl_s=1).enqueue("doomed")
    with pytest.raises(TaskFailed):
        await doomed.result(timeout_s=20)


async def test_a_shutdown_leaves_nothing(setup: Setup, own_valkey: EmbeddedRedis) -> None:
    async with Redis.from_url(own_valkey.url) as redis:
        async with crewman(setup, "a") as a, crewman(setup, "b"):
            await busy(a)
            assert len(await leftovers(redis, setup.pool)) > 30, "while it works there is something"
            await a.pool.shutdown(timeout_s=20)
        assert await leftovers(redis, setup.pool) == []


async def test_after_a_shutdown_the_pool_can_be_used_again(setup: Setup, own_valkey: EmbeddedRedis) -> None:
    async with crewman(setup, "a") as a:
        await a.dispatch(1)
        await a.pool.shutdown(timeout_s=20)
    async with crewman(setup, "b") as b:
        await b.dispatch(1, dispatch=2)
        assert await (await b.declared.charge.enqueue("t")).result(timeout_s=10) == "t"


async def test_what_ended_tasks_leave_expires(setup: Setup, own_valkey: EmbeddedRedis) -> None:
    async with Redis.from_url(own_valkey.url) as redis, crewman(setup, "a") as a:
        await a.dispatch(1)
        before = set(await leftovers(redis, setup.pool))
        calls = [a.declared.charge.options(id=f"c{n}", result_ttl_s=1).call(f"c{n}", "fail:1") for n in range(50)]
        calls += [a.declared.post.options(id=f"p{n}", result_ttl_s=1).call(f"p{n}", f"l{n % 5}") for n in range(50)]
        calls += [a.declared.charge.options(id=f"n{n}", result_ttl_s=0).call(f"n{n}") for n in range(50)]
        calls += [a.declared.charge.options(id=f"d{n}", result_ttl_s=1, delay_s=0.5).call(f"d{n}") for n in range(20)]
        calls += [a.declared.charge.options(result_ttl_s=1, unique=f"v{n}").call(f"u{n}") for n in range(20)]
        handles = await a.pool.enqueue_many(calls)
        running = await a.declared.charge.options(result_ttl_s=1).enqueue("x", "sleep:3600")
        await until(lambda: "x" in history_of(setup).tasks, "it runs")
        await running.cancel()
        for handle in handles:
            with contextlib.suppress(NoResult):
                await handle.result(timeout_s=20)
        extra: set[str] = set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while extra := set(await leftovers(redis, setup.pool)) - before - SOMETIMES:
                    await asyncio.sleep(0.1)
        assert extra == set()


async def test_who_leaves_leaves_nothing_at_once(setup: Setup, own_valkey: EmbeddedRedis) -> None:
    async with Redis.from_url(own_valkey.url) as redis, crewman(setup, "b") as b:
        with capture_logs() as logs:
            async with crewman(setup, "a") as a:
                await until(lambda: a.pool.worker is not None and a.pool.worker.id, "it works")
                for number in range(10):
                    await b.dispatch(number)
                await (await b.declared.charge.enqueue("t")).result(timeout_s=10)
                names = {a.pool.node.id, a.pool.worker.id if a.pool.worker is not None else ""}
        assert [line for line in logs if line["log_level"] in ("warning", "error")] == []
        assert [key for key in await leftovers(redis, setup.pool) if any(name in key for name in names)] == []
        assert [worker.info.node for worker in await b.pool.workers()] == [b.pool.node.id]


SOMETIMES = {"idle", "meta", "coordinator", "leaving", "tasks"}
"""Keys that a working pool has at one moment and not at another, however many tasks there were."""


async def test_the_dead_leave_no_more_than_those_who_go(
    setup: Setup, own_valkey: EmbeddedRedis, tmp_path: Path
) -> None:
    """Every worker is killed and replaced in the middle of its work; then a shutdown."""
    journal = Journal(tmp_path, "driver")
    async with herd(setup, 3, journal, code=lambda slot: "old" if slot else "new") as workers:
        async with Driver.open(setup, journal, seed=3) as driver:
            await driver.dispatch_all(range(40))
            await driver.enqueue_all(300, 1.0)
            for slot, member in list(workers.members.items()):
                await workers.kill(member)
                await workers.spawn(slot, member.code)
        async with crewman(setup, "last") as last:
            await last.pool.shutdown(timeout_s=20)
        for member in workers.members.values():
            assert await workers.end(member) == 0
        assert workers.complaints() == []
    journal.close()
    async with Redis.from_url(own_valkey.url) as redis:
        assert await leftovers(redis, setup.pool) == []
