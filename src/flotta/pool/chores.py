"""Small tasks that somebody owns: their end is seen, and none of them outlives its owner.

Invariant: what one of them raises is logged, unless it is of a kind that the owner expects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, final

__all__ = ["Chores"]


@final
class Chores:
    """The small tasks of ``owner`` (for people). ``expected``: what they may raise without a word."""

    __slots__ = ("_expected", "_log", "_owner", "_tasks")

    def __init__(self, owner: str, logger: Any, *, expected: tuple[type[BaseException], ...]) -> None:
        self._owner = owner
        self._log = logger
        self._expected = expected
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` beside everything else."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """Cancel all but the one that says so."""
        current = asyncio.current_task() if self._tasks else None
        for task in tuple(self._tasks):
            if task is not current:
                task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, self._expected):
            self._log.error("a step of a pool failed", step=task.get_name(), exc_info=error)
