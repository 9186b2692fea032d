"""What was sent since a position: from memory, and what is older than that from Redis, read once for all who ask."""

from __future__ import annotations

import asyncio
from typing import Final, final

from flotta.errors import WireError
from flotta.realtime.adapters import Broadcast
from flotta.realtime.adapters.cluster_wire import MessageType, read_broadcast, read_entry
from flotta.realtime.adapters.streams_wire import LOST, MARKER, Read, read_entries, read_facts
from flotta.realtime.recovery.history import History, Past
from flotta.realtime.recovery.plan import StreamFacts, is_complete
from flotta.realtime.recovery.session import Position
from flotta.redis import Redis
from flotta.streaming.event import format_id

__all__ = ["BROADCASTS", "Archive", "broadcast_of", "past_of"]

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


@final
class Archive:
    """Over a `History` that the reader feeds."""

    def __init__(self, redis: Redis, stream: str, history: History) -> None:
        self.history = history
        self._redis = redis
        self._stream = stream
        self._reading = asyncio.Lock()

    async def older(self, begin: Position) -> list[Past] | None:
        """The events after ``begin`` that `history` has no room for; the others are in there from now on. None: some
        of them are gone. Raises what `Link.call` raises."""
        if begin >= self.history.floor:
            return []
        async with self._reading:  # a thousand clients ask at once: the first reads, the others find
            return [] if begin >= self.history.floor else await self._read(begin)

    async def _read(self, begin: Position) -> list[Past] | None:
        found: list[Past] = []
        at = begin
        while at < self.history.floor:  # it may rise while we read
            floor = self.history.floor
            page = await self._page(at, floor)
            if any(read.entry.get(MARKER) == LOST for read in page):
                return None
            found += [past for read in page if (past := past_of(read)) is not None]
            at = page[-1].position if len(page) == PAGE else floor
            # Asked after the reading: whatever was trimmed meanwhile was trimmed from the front.
            if at == floor and not is_complete(begin, await self._facts()):
                return None
        taken = self.history.extend_back(found, begin)
        return found[: len(found) - taken]

    async def _facts(self) -> StreamFacts:
        return read_facts(await self._redis.link.call("XINFO", "STREAM", self._stream))

    async def _page(self, after: Position, until: Position) -> list[Read]:
        bounds = (f"({format_id(after)}", format_id(until))
        return read_entries(await self._redis.link.call("XRANGE", self._stream, *bounds, "COUNT", PAGE))
