"""The life of a job on one worker: claimed, run, reported, and run again after a crash.

Owns the order of these steps, one after the other in the job's own task. Invariants: the function runs only between a
claim that was granted and a lease that is trusted; what ends it is said to the record before anything else happens to
the job here; nothing but the function is ever cut short by a stop or a hand-over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any, Final, Protocol, final

from flotta.pool.jobs.job import Job, JobPort, StopReason
from flotta.pool.jobs.records import Release
from flotta.pool.jobs.reports import LeaseOver, Reports
from flotta.pool.jobs.runs import Run, RunState
from flotta.pool.jobs.states import Answer, CrashAnswer, ReleaseAnswer
from flotta.pool.jobs.surroundings import Surroundings
from flotta.pool.members.heartbeat import Lease
from flotta.pool.traces import describe_place, exc_info_of
from flotta.pool.turns import Turns
from flotta.pool.wire import Bell

__all__ = ["Holder", "Lives"]

_ERROR_CHARS_MAX: Final = 2_000
_RELEASES_MAX: Final = 100  # the store's limit for one script


class Holder(Protocol):
    """Who has the runs, and decides what becomes of them."""

    leaving: bool
    """The worker takes nothing new."""

    @property
    def seen(self) -> bytes:
        """The last entry of the inbox that was handed to the runs."""
        ...

    def forget(self, run: Run) -> None:
        """Its life is over."""

    def forward(self, run: Run, answer: Answer) -> None:
        """Its claim was not granted: its notifications follow the job."""

    def is_astray(self, run: Run) -> bool:
        """Whether it should be elsewhere."""

    def move_soon(self, run: Run) -> None:
        """Hand it over when its turn comes."""

    def stays(self, run: Run) -> None:
        """Its hand-over has ended here."""

    def stop(self, run: Run, reason: StopReason) -> None:
        """End it for good."""

    def lose(self, run: Run) -> None:
        """This worker does not own it any more."""


@final
class Lives:
    """The lives under one lease. ``ending``: until when each run that was told to end may take; ``blemished``: runs of
    jobs that have crashed, or lost a worker, lately."""

    def __init__(self, holder: Holder, port: JobPort, lease: Lease, reports: Reports, around: Surroundings) -> None:
        self.ending: dict[Run, float] = {}
        self.blemished: set[Run] = set()
        self._unknown: dict[str, int] = {}  # kinds that nobody knew when there had been so many changes of members
        self._holder = holder
        self._port = port
        self._lease = lease
        self._worker = lease.worker
        self._reports = reports
        self._around = around
        self._store = around.store
        self._counts = around.counts
        self._log = around.logger
        self._releases: Turns[Run, ReleaseAnswer] = Turns(
            self._send_releases, name=f"pool release {lease.worker}", items_max=_RELEASES_MAX
        )

    def cancel_releases(self) -> None:
        """The lease is over: give up what is on its way."""
        self._releases.cancel()

    async def live(self, run: Run) -> None:
        """From the claim to the last word."""
        try:
            zombie = self._around.zombies.get(run.key)
            if zombie is not None and zombie is not run.task:
                await asyncio.wait({zombie})
            ended = not await self._claim(run)
            while not ended:
                if run.reason is None:
                    await self._attempt(run)
                ended = await self._report(run)
        except LeaseOver:
            pass
        except Exception:  # noqa: BLE001 - our bug: nobody runs the job until the worker compares its records
            self._log.exception("a job was dropped by its worker", job=run.key, fence=run.fence)
        finally:
            self._holder.forget(run)

    async def _claim(self, run: Run) -> bool:
        """Whether the job is this worker's now: to be run, or (``reason`` is set) to be ended."""
        if self._holder.leaving:
            run.move(RunState.REPORTING)
            run.reason = StopReason.HANDOVER
            return True
        claim = await self._reports.persist(
            lambda: self._store.claim(self._worker, run.key, run.fence, explicit=run.kind.explicit)
        )
        if claim.answer is Answer.STOPPING:
            run.reason = StopReason.STOP
        elif claim.answer is not Answer.OK:
            self._holder.forward(run, claim.answer)
            return False
        self._counts.claimed += 1
        run.payload, run.checkpoint = claim.payload, claim.checkpoint
        run.crashes, run.losses = claim.crashes, claim.losses
        run.ready = not run.kind.explicit
        run.started = claim.started_before or run.ready
        if run.crashes or run.losses:
            self.blemished.add(run)
        if run.reason is not None:
            run.move(RunState.REPORTING)
        elif self._holder.is_astray(run):  # it was queued here a moment before its slot moved
            self._holder.move_soon(run)
        return True

    async def _attempt(self, run: Run) -> None:
        """Run the function once; what came of it is in ``run.error`` (None: it returned)."""
        if not self._lease.owned():  # the loop was blocked for so long, and the news of it is still on its way
            raise LeaseOver
        job: Job[Any] = Job(
            run.key,
            run.payload,
            fence=run.fence,
            kind=run.kind.name,
            crashes=run.crashes,
            losses=run.losses,
            checkpoint=run.checkpoint,
            state_type=run.kind.state_type,
            mailbox=run.mailbox,
            port=self._port,
        )
        run.job, run.error = job, None
        run.started_s = asyncio.get_running_loop().time()
        run.move(RunState.RUNNING if run.ready else RunState.STARTING)
        self._counts.started += 1
        try:
            await run.kind.run(job)
        except asyncio.CancelledError as error:
            if run.state is RunState.GONE or (run.reason is None and _is_cancelled()):
                raise  # the job was lost; or the loop is being torn down around it
            run.error = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the job has crashed
            run.error = error
        if run.state is RunState.GONE:
            raise LeaseOver
        _forget_cancelling()
        self.ending.pop(run, None)
        run.move(RunState.REPORTING)

    async def _report(self, run: Run) -> bool:
        """Tell the record how it ended; whether this worker is done with the job."""
        if run.readying is not None:
            await asyncio.wait({run.readying})
        error, run.error = run.error, None
        if run.reason is StopReason.HANDOVER:
            self._complain(run, error)
            return await self._release(run)
        if run.reason is not None:
            self._complain(run, error)
            self._counts.stopped += 1
        elif error is None and run.started:
            self._counts.finished += 1
        elif not run.started:
            text = "it returned before it was ready" if error is None else _describe(error)
            return await self._fail(run, text)
        else:
            assert error is not None
            return await self._crash(run, error)
        await self._reports.persist(lambda: self._store.finished(self._worker, run.key, run.fence))
        return True

    async def _fail(self, run: Run, reason: str) -> bool:
        self._counts.failed += 1
        self._counts.failing.add(run.key)
        send = self._store.start_failed
        await self._reports.persist(lambda: send(self._worker, run.key, run.fence, reason))
        return True

    async def _crash(self, run: Run, error: BaseException) -> bool:
        """The function raised after the start: wait and run it again, unless that was once too often."""
        self._counts.crashed += 1
        self._counts.failing.add(run.key)
        reason = _describe(error)
        self._log.warning("a job crashed", job=run.key, attempt=run.attempt, error=reason, at=describe_place(error))
        crash = await self._reports.persist(lambda: self._store.crashed(self._worker, run.key, run.fence, reason))
        if crash.answer is CrashAnswer.DEAD:
            self._counts.dead += 1
            self._log.error(
                "a job is a dead letter now", job=run.key, crashes=crash.crashes, exc_info=exc_info_of(error)
            )
        if crash.answer is not CrashAnswer.BACKOFF:
            return True
        run.fence, run.crashes = crash.fence, crash.crashes
        self.blemished.add(run)
        run.mailbox.rewind()
        if run.reason is None:
            run.move(RunState.BACKOFF)
            if self._holder.is_astray(run):
                self._holder.move_soon(run)
            await self._wait_in_backoff(run)
        return False

    async def _wait_in_backoff(self, run: Run) -> None:
        if run.reason is None:
            run.interrupt = asyncio.get_running_loop().create_future()
            pause_s = run.kind.backoff.pause_s(run.crashes, random.random())  # noqa: S311 - jitter, no secret
            await asyncio.wait({run.interrupt}, timeout=pause_s)
            run.interrupt = None
        if run.reason is None:
            answer = await self._reports.persist(lambda: self._store.restarted(self._worker, run.key, run.fence))
            if answer is Answer.STOPPING:
                run.reason = StopReason.STOP
            elif answer is not Answer.OK:
                raise LeaseOver
            run.ready = True  # as far as the record is concerned
        if run.reason is not None:
            run.move(RunState.REPORTING)

    async def _release(self, run: Run) -> bool:
        """Hand the job over; False: by the table it stays, so run it again."""
        answer = await self._releases.add(run)
        if answer is not ReleaseAnswer.KEEP or self._holder.leaving:
            self._counts.moved += answer is ReleaseAnswer.OK
            self._send_after(run, answer)
            return True
        if run.reason is StopReason.HANDOVER:
            run.reason = None
        run.mailbox.rewind()
        self._holder.stays(run)
        return False

    def _send_after(self, run: Run, answer: ReleaseAnswer) -> None:
        """Notifications that are here while the job is not. (OK: the release took them along.)"""
        if answer is ReleaseAnswer.KEEP:
            run.mailbox.empty()  # not done: they stay in the inbox, and whoever buries this worker sends them on
        elif answer is ReleaseAnswer.FENCED:
            self._holder.forward(run, Answer.FENCED)

    async def _send_releases(self, runs: list[Run]) -> list[ReleaseAnswer]:
        def send() -> Awaitable[list[ReleaseAnswer]]:
            # Both as of this moment: what the inbox brings from here on lies behind "seen" and is taken along.
            jobs = [Release(run.key, run.fence, run.mailbox.not_done()) for run in runs]
            return self._store.release(self._worker, jobs, seen=self._holder.seen)

        return await self._reports.persist(send)

    async def say_ready(self, run: Run) -> None:
        """Tell the record that an explicit job is ready. One that was stopped meanwhile is stopped, one that is not
        this worker's any more is lost. Raises ``LeaseOver``; an outage is waited out. Cancelled: perhaps said."""
        answer = await self._reports.persist(lambda: self._store.ready(self._worker, run.key, run.fence))
        if answer is Answer.STOPPING:
            self._holder.stop(run, StopReason.STOP)
        elif answer is not Answer.OK:
            self._holder.lose(run)

    async def decline(self, bell: Bell) -> None:
        """Send a job of a kind that this worker does not know to one that does; without one it is parked until somebody
        comes or goes. Raises ``LeaseOver``; an outage is waited out. Cancelling: the sweep offers it again."""
        self._counts.declined += 1
        to, members = await self._reports.persist(lambda: self._around.peers.able(bell.kind, but=(self._worker,)))
        if to:
            self._log.debug("a job of a kind that is not known here", job=bell.key, kind=bell.kind, goes_to=to)
        elif self._unknown.get(bell.kind) != members:  # once for all jobs of the kind, until somebody comes or goes
            self._unknown[bell.kind] = members
            self._log.warning("jobs wait for a worker that knows their kind", kind=bell.kind, job=bell.key)
        decline = self._store.decline
        await self._reports.persist(lambda: decline(self._worker, bell.key, bell.fence, to, members=members))

    def _complain(self, run: Run, error: BaseException | None) -> None:
        """A function that was told to end and raised something else than its cancellation."""
        if error is not None and not isinstance(error, asyncio.CancelledError):
            self._log.warning("a job raised while it was ending", job=run.key, exc_info=error)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _forget_cancelling() -> None:
    """The cancellation has done its work: what this task awaits from here on is not to be cut short by it."""
    task = asyncio.current_task()
    while task is not None and task.cancelling() > 0:
        task.uncancel()


def _describe(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:_ERROR_CHARS_MAX]
