"""Jobs that move because a worker came or goes: with what they have kept, a few at a time, and never twice at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

from flotta.pool import Backoff, Job, JobHandle, Node, StopReason, WorkerInfo, WorkerPool
from flotta.pool.jobs.records import Release
from flotta.pool.jobs.states import ReleaseAnswer
from pool_jobs_harness import FAST, Recorder, joined, until

Pool = tuple[WorkerPool, Any]


class Scene:
    """What the jobs of all workers of this process do together."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.twice: list[str] = []
        self.runs: Counter[str] = Counter()
        self.where: dict[str, str] = {}
        self.states: dict[str, list[int | None]] = {}
        self.notes: dict[str, list[bytes]] = {}
        self.over = False
        self.leaving: set[str] = set()
        self.leaving_most = 0
        self.cleanup = asyncio.Event()
        self.cleanup.set()

    def pool(self, name: str, **options: Any) -> Pool:
        pool = WorkerPool(name, options=replace(FAST, **options))

        @pool.job(key="k{n}", name="unit", backoff=Backoff(first_s=0.3, max_s=0.3, jitter=0))
        async def unit(job: Job[int], n: int, mode: str = "stay") -> None:
            await self._live(job, mode)

        return pool, unit

    async def _live(self, job: Job[int], mode: str) -> None:
        self.running[job.key] += 1
        if self.running[job.key] > 1:
            self.twice.append(job.key)
        self.runs[job.key] += 1
        self.where[job.key] = job.worker
        self.states.setdefault(job.key, []).append(job.state)
        try:
            if mode == "crash" and job.crashes == 0:
                raise RuntimeError("once")
            await self._listen(job, mode)
        finally:
            self.running[job.key] -= 1
            self.leaving.discard(job.key)

    async def _listen(self, job: Job[int], mode: str) -> None:
        while True:
            try:
                async for note in job.notifications():
                    assert note is not None
                    self.notes.setdefault(job.key, []).append(note.payload)
            except asyncio.CancelledError:
                self.leaving.add(job.key)
                self.leaving_most = max(self.leaving_most, len(self.leaving))
                if mode == "stubborn" and job.stop_reason is StopReason.HANDOVER and not self.over:
                    continue
                await self.cleanup.wait()
                await job.checkpoint(self.runs[job.key])
                raise


async def test_a_joining_worker_gets_its_share_with_state_and_notifications(valkey_url: str, unique: str) -> None:
    scene = Scene()
    (one, unit), (two, _) = scene.pool(unique), scene.pool(unique)
    async with one.running(valkey_url):
        for n in range(60):
            await unit.dispatch(n)
        noting = asyncio.create_task(_note_all(one.node, 60, 20))
        async with two.running(valkey_url):
            await noting
            assert one.worker is not None
            assert two.worker is not None
            await until(lambda: 15 <= len(two.worker.jobs) <= 45)  # of 30 by chance: five deviations
            await until(lambda: sum(scene.running.values()) == 60)
            await until(lambda: sum(len(notes) for notes in scene.notes.values()) >= 60 * 20)
            moved = set(two.worker.jobs)
            assert len(one.worker.jobs) + len(moved) == 60
            assert scene.twice == []
            assert {key for key, runs in scene.runs.items() if runs == 2} == moved
            for key in moved:
                assert scene.states[key] == [None, 1]  # what it kept when it was told to go
            sent = [b"%d" % number for number in range(20)]
            for notes in scene.notes.values():
                assert list(dict.fromkeys(notes)) == sent  # in order; one that was in hand may come again
            assert one.stats.moved == len(moved)


async def test_jobs_move_a_few_at_a_time(valkey_url: str, unique: str) -> None:
    scene = Scene()
    (one, unit), (two, _) = scene.pool(unique, handover_concurrency=4), scene.pool(unique)
    async with one.running(valkey_url):
        for n in range(40):
            await unit.dispatch(n)
        scene.cleanup.clear()
        async with two.running(valkey_url):
            await until(lambda: len(scene.leaving) == 4)
            await one.jobs()  # time in which a fifth could begin
            assert len(scene.leaving) == 4
            scene.cleanup.set()
            await until(lambda: two.worker is not None and len(two.worker.jobs) > 4)
            assert scene.leaving_most == 4
            assert scene.twice == []


async def test_a_job_that_does_not_end_in_time_stays_and_holds_nobody_up(valkey_url: str, unique: str) -> None:
    scene = Scene()
    (one, unit), (two, _) = scene.pool(unique, handover_concurrency=1, handover_timeout_s=0.2), scene.pool(unique)
    async with one.running(valkey_url):
        stubborn = {f"k{n}" for n in range(0, 32, 2)}
        for n in range(40):
            await unit.dispatch(n, "stubborn" if f"k{n}" in stubborn else "stay")
        async with two.running(valkey_url):
            assert one.worker is not None
            assert two.worker is not None
            _, mine = await two.node.membership.slots_of(two.worker.id)
            await until(lambda: one.stats.moved and one.stats.stayed, 10)
            _, mine = await two.node.membership.slots_of(two.worker.id)
            infos = {info.key: info for info in await two.jobs()}
            asked = {key for key in stubborn if infos[key].slot in mine}
            movable = {key for key, info in infos.items() if info.slot in mine} - stubborn
            await until(lambda: one.stats.stayed == len(asked))
            await until(lambda: set(two.worker.jobs) == movable)
            assert stubborn <= set(one.worker.jobs)  # still there, and owned: none of them runs elsewhere
            assert all(scene.runs[key] == 1 for key in stubborn)
            key = min(asked)
            await one.notify(key, b"still listening")
            await until(lambda: scene.notes.get(key) == [b"still listening"])
            await one.stop(key)
            assert scene.twice == []
            scene.over = True


async def test_a_job_stays_where_it_is_if_the_new_owner_of_its_slot_does_not_know_its_kind(
    valkey_url: str, unique: str
) -> None:
    scene = Scene()
    one, unit = scene.pool(unique)
    async with one.running(valkey_url), joined(unique, valkey_url) as other:
        for n in range(20):
            await unit.dispatch(n)
        assert one.worker is not None
        both = await other.add_worker(Recorder())  # knows jobs without a kind only
        assert await other.membership.placed(both.id, 5.0)
        plain = await other.dispatch_many([(f"plain{n}", b"") for n in range(20)])
        assert {handle.worker for handle in plain if isinstance(handle, JobHandle)} == {both.id}
        assert one.stats.moved == 0
        assert set(scene.runs.values()) == {1}
        assert len(one.worker.jobs) == 20


async def test_a_job_that_stayed_moves_when_its_slot_goes_to_a_worker_that_knows_it(
    valkey_url: str, unique: str
) -> None:
    scene = Scene()
    (one, unit), (two, _) = scene.pool(unique), scene.pool(unique)
    async with joined(unique, valkey_url) as stranger, one.running(valkey_url):
        for n in range(60):
            await unit.dispatch(n)
        assert one.worker is not None
        strange = await stranger.add_worker(Recorder())
        assert await stranger.membership.placed(strange.id, 10.0)
        async with two.running(valkey_url):
            assert two.worker is not None
            assert await two.node.membership.placed(two.worker.id, 10.0)
            await stranger.remove_worker(strange)
            async with asyncio.timeout(15):
                while True:
                    owners = (await one.node.membership.table()).owners
                    astray = [job.key for job in await one.jobs() if owners[job.slot] != job.owner]
                    if not astray and strange.id not in owners.values():
                        break
                    await asyncio.sleep(0.02)
            assert scene.twice == []


async def test_a_job_that_waits_after_a_crash_moves_too(valkey_url: str, unique: str) -> None:
    scene = Scene()
    (one, unit), (two, _) = scene.pool(unique), scene.pool(unique)
    async with one.running(valkey_url):
        for n in range(20):
            await unit.dispatch(n, "crash")
        async with two.running(valkey_url):
            await one.close()
            assert two.worker is not None
            await until(lambda: two.worker is not None and len(two.worker.jobs) == 20)
            await until(lambda: sum(scene.running.values()) == 20)
            assert set(scene.where.values()) == {two.worker.id}
            assert scene.twice == []


async def test_a_release_takes_along_what_the_worker_has_not_read_yet_in_order(valkey_url: str, unique: str) -> None:
    async with joined(unique, valkey_url) as node:
        store, members = node.store, node.membership
        old, new = [await _silent(node, name) for name in ("old", "new")]
        await members.leaving(new)  # so that the other one has every slot
        assert await members.unplaced(new, 5.0)
        accepted = await store.dispatch("k", "", b"", did="d1", crashes_max=1)
        await store.claim(old, "k", accepted.fence)
        for payload in (b"read", b"unread", b"unread too"):
            await store.notify("k", payload)
        entries = await node.redis.link.call("XRANGE", store.keys.inbox(old), "-", "+")
        [read, *_] = [entry_id for entry_id, fields in entries if b"note" in fields]
        await node.redis.link.call("SREM", store.keys.leaving, new)
        await members.leaving(old)
        assert await members.unplaced(old, 5.0)
        released = await store.release(old, [Release("k", accepted.fence, [read])], seen=read)
        assert released == [ReleaseAnswer.OK]
        await store.notify("k", b"younger")
        heard = [fields for _, fields in await node.redis.link.call("XRANGE", store.keys.inbox(new), "-", "+")]
        said = [dict(zip(fields[::2], fields[1::2], strict=True)) for fields in heard]
        told = [(bell[b"t"], bell.get(b"p")) for bell in said if bell[b"t"] in (b"start", b"note")]
        notes = [(b"note", payload) for payload in (b"read", b"unread", b"unread too", b"younger")]
        assert told == [(b"start", None), *notes]
        left = await node.redis.link.call("XRANGE", store.keys.inbox(old), "-", "+")
        assert [entry for entry in left if b"note" in entry[1]] == []


async def test_a_key_goes_to_the_same_worker_while_nobody_comes_or_goes(valkey_url: str, unique: str) -> None:
    scene = Scene()
    (one, unit), (two, again) = scene.pool(unique), scene.pool(unique)
    async with one.running(valkey_url), two.running(valkey_url):
        async with asyncio.timeout(10):
            while len(set((await one.node.membership.table()).owners.values())) < 2:
                await asyncio.sleep(0.01)
        for n in range(10):
            first = await unit.dispatch(n)
            await first.stop()
            second = await again.dispatch(n)
            assert second.worker == first.worker


async def _note_all(node: Node, jobs: int, notes: int) -> None:
    for number in range(notes):
        await asyncio.gather(*(node.notify(f"k{n}", b"%d" % number) for n in range(jobs)))


async def _silent(node: Node, name: str) -> str:
    """A worker that has a lease and does nothing."""
    info = WorkerInfo(node=node.id, name=name, host="h", pid=1, service="", since_ms=1, kinds=("",))
    lease = await node.membership.join_worker(info)
    node.coordinator.poke()
    assert await node.membership.placed(lease.worker, 5.0)
    return lease.worker
