"""One worker under one lease: the jobs that it runs, from the doorbell to the last word in their records.

Owns the runs, the bells and what they change; the steps of one run are in ``life.py``. Invariants:

* When the lease is lost every job is cancelled at once; what one of them still reports is refused by its fencing token.
* One task for each job. It is cancelled only by ``_cancel`` and ``lose`` here, after the reason was set.
* A key runs once in this process at most: a run that does not end when it is cancelled holds the next one of its key
  back, also the next tenure's.
* No timers and no periodic work for a job that runs: what is looked at regularly are jobs that are ending or that
  crashed lately.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Final, final

from flotta.errors import Fenced, FlottaError, WireError
from flotta.pool.chores import Chores
from flotta.pool.inbox import Entry
from flotta.pool.jobs.handover import Handover
from flotta.pool.jobs.job import StopReason
from flotta.pool.jobs.life import Lives
from flotta.pool.jobs.mailbox import Mailbox
from flotta.pool.jobs.reports import LeaseOver, Reports
from flotta.pool.jobs.runs import Run, Runs, RunState
from flotta.pool.jobs.states import Answer, JobState
from flotta.pool.jobs.surroundings import Surroundings
from flotta.pool.keys import slot_of
from flotta.pool.members.heartbeat import Lease
from flotta.pool.members.lease import Loss
from flotta.pool.wire import Bell, parse_bell

__all__ = ["Tenure"]

_TEND_PERIOD_S: Final = 0.25


@final
class Tenure:
    """A worker while it has ``lease``. Made when the worker has joined; ends with ``end`` or ``fence``."""

    def __init__(self, lease: Lease, around: Surroundings) -> None:
        self.lease = lease
        self.worker = lease.worker
        self.pool = around.store.name
        self.payload_bytes_max = around.options.payload_bytes_max
        self.runs = Runs()
        self._around = around
        self._store = around.store
        self._counts = around.counts
        self._log = around.logger
        self._reports = Reports(lease, around.logger)
        self._handover = Handover(around.options.handover_concurrency, self._begin_move)
        self._slots: frozenset[int] = frozenset()
        self._epoch = 0
        self._lost_slots: set[int] = set()  # were this worker's and are another's: some of their jobs may still be here
        self._lives = Lives(self, self, lease, self._reports, around)
        self._emptied = asyncio.Event()
        self._chores = Chores(f"pool worker {self.worker}", around.logger, expected=(LeaseOver,))
        self._looking = False
        self.leaving = False
        self._stopping_all = False
        self._over = False
        self._on_bell: dict[str, Callable[[Bell], None]] = {
            "start": self._hear_start,
            "stop": self._hear_stop,
            "table": self._hear_table,
            "wake": around.tasks.hear,
            "cancel": around.tasks.hear,
            "nudge": self._hear_nudge,
            "shutdown": self._hear_shutdown,
        }
        self._mail = around.inbox.open(self._store.keys.inbox(self.worker), self._take, self.reconcile)
        self._chores.start(self._tend(), "tend")
        around.tasks.begin(self.worker)

    # --- what a job needs (JobPort) -----------------------------------------------------------------------------

    def owns(self, key: str, fence: int) -> bool:
        """Whether this worker may still act for the job, by the local clock."""
        run = self.runs.get(key)
        return run is not None and run.fence == fence and run.job is not None and self.lease.owned()

    async def checkpoint(self, key: str, fence: int, data: bytes) -> None:
        """Persist ``data``. Raises ``Fenced``, and what the store raises."""
        run = self.runs.get(key)
        if run is None or not self.owns(key, fence):
            raise Fenced(self.pool, key, fence)
        try:
            await self._store.checkpoint(self.worker, key, fence, data)
        except Fenced:
            self.lose(run)
            raise
        run.checkpoint = data

    @property
    def seen(self) -> bytes:
        """The last entry of the inbox that was handed to the runs."""
        return self._mail.cursor

    def ready(self, key: str, fence: int) -> None:
        """The job is ready: its dispatcher is told."""
        run = self.runs.get(key)
        if run is None or run.fence != fence or run.state is not RunState.STARTING:
            return
        run.move(RunState.RUNNING)
        run.ready = run.started = True
        run.readying = self._chores.start(self._lives.say_ready(run), f"ready {key}")

    # --- doorbells ----------------------------------------------------------------------------------------------

    def _take(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            try:
                bells = parse_bell(entry.fields)
            except WireError as error:
                self._log.error("an entry of a worker's inbox was dropped", worker=self.worker, error=str(error))
                continue
            for bell in bells:
                if bell.type == "note":
                    self._hear_note(entry.id, bell)
                else:
                    self._on_bell[bell.type](bell)

    def _hear_start(self, bell: Bell) -> None:
        run = self.runs.get(bell.key)
        if run is not None:
            if bell.fence <= run.fence:
                return
            if run.state in (RunState.CLAIMING, RunState.REPORTING):
                run.next_bell = bell
                return
            self.lose(run)  # the job was taken from this worker and has come back under a new fence
        self._start(bell)

    def _start(self, bell: Bell) -> None:
        if self._stopping_all:
            return  # nobody claims it, so the shutdown drops it
        kind = self._around.kind_of(bell.kind)
        if kind is None:
            self._chores.start(self._lives.decline(bell), f"decline {bell.key}")
            return
        run = Run(bell.key, slot_of(bell.key), bell.fence, kind, Mailbox(self._mail.done))
        self.runs.add(run)
        self._emptied.clear()
        run.task = asyncio.get_running_loop().create_task(self._lives.live(run), name=f"job {bell.key}")

    def _hear_note(self, entry_id: bytes, bell: Bell) -> None:
        self._mail.keep(entry_id)
        run = self.runs.get(bell.key)
        if run is not None:
            self._counts.noted += 1
            run.mailbox.put(entry_id, bell.payload)
        elif self._stopping_all:
            self._mail.done([entry_id])
        else:
            self._chores.start(self._forward_one(entry_id, bell.key, bell.payload), f"forward {bell.key}")

    def _hear_stop(self, bell: Bell) -> None:
        run = self.runs.get(bell.key)
        if run is not None and bell.fence >= run.fence:  # above: a crash gave it a new fence that is not known here yet
            self.stop(run, StopReason.STOP)

    def _hear_table(self, _: Bell) -> None:
        self._around.membership.table_changed()
        self.look_at_table()

    def _hear_nudge(self, _: Bell) -> None:
        self.reconcile()

    def _hear_shutdown(self, _: Bell) -> None:
        self._around.on_shutdown()

    # --- what a life needs (Holder) -----------------------------------------------------------------------------

    def forget(self, run: Run) -> None:
        """The task of a job ends: nothing here points to it any more."""
        was_lost = run.state is RunState.GONE
        if not was_lost:
            run.move(RunState.GONE)
        if self._around.zombies.get(run.key) is run.task:
            del self._around.zombies[run.key]
        self._drop(run)
        if run.next_bell is not None and not was_lost and not self._over:
            self._start(run.next_bell)

    def _drop(self, run: Run) -> None:
        run.job = None
        self.runs.remove(run)
        if not self.runs:
            self._emptied.set()
        self._lives.ending.pop(run, None)
        self._lives.blemished.discard(run)
        run.mailbox.close()
        self._handover.ended(run)

    # --- ending jobs --------------------------------------------------------------------------------------------

    def stop(self, run: Run, reason: StopReason) -> None:
        """End a job for good."""
        was, run.reason = run.reason, reason
        if run.state in (RunState.STARTING, RunState.RUNNING) or (
            run.state is RunState.ENDING and was is StopReason.HANDOVER
        ):
            self._cancel(run, self._around.options.stop_timeout_s)
        elif run.interrupt is not None and not run.interrupt.done():
            run.interrupt.set_result(None)

    def _begin_move(self, run: Run) -> bool:
        """Begin to hand a job over."""
        if run.slot in self._slots and not self.leaving:
            return False
        stayed = self.leaving and run.reason is StopReason.HANDOVER and run.state is not RunState.ENDING
        if run.reason is not None and not stayed:
            return False
        if run.state is RunState.REPORTING:
            return False  # it has ended by itself, or crashed: a crashed one is looked at again from its back-off
        run.reason = StopReason.HANDOVER
        if run.state in (RunState.STARTING, RunState.RUNNING):
            self._cancel(run, self._around.options.handover_timeout_s)
        elif run.interrupt is not None and not run.interrupt.done():
            run.interrupt.set_result(None)
        return True

    def _cancel(self, run: Run, patience_s: float) -> None:
        """Cancel the function of a job whose ``reason`` is set."""
        assert run.task is not None
        assert run.job is not None
        run.job.stop_reason = run.reason
        run.move(RunState.ENDING)
        self._lives.ending[run] = asyncio.get_running_loop().time() + patience_s
        run.task.cancel()

    def lose(self, run: Run) -> None:
        """This worker does not own the job any more: cancel it, report nothing."""
        if run.state is RunState.GONE:
            return
        self._counts.fenced += 1
        run.reason = StopReason.FENCED
        job, task = run.job, run.task
        run.move(RunState.GONE)
        if not self._over:
            self.forward(run, Answer.FENCED)
        self._drop(run)
        if task is None or task.done():
            return
        if job is not None:
            job.stop_reason = StopReason.FENCED
            self._around.zombies[run.key] = task
        task.cancel()

    # --- what concerns all of them ------------------------------------------------------------------------------

    def see_epoch(self, epoch: int) -> None:
        """A beat has brought the table's epoch: the bell for it may have been lost."""
        if epoch != self._epoch:
            self.look_at_table()

    def look_at_table(self) -> None:
        """The slot table has changed: hand over what is in slots that this worker has lost."""
        if not self._looking and not self._over:
            self._looking = True
            self._chores.start(self._look_at_table(), "table")

    async def _look_at_table(self) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self._looking = False  # a change from here on asks for another look
        self._epoch, slots = await self._reports.persist(lambda: self._around.membership.slots_of(self.worker))
        self._lost_slots = (self._lost_slots | self._slots) - slots
        self._slots = slots
        await self._move(self._lost_slots)  # also lost before: the owner then may not have known the kind

    async def _move(self, lost: Collection[int]) -> None:
        """Hand over what is in these slots, where their new owners know its kind: else it would come back at once."""
        slots = {run.slot for run in self.runs.in_slots(lost)}
        kinds = await self._reports.persist(lambda: self._around.peers.kinds_by_slot(slots))
        self._handover.add(run for run in self.runs.in_slots(slots) if run.kind.name in kinds.get(run.slot, ()))

    def reconcile(self) -> None:
        """Bells may have been lost with the server's memory: compare the records with what runs here."""
        if not self._over:
            self._around.tasks.audit()
            self._chores.start(self._reconcile(), "reconcile")
            self.look_at_table()

    async def _reconcile(self) -> None:
        known = {run.key: run.fence for run in self.runs}
        recorded: dict[str, int] = {}

        async def read() -> None:
            recorded.clear()
            async for info in self._store.jobs(self.worker):
                recorded[info.key] = info.fence
                self._compare(info.key, info.fence, info.kind, info.state)

        await self._reports.persist(read)
        for key, fence in known.items():
            run = self.runs.get(key)
            if run is not None and run.fence == fence and key not in recorded and run.state is not RunState.REPORTING:
                self.lose(run)

    def _compare(self, key: str, fence: int, kind: str, state: JobState) -> None:
        run = self.runs.get(key)
        if run is None or run.fence < fence:
            self._hear_start(Bell("start", key, fence, kind))
        elif state is JobState.STOPPING and run.fence == fence:
            self.stop(run, StopReason.STOP)

    def stop_all(self) -> None:
        """The pool is being shut down: end every job for good, and begin none."""
        self._stopping_all = True
        for run in self.runs:
            self.stop(run, StopReason.SHUTDOWN)

    async def hand_over_all(self, timeout_s: float) -> list[str]:
        """Hand every job over and take no new one; gives the keys of those that have not ended within ``timeout_s``.

        A few at a time in the first half of it, then all that are left: each shall have time to keep its state.
        """
        self.leaving = True
        self._handover.add(self.runs)
        if not await self._empties(timeout_s / 2):
            self._handover.lift_limit()
            await self._empties(timeout_s / 2)
        return [run.key for run in self.runs]

    async def _empties(self, timeout_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.emptied()
        return not self.runs

    async def emptied(self) -> None:
        """Return when no job is here."""
        while self.runs:
            await self._emptied.wait()

    def fence(self, loss: Loss) -> None:
        """The lease is lost: cancel everything. Nothing is reported, and the inbox is left as it is for the reaper."""
        self._log.error("a worker is fenced", worker=self.worker, jobs=len(self.runs), reason=loss.value)
        self._around.tasks.fence()
        self.end()
        for run in self.runs:
            self.lose(run)

    def give_up(self) -> None:
        """The worker goes, or is cut short: what still runs here is cancelled, nothing is reported. Again: harmless.

        A job that was told to end and has not yet is left to it; its key is held back in this process until it has.
        """
        self._around.tasks.fence()
        self.end()
        for run in self.runs:
            if run.state is RunState.ENDING and run.task is not None:
                self._around.zombies[run.key] = run.task
            else:
                self.lose(run)

    def end(self) -> None:
        """Read nothing and report nothing any more. Again: harmless."""
        self._over = True
        self._around.inbox.close(self._mail)
        self._lives.cancel_releases()
        self._chores.cancel()

    # --- looking after ------------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Look after jobs that take too long to end, and forget the crashes of those that do well again."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TEND_PERIOD_S)
            now_s = loop.time()
            for run in [run for run, until_s in self._lives.ending.items() if now_s >= until_s]:
                del self._lives.ending[run]
                self._overdue(run)
            for run in [run for run in self._lives.blemished if run.state is RunState.RUNNING]:
                if now_s - run.started_s >= run.kind.crashes_reset_s:
                    self._lives.blemished.discard(run)
                    self._chores.start(self._reset_crashes(run), f"reset {run.key}")

    def _overdue(self, run: Run) -> None:
        if run.state is not RunState.ENDING:
            return
        if run.reason is StopReason.HANDOVER:
            self._counts.stayed += 1
            run.move(RunState.RUNNING if run.ready else RunState.STARTING)
            self._handover.ended(run)
            self._log.warning("a job was to move and does not end: it stays", job=run.key)
        else:
            self._counts.stuck += 1
            self._log.error("a job does not end though it was cancelled", job=run.key)

    async def _reset_crashes(self, run: Run) -> None:
        fence = run.fence
        answer = await self._reports.persist(lambda: self._store.reset_crashes(self.worker, run.key, fence))
        if answer is Answer.OK and run.fence == fence:
            run.crashes = run.losses = 0

    def is_astray(self, run: Run) -> bool:
        """Whether this worker leaves, or its slot went to another one while it was under way to this one."""
        return self.leaving or run.slot in self._lost_slots

    def move_soon(self, run: Run) -> None:
        """Hand it over when its turn comes, if who should have it knows its kind."""
        if self.leaving:
            self._handover.add((run,))
        else:
            self._chores.start(self._move({run.slot}), f"move {run.key}")

    def stays(self, run: Run) -> None:
        """Its hand-over has ended here."""
        self._handover.ended(run)

    def forward(self, run: Run, answer: Answer) -> None:
        """The job is another worker's: so are the notifications that came for it."""
        waiting = run.mailbox.empty()
        if answer is Answer.FENCED and waiting:
            self._chores.start(self._forward_all(run.key, waiting), f"forward {run.key}")
        else:
            self._mail.done([entry_id for entry_id, _ in waiting])

    async def _forward_all(self, key: str, waiting: list[tuple[bytes, bytes]]) -> None:
        for entry_id, payload in waiting:
            await self._forward_one(entry_id, key, payload)

    async def _forward_one(self, entry_id: bytes, key: str, payload: bytes) -> None:
        """A notification for a job that is not here: send it after the job, if there is one."""

        async def send() -> None:
            await self._store.notify(key, payload)

        try:
            await self._reports.persist(send)
        except LeaseOver:
            raise
        except FlottaError:
            self._log.debug("a notification came too late", job=key)
        self._mail.done([entry_id])
