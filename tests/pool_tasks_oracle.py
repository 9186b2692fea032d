"""A deliberately dumb second implementation of a pool's tasks: one list, searched again for every question.

Nothing here is stored twice: where a task stands, how many of a key run and who is next is worked out from the tasks
themselves. ``pool_tasks_model`` compares it with what the scripts keep in Redis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Oracle", "Task"]

OPEN = ("queued", "due", "waiting", "blocked")
ENDED = ("done", "failed", "cancelled")


@dataclass
class Task:
    id: str
    name: str
    priority: int
    key: str | None = None
    limit: int = 0
    unique: str | None = None
    rate: tuple[str, int] | None = None  # key, burst
    deps: frozenset[str] = frozenset()
    losses_max: int = 3
    delayed: bool = False
    sequence: int = 0
    state: str = "new"
    holds: bool = False
    charged: bool = False
    doomed: bool = False  # cancelled while it ran, or a task it comes after has not been done
    stray: bool = False
    worker: str = ""
    fence: int = 0
    failures: int = 0
    losses: int = 0
    due_order: float = 0.0

    @property
    def place(self) -> tuple[int, int]:
        return (9 - self.priority, self.sequence)


@dataclass
class Oracle:
    waiting_max: int
    tasks: dict[str, Task] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    sequence: int = 0
    dead: list[Task] = field(default_factory=list)
    clock: float = 0.0

    # --- questions ------------------------------------------------------------------------------------------------

    def of(self, *states: str) -> list[Task]:
        return [task for task in self.tasks.values() if task.state in states]

    def waiting(self) -> int:
        return len(self.of(*OPEN))

    def used(self, key: str) -> int:
        return sum(task.holds for task in self.tasks.values() if task.key == key and task.state not in ENDED)

    def line(self, *, stray: bool = False) -> list[Task]:
        return sorted((task for task in self.of("queued") if task.stray is stray), key=lambda task: task.place)

    def held(self, worker: str) -> list[Task]:
        return [task for task in self.of("running") if task.worker == worker]

    # --- ways from place to place ---------------------------------------------------------------------------------

    def put_due(self, task: Task, *, far: bool) -> None:
        self.clock += 1
        task.state = "due"
        task.due_order = math.inf if far else self.clock

    def place(self, task: Task) -> None:
        if task.key is not None and not task.holds:
            if self.used(task.key) >= task.limit:
                task.state = "waiting"
                return
            task.holds = True
        if task.rate is not None and not task.charged:
            key, burst = task.rate
            task.charged = True
            taken = self.reserved[key] = self.reserved.get(key, 0) + 1
            if taken > burst:
                self.put_due(task, far=True)
                return
        task.state = "queued"

    def release(self, task: Task) -> None:
        if not task.holds:
            return
        task.holds = False
        while True:
            waiters = [other for other in self.of("waiting") if other.key == task.key]
            if not waiters:
                return
            first = min(waiters, key=lambda other: other.sequence if other.limit == 1 else other.place)
            if self.used(first.key) >= first.limit:
                return
            self.place(first)

    def end(self, task: Task, state: str) -> None:
        before = task.state
        task.state = state
        if before != "new":
            self.release(task)
        for other in self.of("blocked"):
            if task.id in other.deps:
                if state != "done":
                    other.doomed = True
                    self.put_due(other, far=False)
                elif all(self.tasks[dep].state == "done" for dep in other.deps):
                    self.put_due(other, far=other.delayed)

    # --- steps ----------------------------------------------------------------------------------------------------

    def enqueue(self, task: Task) -> str:
        """'new', the id of the one that is there, 'FULL' or 'UNKNOWN'."""
        self.sequence += 1
        if task.id in self.tasks:
            return task.id
        if self.waiting() >= self.waiting_max:
            return "FULL"
        for other in self.tasks.values():
            if task.unique is not None and other.unique == task.unique and other.state not in ENDED:
                return other.id
        if any(dep not in self.tasks for dep in task.deps):
            return "UNKNOWN"
        task.sequence = self.sequence
        before = [self.tasks[dep].state for dep in task.deps]
        self.tasks[task.id] = task
        if any(state in ("failed", "cancelled") for state in before):
            task.doomed = True
            self.put_due(task, far=False)
        elif any(state != "done" for state in before):
            task.state = "blocked"
        elif task.delayed:
            self.put_due(task, far=True)
        else:
            self.place(task)
        return "new"

    def owns(self, worker: str, task_id: str, fence: int) -> bool:
        task = self.tasks.get(task_id)
        return task is not None and (task.state, task.worker, task.fence) == ("running", worker, fence)

    def finish(self, worker: str, task_id: str, fence: int, verdict: str, *, far: bool) -> bool:
        if not self.owns(worker, task_id, fence):
            return False
        task = self.tasks[task_id]
        if verdict == "done":
            self.end(task, "done")
        elif verdict == "cancelled" or (task.doomed and verdict in ("retry", "back", "unknown")):
            self.end(task, "cancelled")
        elif verdict in ("back", "unknown"):
            task.stray = task.stray or verdict == "unknown"
            self.back(task, far=far and verdict == "back")
        else:
            task.failures += 1
            if verdict == "retry":
                task.charged = False
                if task.limit > 1:
                    task.state = "due"  # it counts as open while its slot goes on
                    self.release(task)
                if far:
                    self.put_due(task, far=True)
                else:
                    self.place(task)
            else:
                self.bury(task)
        return True

    def back(self, task: Task, *, far: bool) -> None:
        task.charged = True
        if far:
            self.put_due(task, far=True)
        else:
            self.place(task)

    def bury(self, task: Task) -> None:
        self.dead.append(Task(**vars(task)))
        self.end(task, "failed")

    def pump(self, due: Iterable[str]) -> None:
        for task_id in due:
            task = self.tasks[task_id]
            if task.doomed:
                self.end(task, "cancelled")
            else:
                self.place(task)

    def hand_out(self, worker: str, want: int, unknown: bool) -> list[str]:
        lines = self.line() + ([] if unknown else self.line(stray=True))
        given = lines[:want]
        for task in given:
            task.state, task.worker = "running", worker
        return [task.id for task in given]

    def cancel(self, task_id: str) -> str:
        task = self.tasks.get(task_id)
        if task is None:
            return ""
        if task.state == "running":
            task.doomed = True
            return "cancelling"
        if task.state not in ENDED:
            self.end(task, "cancelled")
        return task.state

    def reap(self, task_id: str, *, blame: int) -> None:
        task = self.tasks[task_id]
        task.losses += blame
        if task.doomed:
            self.end(task, "cancelled")
        elif task.losses > task.losses_max:
            self.bury(task)
        else:
            self.back(task, far=False)

    def redrive(self, letter: Task) -> None:
        self.dead.remove(letter)
        there = self.tasks.get(letter.id)
        if there is not None and there.state not in ENDED:
            return
        self.tasks.pop(letter.id, None)
        full, self.waiting_max = self.waiting_max, 1 << 60
        self.enqueue(
            Task(
                letter.id,
                letter.name,
                letter.priority,
                key=letter.key,
                limit=letter.limit,
                unique=letter.unique,
                rate=letter.rate,
                losses_max=letter.losses_max,
            )
        )
        self.waiting_max = full
