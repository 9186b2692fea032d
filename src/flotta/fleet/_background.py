"""Supervised background tasks of one instance.

Each runs from ready until the drain. One that returns is finished; one that raises is logged and started again after a
back-off that doubles from 1 s to 30 s and is forgotten after a minute of good behaviour. Nothing is lost in silence:
crashes are counted and shown in the metrics.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Background", "BackgroundTask"]

BACKOFF_MIN_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
GOOD_AFTER_S: Final = 60.0


@dataclass(slots=True, eq=False)
class BackgroundTask:
    """One function that runs in the background, and what became of it."""

    name: str
    run: Callable[[], Awaitable[object]]
    crashes: int = 0
    running: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Background:
    """The background tasks of a fleet."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.tasks: list[BackgroundTask] = []
        self._open = False

    def add(self, name: str, run: Callable[[], Awaitable[object]]) -> None:
        """Registers ``run``; it starts with the others, or at once if they already run."""
        background = BackgroundTask(name, run)
        self.tasks.append(background)
        if self._open:
            self._spawn(background)

    async def start(self) -> None:
        self._open = True
        for background in self.tasks:
            self._spawn(background)

    async def stop(self, _left_s: float) -> None:
        """Cancels every task and returns when all have ended. Cancelled: they stay cancelled, see `lasting`."""
        self._open = False
        tasks = [background.task for background in self.tasks if background.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def lasting(self) -> str:
        """The names of those that have not ended."""
        return ", ".join(sorted(b.name for b in self.tasks if b.task is not None and not b.task.done()))

    def _spawn(self, background: BackgroundTask) -> None:
        background.task = asyncio.create_task(self._supervise(background), name=f"background {background.name}")

    async def _supervise(self, background: BackgroundTask) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = BACKOFF_MIN_S
        while True:
            began = loop.time()
            crash = await self._run_once(background)
            if crash is None:
                return
            if loop.time() - began > GOOD_AFTER_S:
                backoff_s = BACKOFF_MIN_S
            wait_s = backoff_s * random.uniform(0.8, 1.2)  # noqa: S311 - spreads restarts, protects nothing
            self._log.error(
                "background task crashed", task=background.name, again_in_s=round(wait_s, 1), exc_info=crash
            )
            await asyncio.sleep(wait_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _run_once(self, background: BackgroundTask) -> BaseException | None:
        """How it crashed; None if it is done. A `CancelledError` that nobody sent to us (some task that it awaited was
        cancelled) is a crash like any other; an exception while we end it is the last that it does."""
        background.running = True
        try:
            await background.run()
        except (Exception, asyncio.CancelledError) as error:  # supervised: counted, logged, started again
            if not self._ending():
                background.crashes += 1
                return error
            if isinstance(error, asyncio.CancelledError):
                raise
            background.crashes += 1
            self._log.error("background task failed while it was ended", task=background.name, exc_info=error)
        finally:
            background.running = False
        return None

    def _ending(self) -> bool:
        task = asyncio.current_task()
        return not self._open or (task is not None and task.cancelling() > 0)
