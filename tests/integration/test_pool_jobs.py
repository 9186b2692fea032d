"""Jobs as their dispatchers see them: each outcome of dispatch, stop and notify, on one server, with real nodes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from flotta.errors import (
    DispatchTimeout,
    InvalidName,
    JobExists,
    NotRunning,
    NoWorkers,
    PayloadTooLarge,
    PoolShutdown,
    QueueFull,
    StartFailed,
    StopUnconfirmed,
)
from flotta.pool import Backoff, Job, JobHandle, JobState, Node, StopReason, WorkerPool
from flotta.redis import Redis
from pool_jobs_harness import FAST, QUICK, Recorder, joined, until


async def test_a_client_only_node_dispatches_to_a_worker_elsewhere(valkey_url: str, unique: str) -> None:
    recorder = Recorder()
    async with joined(unique, valkey_url) as node, joined(unique, valkey_url, client_only=True) as client:
        worker = await node.add_worker(recorder)
        handle = await client.dispatch("vessel-7", b"payload")
        assert recorder.details("started", "vessel-7") == [b"payload"]
        assert handle.worker == worker.id
        assert handle.fence == recorder.said[0].fence
        info = await handle.info()
        assert info is not None
        assert (info.state, info.owner) == (JobState.RUNNING, worker.id)
        assert await client.payload("vessel-7") == b"payload"
        assert [job.key for job in await client.jobs()] == ["vessel-7"]
        assert worker.jobs == ["vessel-7"]
        found = await client.workers()
        assert [(w.id, w.lives, w.jobs) for w in found] == [(worker.id, True, 1)]


async def test_a_key_that_is_there_is_refused_until_it_has_ended(valkey_url: str, unique: str) -> None:
    async with joined(unique, valkey_url) as node:
        await node.add_worker(Recorder())
        first = await node.dispatch("k")
        with pytest.raises(JobExists):
            await node.dispatch("k")
        await node.stop("k")
        second = await node.dispatch("k")
        assert second.fence > first.fence


async def test_of_many_dispatches_of_one_key_exactly_one_wins(valkey_url: str, unique: str) -> None:
    recorder = Recorder()
    async with joined(unique, valkey_url) as one, joined(unique, valkey_url) as two:
        await one.add_worker(recorder)
        await two.add_worker(recorder)
        calls = [node.dispatch("k") for node in (one, two) for _ in range(25)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(outcome, JobHandle) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, JobExists) for outcome in outcomes) == 49
        assert recorder.keys("started") == ["k"]


async def test_what_the_handler_says_reaches_the_dispatcher_and_the_key_is_free_again(
    valkey_url: str, unique: str
) -> None:
    recorder = Recorder()
    async with joined(unique, valkey_url) as node:
        await node.add_worker(recorder)
        with pytest.raises(StartFailed, match="this payload is refused") as caught:
            await node.dispatch("k", b"bad")
        assert caught.value.reason == "ValueError: this payload is refused"
        assert recorder.keys("stopped") == []  # what was not started is not stopped
        assert await node.job_info("k") is None
        await node.dispatch("k", b"good")


async def test_without_a_worker_nothing_is_accepted(valkey_url: str, unique: str) -> None:
    async with joined(unique, valkey_url, client_only=True) as client:
        with pytest.raises(NoWorkers):
            await client.dispatch("k")
        assert await client.job_info("k") is None


async def test_a_full_queue_refuses_at_once(valkey_url: str, unique: str, redis: Redis) -> None:
    async with joined(unique, valkey_url, queue_max_per_worker=3) as client:
        await _silent_worker(redis, client)
        waiting = [asyncio.create_task(client.dispatch(f"k{n}", timeout_s=5)) for n in range(3)]
        await _until_queued(client, 3)
        with pytest.raises(QueueFull) as caught:
            await client.dispatch("k3")
        assert (caught.value.queued, caught.value.limit) == (3, 3)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_dispatch_that_nobody_claims_in_time_is_withdrawn(valkey_url: str, unique: str, redis: Redis) -> None:
    async with joined(unique, valkey_url, ack_grace_s=30.0) as client:
        await _silent_worker(redis, client)
        with pytest.raises(DispatchTimeout) as caught:
            await client.dispatch("k", timeout_s=0.2)
        assert caught.value.withdrawn
        assert await client.job_info("k") is None
        assert (await client.pool_counts()).queued == 0


async def test_a_dispatch_whose_start_takes_too_long_stops_the_start(valkey_url: str, unique: str) -> None:
    recorder = Recorder()
    recorder.gate.clear()
    async with joined(unique, valkey_url) as node:
        await node.add_worker(recorder)
        with pytest.raises(DispatchTimeout) as caught:
            await node.dispatch("k", timeout_s=1.5)  # time enough to be claimed
        assert not caught.value.withdrawn
        assert recorder.keys("starting") == ["k"]
        await until(lambda: node.stats.running == 0)
        assert await node.job_info("k") is None
        assert recorder.keys("started") == []


async def test_a_stop_waits_for_the_end(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique, options=FAST)
    slow = asyncio.Event()
    reasons: list[StopReason | None] = []
    runs: list[int] = []

    @pool.job(key="k{n}")
    async def job(job: Job[None], n: int) -> None:
        runs.append(n)
        try:
            await asyncio.Event().wait()
        finally:
            reasons.append(job.stop_reason)
            await slow.wait()

    async with pool.running(valkey_url):
        handle = await job.dispatch(1)
        await until(lambda: runs)
        stopping = asyncio.create_task(handle.stop())
        await until(lambda: reasons)
        assert not stopping.done()
        with pytest.raises(NotRunning):
            await handle.notify(b"too late")
        slow.set()
        await stopping
        assert reasons == [StopReason.STOP]
        assert await handle.info() is None
        with pytest.raises(NotRunning):
            await pool.stop("k1")


async def test_a_job_that_ignores_its_stop_is_reported_and_never_runs_again(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique, options=replace(FAST, stop_timeout_s=0.3))
    starts: list[str] = []
    release = asyncio.Event()

    @pool.job(key="k{n}")
    async def job(job: Job[None], n: int) -> None:
        starts.append(job.worker)
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with pool.running(valkey_url), joined(unique, valkey_url) as other:
        await other.add_worker(Recorder())
        handle = await job.dispatch(1)
        await until(lambda: starts)
        with pytest.raises(StopUnconfirmed):
            await handle.stop()
        await until(lambda: pool.stats.stuck == 1)
        info = await handle.info()
        assert info is not None
        assert info.state is JobState.STOPPING
        with pytest.raises(JobExists):
            await job.dispatch(1)
        assert len(starts) == 1
        release.set()
        await until(lambda: pool.stats.running == 0)
        assert await pool.job_info("k1") is None
        assert len(starts) == 1


async def test_a_job_that_was_stopped_while_it_was_queued_never_starts(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    recorder = Recorder()
    async with joined(unique, valkey_url, ack_grace_s=0.2) as node:
        await _silent_worker(redis, node)
        dispatching = asyncio.create_task(node.dispatch("k"))
        await _until_queued(node, 1)
        await node.stop("k")
        with pytest.raises(StartFailed, match="stopped before"):
            await dispatching
        await node.add_worker(recorder)
        await node.dispatch("other")
        assert recorder.keys("starting") == ["other"]


async def test_notifications_arrive_in_order(valkey_url: str, unique: str) -> None:
    recorder = Recorder()
    async with joined(unique, valkey_url) as node, joined(unique, valkey_url, client_only=True) as client:
        await node.add_worker(recorder)
        await client.dispatch("k")
        sent = [b"%d" % n for n in range(300)]
        for payload in sent:
            await client.notify("k", payload)
        await until(lambda: len(recorder.details("noted", "k")) == 300)
        assert recorder.details("noted", "k") == sent
        with pytest.raises(NotRunning):
            await client.notify("nobody", b"")


async def test_an_inbox_keeps_only_what_its_jobs_have_not_handled(valkey_url: str, unique: str, redis: Redis) -> None:
    pool = WorkerPool(unique, options=FAST)
    go_on = asyncio.Event()
    seen: list[bytes] = []

    @pool.job(key="k{n}")
    async def job(job: Job[None], n: int) -> None:
        async for note in job.notifications():
            assert note is not None
            seen.append(note.payload)
            if note.payload == b"hold":
                await go_on.wait()

    async with pool.running(valkey_url):
        await job.dispatch(1)
        await job.dispatch(2)
        await pool.notify("k1", b"hold")
        for n in range(50):
            await pool.notify("k2", b"%d" % n)
        await until(lambda: len(seen) == 51)
        assert pool.worker is not None
        inbox = pool.node.keys.inbox(pool.worker.id)

        async def entries() -> int:
            return int(await redis.link.call("XLEN", inbox))

        async with asyncio.timeout(5):
            while await entries() > 2:  # "hold", and the last one of k2: it is done when the next is asked for
                await asyncio.sleep(0.01)
        kept = [fields for _, fields in await redis.link.call("XRANGE", inbox, "-", "+")]
        assert any(b"hold" in fields for fields in kept)  # a worker that takes over gets it
        go_on.set()
        await pool.notify("k1", b"next")
        async with asyncio.timeout(5):
            while await entries() > 1:
                await asyncio.sleep(0.01)


async def test_a_full_inbox_refuses_notifications(valkey_url: str, unique: str) -> None:
    recorder = Recorder()
    async with joined(unique, valkey_url, inbox_max=20) as node:
        await node.add_worker(recorder)
        pool_job = asyncio.Event()

        async def hold(job: Job[None], payload: bytes) -> None:
            await pool_job.wait()

        recorder.notify = hold  # type: ignore[method-assign,assignment]
        await node.dispatch("k")
        full = [node.notify("k", b"x") for _ in range(40)]
        refused = [error for error in await asyncio.gather(*full, return_exceptions=True) if error is not None]
        assert 20 <= len(refused) <= 24  # doorbells that are not trimmed yet count, too
        assert all(isinstance(error, QueueFull) and error.what == "notifications" for error in refused)
        pool_job.set()


async def test_a_crash_is_retried_with_the_checkpoint_and_then_dead(valkey_url: str, unique: str, redis: Redis) -> None:
    pool = WorkerPool(unique, options=FAST)
    runs: list[tuple[int, int | None, int]] = []

    @pool.job(key="k{n}", crashes_max=2, backoff=QUICK)
    async def job(job: Job[int], n: int) -> None:
        runs.append((job.attempt, job.state, job.fence))
        await job.checkpoint(len(runs))
        raise RuntimeError("poison")

    async with pool.running(valkey_url):
        await job.dispatch(1)
        await until(lambda: pool.stats.dead == 1)
        assert [(attempt, state) for attempt, state, _ in runs] == [(1, None), (2, 1), (3, 2)]
        fences = [fence for *_, fence in runs]
        assert fences == sorted(set(fences))
        assert await pool.job_info("k1") is None
        assert await redis.link.call("XLEN", pool.node.keys.dead) == 1
        assert pool.stats.failing_keys == (("k1", 3),)
        await job.dispatch(1)  # its key goes on


async def test_a_notification_that_was_in_hand_at_a_crash_comes_again_before_the_next(
    valkey_url: str, unique: str
) -> None:
    pool = WorkerPool(unique, options=FAST)
    seen: list[tuple[bytes, bool]] = []

    @pool.job(key="k{n}", backoff=QUICK)
    async def job(job: Job[None], n: int) -> None:
        async for note in job.notifications():
            assert note is not None
            seen.append((note.payload, note.redelivered))
            if note.payload == b"2" and job.crashes == 0:
                raise RuntimeError("in the middle of it")

    async with pool.running(valkey_url):
        handle = await job.dispatch(1)
        for payload in (b"1", b"2", b"3"):
            await handle.notify(payload)
        await until(lambda: len(seen) == 4)
        assert seen == [(b"1", False), (b"2", False), (b"2", True), (b"3", False)]


async def test_a_job_that_returns_is_gone(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique, options=FAST)

    @pool.job(key="k{n}")
    async def job(job: Job[None], n: int) -> None:
        return

    async with pool.running(valkey_url):
        for _ in range(3):
            await job.dispatch(1)
            await until(lambda: pool.stats.running == 0)
        assert await pool.jobs() == []
        assert pool.stats.finished == 3


async def test_an_explicit_job_starts_when_it_says_so(valkey_url: str, unique: str) -> None:
    pool = WorkerPool(unique, options=FAST)
    ready = asyncio.Event()

    @pool.job(key="k{n}", ready="explicit")
    async def job(job: Job[None], n: int) -> None:
        if n == 2:
            return
        if n == 3:
            raise LookupError("no such vessel")
        await ready.wait()
        job.ready()
        await asyncio.Event().wait()

    async with pool.running(valkey_url):
        dispatching = asyncio.create_task(job.dispatch(1))
        while (info := await pool.job_info("k1")) is None or info.state is not JobState.STARTING:
            await asyncio.sleep(0.005)
        assert not dispatching.done()
        ready.set()
        await dispatching
        with pytest.raises(StartFailed, match="returned before it was ready"):
            await job.dispatch(2)
        with pytest.raises(StartFailed, match="LookupError: no such vessel"):
            await job.dispatch(3)
        assert [info.key for info in await pool.jobs()] == ["k1"]


async def test_a_cancelled_caller_changes_nothing_for_the_job(valkey_url: str, unique: str) -> None:
    recorder = Recorder()
    recorder.gate.clear()
    async with joined(unique, valkey_url) as node:
        await node.add_worker(recorder)
        dispatching = asyncio.create_task(node.dispatch("k"))
        await until(lambda: recorder.keys("starting"))
        dispatching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dispatching
        recorder.gate.set()
        await until(lambda: recorder.keys("started"))
        stopping = asyncio.create_task(node.stop("k"))
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert node.stats.workers == 1


async def test_many_jobs_are_dispatched_with_one_answer_each(valkey_url: str, unique: str) -> None:
    async with joined(unique, valkey_url) as node:
        await node.add_worker(Recorder())
        large = b"x" * (FAST.payload_bytes_max + 1)
        jobs = [("a", b""), ("b", b"bad"), ("a", b""), ("", b""), ("large", large), ("c", b"")]
        kinds = [type(outcome) for outcome in await node.dispatch_many(jobs)]
        assert kinds == [JobHandle, StartFailed, JobExists, InvalidName, PayloadTooLarge, JobHandle]


async def test_what_is_too_large_or_badly_named_never_travels(valkey_url: str, unique: str) -> None:
    async with joined(unique, valkey_url, payload_bytes_max=100) as node:
        await node.add_worker(Recorder())
        with pytest.raises(PayloadTooLarge):
            await node.dispatch("k", b"x" * 101)
        with pytest.raises(InvalidName):
            await node.dispatch("x" * 501)
        with pytest.raises(InvalidName):
            await Node.join("no spaces", valkey_url)


async def test_a_shutdown_ends_every_job_and_leaves_no_key(valkey_url: str, unique: str, redis: Redis) -> None:
    recorder = Recorder()
    async with joined(unique, valkey_url) as one, joined(unique, valkey_url) as two:
        client = await Node.join(unique, valkey_url, options=FAST, logger=None)
        await one.add_worker(recorder)
        await two.add_worker(recorder)
        await client.dispatch_many([(f"k{n}", b"") for n in range(50)])
        await one.shutdown()
        assert sorted(recorder.keys("stopped")) == sorted(f"k{n}" for n in range(50))
        reasons = {said.detail for said in recorder.said if said.what == "stopped"}
        assert reasons == {StopReason.SHUTDOWN}
        await until(lambda: client.closed and two.closed)
        with pytest.raises(PoolShutdown):
            await client.dispatch("late")
        assert [key async for key in redis.scan_iter(match=f"*{{{unique}}}*")] == []
        async with joined(unique, valkey_url) as again:
            await again.add_worker(recorder)
            await again.dispatch("anew")


async def test_the_backoff_grows_to_its_limit() -> None:
    backoff = Backoff(first_s=1.0, factor=3.0, max_s=20.0, jitter=0.5)
    assert [backoff.pause_s(n, 0.0) for n in range(1, 6)] == [1.0, 3.0, 9.0, 20.0, 20.0]
    assert backoff.pause_s(100_000, 1.0) == 10.0


async def _silent_worker(redis: Redis, node: Node) -> None:
    """A worker that has a lease and slots and reads nothing: one that hangs."""
    from flotta.pool.members.membership import WorkerInfo

    info = WorkerInfo(node=node.id, name="silent", host="h", pid=1, service="", since_ms=1, kinds=("",))
    lease = await node.membership.join_worker(info)
    node.coordinator.poke()
    assert await node.membership.placed(lease.worker, 5.0)


async def _until_queued(node: Node, count: int) -> None:
    async with asyncio.timeout(5):
        while (await node.pool_counts()).queued != count:
            await asyncio.sleep(0.005)
