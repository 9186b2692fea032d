"""The states of a job and the answers of its scripts. Pure.

Owns the one table of which state may follow which (the scripts obey it; the model test holds them to it) and the
letters by which states and answers travel.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = [
    "LETTERS",
    "NEXT_STATES",
    "Answer",
    "BuryAnswer",
    "CrashAnswer",
    "JobState",
    "RedriveAnswer",
    "ReleaseAnswer",
    "StopAnswer",
    "WithdrawAnswer",
]


class JobState(Enum):
    """Where a job stands. A job that has ended has no record, so there is no state for it."""

    QUEUED = "queued"
    """Accepted, not claimed: waits for its owner, or parked for one to come."""
    STARTING = "starting"
    """Claimed; the job will say itself when it is ready."""
    RUNNING = "running"
    """Started."""
    BACKOFF = "backoff"
    """It raised; its owner waits and starts it again."""
    STOPPING = "stopping"
    """Its end is decided: it ends here or with its owner, and runs nowhere else."""


LETTERS: Final[dict[bytes, JobState]] = {
    b"q": JobState.QUEUED,
    b"s": JobState.STARTING,
    b"r": JobState.RUNNING,
    b"b": JobState.BACKOFF,
    b"x": JobState.STOPPING,
}
"""How states stand in a record."""

NEXT_STATES: Final[dict[JobState | None, frozenset[JobState | None]]] = {
    None: frozenset({None, JobState.QUEUED}),
    JobState.QUEUED: frozenset({None, JobState.QUEUED, JobState.STARTING, JobState.RUNNING}),
    JobState.STARTING: frozenset(
        {None, JobState.STARTING, JobState.QUEUED, JobState.RUNNING, JobState.BACKOFF, JobState.STOPPING}
    ),
    JobState.RUNNING: frozenset({None, JobState.RUNNING, JobState.QUEUED, JobState.BACKOFF, JobState.STOPPING}),
    JobState.BACKOFF: frozenset({None, JobState.BACKOFF, JobState.QUEUED, JobState.RUNNING, JobState.STOPPING}),
    JobState.STOPPING: frozenset({None, JobState.STOPPING}),
}
"""What may follow a state (``None``: no record)."""


class Answer(Enum):
    """What a step of a worker on a job of its own meets."""

    OK = "O"
    FENCED = "F"
    """The job is not this worker's under this fence (any more): end it, write nothing."""
    GONE = "N"
    """There is no record: it has ended, perhaps by an earlier run of this very call."""
    STOPPING = "X"
    """It is to end: stop it and say ``finished``. (``decline``: it was, and is gone.)"""
    STARTED_BEFORE = "S"
    """Only ``start_failed``: it has been started before, so this counts as a crash: say ``crashed``."""


class CrashAnswer(Enum):
    """What becomes of a job that raised."""

    BACKOFF = "B"
    """Start it again after a pause, under the new fence (``restarted``)."""
    DEAD = "D"
    """It crashed too often and is a dead letter."""
    STOPPED = "X"
    """It was stopping: it is gone."""
    FENCED = "F"
    GONE = "N"


class ReleaseAnswer(Enum):
    """What becomes of a job that a worker hands over."""

    OK = "O"
    """It is another's now."""
    KEEP = "K"
    """By the table it is this worker's: nothing has changed."""
    STOPPED = "X"
    """It was stopping: it is gone."""
    FENCED = "F"
    GONE = "N"


class StopAnswer(Enum):
    """What becomes of a job that somebody stops."""

    GONE = "G"
    """It was not claimed yet and is gone."""
    STOPPING = "S"
    """Its worker is told; ``stopped`` comes to the node that asked."""
    NOT_RUNNING = "N"
    """There is none."""


class WithdrawAnswer(Enum):
    """What becomes of a job whose dispatch has timed out."""

    WITHDRAWN = "W"
    """It was not claimed yet and is gone."""
    STARTED = "S"
    """It has started after all."""
    STOPPING = "X"
    """A worker was starting it and is told to stop it."""
    GONE = "G"
    """There is no job of that dispatch (any more): it has ended."""


class BuryAnswer(Enum):
    """How far the end of a dead worker is."""

    DONE = "D"
    MORE = "M"
    """More of its notifications have to follow their jobs: call again."""
    OWNS = "J"
    """It still has jobs or tasks: they are to be reaped first."""
    LIVE = "L"
    """Its lease is valid."""


class RedriveAnswer(Enum):
    """What becomes of a dead letter."""

    OK = "O"
    EXISTS = "E"
    """A job with its key is there: the letter stays."""
    NOT_FOUND = "N"
    NO_JOB = "T"
    """It is the letter of a task."""
    SHUTDOWN = "S"
    """The pool is shutting down: the letter stays."""
