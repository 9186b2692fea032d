"""How a node ends in a hurry: cancelled, closed twice, closed while the pool stops, with more than it can move."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from flotta.errors import Closed, DispatchTimeout
from flotta.pool import Job, JobState, Node, StopReason, WorkerPool
from flotta.pool.members.scripts import JOIN_WORKER
from pool_jobs_harness import FAST, Recorder, joined, until

SLOW = replace(FAST, close_timeout_s=30.0, handover_timeout_s=30.0, shutdown_ttl_s=30.0)


class Slow(Recorder):
    """A handler whose stops take until ``may_end`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = asyncio.Event()
        self.stopping = 0

    async def stop(self, job: Job[Any]) -> None:
        self.stopping += 1
        await self.may_end.wait()
        await super().stop(job)


def leftovers() -> list[str]:
    """What still runs of pools and of their jobs."""
    words = ("pool ", "job ", "flotta-pool")
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(words)]


async def test_a_close_that_is_cancelled_leaves_nothing_running(valkey_url: str, unique: str) -> None:
    slow = Slow()
    node = await Node.join(unique, valkey_url, options=replace(SLOW, handover_concurrency=2))
    worker = await node.add_worker(slow)
    await node.dispatch_many([(f"k{n}", b"") for n in range(5)])
    closing = asyncio.create_task(node.close())
    await until(lambda: slow.stopping == 2)  # the other three wait for their turn
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert node.closed
    assert worker.jobs == []
    slow.may_end.set()
    await until(lambda: len(slow.keys("stopped")) == 5)
    await until(lambda: leftovers() == [])


async def test_jobs_that_could_not_move_before_the_time_is_over_are_cancelled_all_the_same(
    valkey_url: str, unique: str
) -> None:
    slow = Slow()
    node = await Node.join(unique, valkey_url, options=replace(SLOW, handover_concurrency=2))
    await node.add_worker(slow)
    await node.dispatch_many([(f"k{n}", b"") for n in range(10)])
    closing = asyncio.create_task(node.close(timeout_s=2.0))
    await until(lambda: slow.stopping == 10)  # in the second half of the time nobody waits for a turn
    slow.may_end.set()
    await closing
    assert len(slow.keys("stopped")) == 10
    assert {said.detail for said in slow.said if said.what == "stopped"} == {StopReason.HANDOVER}
    assert node.stats.stuck == 0
    await until(lambda: leftovers() == [])


async def test_a_close_while_the_pool_is_shut_down_waits_for_the_end_of_its_jobs(valkey_url: str, unique: str) -> None:
    slow = Slow()
    async with joined(unique, valkey_url) as other:
        node = await Node.join(unique, valkey_url, options=SLOW)
        await node.add_worker(slow)
        await node.dispatch("k")
        stopping = asyncio.create_task(other.shutdown())
        await until(lambda: slow.stopping == 1)
        closing = [asyncio.create_task(node.close()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in closing)
        slow.may_end.set()
        await asyncio.gather(*closing, stopping)
        assert slow.details("stopped", "k") == [StopReason.SHUTDOWN]
        assert node.closed
    await until(lambda: leftovers() == [])


async def test_a_second_close_returns_when_the_first_has_ended(valkey_url: str, unique: str) -> None:
    slow = Slow()
    node = await Node.join(unique, valkey_url, options=SLOW)
    await node.add_worker(slow)
    await node.dispatch("k")
    first = asyncio.create_task(node.close())
    await until(lambda: slow.stopping == 1)
    second = asyncio.create_task(node.close())
    await asyncio.sleep(0)
    assert not second.done()
    slow.may_end.set()
    await second
    assert first.done()


async def test_a_removal_that_is_cancelled_gives_up_the_lease_of_its_worker(valkey_url: str, unique: str) -> None:
    slow, heir = Slow(), Recorder()
    async with joined(unique, valkey_url, handover_timeout_s=30.0) as node, joined(unique, valkey_url) as other:
        worker = await node.add_worker(slow)
        await node.dispatch("k")
        removing = asyncio.create_task(node.remove_worker(worker))
        await until(lambda: slow.stopping == 1)
        await other.add_worker(heir)
        removing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removing
        assert worker.jobs == []
        assert node.local_workers == ()
        await until(lambda: heir.keys("started") == ["k"])  # nobody renews what nobody looks after
        slow.may_end.set()


async def test_a_worker_that_joins_while_its_node_closes_does_not_stay(valkey_url: str, unique: str) -> None:
    async with joined(unique, valkey_url) as looker:
        node = await Node.join(unique, valkey_url, options=FAST)
        adding = asyncio.create_task(node.add_worker(Recorder()))
        await asyncio.sleep(0)
        await node.close()
        with pytest.raises(Closed):
            await adding
        async with asyncio.timeout(10):
            while [worker for worker in await looker.workers() if worker.lives]:
                await asyncio.sleep(0.01)


async def test_a_worker_that_is_being_shut_down_starts_nothing_new(valkey_url: str, unique: str) -> None:
    recorder = Recorder()
    async with joined(unique, valkey_url) as node, joined(unique, valkey_url, client_only=True) as client:
        worker = await node.add_worker(recorder)
        await client.dispatch("before")
        assert worker.tenure is not None
        worker.tenure.stop_all()
        with pytest.raises(DispatchTimeout):  # another node that has not heard of it yet
            await client.dispatch("after", timeout_s=0.5)
        assert recorder.keys("started") == ["before"]


async def test_a_job_that_did_not_end_in_time_holds_its_key_back_in_this_process(valkey_url: str, unique: str) -> None:
    running = most = 0
    release = asyncio.Event()
    pool = WorkerPool(unique, options=replace(FAST, ack_grace_s=30.0))

    @pool.job(key="k{n}")
    async def job(job: Job[None], n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if job.attempt == 1 and not release.is_set():
                await release.wait()
            raise
        finally:
            running -= 1

    async with joined(unique, valkey_url, ack_grace_s=30.0) as node:
        first = await pool.equip(node)
        await node.dispatch("k1", job.call(1).payload, kind="job")
        second = await pool.equip(node)
        await node.remove_worker(first, timeout_s=0.3)
        async with asyncio.timeout(10):
            while (info := await node.job_info("k1")) is None or info.owner != second.id:
                await asyncio.sleep(0.01)
        await node.notify("k1", b"")  # behind the doorbell
        assert (running, most) == (1, 1)
        release.set()
        async with asyncio.timeout(10):
            while (
                (info := await node.job_info("k1")) is None or info.owner != second.id or info.state.value != "running"
            ):
                await asyncio.sleep(0.01)
        assert most == 1


async def test_a_stop_that_waits_while_its_node_is_closed_is_not_confirmed(valkey_url: str, unique: str) -> None:
    slow = Slow()
    async with joined(unique, valkey_url, stop_timeout_s=30.0) as node:
        await node.add_worker(slow)
        caller = await Node.join(unique, valkey_url, options=replace(FAST, client_only=True))
        await caller.dispatch("k")
        stop = asyncio.create_task(caller.stop("k", timeout_s=30.0))
        await until(lambda: slow.stopping == 1)
        await caller.close()
        with pytest.raises(Closed):
            await stop
        info = await node.job_info("k")
        assert info is not None
        assert info.state is JobState.STOPPING
        slow.may_end.set()
        await until(lambda: slow.keys("stopped") == ["k"])


async def test_a_close_in_the_middle_of_a_rejoin_leaves_no_lease_that_nobody_holds(
    valkey_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with joined(unique, valkey_url) as other:
        node = await Node.join(unique, valkey_url, options=FAST)
        worker = await node.add_worker(Recorder())
        run, granted = node.membership._run, asyncio.Event()

        async def late(script: Any, *args: Any) -> Any:
            reply = await run(script, *args)
            if script is JOIN_WORKER:
                granted.set()
                await asyncio.Event().wait()  # the reply does not come any more
            return reply

        monkeypatch.setattr(node.membership, "_run", late)
        await other.redis.link.call("ZREM", other.keys.leases, worker.id)
        await asyncio.wait_for(granted.wait(), 15)
        await node.close()
        assert await other.redis.link.call("ZCARD", other.keys.leases) == 0
        assert await other.redis.link.call("HGET", other.keys.workers, worker.id) is None
