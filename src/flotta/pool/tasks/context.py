"""What a running task can know and say about itself.

Invariant: a context belongs to one run; what it writes is refused once another run, here or elsewhere, owns the task.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, final

import msgspec

from flotta.errors import ConfigError, Fenced, StateError
from flotta.pool.options import is_number
from flotta.pool.tasks.records import Progress

__all__ = ["RetryTask", "TaskContext"]

_PROGRESS_WAIT_S: Final = 30.0
_AFTER_S_MAX: Final = 10 * 366 * 24 * 3600.0


@final
class RetryTask(Exception):
    """Raise it in a task to run it again: after ``after_s`` seconds, or after the pause of its ``Retry``.

    It uses up a retry (of 3 if the task has no ``Retry``), whatever the types of ``Retry.on``. Raises ``ConfigError``
    for an ``after_s`` that makes no sense.
    """

    def __init__(self, after_s: float | None = None, reason: str = "asked for") -> None:
        if after_s is not None and not (is_number(after_s) and 0 <= after_s <= _AFTER_S_MAX):
            allowed = f"seconds from 0 to {_AFTER_S_MAX:.0f}, or None"
            raise ConfigError("after_s", after_s, allowed, source="RetryTask")
        self.after_s = after_s
        super().__init__(reason)


@final
class TaskContext:
    """This run of this task: a parameter annotated ``TaskContext`` gets it, and so does ``TaskContext.current()``."""

    __slots__ = ("_loop", "_report", "attempt", "cancelled", "fence", "headers", "id", "name", "pool", "worker")

    def __init__(
        self,
        *,
        pool: str,
        worker: str,
        id: str,  # noqa: A002 - it is its id
        name: str,
        attempt: int,
        fence: int,
        headers: Mapping[str, str],
        loop: asyncio.AbstractEventLoop,
        report: Callable[[bytes], Awaitable[int]],
    ) -> None:
        self.pool = pool
        self.worker = worker
        self.id = id
        self.name = name
        self.attempt = attempt
        """1 for the first run; one more for each run that failed or lost its worker."""
        self.fence = fence
        """The fencing token of this run: higher than that of every run before it."""
        self.headers = headers
        """What the hooks of ``on_enqueue`` sent along."""
        self.cancelled = False
        """The task should end: it was cancelled, its time is over, or its worker stops. A function in a thread looks
        here; an ``async`` function is cancelled anyway."""
        self._report = report
        self._loop = loop

    @staticmethod
    def current() -> TaskContext:
        """The context of the task that runs here, also in its thread. Raises ``StateError`` outside of one."""
        make = CURRENT.get(None)
        if make is None:
            raise StateError("TaskContext", "no task runs here")
        return make()

    async def progress(self, fraction: float, text: str = "") -> None:
        """Let everybody see how far the task is (0 to 1). Raises ``Fenced`` if it is not this run's any more,
        ``ConfigError`` for a fraction that is no number, and what ``Link.call`` raises. Cancelling: it may have been
        said."""
        if not is_number(fraction):
            raise ConfigError("fraction", fraction, "a finite number", source="progress")
        answer = await self._report(msgspec.msgpack.encode(Progress(fraction, text)))
        if answer == 0:
            raise Fenced(self.pool, self.id, self.fence)
        if answer == 2:
            self.cancelled = True

    def progress_from_thread(self, fraction: float, text: str = "") -> None:
        """The same for a function that runs in a thread. Raises ``StateError`` in the event loop's own thread, and
        ``TimeoutError`` after 30 s."""
        if _running_loop() is self._loop:
            raise StateError("TaskContext", "progress_from_thread would wait for itself here: await progress(...)")
        asyncio.run_coroutine_threadsafe(self.progress(fraction, text), self._loop).result(_PROGRESS_WAIT_S)


CURRENT: Final[contextvars.ContextVar[Callable[[], TaskContext]]] = contextvars.ContextVar("flotta-task")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
