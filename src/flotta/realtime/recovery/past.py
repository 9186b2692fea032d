"""What was sent since a position: from memory, and what is older than that from Redis, read once for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import final

from flotta.realtime.adapters.streams_wire import LOST, MARKER, Read, read_entries, read_facts
from flotta.realtime.recovery.history import History, Past
from flotta.realtime.recovery.plan import StreamFacts, is_complete
from flotta.realtime.recovery.session import Position
from flotta.redis import Redis
from flotta.streaming.event import format_id

__all__ = ["Archive"]

PAGE = 500
"""Entries per XRANGE."""


@final
class Archive:
    """Over a `History` that the reader feeds. ``parse`` makes an event of an entry; None if it is none for clients."""

    def __init__(self, redis: Redis, stream: str, history: History, parse: Callable[[Read], Past | None]) -> None:
        self.history = history
        self._redis = redis
        self._stream = stream
        self._parse = parse
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
            found += [past for read in page if (past := self._parse(read)) is not None]
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
