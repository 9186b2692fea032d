"""Schedulers: a producer says which jobs should be there, one node at a time makes it so.

Owns the way from a `Plan` to jobs started and stopped. Invariants:

* A plan is made and carried out by one node at a time, which holds the tick meanwhile; one that loses it leaves off.
* What a scheduler has started is known in Redis (the set ``plan:<name>``, written in the step that accepts the job and
  in the one that deletes it), so a restart, another node or a failed tick go on from what is there.
* A job that should be there and is, whoever started it, is success; a scheduler stops only what it started itself,
  unless the plan names a key.

Nothing here waits for jobs to start or to end: the next tick sees what became of them, and repairs it.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar, final

import structlog

from flotta.errors import Closed, ConfigError, JobExists, NoWorkers, PoolShutdown, QueueFull, RedisError
from flotta.pool.jobs.runs import CRASHES_MAX
from flotta.pool.jobs.states import StopAnswer
from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import check_key, check_name
from flotta.pool.schedules.clock import SERVER_CLOCK, Clock
from flotta.pool.schedules.ticker import Ticker
from flotta.redis import Link

__all__ = ["Plan", "PlannedJob", "Producer", "Schedule", "ScheduleStop", "job_of_pair"]

T = TypeVar("T")

PRODUCER_S_MIN: Final = 60.0
"""How long a producer may take, or its interval if that is longer."""
_LET_GO_S: Final = 1.0
_STEP: Final = 200
"""Jobs started, stopped or looked up at a time."""


class ScheduleStop(Exception):
    """Raise it in a producer: this schedule ends, on every node. The jobs that it started go on."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a producer wants.

    ``desired``: exactly these jobs should be there; what this scheduler has started and is not among them is stopped.
    Or ``start`` and ``stop``: these should be there, those should not, others stay; ``stop_others``: those that this
    scheduler has started and that are not in ``start`` are stopped, too. ``desired`` is short for
    ``start`` with ``stop_others``.

    ``desired`` and ``start`` hold jobs: ``key -> payload``, or calls of declared jobs (``watch.call(1)``). ``stop``
    holds keys. Raises ``ConfigError`` if both forms are given.
    """

    desired: Mapping[str, bytes] | Iterable[Any] | None = None
    start: Mapping[str, bytes] | Iterable[Any] = ()
    stop: Iterable[str] = ()
    stop_others: bool = False

    def __post_init__(self) -> None:
        """Check that it says one thing."""
        if self.desired is not None and (self.start or self.stop or self.stop_others):
            raise ConfigError("desired", "given", "desired alone, or start, stop and stop_others", source="Plan")


class _TickLost(Exception):
    """Another node may be planning."""


class PlannedJob(NamedTuple):
    """A job that should be there."""

    key: str
    kind: str
    payload: bytes
    crashes_max: int


Producer = Callable[[], Plan | Awaitable[Plan]]
"""Says what should be there now. It may be ``async``; a plain one runs in a thread."""


@final
@dataclass(frozen=True, slots=True)
class _Todo:
    """A plan as it is carried out."""

    start: dict[str, PlannedJob]
    stop: list[str]
    stop_others: bool


@final
class Schedule:
    """The schedule ``name`` on this node: every ``every_s`` seconds one node calls its ``producer``.

    ``resolve`` makes a job of what a plan holds: of a ``(key, payload)`` pair of a mapping, or of an item.
    Raises ``ConfigError`` and ``InvalidName``.
    """

    def __init__(
        self,
        store: JobStore,
        link: Link,
        name: str,
        producer: Producer,
        *,
        every_s: float,
        resolve: Callable[[Any], PlannedJob],
        clock: Clock = SERVER_CLOCK,
        logger: Any = None,
    ) -> None:
        self.name = check_name("scheduler", name)
        self._store = store
        self._link = link
        self._producer = producer
        self._resolve = resolve
        self._log: Any = (logger or structlog.get_logger("flotta.pool")).bind(pool=store.name, scheduler=name)
        self._hold_s = store.options.worker_ttl_s  # a node that dies while it plans is like a worker that dies
        self._held = False
        self._ticker = Ticker(
            link,
            store.keys,
            name,
            every_s=every_s,
            first_s=0.0,
            hold_s=self._hold_s,
            clock=clock,
            logger=logger,
            kind="scheduler",
        )

    @property
    def every_s(self) -> float:
        """Seconds between two plans."""
        return self._ticker.every_s

    async def run(self) -> None:
        """Plan on every tick that this node is given, until cancelled, or until the schedule or the pool ends.

        What goes wrong is logged, not raised, and is tried again at the next tick. Cancelled in the middle of a plan,
        it leaves the rest to the next tick, on whichever node.
        """
        try:
            await self._declare()
            async for tick in self._ticker:
                if tick.missed:
                    self._log.info("a schedule comes late", late_s=round(tick.late_s, 3), missed=tick.missed)
                async with self._holding():
                    goes_on = await self._plan_once()
                if not goes_on:
                    return
        finally:
            await self._ticker.close()

    async def stop(self) -> None:
        """End this schedule on every node; its jobs go on. Raises ``RedisError``; then, or when cancelled, it has ended
        here, and perhaps only here."""
        await self._ticker.stop()

    async def _declare(self) -> None:
        """As a ticker does, however long Redis is away."""
        while True:
            try:
                await self._ticker.start()
            except RedisError as error:
                self._log.warning("a schedule cannot be declared, it goes on trying", error=str(error))
                await asyncio.sleep(1.0)
            else:
                return

    @asynccontextmanager
    async def _holding(self) -> AsyncIterator[None]:
        """Hold the tick while the plan is made and carried out, and let it go."""
        self._held = True
        holding = asyncio.create_task(self._hold(), name=f"hold schedule {self.name}")
        try:
            yield
        finally:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)
            await self._let_go()

    async def _let_go(self) -> None:
        try:
            async with asyncio.timeout(_LET_GO_S):
                await self._ticker.let_go()
        except (RedisError, Closed, TimeoutError) as error:
            self._log.warning("a schedule could not be let go, its next plan may be late", error=str(error))

    async def _hold(self) -> None:
        """Sees after a while that the tick is lost: what was begun until then is safe to do twice."""
        held_until_s = asyncio.get_running_loop().time() + self._hold_s
        while self._held:
            await asyncio.sleep(self._hold_s / 3)
            asked_at_s = asyncio.get_running_loop().time()
            try:
                self._held = await self._ticker.hold()
            except RedisError:
                self._held = asked_at_s < held_until_s
            else:
                held_until_s = asked_at_s + self._hold_s

    async def _plan_once(self) -> bool:
        """False: there is nothing more to plan."""
        try:
            await self._carry_out(self._todo(await self._produce()))
        except ScheduleStop:
            self._log.info("a schedule has ended itself")
            await self._stop_until_heard()
            return False
        except PoolShutdown:
            return False
        except _TickLost:
            self._log.warning("a plan took too long, another node makes the next one")
        except (QueueFull, NoWorkers) as error:
            self._log.warning("a plan is not complete, the next tick goes on", error=str(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a producer raises: the next tick tries again
            self._log.error("a schedule failed, it is tried again at the next tick", exc_info=error)
        return True

    async def _stop_until_heard(self) -> None:
        while True:
            try:
                await self._ticker.stop()
            except RedisError:
                await asyncio.sleep(1.0)
            else:
                return

    # --- one plan -----------------------------------------------------------------------------------------------

    async def _produce(self) -> Plan:
        async with asyncio.timeout(max(self.every_s, PRODUCER_S_MIN)):
            if inspect.iscoroutinefunction(self._producer):
                made = await self._producer()
            else:
                made = await asyncio.to_thread(self._call_producer)
                if inspect.isawaitable(made):
                    made = await made
        if not isinstance(made, Plan):
            raise TypeError(f"the producer of schedule {self.name!r} returned {type(made).__name__}, not a Plan")
        return made

    def _call_producer(self) -> Any:
        try:
            return self._producer()
        except StopIteration as error:  # no future can hold it: who waits for it would wait for ever
            raise RuntimeError("the producer raised StopIteration") from error

    def _todo(self, plan: Plan) -> _Todo:
        """Check all of a plan before anything of it is done. Raises what `resolve` raises, and ``InvalidName``."""
        wanted = plan.start if plan.desired is None else plan.desired
        jobs = map(self._resolve, wanted.items() if isinstance(wanted, Mapping) else wanted)
        start = {check_key(job.key): job for job in jobs}
        stop = [check_key(key) for key in plan.stop if key not in start]
        return _Todo(start, stop, plan.desired is not None or plan.stop_others)

    async def _carry_out(self, todo: _Todo) -> None:
        stopped = await self._stop_jobs([*todo.stop, *await self._others(todo)])
        started = await self._start_jobs([*todo.start.values()])
        if started or stopped:
            self._log.info("plan carried out", started=started, stopped=stopped, wanted=len(todo.start))

    async def _others(self, todo: _Todo) -> list[str]:
        """What this scheduler has started and should not be there."""
        if not todo.stop_others:
            return []
        found: set[str] = set()
        cursor: bytes = b"0"
        while True:
            cursor, page = await self._link.call("SSCAN", self._store.keys.plan(self.name), cursor, "COUNT", _STEP)
            found.update(key.decode() for key in page)
            if int(cursor) == 0:
                return sorted(found - todo.start.keys())

    async def _stop_jobs(self, keys: Sequence[str]) -> int:
        stopped = 0
        for step in _steps(keys):
            self._check_held()
            answers = await asyncio.gather(*(self._store.stop(key) for key in step))
            gone = [key for key, answer in zip(step, answers, strict=True) if answer is StopAnswer.NOT_RUNNING]
            if gone:
                await self._link.call("SREM", self._store.keys.plan(self.name), *gone)
            stopped += len(step) - len(gone)
        return stopped

    async def _start_jobs(self, jobs: Sequence[PlannedJob]) -> int:
        """Dispatch what is not there. Raises the first refusal; what was accepted before stays."""
        started = 0
        for step in _steps(jobs):
            self._check_held()
            there = await self._link.call_many([("EXISTS", self._store.keys.job(job.key)) for job in step])
            missing = [job for job, exists in zip(step, there, strict=True) if exists != 1]
            answers = await asyncio.gather(*(self._dispatch(job) for job in missing), return_exceptions=True)
            started += sum(answer is True for answer in answers)
            refusals = [answer for answer in answers if isinstance(answer, BaseException)]
            if refusals:
                raise refusals[0]
        return started

    async def _dispatch(self, job: PlannedJob) -> bool:
        try:
            await self._store.dispatch(
                job.key,
                job.kind,
                job.payload,
                did=secrets.token_hex(8),
                crashes_max=job.crashes_max,
                scheduler=self.name,
            )
        except JobExists:
            return False
        return True

    def _check_held(self) -> None:
        if not self._held:
            raise _TickLost


def _steps(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), _STEP):
        yield items[first : first + _STEP]


def job_of_pair(wanted: Any) -> PlannedJob:
    """A job of a plan without declared functions: ``key -> payload``, or a job that says everything itself."""
    if isinstance(wanted, PlannedJob):
        return wanted
    try:
        key, payload = wanted
    except (TypeError, ValueError):
        raise ConfigError("plan", wanted, "a mapping of keys to payloads", source="schedule") from None
    return PlannedJob(key, "", payload, CRASHES_MAX)
