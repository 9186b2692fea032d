"""The newest events of the stream in memory, without a hole, for all clients of this process that come back. Pure.

Invariant: every event with ``floor < position <= head`` is here, in order. Bounded by count and by bytes: what passes
that goes at the old end and `floor` rises.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from sys import intern
from typing import Any, final

from flotta.realtime.adapters import Broadcast
from flotta.realtime.recovery.session import Position

__all__ = ["History", "Past"]

_SLACK = 8


@final
class Past:
    """One event of the stream, as its entry has it. ``broadcast`` and ``packet`` are for whoever needs them first: most
    events are never needed again."""

    __slots__ = ("broadcast", "data", "namespace", "packet", "position")

    def __init__(self, position: Position, namespace: str, data: bytes) -> None:
        self.position = position
        self.namespace = intern(namespace)
        self.data = data
        self.broadcast: Broadcast | None = None
        self.packet: Any = None

    @property
    def size_bytes(self) -> int:
        """About what it holds."""
        return len(self.data)


def _position(past: Past) -> Position:
    return past.position


@final
class History:
    """See the module."""

    __slots__ = ("_bytes", "_bytes_max", "_count_max", "_events", "_in_use", "floor", "head")

    def __init__(self, floor: Position, *, count_max: int, bytes_max: int) -> None:
        self.floor = floor
        self.head = floor
        self._events: list[Past] = []
        self._bytes = 0
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._in_use = False

    def move(self, position: Position) -> None:
        """The reader has come to ``position``, which is no event for clients."""
        self.head = position

    def append(self, past: Past) -> None:
        """The reader has delivered an event."""
        self._events.append(past)
        self._bytes += past.size_bytes
        self.head = past.position
        if len(self._events) > self._count_max or self._bytes > self._bytes_max:
            self._shed()

    def _shed(self) -> None:
        """Drop an eighth at once: cutting a list at its front costs its length."""
        target_count = self._count_max - self._count_max // _SLACK
        target_bytes = self._bytes_max - self._bytes_max // _SLACK
        cut = 0
        while cut < len(self._events) and (len(self._events) - cut > target_count or self._bytes > target_bytes):
            self._bytes -= self._events[cut].size_bytes
            cut += 1
        if cut:
            self.floor = self._events[cut - 1].position
            del self._events[:cut]

    def extend_back(self, events: Sequence[Past], floor: Position) -> int:
        """Take events older than `floor`, which were read with nothing left out after ``floor``. How many found room:
        the newest of them."""
        room, taken, size_bytes = self._count_max - len(self._events), 0, self._bytes
        for past in reversed(events):
            if taken >= room or size_bytes + past.size_bytes > self._bytes_max:
                break
            size_bytes += past.size_bytes
            taken += 1
        self._events[:0] = events[len(events) - taken :]
        self._bytes = size_bytes
        if taken == len(events):
            self.floor = floor
        elif taken:
            self.floor = events[len(events) - taken - 1].position
        return taken

    def restart(self, floor: Position) -> None:
        """Begin anew: the stream is another one."""
        self._events.clear()
        self._bytes = 0
        self.floor = self.head = floor

    def after(self, position: Position) -> list[Past]:
        """Every event behind ``position``, which must not be below `floor`."""
        assert position >= self.floor, "asked for what is not here"
        self._in_use = True
        return self._events[bisect_right(self._events, position, key=_position) :]

    def rest(self) -> None:
        """Forget what was made of the events for clients that came back: it is much larger than they are."""
        if self._in_use:
            self._in_use = False
            for past in self._events:
                past.broadcast = past.packet = None

    def __len__(self) -> int:
        return len(self._events)
