"""One job on one worker: what the worker knows of it, and in which order it may come to know it.

Owns the states of a run and which may follow which; an unlisted step is our bug. Also the index of a worker's runs by
slot, so that a change of the slot table costs what it changes and not what is running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, final

from flotta.pool.backoff import Backoff
from flotta.pool.jobs.job import Job, StopReason
from flotta.pool.jobs.mailbox import Mailbox
from flotta.pool.wire import Bell

__all__ = ["CRASHES_MAX", "JobKind", "Run", "RunState", "Runs"]


CRASHES_MAX: Final = 5
"""Crashes and lost workers that a job survives, unless its dispatch says otherwise."""
_BACKOFF: Final = Backoff()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class JobKind:
    """How jobs of one kind run. ``explicit``: started only when ``Job.ready`` is called."""

    name: str
    run: Callable[[Job[Any]], Awaitable[None]]
    explicit: bool = False
    backoff: Backoff = _BACKOFF
    crashes_reset_s: float = 600.0
    """Its crashes are forgotten after it has run for so long without one."""
    state_type: Any = Any


class RunState(StrEnum):  # a plain Enum hashes in Python: four times for each job
    """Where a run is."""

    CLAIMING = "claiming"
    """The worker has heard of the job and asks the record for it."""
    STARTING = "starting"
    """Its function runs and has not said that it is ready."""
    RUNNING = "running"
    """Its function runs."""
    ENDING = "ending"
    """Its function was cancelled and has not ended."""
    BACKOFF = "backoff"
    """It crashed and waits for its next attempt."""
    REPORTING = "reporting"
    """Its function has ended, the record does not say so yet."""
    GONE = "gone"
    """This worker has nothing to do with it any more."""


_MAY_FOLLOW: Final = {
    RunState.CLAIMING: {RunState.STARTING, RunState.RUNNING, RunState.REPORTING, RunState.GONE},
    RunState.STARTING: {RunState.RUNNING, RunState.ENDING, RunState.REPORTING, RunState.GONE},
    RunState.RUNNING: {RunState.ENDING, RunState.REPORTING, RunState.GONE},
    # STARTING, RUNNING: it stays, its hand-over took too long. ENDING: it was to move and is stopped now.
    RunState.ENDING: {RunState.STARTING, RunState.RUNNING, RunState.ENDING, RunState.REPORTING, RunState.GONE},
    RunState.BACKOFF: {RunState.RUNNING, RunState.STARTING, RunState.REPORTING, RunState.GONE},
    RunState.REPORTING: {RunState.BACKOFF, RunState.RUNNING, RunState.STARTING, RunState.GONE},
    RunState.GONE: set(),
}


@final
class Run:
    """What a worker knows of one job. Made when its doorbell rings."""

    __slots__ = (
        "checkpoint", "crashes", "error", "fence", "interrupt", "job", "key", "kind", "losses", "mailbox", "next_bell",
        "payload", "ready", "readying", "reason", "slot", "started", "started_s", "state", "task",
    )  # fmt: skip

    def __init__(self, key: str, slot: int, fence: int, kind: JobKind, mailbox: Mailbox) -> None:
        self.key = key
        self.slot = slot
        self.fence = fence
        self.kind = kind
        self.mailbox = mailbox
        self.state = RunState.CLAIMING
        self.payload = b""
        self.checkpoint: bytes | None = None
        self.crashes = 0
        self.losses = 0
        self.ready = False  # this run has said so, or need not
        self.started = False  # it is or was ready: if it raises, that is a crash and no failed start
        self.started_s = 0.0
        self.job: Job[Any] | None = None
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.readying: asyncio.Task[None] | None = None
        self.interrupt: asyncio.Future[None] | None = None  # ends its wait after a crash
        self.reason: StopReason | None = None
        self.next_bell: Bell | None = None  # the job came back to this worker before its last run was reported

    @property
    def attempt(self) -> int:
        """1 for the first run."""
        return self.crashes + self.losses + 1

    def move(self, state: RunState) -> None:
        """Go to ``state``."""
        if state not in _MAY_FOLLOW[self.state]:
            raise AssertionError(f"job {self.key!r} went from {self.state.value} to {state.value}")
        self.state = state


@final
class Runs:
    """The runs of one worker, by key and by slot."""

    __slots__ = ("_by_key", "_by_slot")

    def __init__(self) -> None:
        self._by_key: dict[str, Run] = {}
        self._by_slot: dict[int, dict[str, Run]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Run]:
        return iter(tuple(self._by_key.values()))

    def get(self, key: str) -> Run | None:
        """The run of the job ``key``, if there is one."""
        return self._by_key.get(key)

    def add(self, run: Run) -> None:
        """One more; its key has none yet."""
        assert run.key not in self._by_key
        self._by_key[run.key] = run
        self._by_slot.setdefault(run.slot, {})[run.key] = run

    def remove(self, run: Run) -> None:
        """Forget it, if it is (still) the run of its key."""
        if self._by_key.get(run.key) is not run:
            return
        del self._by_key[run.key]
        here = self._by_slot[run.slot]
        del here[run.key]
        if not here:
            del self._by_slot[run.slot]

    def in_slots(self, slots: Iterable[int]) -> list[Run]:
        """The runs of these slots: costs the slots and the runs in them."""
        found: list[Run] = []
        for slot in slots:
            found += self._by_slot.get(slot, {}).values()
        return found
