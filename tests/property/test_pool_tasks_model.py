"""The scripts of tasks on a real server against the dumb oracle of ``pool_tasks_oracle.py``.

Every rule does one step on both and compares the answers; after every step the whole of what Redis holds is compared
with the oracle, and the laws that need no oracle are checked on Redis alone: a task is in one place, slots agree with
who holds one, tokens only grow. In the end everything is drained and nothing may be left.
"""

from __future__ import annotations

import math
import os
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flotta.errors import NoResult, QueueFull
from flotta.pool.keys import PoolKeys
from flotta.pool.tasks.records import TaskState
from flotta.pool.tasks.store import Finished, Item, TaskStore, Verdict
from pool_tasks_oracle import ENDED, OPEN, Oracle, Task
from script_world import World

WAITING_MAX = 12
FAR_MS = 3_600_000
HOUR_US = 3_600_000_000
LIMITS = {"one": 1, "two": 2}
VERDICTS = {
    "done": Verdict.DONE,
    "failed": Verdict.FAILED,
    "retry": Verdict.RETRY,
    "back": Verdict.BACK,
    "unknown": Verdict.UNKNOWN,
    "cancelled": Verdict.CANCELLED,
}
WORKERS = ("w0", "w1", "w2")


def has_open(machine: TaskMachine) -> bool:
    return bool(machine.oracle.of(*OPEN, "running"))


def has_running(machine: TaskMachine) -> bool:
    return bool(machine.oracle.of("running"))


class TaskMachine(RuleBasedStateMachine):
    """Tasks are enqueued, run, fail, come back, are cancelled and lose their workers; calls come twice and late."""

    world: World

    @initialize()
    def open(self) -> None:
        self.world.pools += 1
        self.keys = PoolKeys(f"tasks-{os.getpid()}-{self.world.pools}")
        self.store = TaskStore(self.world.redis.link, self.keys, waiting_max=WAITING_MAX, dead_max=10_000)
        self.oracle = Oracle(WAITING_MAX)
        self.count = 0
        self.highest = 0
        self.items: list[tuple[Item, Task]] = []
        self.reports: list[tuple[str, Finished]] = []  # what was reported: may be said again
        for worker in WORKERS:
            self._lease(worker, live=True)

    # --- helpers --------------------------------------------------------------------------------------------------

    def _lease(self, worker: str, *, live: bool) -> None:
        now = int(self.world.call("TIME")[0]) * 1000
        self.world.call("ZADD", self.keys.leases, now + (FAR_MS if live else -FAR_MS), worker)

    def _due_now(self) -> list[str]:
        """In the order in which the server will look at them; later ones get later times."""
        while True:
            seconds, micros = self.world.call("TIME")
            now = int(seconds) * 1000 + int(micros) // 1000
            due = self.world.call("ZRANGE", self.keys.due, "-inf", now, "BYSCORE", "WITHSCORES")
            if not due or due[-1][1] < now:
                return [task_id.decode() for task_id, _ in due]

    def _turn(self, worker: str, want: int, finished: list[Finished], *, unknown: bool = False) -> list[str]:
        """One turn on both, compared; the ids that were handed out."""
        self.world.call("DEL", self.keys.idle)
        due = self._due_now()
        live = self.world.call("ZSCORE", self.keys.leases, worker) > int(self.world.call("TIME")[0]) * 1000
        turn = self.world.run(self.store.turn(worker, ["default"], want, finished, [b"f"] if unknown else []))
        refused = []
        for report in finished:
            verdict = next(name for name, code in VERDICTS.items() if code == report.verdict)
            if not self.oracle.finish(worker, report.id.decode(), int(report.fence), verdict, far=report.delay_ms > 0):
                refused.append(report.fence)
        near = sorted(t.id for t in self.oracle.of("due") if t.due_order < math.inf and t.id not in due)
        self.oracle.pump([*due, *near])  # what became due by these reports is looked at in the same turn
        expected = self.oracle.hand_out(worker, want, unknown) if live else []
        assert turn.live == live
        assert turn.refused == refused
        got = [task.id.decode() for task in turn.tasks]
        assert got == expected
        for given in turn.tasks:
            task = self.oracle.tasks[given.id.decode()]
            task.fence = int(given.fence)
            assert task.fence > self.highest, "a token that is not higher than all before"
            self.highest = task.fence
            assert (given.failures, given.losses, given.name) == (task.failures, task.losses, b"f")
        return expected

    def _report(self, task: Task, verdict: str, *, far: bool = False) -> Finished:
        delay_ms = FAR_MS if far and verdict in ("retry", "back") else 0
        return Finished(task.id.encode(), str(task.fence).encode(), VERDICTS[verdict], b"value", delay_ms)

    def _send(self, batch: list[tuple[Item, Task]], *, twice: bool) -> None:
        answers = self.world.run(self.store.enqueue_batch([item for item, _ in batch]))
        expected = [self.oracle.enqueue(Task(**vars(task))) for _, task in batch]
        assert [_said(answer) for answer in answers] == expected
        if twice:  # the answer was lost: the same again, as the store does it
            answers = self.world.run(self.store.enqueue_batch([item._replace(fresh=False) for item, _ in batch]))
            expected = [self.oracle.enqueue(Task(**vars(task))) for _, task in batch]
            assert [_said(answer) for answer in answers] == expected

    # --- enqueueing -----------------------------------------------------------------------------------------------

    @rule(
        data=st.data(),
        number=st.integers(1, 4),
        twice=st.booleans(),
    )
    def enqueue(self, data: st.DataObject, number: int, twice: bool) -> None:
        batch = []
        for _ in range(number):
            self.count += 1
            task = Task(f"t{self.count}", "f", data.draw(st.sampled_from([0, 5, 5, 9])))
            if data.draw(st.integers(0, 3)):
                task.key = data.draw(st.sampled_from(sorted(LIMITS)))
                task.limit = LIMITS[task.key]
            if data.draw(st.integers(0, 3)) == 0:
                task.unique = data.draw(st.sampled_from(["u", "v"]))
            if data.draw(st.integers(0, 4)) == 0:
                task.rate = ("r", 2)
            if data.draw(st.integers(0, 3)) == 0:
                known = [*self.oracle.tasks, "nobody"]
                task.deps = frozenset(data.draw(st.lists(st.sampled_from(known), max_size=2)))
            task.losses_max = data.draw(st.sampled_from([0, 1, 3]))
            task.delayed = data.draw(st.integers(0, 4)) == 0
            batch.append((_item(task), task))
        self._send(batch, twice=twice)
        self.items += batch

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def enqueue_an_old_one_again(self, data: st.DataObject) -> None:
        item, task = data.draw(st.sampled_from(self.items))
        self._send([(item._replace(fresh=False), task)], twice=False)

    # --- running --------------------------------------------------------------------------------------------------

    @rule(
        data=st.data(),
        worker=st.sampled_from(WORKERS),
        want=st.sampled_from([0, 1, 3, 8]),
        unknown=st.booleans(),
        lost=st.booleans(),
    )
    def turn(self, data: st.DataObject, worker: str, want: int, unknown: bool, lost: bool) -> None:
        finished = []
        for task in self.oracle.held(worker):
            verdict = data.draw(
                st.sampled_from(["", "done", "done", "failed", "retry", "back", "unknown", "cancelled"])
            )
            if verdict:
                finished.append(self._report(task, verdict, far=data.draw(st.booleans())))
        self._turn(worker, want, finished, unknown=unknown)
        self.reports += [(worker, report) for report in finished]
        if lost:  # the answer was lost: the same reports again, and an audit finds what was handed out
            self._turn(worker, want, finished, unknown=unknown)
            self.audit(worker)

    @precondition(lambda self: self.reports)
    @rule(data=st.data())
    def report_again_late(self, data: st.DataObject) -> None:
        worker, report = data.draw(st.sampled_from(self.reports))
        if not self.oracle.owns(worker, report.id.decode(), int(report.fence)):
            self._turn(worker, 0, [report])

    @precondition(has_running)
    @rule(data=st.data(), verdict=st.sampled_from(["done", "failed", "back"]))
    def report_of_an_earlier_run(self, data: st.DataObject, verdict: str) -> None:
        """The same worker has the task again: only the token tells that the report is not of this run."""
        task = data.draw(st.sampled_from(self.oracle.of("running")))
        self._turn(task.worker, 0, [self._report(task, verdict)._replace(fence=str(task.fence - 1).encode())])

    @rule(worker=st.sampled_from(WORKERS))
    def audit(self, worker: str) -> None:
        tasks, cancelled = self.world.run(self.store.held(worker))
        mine = self.oracle.held(worker)
        assert {(task.id.decode(), int(task.fence)) for task in tasks} == {(task.id, task.fence) for task in mine}
        assert {int(fence) for fence in cancelled} == {task.fence for task in mine if task.doomed}

    @precondition(has_running)
    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def progress(self, data: st.DataObject, worker: str) -> None:
        task = data.draw(st.sampled_from(self.oracle.of("running")))
        fence = str(task.fence).encode()
        answer = self.world.run(self.store.progress(worker, task.id.encode(), fence, b"\x92\x01\xa0"))
        assert answer == (0 if task.worker != worker else 2 if task.doomed else 1)

    # --- the world ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.oracle.of("due"))
    @rule(data=st.data())
    def time_comes(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.oracle.of("due")))
        self.oracle.clock += 1
        self.world.call("ZADD", self.keys.due, int(self.oracle.clock), task.id)

    @precondition(lambda self: self.oracle.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from([*self.oracle.tasks, "nobody"]))
        expected = self.oracle.cancel(task_id)
        state = self.world.run(self.store.cancel(task_id))
        assert state == ({"": None, "cancelling": TaskState.RUNNING}.get(expected) if expected in ("", "cancelling")
                         else TaskState(expected))  # fmt: skip

    @precondition(has_running)
    @rule(data=st.data())
    def cancel_one_that_runs(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.oracle.of("running")))
        assert self.oracle.cancel(task.id) == "cancelling"
        assert self.world.run(self.store.cancel(task.id)) is TaskState.RUNNING

    @precondition(lambda self: self.oracle.dead)
    @rule(data=st.data())
    def a_dead_one_is_enqueued_anew(self, data: st.DataObject) -> None:
        letter = data.draw(st.sampled_from(self.oracle.dead))
        task = self.oracle.tasks.get(letter.id)
        if task is None or task.state not in ENDED or any(letter.id in t.deps for t in self.oracle.of("blocked")):
            return
        self.world.call("DEL", self.keys.task(letter.id))
        del self.oracle.tasks[letter.id]
        self._send([pair for pair in self.items if pair[1].id == letter.id], twice=True)

    @rule(worker=st.sampled_from(WORKERS), blame=st.booleans())
    def die_and_be_reaped(self, worker: str, blame: bool) -> None:
        """One at a time: which goes first is Redis' choice, and decides who of a key goes on first."""
        assert self.world.run(self.store.reap(worker, blame=blame)) == -1
        self._lease(worker, live=False)
        held = {task.id for task in self.oracle.held(worker)}
        while held:
            assert self.world.run(self.store.reap(worker, blame=blame, limit=1)) == len(held) - 1
            now_held = {raw.decode() for raw in self.world.call("SMEMBERS", self.keys.held(worker))}
            [taken] = held - now_held
            self.oracle.reap(taken, blame=int(blame))
            held = now_held
        self._lease(worker, live=True)

    @precondition(lambda self: self.oracle.of("running"))
    @rule(data=st.data())
    def a_zombie_reports(self, data: st.DataObject) -> None:
        """A worker whose lease has ended: what is still its own is heard, but it is given nothing."""
        task = data.draw(st.sampled_from(self.oracle.of("running")))
        self._lease(task.worker, live=False)
        self._turn(task.worker, 3, [self._report(task, data.draw(st.sampled_from(["done", "retry"])))])
        self._lease(task.worker, live=True)

    @precondition(lambda self: self.oracle.dead)
    @rule(data=st.data())
    def redrive(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.oracle.dead) - 1))
        entry = self.world.call("XRANGE", self.keys.dead, "-", "+")[index][0].decode()
        letter = self.oracle.dead[index]
        assert self.world.run(self.store.redrive([entry])) == [letter.id]
        self.oracle.redrive(letter)
        assert self.world.run(self.store.redrive([entry])) == [""]

    @precondition(lambda self: self.oracle.of(*ENDED))
    @rule(data=st.data())
    def a_result_expires(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.oracle.of(*ENDED)))
        if any(task.id in other.deps for other in self.oracle.of("blocked")):
            return
        assert 0 < self.world.call("PTTL", self.keys.task(task.id)) <= 600_000
        self.world.call("DEL", self.keys.task(task.id))
        del self.oracle.tasks[task.id]

    # --- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def redis_holds_what_the_oracle_says(self) -> None:
        if not hasattr(self, "oracle"):
            return
        oracle = self.oracle
        found = self._dump()
        for task in oracle.tasks.values():
            record = found["tasks"].pop(task.id)
            assert record["s"] == task.state, (str(task), record)
            assert int(record.get("a", 0)) == task.failures
            assert int(record.get("l", 0)) == task.losses
            if task.state not in ENDED:
                assert (record.get("h", "") == "1") == task.holds, task
                assert bool(record.get("x")) == task.doomed, task
            if task.state == "running":
                assert (record["o"], record["g"]) == (task.worker, str(task.fence))
        assert not found["tasks"], "records that the oracle does not know"
        assert found["ready:default"] == [task.id for task in oracle.line()]
        assert found["ready:?default?f"] == [task.id for task in oracle.line(stray=True)]
        assert sorted(found["due"]) == sorted(task.id for task in oracle.of("due"))
        for key, limit in LIMITS.items():
            assert sorted(found[f"wait:f:{key}"]) == sorted(t.id for t in oracle.of("waiting") if t.key == key)
            used = oracle.used(key)
            assert found["conc"].get(f"f:{key}", 0) == used <= limit
            assert used == limit or not found[f"wait:f:{key}"], "somebody waits for a slot that is free"
        for worker in WORKERS:
            assert found["held"][worker] == {task.id for task in oracle.held(worker)}
        assert found["unique"] == {
            f"f:{t.unique}": t.id for t in oracle.tasks.values() if t.unique and t.state not in ENDED
        }
        assert found["waiting"] == oracle.waiting()
        assert found["dead"] == [letter.id for letter in oracle.dead]
        seconds, _ = self.world.call("TIME")
        arrival = self.world.call("ZSCORE", self.keys.rate, "r")
        hours = 0 if arrival is None else round((arrival / 1_000_000 - int(seconds)) / 3600)
        assert hours == oracle.reserved.get("r", 0), "runs that were charged to the rate"

    def _dump(self) -> dict[str, Any]:
        call, keys = self.world.call, self.keys
        found: dict[str, Any] = {"tasks": {}, "held": {}}
        for raw in call("KEYS", f"{keys.prefix}task:*"):
            fields = {name.decode(): value.decode("latin-1") for name, value in call("HGETALL", raw).items()}
            found["tasks"][raw.decode().removeprefix(f"{keys.prefix}task:")] = fields
        for name in ("ready:default", "ready:?default?f", "due", *(f"wait:f:{key}" for key in LIMITS)):
            found[name] = [raw.decode() for raw in call("ZRANGE", keys.prefix + name, 0, -1)]
        for worker in WORKERS:
            found["held"][worker] = {raw.decode() for raw in call("SMEMBERS", keys.held(worker))}
        found["conc"] = {name.decode(): int(n) for name, n in call("HGETALL", keys.conc).items()}
        found["unique"] = {name.decode(): i.decode() for name, i in call("HGETALL", keys.prefix + "unique").items()}
        found["waiting"] = int(call("HGET", keys.prefix + "tasks", "waiting") or 0)
        letters = [dict(zip(entry[::2], entry[1::2], strict=True)) for _, entry in call("XRANGE", keys.dead, "-", "+")]
        found["dead"] = [letter[b"key"].decode() for letter in letters]
        return found

    def teardown(self) -> None:
        """Liveness: everything that was accepted comes to an end, and nothing is left but what is documented."""
        if not hasattr(self, "oracle"):
            return
        for _ in range(1000):
            if not self.oracle.of(*OPEN, "running"):
                break
            for task in self.oracle.of("due"):
                self.oracle.clock += 1
                self.world.call("ZADD", self.keys.due, int(self.oracle.clock), task.id)
            for worker in WORKERS:
                self._turn(worker, 5, [self._report(task, "done") for task in self.oracle.held(worker)])
        else:
            raise AssertionError("tasks that never end")
        self.redis_holds_what_the_oracle_says()
        left = {raw.decode().removeprefix(self.keys.prefix) for raw in self.world.call("KEYS", self.keys.prefix + "*")}
        assert {name.partition(":")[0] for name in left} <= {
            "meta",
            "tasks",
            "leases",
            "idle",
            "task",
            "rate",
            "dead",
            "strays",
        }
        if left:
            self.world.call("DEL", *(self.keys.prefix + name for name in left))


def _item(task: Task) -> Item:
    options: dict[str, Any] = {"m": task.losses_max}
    if task.key is not None:
        options |= {"k": f"f:{task.key}", "v": task.limit}
    if task.unique is not None:
        options["y"] = f"f:{task.unique}"
    if task.rate is not None:
        options["j"] = f"{HOUR_US}:{task.rate[1]}:{task.rate[0]}"
    if task.deps:
        options["f"] = sorted(task.deps)
    if task.delayed:
        options["d"] = FAR_MS
    return Item(task.id, "f", b"payload", "default", task.priority, msgspec.msgpack.encode(options), True)


def _said(answer: Any) -> str:
    if isinstance(answer, QueueFull):
        return "FULL"
    if isinstance(answer, NoResult):
        return "UNKNOWN"
    return "new" if answer is None else answer


def test_the_scripts_of_tasks_do_what_a_dumb_model_does(valkey_url: str) -> None:
    world = World(valkey_url)

    class Machine(TaskMachine):
        pass

    Machine.world = world
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=int(os.environ.get("POOL_MODEL_EXAMPLES", "50")),
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        world.close()
