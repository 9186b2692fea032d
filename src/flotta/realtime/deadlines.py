"""Moments of the wall clock at which something ends: one heap and one timer, however many there are.

The wall clock is looked at again at least every `LOOK_S`, since it may be set: what is due then is due then.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import Final, final

__all__ = ["Deadlines"]

LOOK_S: Final = 5.0
SLACK: Final = 64
"""Forgotten entries that the heap may hold beside as many as there are valid ones."""


@final
class Deadlines:
    """Keys and when each is due (Unix seconds). ``on_due`` is called in the event loop, once for each."""

    __slots__ = ("_due_at", "_heap", "_loop", "_on_due", "_timer", "_timer_at")

    def __init__(self, on_due: Callable[[str], None]) -> None:
        self._on_due = on_due
        self._due_at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def put(self, key: str, due_at: float) -> None:
        """``key`` is due then; an earlier deadline of it is forgotten."""
        self._due_at[key] = due_at
        heapq.heappush(self._heap, (due_at, key))
        if len(self._heap) > 2 * len(self._due_at) + SLACK:
            self._heap = [(at, name) for name, at in self._due_at.items()]
            heapq.heapify(self._heap)
        self._set_timer()

    def drop(self, key: str) -> None:
        """Forget ``key``; unknown keys are fine."""
        if self._due_at.pop(key, None) is not None and not self._due_at:
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._due_at.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        first_at = self._heap[0][0]
        if self._timer is not None:
            if self._timer_at <= first_at:
                return
            self._timer.cancel()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        wait_s = min(max(first_at - time.time(), 0.0), LOOK_S)
        self._timer_at = first_at
        self._timer = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.time()
        try:
            while self._heap and self._heap[0][0] <= now:
                due_at, key = heapq.heappop(self._heap)
                if self._due_at.get(key) == due_at:
                    del self._due_at[key]
                    self._on_due(key)
        finally:  # an end that fails must not keep the others
            if self._heap:
                self._set_timer()

    def __len__(self) -> int:
        return len(self._due_at)
