"""Jobs as an object with start, stop and notify."""

from __future__ import annotations

import asyncio
from typing import Any

from flotta.pool import Backoff, Job, JobState, StopReason
from pool_jobs_harness import Recorder, joined, until


async def test_stop_is_awaited_once_for_each_start_with_the_reason(valkey_url: str, unique: str) -> None:
    recorder = Recorder()
    async with joined(unique, valkey_url) as node, joined(unique, valkey_url) as other:
        await node.add_worker(recorder)
        await node.dispatch("stopped")
        await node.dispatch("moved")
        await node.stop("stopped")
        heir = Recorder()
        await other.add_worker(heir)
        await node.close()
        await until(lambda: heir.keys("started") == ["moved"])
        stops = [(said.key, said.detail) for said in recorder.said if said.what == "stopped"]
        assert stops == [("stopped", StopReason.STOP), ("moved", StopReason.HANDOVER)]


async def test_a_handler_without_notify_drops_notifications_quietly(valkey_url: str, unique: str) -> None:
    class Plain:
        def __init__(self) -> None:
            self.stopped = asyncio.Event()

        async def start(self, job: Job[Any]) -> None:
            """Nothing to do."""

        async def stop(self, job: Job[Any]) -> None:
            self.stopped.set()

    plain = Plain()
    async with joined(unique, valkey_url) as node:
        await node.add_worker(plain)
        await node.dispatch("k")
        await node.notify("k", b"unheard")
        await node.stop("k")
        assert plain.stopped.is_set()


async def test_a_notification_that_fails_ends_nothing(valkey_url: str, unique: str) -> None:
    class Fussy(Recorder):
        async def notify(self, job: Job[Any], payload: bytes) -> None:
            if payload == b"bad":
                raise ValueError("cannot read this")
            await super().notify(job, payload)

    fussy = Fussy()
    async with joined(unique, valkey_url) as node:
        await node.add_worker(fussy)
        await node.dispatch("k")
        for payload in (b"1", b"bad", b"2"):
            await node.notify("k", payload)
        await until(lambda: fussy.details("noted", "k") == [b"1", b"2"])
        assert node.stats.crashed == 0
        assert fussy.keys("started") == ["k"]


async def test_a_start_that_fails_on_the_next_worker_is_tried_again_there(valkey_url: str, unique: str) -> None:
    class Picky(Recorder):
        tries = 0

        async def start(self, job: Job[Any]) -> None:
            Picky.tries += 1
            if Picky.tries < 3:
                raise ConnectionError("the receiver is away")
            await super().start(job)

    first, picky = Recorder(), Picky()
    async with joined(unique, valkey_url) as one, joined(unique, valkey_url) as two:
        await one.add_worker(first)
        await one.dispatch("k")
        await two.add_worker(picky, backoff=Backoff(first_s=0.02, max_s=0.02))
        await one.close()
        await until(lambda: picky.keys("started") == ["k"])
        assert two.stats.crashed == 2
        info = await two.job_info("k")
        assert info is not None
        assert (info.crashes, info.state) == (2, JobState.RUNNING)


async def test_a_job_that_was_taken_over_says_ready_again(valkey_url: str, unique: str) -> None:
    first, second = Recorder(), Recorder()
    async with joined(unique, valkey_url) as one, joined(unique, valkey_url) as two:
        await one.add_worker(first)
        await one.dispatch("k")
        await two.add_worker(second)
        await one.close()
        await until(lambda: second.keys("started") == ["k"])
        async with asyncio.timeout(5):
            while (info := await two.job_info("k")) is None or info.state is not JobState.RUNNING:
                await asyncio.sleep(0.005)
