"""What one node of a pool does by the clock: its tickers, its schedules and the tasks that come round.

Owns their tasks and their end. Invariants: a name is on a node once; everything that runs here is ended by ``close``,
in a second even without Redis; what ends by itself (a schedule, a shutdown of the pool) is forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, final

import structlog

from flotta.errors import Closed, StateError
from flotta.pool.jobs.store import JobStore
from flotta.pool.schedules.clock import SERVER_CLOCK, Clock
from flotta.pool.schedules.recurring import Recurring, RecurringTasks
from flotta.pool.schedules.scheduler import PlannedJob, Producer, Schedule
from flotta.pool.schedules.ticker import Ticker
from flotta.redis import Link

__all__ = ["Timetable"]


@final
class Timetable:
    """You owe it ``close``. ``clock``: for tests, one that is turned by hand."""

    def __init__(self, store: JobStore, link: Link, *, clock: Clock = SERVER_CLOCK, logger: Any = None) -> None:
        self._store = store
        self._link = link
        self._clock = clock
        self._logger = logger
        self._log: Any = (logger or structlog.get_logger("flotta.pool")).bind(pool=store.name)
        self._tickers: dict[str, Ticker] = {}
        self._schedules: dict[str, Schedule] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    async def ticker(self, name: str, *, every_s: float) -> Ticker:
        """The ticker ``name``, started here. Raises ``StateError`` if this node has it open already, ``InvalidName``,
        ``ConfigError``, ``Closed``, ``RedisError``."""
        self._check_open()
        known = self._tickers.get(name)
        if known is not None and not known.ended:
            raise StateError("ticker", f"this node of pool {self._store.name!r} has a ticker {name!r} already")
        made = Ticker(self._link, self._store.keys, name, every_s=every_s, clock=self._clock, logger=self._logger)
        self._tickers[name] = made
        try:
            return await made.start()
        except BaseException:
            await made.close()
            raise

    def schedule(
        self, name: str, producer: Producer, *, every_s: float, resolve: Callable[[Any], PlannedJob]
    ) -> Schedule:
        """Plan by ``producer`` from now on, in the background. Raises ``StateError`` if this node has a schedule of
        that name, ``InvalidName``, ``ConfigError``, ``Closed``."""
        self._check_open()
        if name in self._schedules:
            raise StateError("schedule", f"this node of pool {self._store.name!r} has a schedule {name!r} already")
        made = Schedule(
            self._store,
            self._link,
            name,
            producer,
            every_s=every_s,
            resolve=resolve,
            clock=self._clock,
            logger=self._logger,
        )
        self._schedules[name] = made
        task = self._run(made.run(), f"schedule {name}")
        task.add_done_callback(lambda _: self._schedules.pop(name, None))
        return made

    def recur(self, tasks: Sequence[Recurring]) -> None:
        """Enqueue these tasks when they come round, in the background. Raises ``Closed``."""
        self._check_open()
        if tasks:
            looking = RecurringTasks(self._link, self._store.keys, tasks, clock=self._clock, logger=self._logger)
            self._run(looking.run(), "tasks that come round")

    async def close(self) -> None:
        """End everything here; other nodes go on. Again: harmless."""
        self._closed = True
        for ticker in self._tickers.values():
            await ticker.close()
        running = [*self._running]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"pool {self._store.name} {name}")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.error("something that goes by the clock has failed", what=task.get_name(), exc_info=error)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"node of pool {self._store.name!r}")
