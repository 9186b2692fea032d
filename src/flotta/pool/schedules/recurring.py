"""Tasks that come round by themselves: cron expressions and intervals, once for each time in the whole pool.

Owns the next time of each such task as this node knows it. Invariants:

* A task is enqueued in the same atomic step that moves its schedule on. A node that dies, or an answer that is lost,
  neither loses a time nor enqueues twice for it.
* Every working node that declares the task looks after it; the first to ask at its time does it, the others see that.
* Of times that passed while no node was there only the newest is enqueued, and only if it is not too late for it.
* A changed expression is another schedule: old and new code of a rolling deploy do not disturb each other, and for a
  time that both have the task is enqueued once, since its id is made of its name and the time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, final

import structlog

from flotta.errors import ConfigError, RedisError
from flotta.pool.keys import PoolKeys
from flotta.pool.schedules.clock import SERVER_CLOCK, Clock
from flotta.pool.schedules.cron import Recurrence
from flotta.pool.scripts import load_script
from flotta.pool.tasks.store import Item
from flotta.pool.tasks.task import Task
from flotta.redis import Arg, Effect, Link

__all__ = ["LATE_MAX_S", "Recurring", "RecurringTasks"]

_TICK_TASKS: Final = load_script("schedules", "tick_tasks", Effect.CHECKED, head="tasks")

LATE_MAX_S: Final = 3600.0
_RETRY_S: Final = 1.0
_LOOK_S_MAX: Final = 60.0
"""Asked again after this long at the latest, so that a failover to a server with another clock is noticed."""
_FORGET_MS: Final = 7 * 24 * 3600 * 1000
"""A schedule that nobody has moved on for so long is of code that is gone."""


@final
@dataclass(frozen=True, slots=True)
class Recurring:
    """Task ``name`` comes round by ``times``. ``item`` makes what is enqueued, given its id. A time that is missed by
    more than ``late_max_s`` is left out; None: never too late. Raises ``ConfigError``."""

    name: str
    times: Recurrence
    item: Callable[[str], Item]
    late_max_s: float | None = LATE_MAX_S

    @classmethod
    def of(cls, task: Task[..., Any], times: Recurrence, *, late_max_s: float | None = LATE_MAX_S) -> Recurring:
        """``task``, called without arguments each time. Raises ``ConfigError`` if it cannot be."""
        given: Any = task
        if not isinstance(given, Task):
            found = getattr(given, "name", None) or getattr(given, "__qualname__", given)
            raise ConfigError(
                "task", found, "a declared task: put this decorator above @pool.task()", source=str(times)
            )
        try:
            task.declaration.signature.encode((), {})
        except TypeError as error:
            allowed = f"a task whose parameters all have defaults ({error})"
            raise ConfigError("task", task.name, allowed, source=str(times)) from error
        return cls(task.name, times, lambda id: task.options(id=id).call().item, late_max_s)  # noqa: A006

    def __post_init__(self) -> None:
        if self.late_max_s is not None and not 0 <= self.late_max_s < math.inf:
            allowed = "a finite number of seconds from 0 on, or None"
            raise ConfigError("late_max_s", self.late_max_s, allowed, source="cron")

    @property
    def field(self) -> str:
        """Its name in the hash of tickers."""
        return f"cron:{self.name}:{self.times}"


@final
class RecurringTasks:
    """Looks after ``tasks`` on this node, from ``run`` until that is cancelled."""

    def __init__(
        self,
        link: Link,
        keys: PoolKeys,
        tasks: Sequence[Recurring],
        *,
        clock: Clock = SERVER_CLOCK,
        logger: Any = None,
    ) -> None:
        self._link = link
        self._keys = keys
        self._tasks = {task.field: task for task in tasks}
        self._next_ms: dict[str, int] = {}
        self._clock = clock
        self._log: Any = (logger or structlog.get_logger("flotta.pool")).bind(pool=keys.name)
        self._server_ms = 0
        self._asked_at_s = 0.0
        self._failing = False
        self._unmade = False

    async def run(self) -> None:
        """Enqueue what comes round, until cancelled or until the pool shuts down. Outages of Redis are waited out."""
        try:
            while self._tasks:
                try:
                    if not self._server_ms:
                        await self._begin()
                    if not await self._look():
                        return
                except RedisError as error:
                    self._report(error)
                    await self._clock.timer(self, _RETRY_S)
                else:
                    self._report(None)
                    await self._clock.timer(self, self._wait_s())
        finally:
            self._clock.release(self)

    async def _begin(self) -> None:
        """Learn the server's time, and forget schedules that nobody has."""
        await self._ask([])
        records = await self._link.call("HGETALL", self._keys.tickers)
        horizon_ms = self._now_ms() - _FORGET_MS
        stale = [f for f, value in records.items() if f.startswith(b"cron:") and int(value) < horizon_ms]
        stale = [field for field in stale if field.decode() not in self._tasks]
        if stale:
            await self._link.call("HDEL", self._keys.tickers, *stale)

    async def _look(self) -> bool:
        """Enqueue what is due, learn the next times of the rest. False: the pool shuts down."""
        now_ms = self._now_ms()
        asked = [
            task
            for field, task in self._tasks.items()
            if self._next_ms.get(field, 0) <= now_ms or now_ms - self._server_ms >= _LOOK_S_MAX * 1000
        ]
        return await self._ask(asked)

    async def _ask(self, tasks: list[Recurring]) -> bool:
        clock_ms = self._clock.now_ms()
        proposals = self._proposals(tasks)
        args: list[Arg] = ["" if clock_ms is None else clock_ms, *chain.from_iterable(p for _, p in proposals)]
        reply = await _TICK_TASKS(self._link, keys=(self._keys.meta,), args=args)
        if reply[0] == b"SHUTDOWN":
            return False
        self._server_ms = int(reply[0])
        self._asked_at_s = asyncio.get_running_loop().time()
        for (task, proposal), next_ms, moved in zip(proposals, reply[1::2], reply[2::2], strict=True):
            if moved:
                self._tell(task, enqueued=proposal[2] != "")
            self._next_ms[task.field] = int(next_ms)
        return True

    def _proposals(self, tasks: list[Recurring]) -> list[tuple[Recurring, list[Arg]]]:
        """Without those that cannot be made now, because a hook of ``on_enqueue`` raises: they are tried again."""
        now_ms = self._now_ms()
        made: list[tuple[Recurring, list[Arg]]] = []
        for task in tasks:
            try:
                made.append((task, self._proposal(task, now_ms)))
            except Exception as error:  # noqa: BLE001 - the user's; it must not end the other schedules
                self._log.error("a task cannot be enqueued by its schedule", task=task.name, exc_info=error)
        self._unmade = len(made) < len(tasks)
        return made

    def _proposal(self, task: Recurring, now_ms: int) -> list[Arg]:
        """What the script should do if the next time is what this node believes it is."""
        known_ms = self._next_ms.get(task.field, 0)
        at_ms = task.times.last_ms(known_ms - 1, now_ms) if known_ms else None
        if at_ms is not None and task.late_max_s is not None and now_ms - at_ms > task.late_max_s * 1000:
            at_ms = None
        next_ms = task.times.next_ms(now_ms)
        item = [""] * 6 if at_ms is None else task.item(f"cron.{task.name}.{at_ms}")[:6]
        return [task.field, known_ms, "" if at_ms is None else at_ms, next_ms or now_ms + _FORGET_MS, *item]

    def _now_ms(self) -> int:
        """The time by the clock; without one of its own, the server's as far as it is known."""
        clock_ms = self._clock.now_ms()
        if clock_ms is not None:
            return clock_ms
        if not self._server_ms:
            return 0
        return self._server_ms + int((asyncio.get_running_loop().time() - self._asked_at_s) * 1000)

    def _wait_s(self) -> float:
        if self._unmade:
            return _RETRY_S
        wait_ms = min(self._next_ms.values()) - self._now_ms()
        return min(max(wait_ms, 1) / 1000, max(_LOOK_S_MAX, self._clock.check_s_max))

    def _tell(self, task: Recurring, *, enqueued: bool) -> None:
        if enqueued:
            self._log.debug("task enqueued by its schedule", task=task.name, schedule=str(task.times))
        else:
            facts = {"task": task.name, "schedule": str(task.times), "late_max_s": task.late_max_s}
            self._log.warning("a task was missed by too much, it is left out", **facts)

    def _report(self, error: RedisError | None) -> None:
        """An outage is told once when it begins and once when it ends."""
        if error is not None and not self._failing:
            self._log.warning("cron tasks cannot ask Redis, they go on trying", error=str(error))
        elif error is None and self._failing:
            self._log.info("cron tasks reach Redis again")
        self._failing = error is not None
