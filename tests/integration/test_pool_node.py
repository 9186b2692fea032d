"""Nodes and workers that come, go, die, hang and are cut off: who has a job, and who believes to have it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from flotta.errors import Closed, Fenced, StateError
from flotta.pool import Job, JobState, Node, StopReason, WorkerPool, WorkerState
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from pool_jobs_harness import FAST, Recorder, WorkerProcess, declare, joined, until


@asynccontextmanager
async def client_of(name: str, url: str) -> AsyncIterator[Any]:
    """The declared job, on a pool without a worker."""
    pool = WorkerPool(name, options=FAST)
    unit = declare(pool, lambda *_: None)
    await pool.start(url)
    try:
        yield unit
    finally:
        await pool.close()


@asynccontextmanager
async def processes(name: str, url: str, count: int = 1) -> AsyncIterator[list[WorkerProcess]]:
    """Workers in processes of their own."""
    made: list[WorkerProcess] = []
    try:
        for _ in range(count):
            made.append(await WorkerProcess.start(name, url))  # noqa: PERF401 - what was made is killed
        yield made
    finally:
        for process in made:
            await process.kill()


async def test_a_killed_worker_is_replaced_and_what_it_was_sent_is_not_lost(valkey_url: str, unique: str) -> None:
    async with processes(unique, valkey_url) as (victim,), client_of(unique, valkey_url) as unit:
        for number in range(20):
            await unit.dispatch(number)
        await until(lambda: len(victim.about("run")) == 20)
        node: Node = unit._node()
        victim.signal(signal.SIGSTOP)  # what is sent from here on it will never see
        for number in range(20):
            await node.notify(f"unit:{number}", b"first")
            await node.notify(f"unit:{number}", b"second")
        async with processes(unique, valkey_url) as (heir,):
            await victim.kill()
            await until(lambda: len(heir.about("run")) == 20)
            await until(lambda: len(heir.about("note")) == 40)
        old = {said[1]: said[2] for said in victim.about("run")}
        for _, key, fence, attempt, state in heir.about("run"):
            assert fence > old[key]
            assert attempt in (1, 2)  # a loss is an attempt, unless the server was so young that nobody is blamed
            assert state == 1  # the checkpoint has moved along
            assert [said[3] for said in heir.about("note", key)] == ["first", "second"]


async def test_a_paused_worker_is_fenced_when_it_wakes_and_works_again_under_a_new_id(
    valkey_url: str, unique: str
) -> None:
    async with processes(unique, valkey_url, 2) as (one, two), client_of(unique, valkey_url) as unit:
        node: Node = unit._node()
        async with asyncio.timeout(10):
            while len(set((await node.membership.table()).owners.values())) < 2:
                await asyncio.sleep(0.01)
        for number in range(20):
            await unit.dispatch(number)
        await until(lambda: len(one.about("run")) + len(two.about("run")) == 20)
        mine = {said[1] for said in one.about("run")}
        assert 0 < len(mine) < 20
        before = {worker.id for worker in await node.workers()}
        one.signal(signal.SIGSTOP)
        await until(lambda: len({said[1] for said in two.about("run")}) == 20)
        one.signal(signal.SIGCONT)
        await until(lambda: {said[1] for said in one.about("end")} >= mine)
        ended = [said for said in one.about("end") if said[1] in mine][: len(mine)]
        assert {(reason, owned) for *_, reason, owned in ended} == {("fenced", False)}
        async with asyncio.timeout(10):
            while len([worker for worker in await node.workers() if worker.lives and worker.id not in before]) < 1:
                await asyncio.sleep(0.01)


async def test_a_loop_that_is_blocked_for_less_than_the_lease_loses_nothing(valkey_url: str, unique: str) -> None:
    async with processes(unique, valkey_url) as (worker,), client_of(unique, valkey_url) as unit:
        handle = await unit.dispatch(1)
        await until(lambda: worker.about("run"))
        worker.tell(f"block {FAST.worker_ttl_s * 0.6}")
        await until(lambda: worker.about("unblocked"))
        await handle.notify(b"after")
        await until(lambda: worker.about("note"))
        assert len(worker.about("run")) == 1
        assert worker.about("end") == []


async def test_a_loop_that_is_blocked_for_longer_is_fenced_and_the_job_runs_anew(valkey_url: str, unique: str) -> None:
    async with processes(unique, valkey_url) as (worker,), client_of(unique, valkey_url) as unit:
        await unit.dispatch(1)
        await until(lambda: worker.about("run"))
        worker.tell(f"block {FAST.worker_ttl_s * 1.6}")
        await until(lambda: len(worker.about("run")) == 2)
        assert [said[3:] for said in worker.about("end")] == [["fenced", False]]
        first, second = worker.about("run")
        assert second[2] > first[2]


async def test_a_worker_that_closes_hands_its_jobs_on_with_their_state(valkey_url: str, unique: str) -> None:
    async with processes(unique, valkey_url) as (leaver,), client_of(unique, valkey_url) as unit:
        for number in range(20):
            await unit.dispatch(number)
        await until(lambda: len(leaver.about("run")) == 20)
        async with processes(unique, valkey_url) as (heir,):
            leaver.tell("close")
            await until(lambda: len({said[1] for said in heir.about("run")}) == 20)
            assert await leaver.ended() == 0
            assert leaver.about("closed") == [["closed"]]
            assert {said[3] for said in leaver.about("end")} == {"handover"}
            assert {said[4] for said in heir.about("run")} == {1}
            assert {said[3] for said in heir.about("run")} == {1}  # nobody is to blame: it is the first attempt still
            [left] = await unit._node().workers()
            assert left.jobs == 20


async def test_a_restart_of_redis_in_the_middle_is_survived(own_valkey: EmbeddedRedis, unique: str) -> None:
    recorder = Recorder()
    async with joined(unique, own_valkey.url, worker_ttl_s=4.0) as node:
        await node.add_worker(recorder)
        await node.dispatch_many([(f"k{n}", b"") for n in range(20)])
        own_valkey.restart_sync()
        for n in range(20):
            await _when_reachable(node, f"k{n}")
        await until(lambda: len(recorder.keys("noted")) == 20)
        assert len(recorder.keys("started")) == 20  # nobody lost a job: the lease was longer than the outage
        assert node.stats.fenced == 0
        await node.dispatch("new")


async def test_when_redis_loses_its_data_the_worker_starts_from_zero_by_itself(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    recorder = Recorder()
    async with joined(unique, own_valkey.url) as node:
        worker = await node.add_worker(recorder)
        before = worker.id
        first = await node.dispatch("k")
        await node.redis.link.call("FLUSHALL")
        await until(lambda: recorder.keys("stopped") == ["k"])
        assert recorder.said[-1].detail is StopReason.FENCED
        await until(lambda: worker.state is WorkerState.WORKING and worker.id not in ("", before))
        second = await node.dispatch("k")
        assert second.fence > first.fence


async def test_a_worker_whose_lease_is_taken_away_writes_nothing_more(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    pool = WorkerPool(unique, options=FAST)
    outcome: list[Any] = []

    @pool.job(key="k{n}")
    async def job(job: Job[int], n: int) -> None:
        if job.attempt > 1:
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            outcome.append((job.stop_reason, job.owned))
            try:
                await job.checkpoint(1)
            except Fenced as error:
                outcome.append(error.fence == job.fence)
            raise

    async with pool.running(valkey_url):
        await job.dispatch(1)
        assert pool.worker is not None
        await redis.link.call("ZREM", pool.node.keys.leases, pool.worker.id)
        await until(lambda: len(outcome) == 2)
        assert outcome == [(StopReason.FENCED, False), True]
        assert pool.stats.fenced == 1


async def test_a_key_never_runs_twice_in_one_process_even_if_its_first_run_does_not_end(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    pool = WorkerPool(unique, options=replace(FAST, ack_grace_s=30.0))
    running = 0
    most = 0
    release = asyncio.Event()

    @pool.job(key="k{n}")
    async def job(job: Job[int], n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        running -= 1
        if job.losses:
            await asyncio.Event().wait()

    async with pool.running(valkey_url):
        await job.dispatch(1)
        assert pool.worker is not None
        before = pool.worker.id
        await redis.link.call("ZREM", pool.node.keys.leases, before)

        async def owner() -> str:
            info = await pool.job_info("k1")
            return "" if info is None or info.state is not JobState.QUEUED else info.owner

        async with asyncio.timeout(10):
            while (now := await owner()) in ("", before):
                await asyncio.sleep(0.01)
        assert now == pool.worker.id
        assert (running, most) == (1, 1)  # the new worker has it and waits for the end of the old run
        release.set()
        async with asyncio.timeout(10):
            while (info := await pool.job_info("k1")) is None or info.state is not JobState.RUNNING:
                await asyncio.sleep(0.01)
        assert most == 1


async def test_a_job_of_an_unknown_kind_goes_to_who_knows_it(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique, options=FAST)

    @pool.job(key="k{n}")
    async def job(job: Job[None], n: int) -> None:
        await asyncio.Event().wait()

    async with joined(unique, valkey_url) as other, pool.running(valkey_url):
        recorder = Recorder()
        await other.add_worker(recorder)  # knows only jobs without a kind
        assert pool.worker is not None
        for n in range(30):
            handle = await job.dispatch(n)
            assert handle.worker == pool.worker.id
        for n in range(30):
            await other.dispatch(f"plain{n}")
        assert len(recorder.keys("started")) == 30


async def test_what_was_closed_says_so_and_may_be_closed_twice(valkey_url: str, unique: str) -> None:
    node = await Node.join(unique, valkey_url, options=FAST)
    await node.close()
    await node.close()
    with pytest.raises(Closed):
        await node.dispatch("k")
    async with joined(unique, valkey_url, client_only=True) as client:
        with pytest.raises(StateError):
            await client.add_worker(Recorder())
        with pytest.raises(StateError):
            await client.shutdown()


async def test_a_removed_worker_gives_its_jobs_to_the_other_one_of_its_node(valkey_url: str, unique: str) -> None:
    one, two = Recorder(), Recorder()
    async with joined(unique, valkey_url) as node:
        first = await node.add_worker(one)
        await node.dispatch_many([(f"k{n}", b"") for n in range(30)])
        await node.add_worker(two)
        await node.remove_worker(first)
        await until(lambda: len(two.running) == 30)
        assert one.running == {}
        assert sorted(one.keys("started")) == sorted(two.keys("started"))
        assert first.state is WorkerState.LEFT


async def _when_reachable(node: Node, key: str) -> None:
    from flotta.errors import RedisError

    async with asyncio.timeout(15):
        while True:
            try:
                await node.notify(key, b"still there?")
            except RedisError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_a_job_of_a_kind_that_nobody_knows_waits_in_peace_for_who_does(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique, options=replace(FAST, ack_grace_s=0.5))

    @pool.job(key="k{n}")
    async def job(job: Job[None], n: int) -> None:
        await asyncio.Event().wait()

    async with (
        joined(unique, valkey_url, ack_grace_s=0.5) as one,
        joined(unique, valkey_url, ack_grace_s=0.5) as two,
        joined(unique, valkey_url, client_only=True) as client,
    ):
        with capture_logs() as logs:
            workers = [await node.add_worker(Recorder()) for node in (one, two)]
            for worker in workers:
                await one.membership.placed(worker.id, 5.0)
            waiting = [
                asyncio.create_task(client.dispatch(f"k{n}", job.call(n).payload, kind="job", timeout_s=60))
                for n in range(10)
            ]
            async with asyncio.timeout(5):
                while (await client.pool_counts()).parked < 10:
                    await asyncio.sleep(0.01)
            declined = one.stats.declined + two.stats.declined
            async with asyncio.timeout(10):
                while not (swept := await one.store.sweep([worker.id for worker in workers])).parked:
                    assert swept.moved == 0
                    assert (await one.store.adopt()).adopted == 0
                    await asyncio.sleep(0.01)
            assert one.stats.declined + two.stats.declined == declined <= 20
            told = [entry for entry in logs if entry["log_level"] == "warning" and entry.get("kind") == "job"]
            assert 1 <= len(told) <= 4  # for the kind, not for each job
        async with pool.running(valkey_url):
            assert pool.worker is not None
            assert {handle.worker for handle in await asyncio.gather(*waiting)} == {pool.worker.id}
