"""A pool as it is, seen from outside: for the command line, for metrics, and for whoever operates it.

Owns no state and joins nothing: looking at a pool changes nothing in it. Invariants: what it says is as of the moment
of each answer, and answers of different calls may differ; nothing costs more than the number of workers, queues and
schedules, but for ``jobs``, ``find_pools`` and the names of unknown queues, which walk.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, final

from flotta.errors import CommandError
from flotta.pool.deadletters import DeadLetters
from flotta.pool.jobs.records import JobInfo
from flotta.pool.jobs.states import JobState
from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import PoolKeys
from flotta.pool.members import scripts as memberscripts
from flotta.pool.members.membership import WorkerInfo
from flotta.pool.options import PoolOptions
from flotta.pool.tasks.store import TaskStore
from flotta.redis import Link, Redis

__all__ = ["PoolSummary", "PoolView", "PoolWorker", "TaskFigures", "Timer", "find_pools", "list_jobs", "list_workers"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SCAN_COUNT: Final = 1_000


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWorker:
    """One worker of the pool, anywhere. ``lives``: its lease is valid; ``leaves``: it hands its jobs over."""

    id: str
    lives: bool
    leaves: bool
    jobs: int
    tasks: int
    """Tasks that it runs."""
    info: WorkerInfo


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSummary:
    """A pool in one line of figures."""

    name: str
    workers: int
    """Workers whose lease is valid."""
    nodes: int
    jobs: int
    """All there are."""
    queued: int
    """Those that no worker has claimed yet, with the ``parked`` ones, which have none to wait for."""
    parked: int
    tasks_waiting: int
    """Tasks that are not done and do not run."""
    tasks_running: int
    dead: int
    """Dead letters."""
    shutting_down: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """The tasks of a pool."""

    totals: dict[str, int]
    """Since the pool's data began: enqueued, done, failed, cancelled, retried, lost, redriven; and ``waiting`` now."""
    queues: dict[str, int]
    """Tasks that may run now, by queue."""
    due: int
    """Tasks that wait for their time."""
    running: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """A ticker, a scheduler or the schedule of a task."""

    kind: str
    """``ticker``, ``scheduler`` or ``cron``."""
    name: str
    rule: str
    """When it comes round."""
    next_at: datetime | None
    """None: stopped."""
    last_at: datetime | None
    """The time that was last given to a node; None: none yet, or not known."""
    planned: int | None
    """Jobs that a scheduler has started and that are there; None for others."""


async def find_pools(redis: Redis) -> list[str]:
    """The names of all pools in this Redis and namespace. It walks the whole key space of the server, in steps."""
    prefix = f"{redis.namespace}pool:{{"
    pattern = re.sub(r"([\[\]*?\\^-])", r"\\\1", prefix) + "*}:*"
    names: set[str] = set()
    cursor: bytes = b"0"
    while True:
        cursor, found = await redis.link.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
        names.update(key.decode("utf-8", "replace")[len(prefix) :].partition("}")[0] for key in found)
        if int(cursor) == 0:
            return sorted(names)


async def list_workers(link: Link, keys: PoolKeys) -> list[PoolWorker]:
    """All workers of the pool, the oldest first."""
    facts, leases, leaving, now = await _many(
        link,
        ("HGETALL", keys.workers),
        ("ZRANGE", keys.leases, 0, -1, "WITHSCORES"),
        ("SMEMBERS", keys.leaving),
        ("TIME",),
    )
    now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
    until_ms: dict[bytes, float] = dict(leases)
    ids = list(facts)
    counts = [("SCARD", key(worker.decode())) for worker in ids for key in (keys.owned, keys.held)]
    sizes = await _many(link, *counts)
    found = [
        PoolWorker(
            id=worker.decode(),
            lives=until_ms.get(worker, 0) > now_ms,
            leaves=worker in leaving,
            jobs=int(jobs),
            tasks=int(tasks),
            info=WorkerInfo.decode(facts[worker]),
        )
        for worker, jobs, tasks in zip(ids, sizes[::2], sizes[1::2], strict=True)
    ]
    return sorted(found, key=lambda worker: (worker.info.since_ms, worker.id))


async def list_jobs(link: Link, store: JobStore) -> list[JobInfo]:
    """All jobs of the pool, in no order; each once, one that moves meanwhile perhaps not at all."""
    workers = [worker.decode() for worker in await link.call("HKEYS", store.keys.workers)]
    found: dict[str, JobInfo] = {}
    for worker in [*workers, ""]:
        async for info in store.jobs(worker):
            found[info.key] = info
    return list(found.values())


@final
class PoolView:
    """The pool ``name`` from outside. Methods raise what ``Link.call`` raises. Raises ``InvalidName``."""

    def __init__(self, redis: Redis, name: str) -> None:
        options = PoolOptions()
        self.name = name
        self.redis = redis
        self.store = JobStore(redis, name, options=options)
        self.keys = self.store.keys
        self.tasks = TaskStore(redis.link, self.keys, waiting_max=options.tasks_waiting_max, dead_max=options.dead_max)
        self.dead_letters = DeadLetters(redis.link, self.store, self.tasks)
        self._link = redis.link

    async def exists(self) -> bool:
        """Whether there is anything of it."""
        keys = self.keys
        traces = (keys.meta, keys.nodes, keys.workers, keys.dead, keys.tickers, f"{keys.prefix}tasks")
        return bool(await self._link.call("EXISTS", *traces))

    async def workers(self) -> list[PoolWorker]:
        """All workers, the oldest first."""
        return await list_workers(self._link, self.keys)

    async def summary(self) -> PoolSummary:
        """The pool in figures."""
        keys = self.keys
        workers = await self.workers()
        now_ms = await self._now_ms()
        nodes, queued, parked, dead, shutdown, waiting = await _many(
            self._link,
            ("ZCOUNT", keys.nodes, f"({now_ms}", "+inf"),
            ("ZCARD", keys.queued),
            ("SCARD", keys.parked),
            ("XLEN", keys.dead),
            ("HEXISTS", keys.meta, "shutdown"),
            ("HGET", f"{keys.prefix}tasks", "waiting"),
        )
        return PoolSummary(
            name=self.name,
            workers=sum(worker.lives for worker in workers),
            nodes=nodes,
            jobs=sum(worker.jobs for worker in workers) + parked,
            queued=queued,
            parked=parked,
            tasks_waiting=int(waiting or 0),
            tasks_running=sum(worker.tasks for worker in workers),
            dead=dead,
            shutting_down=bool(shutdown),
        )

    async def jobs(self, *, worker: str | None = None, state: JobState | None = None) -> AsyncIterator[JobInfo]:
        """All jobs, or those of one ``worker`` (empty: the parked ones) or in one ``state``; in no order."""
        owners = [one.id for one in await self.workers()] + [""] if worker is None else [worker]
        for owner in owners:
            async for job in self.store.jobs(owner):
                if state in (None, job.state):
                    yield job

    async def task_figures(self, queues: Iterable[str] | None = None) -> TaskFigures:
        """How many tasks there are, and where. ``queues``: those whose names are known; None: all that have any, for
        which the whole key space of the server is walked, in steps."""
        workers = await self.workers()
        ready = f"{self.keys.prefix}ready:"
        queues = sorted(await self._keys_after(ready) if queues is None else queues)
        totals = await self.tasks.totals()
        due, *lengths = await _many(
            self._link, ("ZCARD", self.keys.due), *(("ZCARD", f"{ready}{queue}") for queue in queues)
        )
        return TaskFigures(
            totals=dict(totals),
            queues=dict(zip(queues, lengths, strict=True)),
            due=due,
            running=sum(worker.tasks for worker in workers),
        )

    async def timers(self) -> list[Timer]:
        """Tickers, schedulers and schedules of tasks, the next first."""
        records = await self._link.call("HGETALL", self.keys.tickers)
        timers = [_timer(field.decode(), value.decode()) for field, value in records.items()]
        planned = {}
        for timer in timers:
            if timer.kind == "scheduler":
                planned[timer.name] = int(await self._link.call("SCARD", self.keys.plan(timer.name)))
        found = [_with_planned(timer, planned) for timer in timers]
        return sorted(found, key=lambda timer: (timer.next_at is None, timer.next_at, timer.name))

    async def drain(self, worker: str) -> bool:
        """Let ``worker`` hand its jobs to others; it gets no more. False: it has no valid lease."""
        return bool(await memberscripts.LEAVING(self._link, keys=(self.keys.meta,), args=(worker,)))

    async def _keys_after(self, prefix: str) -> list[str]:
        pattern = re.sub(r"([\[\]*?\\^-])", r"\\\1", prefix) + "*"
        names: set[str] = set()
        cursor: bytes = b"0"
        while True:
            cursor, found = await self._link.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            names.update(key.decode()[len(prefix) :] for key in found)
            if int(cursor) == 0:
                return list(names)

    async def _now_ms(self) -> int:
        seconds, micros = await self._link.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


def _timer(field: str, record: str) -> Timer:
    kind, _, rest = field.partition(":") if ":" in field else ("ticker", "", field)
    name, _, rule = rest.partition(":")
    parts = record.split(":")
    stopped = not parts[0].isdigit()
    if len(parts) >= 3:
        rule = f"every {int(parts[1]) / 1000:g} s"
    return Timer(
        kind=kind,
        name=name,
        rule=rule,
        next_at=None if stopped else _time(parts[0]),
        last_at=_time(parts[2]) if len(parts) >= 3 and parts[2] != "0" else None,
        planned=None,
    )


def _with_planned(timer: Timer, planned: dict[str, int]) -> Timer:
    if timer.kind != "scheduler":
        return timer
    return replace(timer, planned=planned[timer.name])


def _time(text: str) -> datetime:
    return _EPOCH + timedelta(milliseconds=int(text))


async def _many(link: Link, *commands: tuple[Any, ...]) -> list[Any]:
    """The replies, in order. Raises the first error among them."""
    replies = await link.call_many(commands) if commands else []
    for reply in replies:
        if isinstance(reply, CommandError):
            raise reply
    return replies
