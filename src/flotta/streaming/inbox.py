"""The bounded buffer between the task that reads from Redis and the program that handles events.

Invariants: an event leaves the buffer only in the very step that returns it to the program, so a cancelled wait takes
nothing with it; the reading task is held back while the buffer has less than half its room (back-pressure); after a
failure or an end the events already there still come out first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Generic, TypeVar, final

from flotta.streaming.event import Event

__all__ = ["Inbox"]

E = TypeVar("E")

_STREAK_MAX: Final = 64  # events handed out without a turn of the loop, so that acks leave and others run


@final
class Inbox(Generic[E]):
    """At most ``limit`` events. One task puts, any number take."""

    __slots__ = ("_arrived", "_error", "_events", "_low", "_open", "_room", "_streak", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._events: deque[Event[E]] = deque()
        self._low = limit // 2
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._streak = 0
        self._open = True
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._events)

    @property
    def room(self) -> int:
        """How many more events fit."""
        return self.limit - len(self._events)

    def put(self, events: Iterable[Event[E]]) -> None:
        """Append ``events`` (the caller has asked for no more than there is room)."""
        self._events.extend(events)
        if self._events:
            self._arrived.set()
        if len(self._events) > self._low:
            self._room.clear()

    def put_back(self, events: Sequence[Event[E]]) -> None:
        """Put ``events``, taken a moment ago, in front again."""
        self._events.extendleft(reversed(events))
        if self._events:
            self._arrived.set()
        if len(self._events) > self._low:
            self._room.clear()

    async def has_room(self) -> None:
        """Return when at least half of the buffer is free. Cancelling is harmless."""
        await self._room.wait()

    def waiting(self) -> list[Event[E]]:
        """What nobody has been given yet, the oldest first."""
        return list(self._events)

    def discard(self, unwanted: set[tuple[str, str]]) -> int:
        """Take out the events whose (stream, id) is in ``unwanted``; gives their number."""
        kept = [event for event in self._events if (event.stream, event.id) not in unwanted]
        gone = len(self._events) - len(kept)
        self._events = deque(kept)
        self._after_take()
        return gone

    def end(self, error: BaseException | None = None) -> None:
        """No more events come; takers get ``error``, or the end, once the buffer is empty. The first end counts."""
        if self._open:
            self._open = False
            self._error = error
            self._arrived.set()

    def clear(self) -> list[Event[E]]:
        """Take out everything that nobody has been given."""
        left = list(self._events)
        self._events.clear()
        self._after_take()
        return left

    async def get(self) -> Event[E] | None:
        """The next event; None after the end. Raises the error given to ``end``. Cancelling loses nothing."""
        if self._events:
            self._streak += 1
            if self._streak >= _STREAK_MAX:
                self._streak = 0
                await asyncio.sleep(0)
        while not self._events:
            if not self._open:
                self._raise_error()
                return None
            self._streak = 0
            await self._arrived.wait()
        event = self._events.popleft()
        self._after_take()
        return event

    async def batch(self, max_events: int, wait_s: float) -> list[Event[E]]:
        """1 to ``max_events`` events: waits for the first as long as it takes, then up to ``wait_s`` for more.

        Empty only after the end. Raises the error given to ``end``. Cancelling loses nothing.
        """
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        deadline_s: float | None = None
        enough = min(max_events, self.limit - self._low)  # beyond that the reading task is held back
        while self._open and len(self._events) < enough:
            if self._events:
                if deadline_s is None:
                    deadline_s = loop.time() + wait_s
                if not await self._arrives_before(deadline_s):
                    if self._events:
                        break
                    deadline_s = None  # another taker was quicker: wait for a first one again
            else:
                await self._arrived.wait()
        if not self._events:
            self._raise_error()
        taken = [self._events.popleft() for _ in range(min(max_events, len(self._events)))]
        self._after_take()
        return taken

    async def _arrives_before(self, deadline_s: float) -> bool:
        self._arrived.clear()
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        finally:
            if self._events or not self._open:
                self._arrived.set()
        return True

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _after_take(self) -> None:
        if not self._events and self._open:
            self._arrived.clear()
        if len(self._events) <= self._low:
            self._room.set()
