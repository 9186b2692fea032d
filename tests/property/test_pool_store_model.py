"""The scripts of a pool's jobs on a real server against the dumb oracle of ``pool_store_oracle.py``.

Every rule does one step on both and compares the answers; after every step everything that is in Redis is compared with
what the oracle thinks, and the laws that need no oracle are checked on the server's data alone: each record in exactly
one place, counters that agree, tokens that only grow, states that follow each other as the table says.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flotta.errors import Fenced, JobExists, NotRunning, NoWorkers, PoolShutdown, QueueFull
from flotta.pool.jobs.records import Release
from flotta.pool.jobs.states import LETTERS, NEXT_STATES
from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import slot_of
from flotta.pool.options import PoolOptions
from flotta.pool.wire import parse_bell, parse_reply
from pool_store_oracle import Oracle, Token
from script_world import World

KEYS = ["a", "ключ", "with:colon", "e" * 500]
NODES = ["n1", "n2"]
STEP_MAX = 2
QUEUE_MAX = 3
FAR_MS = 3_600_000
YEAR_2020_US = 1_577_836_800_000_000
MISTAKES: dict[type[Exception], str] = {JobExists: "E", QueueFull: "F", NoWorkers: "N", PoolShutdown: "S"}

keys = st.sampled_from(KEYS)
payloads = st.sampled_from([b"", b"\x00\xff", b"payload"])


_READ: dict[bytes, tuple[str, ...]] = {
    b"hash": ("HGETALL",),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", "0", "-1"),
    b"list": ("LRANGE", "0", "-1"),
    b"stream": ("XRANGE", "-", "+"),
}


class Seen:
    """Everything that a pool has in Redis: name of the key without the prefix -> its value."""

    def __init__(self, keys: dict[str, Any]) -> None:
        self.keys = keys
        self.records: dict[str, dict[str, bytes]] = {
            key: {field.decode(): value for field, value in flat.items()} for key, flat in self.named("job:").items()
        }

    def named(self, first: str) -> dict[str, Any]:
        return {name.removeprefix(first): value for name, value in self.keys.items() if name.startswith(first)}

    def texts(self, name: str) -> set[str]:
        return {member.decode() for member in self.keys.get(name, ())}


class StoreWorld(World):
    """And everything of one pool that is in Redis."""

    def look(self, prefix: str) -> Seen:
        return self.runner.run(self._look(prefix))

    async def _look(self, prefix: str) -> Seen:
        link = self.redis.link
        keys = await link.call("KEYS", prefix + "*")
        types = await link.call_many([("TYPE", key) for key in keys])
        reads = [(_READ[kind][0], key, *_READ[kind][1:]) for kind, key in zip(types, keys, strict=True)]
        values = await link.call_many(reads)
        return Seen({key.decode().removeprefix(prefix): value for key, value in zip(keys, values, strict=True)})


def has_jobs(machine: PoolMachine) -> bool:
    return bool(machine.oracle.records)


def has_parked(machine: PoolMachine) -> bool:
    return bool(machine.oracle.parked())


def has_dead(machine: PoolMachine) -> bool:
    return any(not machine.oracle.live(worker) for worker in machine.oracle.inboxes)


class PoolMachine(RuleBasedStateMachine):
    """Workers come, die and leave; jobs are dispatched, run, crash, move and end; calls come twice and late."""

    world: StoreWorld

    @initialize()
    def open(self) -> None:
        world = self.world
        world.pools += 1
        options = PoolOptions(queue_max_per_worker=QUEUE_MAX, ack_grace_s=1_000, shutdown_ttl_s=10_000)
        name = f"model-{os.getpid()}-{world.pools}"
        self.store = JobStore(world.redis, name, options=options)
        # Only for walks in a known order: where the server chooses at random, a failing example could not be replayed.
        self.small_steps = JobStore(world.redis, name, options=options, step_max=STEP_MAX)
        self.oracle = Oracle(queue_max_per_worker=QUEUE_MAX, inbox_max=options.inbox_max)
        self.tokens_seen: list[tuple[str, str, int]] = []  # worker, key, fence: what somebody may still believe
        self.highest = 0
        self.count = 0
        self.before: dict[str, dict[str, bytes]] = {}
        for node in NODES:
            self._open_stream(self.store.keys.replies(node))
            self.oracle.replies[node] = []
        self._join()
        for key in KEYS:
            self._set_slot(key, "w1")

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.world.run(self.store.purge())
        assert self.world.look(self.store.keys.prefix).keys == {}, "purge leaves something"

    # --- the world around the jobs ----------------------------------------------------------------------------------

    def _open_stream(self, stream: str) -> None:
        self.world.call("XDEL", stream, self.world.call("XADD", stream, "*", "t", ""))

    def _join(self) -> None:
        self.count += 1
        worker = f"w{self.count}"
        self._open_stream(self.store.keys.inbox(worker))
        self._set_lease(worker, live=True)
        self.world.call("HSET", self.store.keys.workers, worker, "facts")
        self.oracle.inboxes[worker] = []

    def _set_lease(self, worker: str, *, live: bool) -> None:
        now = self.world.call("TIME")
        self.world.call("ZADD", self.store.keys.leases, int(now[0]) * 1_000 + (FAR_MS if live else -FAR_MS), worker)
        self.oracle.leases[worker] = live

    def _set_slot(self, key: str, worker: str) -> None:
        self.world.call("HSET", self.store.keys.slots, slot_of(key), worker)
        self.oracle.slots[slot_of(key)] = worker

    def _workers(self) -> list[str]:
        return sorted(self.oracle.leases) or ["nobody"]

    def _did(self) -> str:
        self.count += 1
        return f"d{self.count}"

    def _rarely(self, data: st.DataObject) -> bool:
        """True in about one of eight; a failing example shrinks towards False."""
        return data.draw(st.integers(0, 7)) == 5

    def _key(self, data: st.DataObject) -> str:
        """Mostly the key of a job that is there."""
        there = sorted(self.oracle.records)
        return data.draw(st.sampled_from(KEYS if not there or self._rarely(data) else there))

    def _belief(self, data: st.DataObject, key: str) -> tuple[str, int]:
        """Worker and fence with which somebody acts on ``key``: mostly the owner, at times a late one or a stranger."""
        job = self.oracle.records.get(key)
        if job is not None and job.owner and job.fence.value is not None and not self._rarely(data):
            return job.owner, job.fence.value
        beliefs = [(worker, fence) for worker, of, fence in self.tokens_seen if of == key]
        if job is not None and job.fence.value is not None:
            beliefs.append((job.owner or "nobody", job.fence.value - 1))
        return data.draw(st.sampled_from([*reversed(beliefs), ("nobody", 7)]))

    def _is_last(self, worker: str) -> bool:
        return not any(self.oracle.takes(other) for other in self.oracle.leases if other != worker)

    def _dead_or_any(self, data: st.DataObject) -> str:
        """Mostly a worker whose lease is over and that still has something."""
        dead = [worker for worker in self.oracle.inboxes if not self.oracle.live(worker)]
        return data.draw(st.sampled_from(self._workers() if not dead or self._rarely(data) else dead))

    @precondition(lambda self: len(self.oracle.leases) < 4)
    @rule()
    def join(self) -> None:
        self._join()

    @precondition(has_jobs)
    @rule(data=st.data(), absent=st.booleans())
    def expire(self, data: st.DataObject, absent: bool) -> None:
        busy = [worker for worker in self._workers() if self.oracle.live(worker) and self.oracle.owned(worker)]
        worker = data.draw(st.sampled_from(self._workers() if not busy or self._rarely(data) else busy))
        if worker not in self.oracle.leases:
            return
        self._set_lease(worker, live=False)
        if absent:
            self.world.call("ZREM", self.store.keys.leases, worker)
            del self.oracle.leases[worker]

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self._workers()))
        if self._is_last(worker) and not self._rarely(data):
            return
        self.world.call("SADD", self.store.keys.leaving, worker)
        self.oracle.leaving.add(worker)

    @rule(data=st.data(), key=keys)
    def assign(self, data: st.DataObject, key: str) -> None:
        self._set_slot(key, data.draw(st.sampled_from(self._workers())))

    @rule(data=st.data(), count=st.integers(1, 2))
    def read_inbox(self, data: st.DataObject, count: int) -> None:
        worker = data.draw(st.sampled_from(self._workers()))
        inbox = self.store.keys.inbox(worker)
        for entry_id, fields in self.world.call("XRANGE", inbox, "-", "+", "COUNT", count) or []:
            self.world.call("XDEL", inbox, entry_id)
            for bell in _bells(fields):
                self._forget_bell(worker, bell)

    def _forget_bell(self, worker: str, bell: tuple[Any, ...]) -> None:
        entries = self.oracle.inboxes[worker]
        entries.remove(next(entry for entry in entries if _plain(entry) == bell))

    # --- dispatchers ------------------------------------------------------------------------------------------------

    @rule(
        data=st.data(), node=st.sampled_from([*NODES, ""]), batch=st.lists(keys, min_size=1, max_size=4),
        crashes_max=st.integers(0, 2), scheduler=st.sampled_from(["", "plan"]), payload=payloads,
    )  # fmt: skip
    def dispatch_some(self, data: st.DataObject, node: str, batch: list[str], payload: bytes, **facts: Any) -> None:
        self.dispatch(data, node, batch, payload, **facts)

    def dispatch(self, data: st.DataObject, node: str, batch: list[str], payload: bytes, **facts: Any) -> None:
        dids = [self._did() for _ in batch]
        for place, key in enumerate(batch):  # some come again after a lost answer
            if key in self.oracle.records and batch.count(key) == 1 and data.draw(st.booleans()):
                dids[place] = self.oracle.records[key].did

        async def send() -> list[Any]:
            calls = [
                self.store.dispatch(key, "kind", payload, node=node, did=did, **facts)
                for key, did in zip(batch, dids, strict=True)
            ]
            return await asyncio.gather(*calls, return_exceptions=True)

        answers = self.world.run(send())
        for key, did, answer in zip(batch, dids, answers, strict=True):
            expected = self.oracle.dispatch(
                key, slot=slot_of(key), did=did, node=node, kind="kind", payload=payload, **facts
            )
            assert MISTAKES.get(type(answer), "O") == expected, answer
            if expected == "O":
                job = self.oracle.records[key]
                assert answer.owner == job.owner
                self._learn(job.fence, answer.fence)

    @rule(data=st.data(), node=st.sampled_from([*NODES, ""]), crashes_max=st.integers(0, 2), explicit=st.booleans())
    def dispatch_and_claim(self, data: st.DataObject, node: str, crashes_max: int, explicit: bool) -> None:
        """Most of what may happen happens to jobs that run, so a walk should often get there."""
        key = data.draw(st.sampled_from([key for key in KEYS if key not in self.oracle.records] or KEYS))
        self.dispatch(data, node, [key], b"run", crashes_max=crashes_max, scheduler="")
        self.look()
        self.claim(data, [key], explicit)

    @precondition(has_jobs)
    @rule(data=st.data(), blame=st.booleans())
    def die_and_be_reaped(self, data: st.DataObject, blame: bool) -> None:
        """The owner of a job dies, another may come, all its jobs are taken back and claimed again."""
        key = self._key(data)
        job = self.oracle.records.get(key)
        if job is None or not job.owner:
            return
        dead = job.owner
        self._set_lease(dead, live=False)
        self._join()
        if not self._rarely(data):
            self._set_slot(key, f"w{self.count}")
        self.reap_one(dead, blame)
        self.look()
        self.claim(data, [key], False)

    @precondition(has_jobs)
    @rule(data=st.data(), count=st.integers(1, 3))
    def crash_and_restart(self, data: st.DataObject, count: int) -> None:
        """A job raises again and again; every call comes twice."""
        running = sorted(key for key, job in self.oracle.records.items() if job.state in "rsb")
        key = data.draw(st.sampled_from(running)) if running and not self._rarely(data) else self._key(data)
        for _ in range(count):
            self.crash_twice(data, key)
            self.look()
            worker, fence = self._belief(data, key)
            answer = self.world.run(self.store.restarted(worker, key, fence))
            assert answer.value == self.oracle.restarted(worker, key, fence)
            self.look()

    @precondition(has_jobs)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        key = self._key(data)
        job = self.oracle.records.get(key)
        did = data.draw(st.sampled_from([job.did, job.did, "other"])) if job else "other"
        answer = self.world.run(self.store.withdraw(key, did))
        assert answer.answer.value == self.oracle.withdraw(key, did)
        if answer.answer.value == "S":
            assert job is not None
            assert (answer.worker, answer.fence) == (job.owner, job.fence.value)

    @precondition(has_jobs)
    @rule(data=st.data(), node=st.sampled_from([*NODES, ""]))
    def stop(self, data: st.DataObject, node: str) -> None:
        key = self._key(data)
        assert self.world.run(self.store.stop(key, node)).value == self.oracle.stop(key, node)

    @precondition(has_jobs)
    @rule(data=st.data(), payload=payloads)
    def notify(self, data: st.DataObject, payload: bytes) -> None:
        key = self._key(data)
        expected = self.oracle.notify(key, payload)
        try:
            self.world.run(self.store.notify(key, payload))
        except NotRunning:
            assert expected == "N"
        else:
            assert expected == "O"

    # --- workers ----------------------------------------------------------------------------------------------------

    @precondition(has_jobs)
    @rule(data=st.data(), count=st.integers(1, 4), explicit=st.booleans())
    def claim_some(self, data: st.DataObject, count: int, explicit: bool) -> None:
        self.claim(data, [self._key(data) for _ in range(count)], explicit)

    def claim(self, data: st.DataObject, batch: list[str], explicit: bool) -> None:
        claims = [(*self._belief(data, key), key) for key in batch]

        async def send() -> list[Any]:
            calls = [self.store.claim(worker, key, fence, explicit=explicit) for worker, fence, key in claims]
            return await asyncio.gather(*calls)

        for (worker, fence, key), answer in zip(claims, self.world.run(send()), strict=True):
            job = self.oracle.records.get(key)
            before = job.started if job else False
            expected = self.oracle.claim(worker, key, fence, explicit=explicit)
            assert answer.answer.value == expected
            if expected == "O":
                assert job is not None
                assert (answer.kind, answer.payload, answer.checkpoint) == (job.kind, job.payload, job.checkpoint)
                assert (answer.crashes, answer.losses, answer.crashes_max) == (job.crashes, job.losses, job.crashes_max)
                assert answer.started_before is before

    @precondition(has_jobs)
    @rule(data=st.data(), count=st.integers(1, 4))
    def finish(self, data: st.DataObject, count: int) -> None:
        ends = [(*self._belief(data, key), key) for key in (self._key(data) for _ in range(count))]

        async def send() -> list[Any]:
            return await asyncio.gather(*[self.store.finished(worker, key, fence) for worker, fence, key in ends])

        answers = [answer.value for answer in self.world.run(send())]
        assert answers == [self.oracle.finished(worker, key, fence) for worker, fence, key in ends]

    @precondition(has_jobs)
    @rule(data=st.data(), step=st.sampled_from(["ready", "restarted", "reset_crashes"]), twice=st.booleans())
    def say(self, data: st.DataObject, step: str, twice: bool) -> None:
        key = self._key(data)
        worker, fence = self._belief(data, key)
        for _ in range(1 + twice):
            answer = self.world.run(getattr(self.store, step)(worker, key, fence))
            assert answer.value == getattr(self.oracle, step)(worker, key, fence)

    @precondition(has_jobs)
    @rule(data=st.data())
    def start_failed(self, data: st.DataObject) -> None:
        key = self._key(data)
        worker, fence = self._belief(data, key)
        answer = self.world.run(self.store.start_failed(worker, key, fence, "no"))
        assert answer.value == self.oracle.start_failed(worker, key, fence, "no")

    def crash_twice(self, data: st.DataObject, key: str) -> None:
        worker, fence = self._belief(data, key)
        for _ in range(2):
            answer = self.world.run(self.store.crashed(worker, key, fence, "boom"))
            assert answer.answer.value == self.oracle.crashed(worker, key, fence, "boom")
            if answer.answer.value == "B":
                job = self.oracle.records[key]
                assert answer.crashes == job.crashes
                self._learn(job.fence, answer.fence)

    @precondition(has_jobs)
    @rule(data=st.data(), state=payloads)
    def checkpoint(self, data: st.DataObject, state: bytes) -> None:
        key = self._key(data)
        worker, fence = self._belief(data, key)
        expected = self.oracle.checkpoint(worker, key, fence, state)
        if expected == "O":
            self.world.run(self.store.checkpoint(worker, key, fence, state))
            return
        with pytest.raises(Fenced):
            self.world.run(self.store.checkpoint(worker, key, fence, state))

    @precondition(has_jobs)
    @rule(data=st.data(), with_notes=st.booleans())
    def release(self, data: st.DataObject, with_notes: bool) -> None:
        key = self._key(data)
        worker, fence = self._belief(data, key)
        notes = []
        for entry_id, fields in self.world.call("XRANGE", self.store.keys.inbox(worker), "-", "+"):
            if _bells(fields)[0][:2] == ("note", key):
                notes.append(entry_id)
        answer = self.world.run(self.store.release(worker, [Release(key, fence, notes if with_notes else ())]))
        assert answer[0].value == self.oracle.release(worker, key, fence, with_notes=with_notes)

    @precondition(has_jobs)
    @rule(data=st.data())
    def decline(self, data: st.DataObject) -> None:
        key = self._key(data)
        worker, fence = self._belief(data, key)
        to = data.draw(st.sampled_from([*self._workers(), ""]))
        assert self.world.run(self.store.decline(worker, key, fence, to)).value == self.oracle.decline(
            worker, key, fence, to
        )

    # --- coordinators -----------------------------------------------------------------------------------------------

    @precondition(has_jobs)
    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        queued = sorted(self.oracle.queued())
        late = data.draw(st.lists(st.sampled_from(queued), unique=True)) if queued else []
        for place, key in enumerate(late):
            self.world.call("ZADD", self.store.keys.queued, 1 + place, key)
            self.oracle.records[key].late = True
        waiting = self.world.call("ZRANGEBYSCORE", self.store.keys.queued, 0, 1_000_000)
        assert {key.decode() for key in waiting} == {key for key, job in self.oracle.records.items() if job.late}
        workers = self._workers()
        swept = self.world.run(self.small_steps.sweep(workers))
        touched = [key.decode() for key in waiting[:STEP_MAX]]
        assert (swept.moved, swept.rung, swept.parked) == self.oracle.sweep(touched, workers)

    @precondition(has_dead)
    @rule(data=st.data(), blame=st.booleans())
    def reap(self, data: st.DataObject, blame: bool) -> None:
        self.reap_one(self._dead_or_any(data), blame)

    def reap_one(self, worker: str, blame: bool) -> None:
        reaped = self.world.run(self.store.reap(worker, blame=blame))
        if self.oracle.live(worker):
            assert reaped is None
            return
        owned = self.oracle.owned(worker)
        touched = sorted(owned - self._owned(worker))
        assert set(touched) == owned
        expected = self.oracle.reap(worker, touched, blame=blame)
        assert (reaped.moved, reaped.parked, reaped.dropped, reaped.dead) == expected
        assert reaped.left == len(self.oracle.owned(worker))

    @precondition(has_dead)
    @rule(data=st.data())
    def bury_worker(self, data: st.DataObject) -> None:
        worker = self._dead_or_any(data)
        entries = self.world.call("XRANGE", self.store.keys.inbox(worker), "-", "+", "COUNT", STEP_MAX)
        bells = [bell for _, fields in entries for bell in _bells(fields)]
        first = [next(e for e in self.oracle.inboxes[worker] if _plain(e) == bell) for bell in bells]
        answer = self.world.run(self.small_steps.bury_worker(worker))
        expected = self.oracle.bury_worker(worker, first, limit=len(first) if len(entries) == STEP_MAX else -1)
        assert answer.value == expected

    @precondition(has_parked)
    @rule()
    def adopt(self) -> None:
        parked = self.oracle.parked()
        adopted = self.world.run(self.store.adopt())
        touched = sorted(parked - self._parked())
        assert adopted.adopted == len(touched)
        movable = {key for key in parked if self.oracle.slot_owner(self.oracle.records[key].slot)}
        assert set(touched) == movable
        self.oracle.adopt(touched)
        assert adopted.parked == len(self.oracle.parked())

    @precondition(lambda self: self.oracle.dead)
    @rule(data=st.data())
    def redrive(self, data: st.DataObject) -> None:
        letters = self.world.call("XRANGE", self.store.keys.dead, "-", "+")
        place = data.draw(st.integers(0, len(letters) - 1))
        letter_id = letters[place][0].decode()
        answer = self.world.run(self.store.redrive([letter_id]))[0]
        assert answer.value == self.oracle.redrive(place, f"redrive-{letter_id}")

    @rule(data=st.data())
    def shut_down(self, data: st.DataObject) -> None:
        if not (self._rarely(data) and self._rarely(data)):  # nothing much happens afterwards
            return
        first, left_s = self.world.run(self.store.shutdown_begin("n1"))
        assert first == self.oracle.shutdown_begin("n1")
        assert 0 <= left_s <= 10_000

    @precondition(lambda self: self.oracle.shutdown or has_jobs(self))
    @rule(over=st.booleans())
    def step_of_shutdown(self, over: bool) -> None:
        if self.oracle.shutdown and over:
            self.world.call("HSET", self.store.keys.meta, "shutdown_until", 1)
            self.oracle.time_over = True
        step = self.world.run(self.store.shutdown_step())
        if not self.oracle.shutdown:
            assert step is None
            return
        touched = set(self.oracle.records) - set(self.world.look(self.store.keys.prefix).records)
        mayhave = set(self.oracle.records) if self.oracle.time_over else self.oracle.queued()
        assert touched == mayhave
        for key in sorted(touched):
            self.oracle.drop(key, "shutdown", "gone")
        assert (step.dropped, step.queued) == (len(touched), len(self.oracle.queued()))
        assert step.owned == sum(len(self.oracle.owned(worker)) for worker in self.oracle.leases)

    # --- what is on the server --------------------------------------------------------------------------------------

    def _owned(self, worker: str) -> set[str]:
        return {key.decode() for key in self.world.call("SMEMBERS", self.store.keys.owned(worker))}

    def _parked(self) -> set[str]:
        return {key.decode() for key in self.world.call("SMEMBERS", self.store.keys.parked)}

    def _learn(self, token: Token, fence: int) -> None:
        if token.value is None:
            assert fence > max(self.highest, YEAR_2020_US), "a fencing token did not grow, or is not from the clock"
            token.value = self.highest = fence
        assert token.value == fence

    @invariant()
    def look(self) -> None:
        """After every step, and between two steps of one rule."""
        seen = self.world.look(self.store.keys.prefix)
        self._compare_records(seen)
        self._compare_streams(seen)
        assert seen.texts("leases") == set(self.oracle.leases)
        planned = {key for key, job in self.oracle.records.items() if job.scheduler}
        assert seen.texts("plan:plan") == planned
        self._check_laws(seen)
        self._compare_with_before(seen.records)
        there = {job.did for job in self.oracle.records.values()}
        assert self.oracle.admitted == there | set(self.oracle.ended), "something admitted is lost"
        assert not there & set(self.oracle.ended)

    def _compare_records(self, seen: Seen) -> None:
        oracle = self.oracle
        assert set(seen.records) == set(oracle.records)
        for key, fields in sorted(seen.records.items(), key=lambda item: int(item[1]["g"])):
            self._learn(oracle.records[key].fence, int(fields["g"]))
            belief = (fields["o"].decode(), key, int(fields["g"]))
            if belief[0] and belief not in self.tokens_seen:
                self.tokens_seen.append(belief)
        for key, fields in seen.records.items():
            job = oracle.records[key]
            text = {name: value.decode() for name, value in fields.items() if name not in "pz"}
            assert (text["s"], text["o"], text["k"], text["n"]) == (job.state, job.owner, job.kind, str(job.slot)), key
            assert (text["d"], text["f"], int(text["m"])) == (job.did, job.node, job.crashes_max)
            assert (int(text.get("c", 0)), int(text.get("l", 0))) == (job.crashes, job.losses)
            assert ("b" in text, text.get("e", ""), text.get("y", "")) == (job.started, job.error, job.scheduler)
            assert [node for node in text.get("w", "").split(",") if node] == job.waiters
            assert (fields["p"], fields.get("z")) == (job.payload, job.checkpoint)
        notes = {key: job.notes for key, job in oracle.records.items() if job.notes}
        assert seen.named("notes:") == notes

    def _compare_streams(self, seen: Seen) -> None:
        """Bells and answers, in order for each key: between two keys a batch is free."""
        oracle = self.oracle
        inboxes, replies = seen.named("inbox:"), seen.named("replies:")
        assert set(inboxes) == set(oracle.inboxes)
        for worker, expected in oracle.inboxes.items():
            actual = [bell for _, fields in inboxes[worker] for bell in _bells(fields)]
            assert _by_key(actual) == _by_key([_plain(entry) for entry in expected]), worker
        for node, expected in oracle.replies.items():
            actual = [_reply(ring) for _, fields in replies[node] for ring in parse_reply(fields)]
            assert _by_key(actual) == _by_key([_plain(entry) for entry in expected]), node
        letters = [_letter(fields) for _, fields in seen.keys.get("dead", [])]
        assert letters == oracle.dead

    def _check_laws(self, seen: Seen) -> None:
        """What must be true whatever the oracle thinks."""
        owned = {worker: {key.decode() for key in keys} for worker, keys in seen.named("owned:").items()}
        places = Counter(key for keys in owned.values() for key in keys)
        parked = seen.texts("parked")
        for key, fields in seen.records.items():
            owner = fields["o"].decode()
            assert (places[key], key in owned.get(owner, set()), key in parked) == (
                (1, True, False) if owner else (0, False, True)
            )
            assert owner or fields["s"] == b"q", "what nobody owns is queued"
        assert set(places) | parked <= set(seen.records)
        assert seen.texts("queued") == {key for key, fields in seen.records.items() if fields["s"] == b"q"}
        slots = seen.keys.get("slotjobs", {})
        assert {slot: int(count) for slot, count in slots.items()} == Counter(f["n"] for f in seen.records.values())
        assert len({fields["g"] for fields in seen.records.values()}) == len(seen.records), "a token was given twice"

    def _compare_with_before(self, records: dict[str, dict[str, bytes]]) -> None:
        for key in {*records, *self.before}:
            old, new = self.before.get(key), records.get(key)
            if old and new and old["d"] == new["d"]:
                assert int(new["g"]) >= int(old["g"]), "a token went back"
                assert new["o"] == old["o"] or int(new["g"]) > int(old["g"]), "a new owner under the old token"
                assert LETTERS[new["s"]] in NEXT_STATES[LETTERS[old["s"]]], (old, new)
            elif new:
                assert new["s"] == b"q", "a job begins queued"
        self.before = records


def _bells(fields: list[bytes]) -> list[tuple[Any, ...]]:
    return [_bell(bell) for bell in parse_bell(fields)]


def _bell(bell: Any) -> tuple[Any, ...]:
    match bell.type:
        case "start":
            return ("start", bell.key, bell.fence, bell.kind)
        case "stop":
            return ("stop", bell.key, bell.fence)
        case "note":
            return ("note", bell.key, bell.payload)
    return (bell.type,)


def _reply(ring: Any) -> tuple[Any, ...]:
    match ring.type:
        case "started":
            return ("started", ring.key, ring.did, ring.fence, ring.worker)
        case "failed" | "gone":
            return (ring.type, ring.key, ring.did, ring.error)
    return (ring.type, ring.key)


def _plain(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(part.value if isinstance(part, Token) else part for part in entry)


def _by_key(entries: list[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    grouped: dict[str, list[tuple[Any, ...]]] = {}
    for entry in entries:
        grouped.setdefault(entry[1] if len(entry) > 1 else "", []).append(entry)
    return grouped


def _letter(fields: list[bytes]) -> dict[str, Any]:
    entry = dict(zip((name.decode() for name in fields[::2]), fields[1::2], strict=True))
    assert entry["kind"] == b"job"
    assert int(entry["at"]) > 0
    numbers = {name: int(entry[name]) for name in ("crashes", "losses", "crashes_max", "slot")}
    texts = {name: entry[name].decode() for name in ("key", "name", "error")}
    return {**texts, **numbers, "payload": entry["payload"], "checkpoint": entry.get("checkpoint")}


def test_the_scripts_do_what_a_dumb_model_does(valkey_url: str) -> None:
    world = StoreWorld(valkey_url)

    class Machine(PoolMachine):
        pass

    Machine.world = world
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=int(os.environ.get("POOL_MODEL_EXAMPLES", "100")),
                stateful_step_count=50,
                phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        world.close()
