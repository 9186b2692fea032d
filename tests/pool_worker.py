"""A worker process of the pool's fault runs, in two versions of its code; and the same declarations for who dispatches.

``python pool_worker.py '<Setup as JSON>'`` joins the pool, makes the file ``<process>.ready``, works until SIGTERM.
Everything that its jobs and tasks do goes into its journal, first statement to last.

Old and new code differ as two releases of a service do: the new one has an optional argument more in ``watch`` and in
``charge``, a job (``convoy``) and a task (``audit``) that the old one does not know.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from flotta.errors import Fenced, RedisError
from flotta.pool import Backoff, Job, PerKey, PoolOptions, Retry, TaskContext, WorkerPool
from flotta.redis import LinkOptions, Redis, Script
from pool_history import What
from pool_journal import Journal, now_s

__all__ = ["Code", "Declared", "Setup", "State", "declare"]

Code = Literal["old", "new"]

# A store outside of the pool that is guarded as the documentation says: a smaller fencing token is refused. It answers
# with its own order of the writes that it took.
GUARDED_WRITE = Script(
    """
    if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) > tonumber(ARGV[2]) then
      return 0
    end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    return redis.call('HINCRBY', KEYS[1], '', 1)
    """,
    name="guarded write",
)


class Setup(msgspec.Struct, kw_only=True, frozen=True):
    """What a worker process is told. Times in seconds."""

    url: str
    ledger_url: str
    pool: str
    folder: str
    process: str
    code: Code = "old"
    ttl_s: float = 2.0
    every_s: float = 2.0
    wall_shift_s: float = 0.0
    """How wrong the wall clock of this process is."""
    careless: bool = True
    """Its jobs write once more when they were fenced, for up to a second."""
    options: dict[str, Any] = {}
    """More of ``PoolOptions``."""

    def pool_options(self) -> PoolOptions:
        return PoolOptions(worker_ttl_s=self.ttl_s, **self.options)


class State(msgspec.Struct):
    """The checkpoint of a job: how many it has made."""

    count: int


class Deliberate(Exception):
    """A failure that the run asked for."""


@dataclass
class Scene:
    """What the jobs and tasks of one process share."""

    journal: Journal
    ledger: Redis
    every_s: float
    pool: WorkerPool
    careless: bool = True

    async def job(self, job: Job[State], dispatch: int, mode: str) -> None:
        """One run: first and last statement are in the journal."""
        about: dict[str, Any] = {"fence": job.fence, "worker": job.worker, "dispatch": dispatch}
        count = job.state.count if job.state is not None else 0
        self.journal.say(What.STARTED, job.key, count=count, **about)
        how = "crashed"
        try:
            await self._live(job, count, mode, about)
            how = "returned"
        except asyncio.CancelledError:
            how = job.stop_reason.value if job.stop_reason is not None else "cancelled without a reason"
            if how == "handover" or (how == "fenced" and self.careless):
                await self._last_words(job, about, how)
            raise
        except Fenced:
            how = "fenced"
            raise
        finally:
            self.journal.say(What.ENDED, job.key, how=how, **about)

    async def _live(self, job: Job[State], count: int, mode: str, about: dict[str, Any]) -> None:
        kind, _, amount = mode.partition(":")
        if kind == "startfail":
            raise Deliberate("it never starts")
        job.ready()
        await self._write(job, about)  # at once: a zombie that wakes must find that its successor has been there
        async for note in job.notifications(every_s=self.every_s):
            if note is not None:
                self.journal.say(What.NOTED, job.key, count=int(note.payload), **about)
                continue
            if kind == "poison" or (kind == "crash" and job.crashes < int(amount)):
                raise Deliberate(mode)
            count += await self._save(job, count + 1, about)
            await self._write(job, about)
            if kind == "return" and count >= int(amount):
                return

    async def _save(self, job: Job[State], count: int, about: dict[str, Any]) -> bool:
        """Whether checkpoint ``count`` is known to be kept."""
        since_s = now_s()
        try:
            await job.checkpoint(State(count))
        except Fenced:
            self.journal.say(What.SAVE_REFUSED, job.key, since_s=since_s, **about)
            raise
        except RedisError:
            return False  # it may be kept: nothing is promised
        self.journal.say(What.SAVED, job.key, count=count, since_s=since_s, **about)
        return True

    async def _write(self, job: Job[State], about: dict[str, Any]) -> None:
        order = await GUARDED_WRITE(self.ledger.link, keys=["ledger"], args=[job.key, job.fence])
        if order:
            self.journal.say(What.WROTE, job.key, count=order, **about)
        else:
            self.journal.say(What.WRITE_REFUSED, job.key, **about)

    async def _last_words(self, job: Job[State], about: dict[str, Any], how: str) -> None:
        """What every careless job does when it is cancelled: it writes once more. One that was fenced goes past what
        its worker knows, straight to the scripts, as a worker would that has not noticed yet."""
        count = 1 + (job.state.count if job.state is not None else 0)
        try:
            async with asyncio.timeout(1.0):
                await self._write(job, about)
                if how == "fenced":
                    await self._save_behind_its_back(job, count, about)
                else:
                    await self._save(job, count, about)
        except (Fenced, RedisError, TimeoutError):
            pass

    async def _save_behind_its_back(self, job: Job[State], count: int, about: dict[str, Any]) -> None:
        since_s = now_s()
        data = msgspec.msgpack.encode(State(count))
        try:
            await self.pool.node.store.checkpoint(job.worker, job.key, job.fence, data)
        except Fenced:
            self.journal.say(What.SAVE_REFUSED, job.key, since_s=since_s, **about)
        else:
            self.journal.say(What.SAVED, job.key, count=count, since_s=since_s, **about)

    async def task(self, context: TaskContext, ident: str, mode: str, lane: str = "") -> str:
        """One run of a task: first and last statement are in the journal."""
        about: dict[str, Any] = {"worker": self.journal.process, "fence": context.fence, "lane": lane}
        self.journal.say(What.TASK_STARTED, ident, **about)
        how = "failed"
        try:
            kind, _, amount = mode.partition(":")
            if kind == "sleep":
                await asyncio.sleep(float(amount))
            if kind == "poison" or (kind == "fail" and context.attempt <= int(amount)):
                raise Deliberate(mode)
            how = "done"
        except asyncio.CancelledError:
            how = "cancelled"
            raise
        finally:
            self.journal.say(What.TASK_ENDED, ident, how=how, **about)
        return ident


QUICK = Backoff(first_s=0.1, max_s=1.0)
OFTEN: dict[str, Any] = {"crashes_max": 1_000, "backoff": QUICK, "state": State}
"""For jobs whose workers are killed again and again: their deaths are none of the jobs' fault."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The jobs and tasks of one version."""

    watch: Any
    poison: Any
    charge: Any
    post: Any
    doomed: Any
    stall: Any
    convoy: Any = None
    audit: Any = None


def declare(pool: WorkerPool, code: Code, scene: Scene | None = None) -> Declared:
    """Declare what version ``code`` has. ``scene``: None for one who only dispatches."""
    here: Any = scene

    @pool.job(key="poison:{number}", name="poison", crashes_max=2, backoff=QUICK, state=State)
    async def poison(job: Job[State], number: int, dispatch: int) -> None:
        await here.job(job, dispatch, "poison")

    @pool.task(name="post", retry=Retry(100, backoff=QUICK), concurrency=PerKey("{lane}", 1))
    async def post(context: TaskContext, ident: str, lane: str, mode: str = "ok") -> str:
        return await here.task(context, ident, mode, lane)

    @pool.task(name="doomed", retry=Retry(1, backoff=QUICK))
    async def doomed(context: TaskContext, ident: str) -> str:
        return await here.task(context, ident, "poison")

    @pool.task(name="stall", worker_losses_max=0)
    async def stall(seconds: float) -> None:
        here.journal.say(What.PAUSED)
        time.sleep(seconds)  # the fault that is meant: it stops the whole event loop
        here.journal.say(What.RESUMED)

    common = {"poison": poison, "post": post, "doomed": doomed, "stall": stall}
    return Declared(**common, **(_old(pool, here) if code == "old" else _new(pool, here)))


def _old(pool: WorkerPool, here: Any) -> dict[str, Any]:
    @pool.job(key="watch:{number}", name="watch", **OFTEN)
    async def watch(job: Job[State], number: int, dispatch: int, mode: str = "stay") -> None:
        await here.job(job, dispatch, mode)

    @pool.task(name="charge", retry=Retry(100, backoff=QUICK), result_ttl_s=60)
    async def charge(context: TaskContext, ident: str, mode: str = "ok") -> str:
        return await here.task(context, ident, mode)

    return {"watch": watch, "charge": charge}


def _new(pool: WorkerPool, here: Any) -> dict[str, Any]:
    @pool.job(key="watch:{number}", name="watch", **OFTEN)
    async def watch(job: Job[State], number: int, dispatch: int, mode: str = "stay", zone: str = "sea") -> None:
        await here.job(job, dispatch, mode)

    @pool.job(key="convoy:{number}", name="convoy", ready="explicit", **OFTEN)
    async def convoy(job: Job[State], number: int, dispatch: int, mode: str = "stay") -> None:
        await here.job(job, dispatch, mode)

    @pool.task(name="charge", retry=Retry(100, backoff=QUICK), result_ttl_s=60)
    async def charge(context: TaskContext, ident: str, mode: str = "ok", note: str = "") -> str:
        return await here.task(context, ident, mode)

    @pool.task(name="audit", retry=Retry(100, backoff=QUICK))
    async def audit(context: TaskContext, ident: str, mode: str = "ok") -> str:
        return await here.task(context, ident, mode)

    return {"watch": watch, "charge": charge, "convoy": convoy, "audit": audit}


def _shift_wall_clock(by_s: float) -> None:
    """Every use of the wall clock from Python in this process is wrong by so much; the other clocks are not."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + by_s
    time.time_ns = lambda: right_ns() + int(by_s * 1e9)


async def work(setup: Setup) -> None:
    """The process: until SIGTERM; then what the pool does at its close."""
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    journal = Journal(Path(setup.folder), setup.process)
    async with Redis.from_url(setup.ledger_url) as ledger:
        pool = WorkerPool(setup.pool, options=setup.pool_options())
        declare(pool, setup.code, Scene(journal, ledger, setup.every_s, pool, setup.careless))
        redis = Redis.from_url(setup.url, options=LinkOptions(client_name=setup.process))
        async with redis, pool.running(redis):
            (journal.folder / f"{setup.process}.ready").touch()
            await end.wait()
    journal.close()


if __name__ == "__main__":
    told = msgspec.convert(json.loads(sys.argv[1]), Setup)
    if told.wall_shift_s:
        _shift_wall_clock(told.wall_shift_s)
    asyncio.run(work(told))
