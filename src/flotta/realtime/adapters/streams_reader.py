"""The one reader of the stream in this process: every entry once, in order, each delivered before the next is read.

Invariants: `position` is a real id from `start` on (``$`` is asked for once, so nothing falls between two reads) and
moves over an entry in the tick in which that entry has been delivered; reads are repeated at will, because reading
changes nothing, so a lost connection or a restarted Redis costs time and no entry.

What a Redis has lost for good cannot be read: the reader notices (the stream is gone, or ends before `position`), says
so, and puts a mark into the stream, behind which no client may believe that it has everything.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, final

from flotta.errors import CommandError, RedisError
from flotta.realtime.adapters.streams_wire import BEGIN, LOST, MARKER, Entry, Read, read_entries, read_facts
from flotta.realtime.recovery.plan import StreamFacts
from flotta.realtime.recovery.session import Position
from flotta.redis import Link, Redis
from flotta.streaming.event import format_id, parse_id

__all__ = ["StreamReader"]

BLOCK_S = 5.0
RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
DELIVERIES_PER_TICK = 5_000
"""Packets written for entries before other work of the event loop gets its turn."""


@final
class StreamReader:
    """Reads ``key``. ``take`` gets each entry, gives how many packets it has written; ``on_lost`` hears of losses."""

    def __init__(
        self,
        redis: Redis,
        key: str,
        *,
        count: int,
        take: Callable[[Position, Entry], int],
        on_lost: Callable[[Position], None],
        logger: Any,
    ) -> None:
        self.position: Position = (0, 0)
        self.gaps = 0
        """Times that Redis had lost entries."""
        self._redis = redis
        self._key = key
        self._count = count
        self._take = take
        self._on_lost = on_lost
        self._log = logger
        self._link: Link = redis.dedicated("realtime-stream")
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[tuple[Position, asyncio.Future[None]]] = []
        self._reads_well = False

    @property
    def connected(self) -> bool:
        """Entries arrive."""
        return self._reads_well and self._link.connected

    async def start(self) -> None:
        """Find the stream's end and read on from there. Raises what `Link.call` raises."""
        self.position = await self._find_end()
        self._reads_well = True
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"realtime stream {self._key}")

    async def aclose(self) -> None:
        """Stop reading. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for _, waiting in self._waiting:
            waiting.cancel()
        self._waiting.clear()
        await self._link.aclose(drain_s=0.0)

    async def reached(self, position: Position) -> None:
        """Return when everything up to ``position`` has been delivered. You bound the time."""
        if self.position < position:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((position, waiting))
            await waiting

    # --- the task ---

    async def _run(self) -> None:
        pause_s = 0.0
        while True:
            try:
                if not self._reads_well:
                    await self._check()
                await self._read()
                pause_s = 0.0
            except RedisError as error:
                if self._reads_well:
                    self._log.warning("the stream cannot be read; trying again", stream=self._key, reason=str(error))
                self._reads_well = False
                pause_s = min(max(RETRY_MIN_S, 2 * pause_s), RETRY_MAX_S)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            except Exception:  # noqa: BLE001 - our bug, but the events of all others must go on
                self._log.exception("reading the stream failed", stream=self._key)
                await asyncio.sleep(RETRY_MAX_S)

    async def _read(self) -> None:
        command = ("XREAD", "COUNT", self._count, "BLOCK", round(BLOCK_S * 1000), "STREAMS", self._key)
        limit_s = BLOCK_S + self._redis.options.command_timeout_s
        reply = await self._link.call(*command, format_id(self.position), timeout_s=limit_s)
        if reply:
            await self._deliver(read_entries(next(iter(reply.values()))))

    async def _deliver(self, entries: Iterable[Read]) -> None:
        written = 0
        for position, entry in entries:
            written += self._hand_over(position, entry)
            self.position = position
            if self._waiting:
                self._wake()
            if written >= DELIVERIES_PER_TICK:
                written = 0
                await asyncio.sleep(0)

    def _hand_over(self, position: Position, entry: Entry) -> int:
        try:
            return self._take(position, entry)
        except Exception:  # noqa: BLE001 - one entry that cannot be delivered must not stop the others
            self._log.exception("an entry of the stream failed", stream=self._key, entry=format_id(position))
            return 0

    def _wake(self) -> None:
        still = []
        for position, waiting in self._waiting:
            if waiting.done():
                continue
            if position <= self.position:
                waiting.set_result(None)
            else:
                still.append((position, waiting))
        self._waiting = still

    # --- the end of the stream, and its loss ---

    async def facts(self) -> StreamFacts | None:
        """What Redis says of the stream; None: there is none. Raises what `Link.call` raises."""
        try:
            return read_facts(await self._redis.link.call("XINFO", "STREAM", self._key))
        except CommandError as error:
            if "no such key" in str(error):
                return None
            raise

    async def _find_end(self) -> Position:
        facts = await self.facts()
        return await self._mark(BEGIN) if facts is None else facts.last

    async def _mark(self, what: bytes) -> Position:
        return parse_id(await self._redis.link.call("XADD", self._key, "*", MARKER, what))

    async def _check(self) -> None:
        """The connection was lost: has Redis lost entries too?"""
        facts = await self.facts()
        if facts is None or facts.last < self.position:
            self.gaps += 1
            self._log.error(
                "Redis has lost events of the stream: clients that come back begin anew",
                stream=self._key,
                position=format_id(self.position),
                end=None if facts is None else format_id(facts.last),
            )
            position = await self._mark(LOST)
            # What others have added since is read; what is left from before the loss was delivered then.
            self.position = position if facts is None or facts.last > position else facts.last
            self._on_lost(position)
        self._reads_well = True
