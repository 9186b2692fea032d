"""Watches that the event loop turns.

The loop leaves a mark ten times a second; how late each mark is, is the lag. A thread looks at the marks, since a
blocked loop cannot report itself, and logs once per blockage where the loop's thread stands while it is still there.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from typing import Any, Final, final

__all__ = ["LoopWatchdog", "stack_of"]

BEAT_S: Final = 0.1
STACK_FRAMES_MAX: Final = 12


@final
class LoopWatchdog:
    """Measures the loop's lag. ``warn_s`` None: measure, but start no thread and log nothing."""

    def __init__(self, warn_s: float | None, log: Any) -> None:
        self._warn_s = warn_s
        self._log = log
        self._handle: asyncio.TimerHandle | None = None
        self._closed = threading.Event()
        self._beat = 0.0
        self._loop_thread = 0
        self.lag_s = 0.0
        """How late the last mark was."""
        self.lag_max_s = 0.0
        """The worst since the last `take_lag_max`."""
        self.blocked_total = 0

    def start(self) -> None:
        """Begins, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._beat = time.monotonic()
        self._handle = self._loop.call_later(BEAT_S, self._mark)
        if self._warn_s is not None:
            threading.Thread(target=self._watch, args=(self._warn_s,), name="loop watchdog", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        if self._handle is not None:
            self._handle.cancel()

    def take_lag_max(self) -> float:
        """The worst lag since the last call, in seconds."""
        worst, self.lag_max_s = self.lag_max_s, 0.0
        return worst

    def _mark(self) -> None:
        now = time.monotonic()
        self.lag_s = max(now - self._beat - BEAT_S, 0.0)
        self.lag_max_s = max(self.lag_max_s, self.lag_s)
        self._beat = now
        self._handle = self._loop.call_later(BEAT_S, self._mark)

    def _watch(self, warn_s: float) -> None:
        told = 0.0
        while not self._closed.wait(min(warn_s / 4, 1.0)):
            beat = self._beat
            late_s = time.monotonic() - beat - BEAT_S
            if late_s > warn_s and beat != told:
                told = beat
                self.blocked_total += 1
                self._log.warning("event loop blocked", blocked_s=round(late_s, 3), where=stack_of(self._loop_thread))


def stack_of(thread_id: int | None) -> str:
    """The innermost frames of a thread, the last call last."""
    frame = None if thread_id is None else sys._current_frames().get(thread_id)  # noqa: SLF001 - the only way
    if frame is None:
        return "the thread has ended"
    return "".join(traceback.format_stack(frame)[-STACK_FRAMES_MAX:]).rstrip()
