"""The signals that end a worker.

The first one asks it to drain, the second forces it. Under a supervisor a second SIGTERM is no order: the supervisor
forces with SIGKILL, and what comes twice is one order, which systemd (``KillMode=control-group``) or the warden of a
killed supervisor sends to every process. SIGINT is ignored there: the parent decides.

They are taken by `signal.signal`, not by the loop: a handler of the loop does not run while the loop is blocked, this
one does, and it starts a thread that ends the process when all else fails.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Self, final

__all__ = ["StopSignals", "StoppedEarly"]

OVERDUE_S: Final = 31.0


class StoppedEarly(BaseException):
    """Raised in the main thread by the first signal while there is no event loop yet. Not an `Exception`: an import
    that catches those must not swallow it."""


@final
class StopSignals:
    """A context manager: inside, SIGTERM and SIGINT are ours. ``on_overdue`` runs in a thread, ``overdue_s`` after the
    first signal, if the process is still there."""

    def __init__(self, *, supervised: bool, on_overdue: Callable[[], None]) -> None:
        self._supervised = supervised
        self._on_overdue = on_overdue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._timer: threading.Timer | None = None
        self.overdue_s = OVERDUE_S
        self.asked = False
        self.reason = ""
        self.stop = asyncio.Event()
        self.force = asyncio.Event()

    def __enter__(self) -> Self:
        self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._handle)
        interrupt = signal.SIG_IGN if self._supervised else self._handle
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From here on signals set `stop` and `force` in ``loop``."""
        self._loop = loop
        if self.asked:
            self.stop.set()

    def ask(self, reason: str) -> None:
        """Asks for the drain, as the first signal does. From any thread; asking again changes nothing."""
        if self.asked:
            return
        self.asked = True
        self.reason = reason
        self._timer = threading.Timer(self.overdue_s, self._on_overdue)
        self._timer.daemon = True
        self._timer.start()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop.set)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            if self._loop is not None and not self._supervised:
                self._loop.call_soon_threadsafe(self.force.set)
            return
        self.ask(signal.Signals(number).name)
        if self._loop is None:
            raise StoppedEarly
