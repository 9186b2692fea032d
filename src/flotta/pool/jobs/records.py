"""What the scripts of jobs answer, as values. Pure: bytes in, values out; times are ms of the server's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from flotta.pool.jobs.states import LETTERS, Answer, CrashAnswer, JobState, WithdrawAnswer

__all__ = [
    "INFO_FIELDS",
    "Adopted",
    "Claim",
    "Counts",
    "Crash",
    "Dispatched",
    "JobInfo",
    "Reaped",
    "Release",
    "ShutdownStep",
    "Swept",
    "Withdrawal",
    "claim_of",
]

INFO_FIELDS: Final = ("s", "o", "g", "k", "n", "f", "c", "l", "m", "t", "b", "e")
"""The fields of a record that ``JobInfo`` is made of, in this order (``lua/list.lua`` lists the same)."""


@final
@dataclass(frozen=True, slots=True)
class Dispatched:
    """A job was accepted under ``fence``. ``owner`` is the worker that was rung; empty: parked until one is there."""

    fence: int
    owner: str


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """``answer`` OK: run it with the rest. FENCED or GONE: nothing to do. STOPPING: say ``finished``, do not start it.

    ``checkpoint`` is None where there is none. ``started_before``: its dispatcher has heard of a start already, so if
    it fails before it is ready that is a crash (``crashed``), not ``start_failed``.
    """

    answer: Answer
    kind: str = ""
    payload: bytes = b""
    checkpoint: bytes | None = None
    crashes: int = 0
    losses: int = 0
    crashes_max: int = 0
    started_before: bool = False


@final
@dataclass(frozen=True, slots=True)
class Crash:
    """``fence`` is the new one where ``answer`` is BACKOFF, else 0."""

    answer: CrashAnswer
    crashes: int = 0
    fence: int = 0


@final
@dataclass(frozen=True, slots=True)
class Release:
    """A job to hand over. ``notes``: ids of the inbox entries with notifications it has not used, in their order."""

    key: str
    fence: int
    notes: Sequence[bytes] = ()


@final
@dataclass(frozen=True, slots=True)
class Withdrawal:
    """``fence`` and ``worker`` say who runs it where ``answer`` is STARTED (``worker`` empty: it is parked again)."""

    answer: WithdrawAnswer
    fence: int = 0
    worker: str = ""


@final
@dataclass(frozen=True, slots=True)
class JobInfo:
    """One job as its record says. ``owner`` empty: parked. ``started_ms`` None: never started yet."""

    key: str
    state: JobState
    owner: str
    fence: int
    kind: str
    slot: int
    node: str
    crashes: int
    losses: int
    crashes_max: int
    dispatched_ms: int
    started_ms: int | None
    error: str

    @classmethod
    def from_fields(cls, key: str, fields: Sequence[bytes | None]) -> JobInfo:
        """From the values of ``INFO_FIELDS``; the first must be there."""
        state, owner, fence, kind, slot, node, crashes, losses, crashes_max, dispatched, started, error = fields
        return cls(
            key=key,
            state=LETTERS[state or b""],
            owner=(owner or b"").decode(),
            fence=int(fence or 0),
            kind=(kind or b"").decode(),
            slot=int(slot or 0),
            node=(node or b"").decode(),
            crashes=int(crashes or 0),
            losses=int(losses or 0),
            crashes_max=int(crashes_max or 0),
            dispatched_ms=int(dispatched or 0),
            started_ms=None if started is None else int(started),
            error=(error or b"").decode("utf-8", "replace"),
        )


@final
@dataclass(frozen=True, slots=True)
class Swept:
    """Late jobs that went to another worker, those whose owner was rung again, and those that no worker could take."""

    moved: int
    rung: int
    parked: int


@final
@dataclass(frozen=True, slots=True)
class Reaped:
    """``left`` jobs are still the dead worker's: call again. The others are what this call did with up to its limit."""

    left: int
    moved: int = 0
    parked: int = 0
    dropped: int = 0
    dead: int = 0


@final
@dataclass(frozen=True, slots=True)
class Adopted:
    """Parked jobs that have an owner now, and those that are still parked."""

    adopted: int
    parked: int


@final
@dataclass(frozen=True, slots=True)
class ShutdownStep:
    """What is left of the jobs; ``left_s`` is the time until they are taken away from their workers."""

    dropped: int
    queued: int
    owned: int
    workers: int
    left_s: float

    @property
    def done(self) -> bool:
        """Whether no job is left."""
        return self.queued == 0 and self.owned == 0


@final
@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is: jobs not claimed (``parked`` of them without owner), live or expired leases, dead letters."""

    queued: int
    parked: int
    workers: int
    dead: int


def claim_of(reply: list[Any]) -> Claim:
    """From one answer of ``claim.lua`` that is not "later"."""
    if reply[0] != b"G":
        return Claim(Answer(reply[0].decode()))
    _, kind, payload, checkpoint, crashes, losses, crashes_max, started = reply
    return Claim(Answer.OK, kind.decode(), payload, checkpoint, crashes, losses, crashes_max, started == 1)
