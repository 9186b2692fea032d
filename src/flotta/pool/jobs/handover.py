"""Jobs of one worker that should move: a few at a time, each with a bounded time to end.

Owns the order and the throttle. Invariants: at most ``limit`` jobs are being moved at a time; one that has not ended in
its time stays, and frees its place; a job is in it at most once.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import final

from flotta.pool.jobs.runs import Run, RunState

__all__ = ["Handover"]


@final
class Handover:
    """``begin(run)`` starts to move a run and says whether it did (False: there is nothing to move)."""

    __slots__ = ("_begin", "_limit", "_moving", "_waiting")

    def __init__(self, limit: int, begin: Callable[[Run], bool]) -> None:
        self._limit = limit
        self._begin = begin
        self._waiting: deque[Run] = deque()
        self._moving: set[Run] = set()

    def add(self, runs: Iterable[Run]) -> None:
        """These should move."""
        self._waiting.extend(run for run in runs if run not in self._moving)
        self._advance()

    def lift_limit(self) -> None:
        """Time runs out: nobody waits for a turn any more."""
        self._limit = sys.maxsize
        self._advance()

    def ended(self, run: Run) -> None:
        """This one has moved, or will not: its place is free. One that was not being moved: no change."""
        if run in self._moving:
            self._moving.discard(run)
            self._advance()

    @property
    def busy(self) -> bool:
        """Whether something moves or waits to."""
        return bool(self._moving or self._waiting)

    def _advance(self) -> None:
        while self._waiting and len(self._moving) < self._limit:
            run = self._waiting.popleft()
            if run.state is RunState.GONE or run in self._moving:
                continue
            self._moving.add(run)
            if not self._begin(run):
                self._moving.discard(run)
