"""The worker's half of tasks: fetch, run, report.

Owns the loop of turns of one worker and the runs that are under way. Invariants:

* One turn is under way at a time; it reports everything that had finished when it left, and asks for no more than there
  are free places. A report is kept until a turn that carried it was answered.
* A task that was handed out in an answer that was lost is found by an audit (``held``): after every ambiguous turn, and
  every third of a lease anyway. So is a cancellation whose doorbell was lost.
* Once fenced off (the lease is lost) every run is cancelled and nothing more is reported.

The worker's lease is renewed elsewhere, and its inbox read: who does that calls ``wake``, ``cancel`` and ``fence``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, final

import structlog

from flotta.errors import Closed, FlottaError, Outcome, RedisError
from flotta.pool.tasks.execution import Ending, Executing, Run
from flotta.pool.tasks.records import Fetched
from flotta.pool.tasks.registry import TaskRegistry
from flotta.pool.tasks.store import Finished, TaskStore, Turn, Verdict

__all__ = ["RunnerStats", "TaskRunner"]

_POLL_S: Final = 1.0
"""An idle worker looks again after this time: a ring may have gone to a worker that has just died."""
_REPORT_MAX: Final = 500
_REPORT_BYTES_MAX: Final = 4 * 1024 * 1024
_WANT_MAX: Final = 1000
"""Tasks in one answer at most: a script may hand no more than some 8,000 values to a command."""
_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0
_ABANDON_S: Final = 1.0


@final
@dataclass(slots=True)
class RunnerStats:
    """What has happened so far on this worker."""

    started: int = 0
    done: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    given_back: int = 0
    refused: int = 0
    """Reports of runs that another worker owned by then."""
    recovered: int = 0
    """Tasks found by an audit: their hand-out was lost."""
    turns: int = 0
    retries: int = 0
    """Turns that failed."""


_COUNTED: Final = {
    Verdict.DONE: "done",
    Verdict.FAILED: "failed",
    Verdict.RETRY: "retried",
    Verdict.CANCELLED: "cancelled",
    Verdict.BACK: "given_back",
}


@final
class TaskRunner:
    """Runs the tasks of ``registry`` for the worker ``worker``. ``start`` begins; you owe ``drain`` or ``fence``.

    ``audit_s``: how often what it runs is compared with the records (a third of the lease is right).
    """

    def __init__(
        self,
        store: TaskStore,
        registry: TaskRegistry,
        worker: str,
        *,
        tasks_max: int = 100,
        queues: Sequence[str] | None = None,
        payload_bytes_max: int = 1_048_576,
        audit_s: float = 10.0,
        logger: Any = None,
    ) -> None:
        self.worker = worker
        self.stats = RunnerStats()
        self._store = store
        self._registry = registry
        self._tasks_max = tasks_max
        self._given_queues = queues
        self._audit_s = audit_s
        self._log = logger or structlog.get_logger("flotta.pool")
        self._threads = ThreadPoolExecutor(tasks_max, thread_name_prefix=f"flotta-{store.pool}")
        self._shared = Executing(
            store, registry, worker, self._take,
            threads=self._threads, payload_bytes_max=payload_bytes_max, logger=self._log,
        )  # fmt: skip
        self._runs: dict[bytes, Run] = {}
        self._finished: list[Finished] = []
        self._unknown: set[bytes] = set()
        self._bell = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._between_turns = asyncio.Event()
        self._between_turns.set()
        self._alarm: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None] | None = None
        self._taking = True
        self._ended = False
        self._must_audit = False
        self._resent = False
        self._rotation = 0
        self._next_audit_s = 0.0

    # --- seams --------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Tasks that run here now."""
        return len(self._runs)

    def start(self) -> None:
        """Begin to fetch."""
        self._loop = self._shared.loop = asyncio.get_running_loop()
        self._next_audit_s = self._loop.time() + self._audit_s
        self._task = self._loop.create_task(self._turn_on(), name=f"tasks of worker {self.worker}")
        self._bell.set()

    def wake(self) -> None:
        """There may be tasks, or the connection was lost and doorbells with it."""
        self._bell.set()

    def audit(self) -> None:
        """Compare with the records soon: doorbells may have been lost."""
        self._must_audit = True
        self._bell.set()

    def cancel(self, id: str, fence: int) -> None:  # noqa: A002, ARG002 - a doorbell names both
        """A task that runs here under this fencing token was cancelled. Unknown: its hand-out may be on its way."""
        run = self._runs.get(b"%d" % fence)
        if run is not None:
            run.cancel(Ending.CANCELLED)
        else:
            self.audit()

    def stop_taking(self) -> None:
        """Fetch no more; what runs goes on and is reported."""
        self._taking = False
        self._bell.set()

    async def drain(self, timeout_s: float) -> None:
        """Fetch no more, let what runs end within ``timeout_s`` seconds, give the rest back unblamed, stop.

        Raises nothing for a Redis that is gone: others take over when the lease is. Cancelling: as ``fence``."""
        self.stop_taking()
        try:
            await _wait_for(self._between_turns, min(timeout_s, _ABANDON_S))  # it may bring tasks
            await _wait_for(self._empty, timeout_s)
            for _ in range(2):  # the second time abandons functions in threads
                for run in tuple(self._runs.values()):
                    run.cancel(Ending.DRAIN)
                await _wait_for(self._empty, _ABANDON_S)
            await self._report_rest()
        finally:
            self.fence()
            if self._task is not None:
                await asyncio.wait({self._task})

    def fence(self) -> None:
        """The lease is lost, or the worker is gone: cancel everything, report nothing more. Again: harmless."""
        self._ended = True
        self._taking = False
        for run in tuple(self._runs.values()):
            run.cancel(Ending.FENCED)
        if self._alarm is not None:
            self._alarm.cancel()
        if self._task is not None:
            self._task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- turns --------------------------------------------------------------------------------------------------

    async def _turn_on(self) -> None:
        pause_s = _RETRY_MIN_S
        while True:
            await self._bell.wait()
            self._bell.clear()
            self._between_turns.clear()
            try:
                await self._turn()
                pause_s = _RETRY_MIN_S
            except Exception as error:  # noqa: BLE001 - also our own bugs: a worker without turns would hold its tasks
                self._between_turns.set()
                self._on_failed_turn(error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause_s = min(2 * pause_s, _RETRY_MAX_S)
                self._bell.set()
            else:
                self._between_turns.set()

    def _on_failed_turn(self, error: Exception) -> None:
        self.stats.retries += 1
        if isinstance(error, RedisError) and error.outcome is Outcome.APP:
            self._log.error("a turn of tasks was refused", pool=self._store.pool, error=str(error))
        elif not isinstance(error, RedisError | Closed):
            self._must_audit = True
            self._log.error("a turn of tasks has failed", pool=self._store.pool, exc_info=error)

    async def _turn(self) -> None:
        if self._must_audit or self._loop.time() >= self._next_audit_s:
            await self._audit()
        reported = self._reportable()
        want = min(self._tasks_max - len(self._runs), _WANT_MAX) if self._taking else 0
        if not reported and want <= 0:
            return
        try:
            turn = await self._store.turn(self.worker, self._queues(), want, reported, tuple(self._unknown))
        except RedisError as error:
            self._must_audit = self._resent = error.outcome is Outcome.AMBIGUOUS or self._resent
            raise
        del self._finished[: len(reported)]
        self._conclude(turn, want)

    def _conclude(self, turn: Turn, want: int) -> None:
        self.stats.turns += 1
        if turn.refused and not self._resent:
            self.stats.refused += len(turn.refused)
        self._resent = False
        if not turn.live:
            self._lose()
            return
        for fetched in turn.tasks:
            self._begin(fetched)
        is_short = len(turn.tasks) < want
        may_be_more = turn.more if is_short else want > 0 and len(self._runs) < self._tasks_max
        if self._finished or may_be_more:
            self._bell.set()
        elif self._taking and is_short:
            self._ring_in(_POLL_S * random.uniform(0.8, 1.2) if turn.next_due_ms < 0 else turn.next_due_ms / 1000)  # noqa: S311

    def _ring_in(self, delay_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(min(delay_s, _POLL_S), self._bell.set)

    def _queues(self) -> Sequence[str]:
        """Another one first each time, so that no queue starves."""
        queues = self._registry.queues if self._given_queues is None else self._given_queues
        if len(queues) < 2:
            return queues
        self._rotation = (self._rotation + 1) % len(queues)
        return [*queues[self._rotation :], *queues[: self._rotation]]

    def _reportable(self) -> list[Finished]:
        """What fits into one turn."""
        reported = self._finished[:_REPORT_MAX]
        size = 0
        for number, run in enumerate(reported):
            size += len(run.value)
            if size > _REPORT_BYTES_MAX and number:
                return reported[:number]
        return reported

    def _lose(self) -> None:
        self._log.warning(
            "a worker's lease is lost, its tasks are cancelled", pool=self._store.pool, worker=self.worker
        )
        self.fence()

    # --- runs ---------------------------------------------------------------------------------------------------

    def _begin(self, fetched: Fetched) -> None:
        declared = self._registry.find(fetched.name)
        if declared is None:
            self._give_back_unknown(fetched)
            return
        self.stats.started += 1
        run = self._runs[fetched.fence] = Run(self._shared, declared, fetched)
        self._empty.clear()
        run.start(self._loop)

    def _give_back_unknown(self, fetched: Fetched) -> None:
        """Old code beside new: another worker may know it, and this one is not given it again."""
        if fetched.name not in self._unknown:
            self._unknown.add(fetched.name)
            self._log.warning(
                "a task that this worker does not know is given back",
                pool=self._store.pool,
                task=fetched.name.decode("utf-8", "replace"),
            )
        self._finished.append(Finished(fetched.id, fetched.fence, Verdict.UNKNOWN, b"", 0))
        self.stats.given_back += 1
        self._bell.set()

    def _take(self, run: Run, finished: Finished | None) -> None:
        """A run has ended (None: fenced off)."""
        runs = self._runs
        runs.pop(run.fence, None)
        if not runs:
            self._empty.set()
        if finished is None:
            return
        stats, name = self.stats, _COUNTED[finished.verdict]
        setattr(stats, name, getattr(stats, name) + 1)
        self._finished.append(finished)
        self._bell.set()

    # --- audits and the end -------------------------------------------------------------------------------------

    async def _audit(self) -> None:
        """Between two turns: what runs here by the records, and what really does."""
        known = frozenset(self._runs)  # of these only the fence comes back
        tasks, cancelled = await self._store.held(self.worker, known)
        self._must_audit = False
        self._next_audit_s = self._loop.time() + self._audit_s
        reported = {run.fence for run in self._finished}
        held = {task.fence for task in tasks}
        for fence, run in tuple(self._runs.items()):
            if fence not in held:
                self.stats.refused += 1
                run.cancel(Ending.FENCED)
        for task in tasks:
            if task.fence not in known and task.fence not in reported:
                self.stats.recovered += 1
                self._begin(task)
        for fence in cancelled:
            if fence in self._runs:
                self._runs[fence].cancel(Ending.CANCELLED)

    async def _report_rest(self) -> None:
        """The last reports, and no more rings."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        try:
            async with asyncio.timeout(2 * _ABANDON_S):
                while self._finished:
                    reported = self._reportable()
                    await self._store.turn(self.worker, self._queues(), 0, reported)
                    del self._finished[: len(reported)]
                await self._store.leave_idle(self.worker)
        except (FlottaError, TimeoutError) as error:
            self._log.warning("a worker could not give its tasks back", worker=self.worker, error=str(error))


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
