"""Those who watch changes: each has a bounded queue of its own, so a slow one loses (and is told), nobody else does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias, final

from flotta.realtime.presence.records import PresenceChange

__all__ = ["OnChange", "Watcher", "Watchers"]

QUEUE_MAX: Final = 10_000
"""Changes that wait for one watcher; then they are dropped, and it gets a gap instead."""

OnChange: TypeAlias = Callable[[PresenceChange], Awaitable[object] | None]


@final
class Watcher:
    """One queue. Iterate it once."""

    __slots__ = ("_changes", "_ended", "_wake")

    def __init__(self) -> None:
        self._changes: deque[PresenceChange] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, change: PresenceChange) -> None:
        """A change for this watcher."""
        if len(self._changes) >= QUEUE_MAX:
            self._changes.clear()
            change = PresenceChange("gap")
        elif change.kind == "gap" and self._changes and self._changes[-1].kind == "gap":
            return  # one look answers both
        self._changes.append(change)
        self._wake.set()

    def end(self) -> None:
        """Nothing comes any more; what waits is still given."""
        self._ended = True
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[PresenceChange]:
        while True:
            while self._changes:
                yield self._changes.popleft()
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()


@final
class Watchers:
    """Everybody who watches on this instance."""

    def __init__(self, logger: Any) -> None:
        self._log = logger
        self._watchers: set[Watcher] = set()
        self._handlers: list[OnChange] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> bool:
        """Somebody watches."""
        return bool(self._watchers or self._handlers)

    def add_handler(self, handler: OnChange) -> None:
        """Call it for every change."""
        self._handlers.append(handler)

    def open(self) -> Watcher:
        """A new queue."""
        watcher = Watcher()
        self._watchers.add(watcher)
        return watcher

    def close(self, watcher: Watcher) -> None:
        """Forget a queue."""
        self._watchers.discard(watcher)

    def tell(self, change: PresenceChange) -> None:
        """A change for all."""
        for watcher in self._watchers:
            watcher.put(change)

    def start(self) -> None:
        """Call the handlers from now on, one change after the other. Twice is once."""
        if self._task is None and self._handlers:
            watcher = self.open()
            self._task = asyncio.get_running_loop().create_task(self._call_handlers(watcher), name="presence watchers")

    async def aclose(self) -> None:
        """Call nobody any more, and let those who iterate come to their end. Idempotent."""
        for watcher in self._watchers:
            watcher.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _call_handlers(self, watcher: Watcher) -> None:
        async for change in watcher:
            for handler in list(self._handlers):
                try:
                    result = handler(change)
                    if result is not None:
                        await result
                except Exception:  # noqa: BLE001 - a user's handler may raise anything; logged, the others go on
                    self._log.exception("a presence handler failed", kind=change.kind)
