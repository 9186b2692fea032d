"""The records of keyed jobs in Redis: one method for each script, typed both ways.

Owns how calls become scripts and answers become values or errors. Invariants: every change of a job is one script, and
checks the owner and its fencing token where a worker makes it; what is too large or badly named is refused before it
travels; the dispatches, claims and ends of one turn of the loop share one script each; a step is repeated after a lost
reply only if its script says that a second run is harmless (the table below).

How a worker uses it: an inbox entry (``wire.parse_bell``) says ``start``: look at the kind, then ``claim`` (or
``decline``) with the key and fence of the bell. FENCED and GONE are nothing to do: the bell was late. A worker that
holds a job under that fence already must not claim it: a repeated claim answers OK. A note for a job that the worker
does not hold, once its claims have their answers, goes to ``notify`` again: the job has moved. Every later step names
the fence; FENCED means: end the job, write nothing.

How a coordinator uses it: ``sweep`` now and then, ``reap`` until nothing is left and then ``bury_worker`` for each
worker whose lease is over, ``adopt`` after each change of the slot table and while jobs are parked.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, final

from flotta.errors import (
    CommandError,
    Fenced,
    FlottaError,
    JobExists,
    NotRunning,
    NoWorkers,
    PayloadTooLarge,
    PoolShutdown,
    QueueFull,
    WorkerPoolError,
)
from flotta.pool.jobs.records import (
    INFO_FIELDS,
    Adopted,
    Claim,
    Counts,
    Crash,
    Dispatched,
    JobInfo,
    Reaped,
    Release,
    ShutdownStep,
    Swept,
    Withdrawal,
    claim_of,
)
from flotta.pool.jobs.states import (
    Answer,
    BuryAnswer,
    CrashAnswer,
    RedriveAnswer,
    ReleaseAnswer,
    StopAnswer,
    WithdrawAnswer,
)
from flotta.pool.keys import PoolKeys, check_key, slot_of
from flotta.pool.options import PoolOptions
from flotta.pool.scripts import load_script
from flotta.pool.turns import Turns
from flotta.redis import Effect, Redis

__all__ = ["STEP_MAX", "JobStore"]

_DISPATCH: Final = load_script("jobs", "dispatch", Effect.CHECKED)
_CLAIM: Final = load_script("jobs", "claim", Effect.CHECKED)
_START_FAILED: Final = load_script("jobs", "start_failed", Effect.CHECKED)
_FINISHED: Final = load_script("jobs", "finished", Effect.CHECKED)
_CRASHED: Final = load_script("jobs", "crashed", Effect.CHECKED)
_STARTED: Final = load_script("jobs", "started", Effect.CHECKED)
_CHECKPOINT: Final = load_script("jobs", "checkpoint", Effect.LAST_WRITE_WINS)
_RESET_CRASHES: Final = load_script("jobs", "reset_crashes", Effect.LAST_WRITE_WINS)
_RELEASE: Final = load_script("jobs", "release", Effect.CHECKED)
_DECLINE: Final = load_script("jobs", "decline", Effect.CHECKED)
_STOP: Final = load_script("jobs", "stop", Effect.CHECKED)
_NOTIFY: Final = load_script("jobs", "notify", Effect.NEVER)
_WITHDRAW: Final = load_script("jobs", "withdraw", Effect.CHECKED)
_LIST: Final = load_script("jobs", "list", Effect.READ)
_SWEEP: Final = load_script("jobs", "sweep", Effect.CHECKED)
_REAP: Final = load_script("jobs", "reap", Effect.CHECKED)
_BURY_WORKER: Final = load_script("jobs", "bury_worker", Effect.CHECKED)
_ADOPT: Final = load_script("jobs", "adopt", Effect.CHECKED)
_SHUTDOWN_BEGIN: Final = load_script("jobs", "shutdown_begin", Effect.CHECKED)
_SHUTDOWN_STEP: Final = load_script("jobs", "shutdown_step", Effect.CHECKED)
_CLEAR_AWAY: Final = load_script("jobs", "clear_away", Effect.CHECKED)
_REDRIVE: Final = load_script("jobs", "redrive_jobs", Effect.NEVER)

_REPLY_BYTES_MAX: Final = 1 << 20
"""Payloads and checkpoints that one claim gives out, about; the rest of the batch asks again."""
_PARKED_NOTES_MAX: Final = 1_000
"""Notifications that a job may keep while no worker has it."""
_ERROR_CHARS_MAX: Final = 4_000
_NOT_SENT: Final = b"!"
"""In the place of an answer: the script of this job failed."""
_CLEARING_MS: Final = 10_000
"""How long whoever clears away may take from one step to the next."""
STEP_MAX: Final = 100
"""Jobs that one step of a walk handles: it holds the server for about a millisecond."""

_Job = tuple[str, str, bytes, int, str, int, str, str]
"""key, kind, payload, slot, dispatch id, crashes allowed, scheduler; and the node."""
_Claim = tuple[str, str, int, bool]
"""worker, key, fence, whether it is explicit."""
_End = tuple[str, str, int]
"""worker, key, fence."""


@final
class JobStore:
    """The jobs of the pool ``name``. All it needs is the client; it owns no connection and nothing outlives its calls.

    Unless a method says otherwise it raises what ``Link.call`` raises, and cancelling it leaves open whether the step
    was done. Fences are ints, ids and keys str, payloads and checkpoints bytes.
    """

    def __init__(
        self, redis: Redis, name: str, *, options: PoolOptions | None = None, step_max: int = STEP_MAX
    ) -> None:
        """``step_max``: jobs, letters or notifications that one step of a walk handles. Raises ``InvalidName``."""
        self.name = name
        self.step_max = step_max
        self.options = options or PoolOptions()
        self.keys = PoolKeys(name, namespace=redis.namespace)
        self._link = redis.link
        self._meta = (self.keys.meta,)
        self._dispatches: Turns[_Job, tuple[bytes, Any, Any]] = Turns(self._send_dispatches, name=f"dispatch {name}")
        self._claims: Turns[_Claim, Claim] = Turns(self._send_claims, name=f"claim {name}")
        self._ends: Turns[_End, Answer] = Turns(self._send_ends, name=f"finished {name}")

    # --- dispatchers ------------------------------------------------------------------------------------------------

    async def dispatch(
        self,
        key: str,
        kind: str,
        payload: bytes,
        *,
        node: str = "",
        did: str,
        crashes_max: int,
        scheduler: str = "",
    ) -> Dispatched:
        """Accept a job for the owner of its slot. ``did`` names this dispatch: unique, the same when it is repeated.

        ``node`` hears in its replies ``started``, ``failed`` or ``gone`` with that id; empty: nobody waits.
        ``scheduler`` keeps the key in that scheduler's plan as long as the job is there.

        Raises ``JobExists``, ``QueueFull``, ``NoWorkers``, ``PoolShutdown``, ``PayloadTooLarge``, ``InvalidName``: then
        nothing was accepted.
        """
        check_key(key)
        self._check_size("job", key, payload)
        job = (key, kind, payload, slot_of(key), did, crashes_max, scheduler, node)
        code, first, second = await self._dispatches.add(job, len(payload))
        if code == _NOT_SENT:
            raise first
        if code == b"O":
            return Dispatched(int(first), second.decode())
        raise self._refused(code, key, first, second)

    async def withdraw(self, key: str, did: str) -> Withdrawal:
        """Take back a dispatch that took too long. What has started goes on; what is just starting is told to stop."""
        reply = await _WITHDRAW(self._link, keys=self._meta, args=(key, did))
        answer = WithdrawAnswer(reply[0].decode())
        if answer is not WithdrawAnswer.STARTED:
            return Withdrawal(answer)
        return Withdrawal(answer, int(reply[1]), reply[2].decode())

    async def stop(self, key: str, node: str = "") -> StopAnswer:
        """End a job, for good. ``node`` hears ``stopped`` in its replies where the answer is STOPPING."""
        return StopAnswer((await _STOP(self._link, keys=self._meta, args=(key, node))).decode())

    async def notify(self, key: str, payload: bytes) -> None:
        """Put a notification into the inbox of the job's owner (beside the record while it has none).

        Raises ``NotRunning`` (also while it stops), ``QueueFull``, ``PayloadTooLarge``. Never repeated by itself: after
        ``AmbiguousOutcome`` it may have been delivered.
        """
        self._check_size("notification for job", key, payload)
        args = (key, payload, self.options.inbox_max, _PARKED_NOTES_MAX)
        reply = await _NOTIFY(self._link, keys=self._meta, args=args)
        if reply[0] == b"N":
            raise NotRunning(self.name, key)
        if reply[0] == b"F":
            raise QueueFull(self.name, reply[1], reply[2], what="notifications")

    async def read(self, key: str) -> JobInfo | None:
        """The job ``key``, or None."""
        fields = await self._link.call("HMGET", self.keys.job(key), *INFO_FIELDS)
        return None if fields[0] is None else JobInfo.from_fields(key, fields)

    async def payload(self, key: str) -> bytes | None:
        """The payload of the job ``key``; None: there is no such job."""
        payload: bytes | None = await self._link.call("HGET", self.keys.job(key), "p")
        return payload

    async def page(self, worker: str, cursor: str = "0") -> tuple[str, list[JobInfo]]:
        """One page of the jobs of ``worker`` (empty: the parked ones), and the next cursor; ``"0"``: that was all."""
        following, *rows = await _LIST(self._link, keys=self._meta, args=(worker, cursor, self.step_max))
        return following.decode(), [JobInfo.from_fields(row[0].decode(), row[1:]) for row in rows]

    async def jobs(self, worker: str) -> AsyncIterator[JobInfo]:
        """All jobs of ``worker`` (empty: the parked ones). One that is there all the time comes exactly once."""
        seen: set[str] = set()
        cursor = "0"
        while True:
            cursor, jobs = await self.page(worker, cursor)
            for job in jobs:
                if job.key not in seen:
                    seen.add(job.key)
                    yield job
            if cursor == "0":
                return

    # --- workers ----------------------------------------------------------------------------------------------------

    async def claim(self, worker: str, key: str, fence: int, *, explicit: bool = False) -> Claim:
        """Take a job that is queued for ``worker``: it is running from now on and its dispatcher hears ``started``.

        ``explicit``: it is only starting; say ``ready``, or ``start_failed``.
        """
        return await self._claims.add((worker, key, fence, explicit))

    async def ready(self, worker: str, key: str, fence: int) -> Answer:
        """An explicit job is ready: its dispatcher hears ``started``. Answers OK, STOPPING, FENCED, GONE."""
        return Answer((await _STARTED(self._link, keys=self._meta, args=(worker, key, fence, "s"))).decode())

    async def start_failed(self, worker: str, key: str, fence: int, error: str) -> Answer:
        """An explicit job ended before it was ready: it is gone, its dispatcher hears ``failed`` with ``error``.

        Answers OK, STARTED_BEFORE (say ``crashed``), FENCED, GONE.
        """
        args = (worker, key, fence, error[:_ERROR_CHARS_MAX])
        return Answer((await _START_FAILED(self._link, keys=self._meta, args=args)).decode())

    async def finished(self, worker: str, key: str, fence: int) -> Answer:
        """A job has ended, also one that was stopping: its record is gone. Answers OK, FENCED, GONE."""
        return await self._ends.add((worker, key, fence))

    async def crashed(self, worker: str, key: str, fence: int, error: str) -> Crash:
        """A job raised after it had started. BACKOFF: it stays with ``worker``, under a new fence."""
        args = (worker, key, fence, error[:_ERROR_CHARS_MAX], self.options.dead_max)
        reply = await _CRASHED(self._link, keys=self._meta, args=args)
        answer = CrashAnswer(reply[0].decode())
        if answer is CrashAnswer.BACKOFF:
            return Crash(answer, int(reply[1]), int(reply[2]))
        return Crash(answer, int(reply[1]) if answer is CrashAnswer.DEAD else 0)

    async def restarted(self, worker: str, key: str, fence: int) -> Answer:
        """A job that backed off runs again. Answers OK, STOPPING (say ``finished``), FENCED, GONE."""
        return Answer((await _STARTED(self._link, keys=self._meta, args=(worker, key, fence, "b"))).decode())

    async def checkpoint(self, worker: str, key: str, fence: int, data: bytes) -> None:
        """Keep ``data`` for the next run. Raises ``Fenced`` (also where there is no record), ``PayloadTooLarge``."""
        self._check_size("checkpoint of job", key, data)
        if await _CHECKPOINT(self._link, keys=self._meta, args=(worker, key, fence, data)) != b"O":
            raise Fenced(self.name, key, fence)

    async def reset_crashes(self, worker: str, key: str, fence: int) -> Answer:
        """Forget the crashes and losses of a job that has run well for long. Answers OK, FENCED, GONE."""
        return Answer((await _RESET_CRASHES(self._link, keys=self._meta, args=(worker, key, fence))).decode())

    async def release(self, worker: str, jobs: Sequence[Release], *, seen: bytes = b"") -> list[ReleaseAnswer]:
        """Hand jobs over to the owners of their slots; their notes move with them from inbox to inbox.

        ``seen``: the last entry of the inbox that the worker has seen (empty: all); notes behind it move along, too.
        At most ``STEP_MAX`` jobs a call. KEEP: by the table it stays here, and ``worker`` is not leaving.
        """
        assert len(jobs) <= STEP_MAX
        args: list[Any] = [worker, seen]
        for job in jobs:
            args += (job.key, job.fence, len(job.notes), *job.notes)
        replies = await _RELEASE(self._link, keys=self._meta, args=args) if jobs else []
        return [ReleaseAnswer(reply.decode()) for reply in replies]

    async def decline(self, worker: str, key: str, fence: int, to: str = "", *, members: int | None = None) -> Answer:
        """``worker`` does not know the kind of a job: queue it for ``to``, or park it where that is empty or not alive.

        Empty: nobody knew it when there had been ``members`` changes among the members; it stays parked until there is
        another one (None: until its slot has an owner). Answers OK, STOPPING (it is gone), FENCED, GONE.
        """
        args = (worker, key, fence, to, "" if members is None else members)
        return Answer((await _DECLINE(self._link, keys=self._meta, args=args)).decode())

    # --- coordinators -----------------------------------------------------------------------------------------------

    async def sweep(self, workers: Sequence[str] = ()) -> Swept:
        """Move up to ``step_max`` jobs that nobody has claimed for the ack grace to other live workers, or ring again.

        ``workers`` are those that the caller knows; the owner of the slot comes first.
        """
        args: list[Any] = [round(self.options.ack_grace_s * 1_000), self.step_max, *workers]
        return Swept(*await _SWEEP(self._link, keys=self._meta, args=args))

    async def reap(self, worker: str, *, blame: bool) -> Reaped | None:
        """Take up to ``step_max`` jobs back from a worker whose lease is over; None: its lease is valid.

        ``blame``: what a job had begun with counts as a loss of it, and may end it as a dead letter. Call it until
        nothing is left, then ``bury_worker``.
        """
        args = (worker, 1 if blame else 0, self.step_max, self.options.dead_max)
        left, *done = await _REAP(self._link, keys=self._meta, args=args)
        return None if left < 0 else Reaped(left, *done)

    async def bury_worker(self, worker: str) -> BuryAnswer:
        """Delete all that is known of a worker whose lease is over and that has nothing any more; unused notifications
        follow their jobs: call it again after MORE."""
        return BuryAnswer((await _BURY_WORKER(self._link, keys=self._meta, args=(worker, self.step_max))).decode())

    async def adopt(self) -> Adopted:
        """Give up to ``step_max`` parked jobs to the owners of their slots, as far as these are alive."""
        return Adopted(*await _ADOPT(self._link, keys=self._meta, args=(self.step_max,)))

    async def counts(self) -> Counts:
        """How much there is, in four numbers."""
        keys = self.keys
        replies = await self._link.call_many(
            [("ZCARD", keys.queued), ("SCARD", keys.parked), ("ZCARD", keys.leases), ("XLEN", keys.dead)]
        )
        for reply in replies:
            if isinstance(reply, CommandError):
                raise reply
        return Counts(*replies)

    async def shutdown_begin(self, node: str) -> tuple[str, float]:
        """Stop the whole pool: nothing is accepted any more, every worker and node is told.

        Gives the node that began it and the seconds until jobs are taken from their workers. Again: tells once more.
        """
        args = (node, round(self.options.shutdown_ttl_s * 1_000))
        first, left_ms = await _SHUTDOWN_BEGIN(self._link, keys=self._meta, args=args)
        return first.decode(), left_ms / 1_000

    async def shutdown_step(self) -> ShutdownStep | None:
        """Drop up to ``step_max`` queued jobs; once the time is over, claimed ones, too. None: nobody began it."""
        dropped, *rest = await _SHUTDOWN_STEP(self._link, keys=self._meta, args=(self.step_max,))
        if dropped < 0:
            return None
        queued, owned, workers, left_ms = rest
        return ShutdownStep(dropped, queued, owned, workers, left_ms / 1_000)

    async def purge(self) -> int:
        """Delete everything of the pool, tasks and dead letters included; gives the number of keys.

        For a pool that no node is in, nor joins meanwhile (else ``clear_away``). It walks the whole key space of the
        server, in steps.
        """
        deleted = 0
        async for found in self._walk_keys():
            if found:
                deleted += await self._link.call("UNLINK", *found)
        return deleted

    async def clear_away(self, clearer: str) -> bool:
        """Delete what a pool that was shut down has left; False: another one is about it, or has been.

        ``clearer`` is an id of the caller's own. Whoever joins waits for the end of it. It walks like ``purge``.
        """
        await self._link.call("SET", self.keys.clearing, clearer, "NX", "PX", _CLEARING_MS)
        if not await self._clear(clearer):
            return False
        async for found in self._walk_keys():
            if not await self._clear(clearer, *found):
                return False
        return await self._clear(clearer, end=True)

    async def _clear(self, clearer: str, *keys: bytes, end: bool = False) -> bool:
        args: list[Any] = [clearer, _CLEARING_MS, int(end), *keys]
        return bool(await _CLEAR_AWAY(self._link, keys=self._meta, args=args))

    async def _walk_keys(self) -> AsyncIterator[list[bytes]]:
        pattern = re.sub(r"([\[\]*?\\^-])", r"\\\1", self.keys.prefix) + "*"
        cursor = b"0"
        while True:
            cursor, found = await self._link.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
            yield found
            if int(cursor) == 0:
                return

    async def redrive(self, ids: Sequence[str]) -> list[RedriveAnswer]:
        """Make jobs of up to ``STEP_MAX`` dead letters again, with their checkpoints and without their crashes.

        No limit of the queue applies. Never repeated by itself: after ``AmbiguousOutcome`` look which letters are left.
        """
        assert len(ids) <= STEP_MAX
        replies = await _REDRIVE(self._link, keys=self._meta, args=tuple(ids)) if ids else []
        return [RedriveAnswer(reply.decode()) for reply in replies]

    # --- batches ----------------------------------------------------------------------------------------------------

    async def _send_dispatches(self, jobs: list[_Job]) -> list[tuple[bytes, Any, Any]]:
        answers: list[tuple[bytes, Any, Any]] = []
        for first, end in _runs([job[7] for job in jobs]):
            args: list[Any] = [jobs[first][7], self.options.queue_max_per_worker]
            for job in jobs[first:end]:
                args += job[:7]
            try:
                flat = await _DISPATCH(self._link, keys=self._meta, args=args)
            except FlottaError as error:
                # Who was in a script before this one has an answer: "not applied" would be a lie there.
                answers += [(_NOT_SENT, error, None)] * (end - first)
            else:
                answers += zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        return answers

    async def _send_claims(self, claims: list[_Claim]) -> list[Claim]:
        answers: list[Claim] = []
        while len(answers) < len(claims):
            first = len(answers)
            worker = claims[first][0]
            args: list[Any] = [worker, _REPLY_BYTES_MAX]
            for owner, key, fence, explicit in claims[first:]:
                if owner != worker:
                    break
                args += (key, fence, "1" if explicit else "")
            replies = await _CLAIM(self._link, keys=self._meta, args=args)
            answers += [claim_of(reply) for reply in replies if reply[0] != b"L"]  # "later" is only at the end
        return answers

    async def _send_ends(self, ends: list[_End]) -> list[Answer]:
        answers: list[Answer] = []
        for first, end in _runs([job[0] for job in ends]):
            args: list[Any] = [ends[first][0]]
            for _, key, fence in ends[first:end]:
                args += (key, fence)
            replies = await _FINISHED(self._link, keys=self._meta, args=args)
            answers += [Answer(reply.decode()) for reply in replies]
        return answers

    # --- refusals ---------------------------------------------------------------------------------------------------

    def _check_size(self, what: str, key: str, payload: bytes) -> None:
        given: object = payload
        if not isinstance(given, bytes | bytearray | memoryview):
            raise TypeError(f"the payload of {what} {key!r} must be bytes, not {type(given).__name__}")
        if len(payload) > self.options.payload_bytes_max:
            raise PayloadTooLarge(
                f"{what} {key!r}", len(payload), self.options.payload_bytes_max, option="payload_bytes_max"
            )

    def _refused(self, code: bytes, key: str, first: Any, second: Any) -> WorkerPoolError:
        if code == b"E":
            return JobExists(self.name, key)
        if code == b"F":
            return QueueFull(self.name, int(first), int(second))
        if code == b"S":
            return PoolShutdown(self.name)
        assert code == b"N", code
        return NoWorkers(self.name, key)


def _runs(names: list[str]) -> list[tuple[int, int]]:
    """First and end of each run of equal names: what one script can carry. Nearly always there is one."""
    starts = [place for place, name in enumerate(names) if place == 0 or name != names[place - 1]]
    return list(zip(starts, [*starts[1:], len(names)], strict=True))
