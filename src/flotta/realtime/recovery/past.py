"""What was sent since a position: from memory, and what is older than that from Redis, read once for all who ask."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from typing import Final, NamedTuple, final

from flotta.errors import WireError
from flotta.realtime.adapters import Broadcast
from flotta.realtime.adapters.cluster_wire import MessageType, read_broadcast, read_entry
from flotta.realtime.adapters.streams_wire import LOST, MARKER, Read, read_entries, read_facts
from flotta.realtime.recovery.history import History, Past
from flotta.realtime.recovery.plan import StreamFacts, is_complete
from flotta.realtime.recovery.session import Position
from flotta.redis import Redis
from flotta.streaming.event import format_id

__all__ = ["BROADCASTS", "Archive", "Older", "broadcast_of", "past_of"]

BROADCASTS: Final = frozenset({MessageType.BROADCAST, MessageType.FILTERED})
PAGE = 500
"""Entries per XRANGE."""


def past_of(read: Read) -> Past | None:
    """The event of an entry; None: it is none that clients could have missed."""
    try:
        message = read_entry(read.entry)
        if message.type not in BROADCASTS or message.data.get("requestId") is not None:
            return None
        if read_broadcast(message).volatile:
            return None
    except WireError:  # a marker, or junk that was counted when it was delivered
        return None
    return Past(read.position, message.namespace, read.entry[b"data"])


def broadcast_of(past: Past) -> Broadcast:
    """What the event says. Raises WireError for an entry that `past_of` has not seen."""
    if past.broadcast is None:
        kind = b"%d" % MessageType.BROADCAST
        entry = {b"uid": b"", b"nsp": past.namespace.encode(), b"type": kind, b"data": past.data}
        past.broadcast = read_broadcast(read_entry(entry))
    return past.broadcast


class Older(NamedTuple):
    """All events behind a position, up to another."""

    events: list[Past]
    upto: Position


class _Found(NamedTuple):
    """What one reading has brought."""

    events: list[Past]
    upto: Position
    lost: Position | None
    """Before this, entries may be missing."""
    facts: StreamFacts

    def whole_after(self, begin: Position) -> Position | None:
        """The least position from ``begin`` on behind which nothing is missing; None: there is none."""
        if not is_complete(begin, self.facts):
            if self.facts.first is None or self.facts.first < begin:
                return None
            begin = self.facts.first
        return begin if self.lost is None else max(begin, self.lost)

    def after(self, begin: Position) -> Older | None:
        """What one client gets; None: not all that it needs."""
        if self.whole_after(begin) != begin:
            return None
        return Older(self.events[bisect_right(self.events, begin, key=_position) :], self.upto)


@final
class _Turn:
    """One reading, for all that ask before it begins."""

    __slots__ = ("begin", "found")

    def __init__(self, begin: Position) -> None:
        self.begin = begin
        self.found: _Found | None = None


def _position(past: Past) -> Position:
    return past.position


@final
class Archive:
    """Over a `History` that the reader feeds."""

    def __init__(self, redis: Redis, stream: str, history: History) -> None:
        self.history = history
        self._redis = redis
        self._stream = stream
        self._reading = asyncio.Lock()
        self._next: _Turn | None = None

    async def older(self, begin: Position) -> Older | None:
        """The events after ``begin`` that `history` does not have, as far as they were read; it may have taken some of
        them, and have dropped others meanwhile. None: some of them are gone. Raises what `Link.call` raises.

        Of a thousand clients that ask at once the first reads for itself, and the next one for all others.
        """
        turn = self._next
        if turn is None:
            turn = self._next = _Turn(begin)
        turn.begin = min(turn.begin, begin)
        async with self._reading:
            if turn.found is None and begin >= self.history.floor:
                return Older([], begin)
            if turn.found is None:
                if self._next is turn:
                    self._next = None
                turn.found = await self._read(turn.begin)
        return turn.found.after(begin)

    async def _read(self, begin: Position) -> _Found:
        found: list[Past] = []
        at, lost = begin, None
        while at < self.history.floor:  # it may rise while we read
            floor = self.history.floor
            page = await self._page(at, floor)
            for read in page:
                if read.entry.get(MARKER) == LOST:
                    lost = read.position
                elif (past := past_of(read)) is not None:
                    found.append(past)
            at = page[-1].position if len(page) == PAGE else floor
        # Asked after the reading: whatever was trimmed meanwhile was trimmed from the front.
        result = _Found(found, at, lost, await self._facts())
        whole = result.whole_after(begin)
        if whole is not None and at == self.history.floor and whole < at:
            self.history.extend_back(found[bisect_right(found, whole, key=_position) :], whole)
        return result

    async def _facts(self) -> StreamFacts:
        return read_facts(await self._redis.link.call("XINFO", "STREAM", self._stream))

    async def _page(self, after: Position, until: Position) -> list[Read]:
        bounds = (f"({format_id(after)}", format_id(until))
        return read_entries(await self._redis.link.call("XRANGE", self._stream, *bounds, "COUNT", PAGE))
