"""The one reader of the stream in this process: every entry once, in order, each delivered before the next is read.

Invariants: `position` is a real id from `start` on (``$`` is asked for once, so nothing falls between two reads) and
moves over an entry in the tick in which that entry has been delivered; reads are repeated at will, because reading
changes nothing, so a lost connection or a restarted Redis costs time and no entry.

What a Redis has lost for good cannot be read: the reader notices (the entry that it read last is gone), says so, and
puts a mark into the stream, behind which no client may believe that it has everything. The mark says how far its writer
had read: a server that had read less knows that its own clients have missed what others have got. A reader that was
stopped or too slow notices in the same way that what it has not read was trimmed. It looks whenever that may be: after
an outage, an empty or a full read, or a pause.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any, final

from flotta.errors import Closed, CommandError, RedisError
from flotta.realtime.adapters.streams_wire import BEGIN, LOST, MARKER, READ, Entry, Read, read_entries, read_facts
from flotta.realtime.recovery.plan import StreamFacts
from flotta.realtime.recovery.session import Position
from flotta.redis import Link, Redis
from flotta.streaming.event import format_id, parse_id

__all__ = ["StreamReader"]

BLOCK_S = 5.0
RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
PAUSE_S = 1.0
"""Since the last read: long enough for the stream to be trimmed."""
SEQUENCE_MAX = 2**64 - 1
WAITING_SLACK = 1_024
DELIVERIES_PER_TICK = 5_000
"""Packets written for entries before other work of the event loop gets its turn."""


@final
class StreamReader:
    """Reads ``key``. ``take`` gets each entry, gives how many packets it has written; ``on_lost`` hears of losses:
    True if what is gone was not read here, and only here. A read of ``full`` entries may have been too late."""

    def __init__(
        self,
        redis: Redis,
        key: str,
        *,
        count: int,
        take: Callable[[Position, Entry], int],
        on_lost: Callable[[bool], None],
        full: int,
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
        self._full = full
        self._witness: Position = (0, 0)
        """The entry that is there as long as everything behind `position` is."""
        self._loss: tuple[Position, Position] = ((0, 0), (0, 0))
        """The loss that was noticed last: `position` before it, and its mark."""
        self._looked_s = 0.0
        self._log = logger
        self._link: Link = redis.dedicated("realtime-stream")
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[tuple[Position, int, asyncio.Future[None]]] = []
        """Who waits for a position, the lowest first (a heap): a crowd may wait while every entry is delivered."""
        self._numbers = itertools.count()
        self._reads_well = False

    @property
    def connected(self) -> bool:
        """Entries arrive."""
        return self._reads_well and self._link.connected

    async def start(self) -> None:
        """Find the stream's end and read on from there. Raises what `Link.call` raises."""
        self.position = self._witness = await self._find_end()
        self._reads_well = True
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"realtime stream {self._key}")

    async def aclose(self) -> None:
        """Stop reading. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for *_, waiting in self._waiting:
            waiting.cancel()
        self._waiting.clear()
        await self._link.aclose(drain_s=0.0)

    async def reached(self, position: Position) -> None:
        """Return when everything up to ``position`` has been delivered. You bound the time."""
        if self.position < position:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (position, next(self._numbers), waiting))
            count = len(self._waiting)
            if count >= WAITING_SLACK and not count & (count - 1):  # now and then, those that wait no longer
                self._waiting = [one for one in self._waiting if not one[-1].done()]
                heapq.heapify(self._waiting)
            await waiting

    def missed(self, read: Position) -> bool:
        """Whether a server that had come to ``read`` when it noticed a loss had got more than was read here before."""
        before, mark = self._loss
        return read > (before if read < mark else self.position)

    # --- the task ---

    async def _run(self) -> None:
        pause_s = 0.0
        while True:
            try:
                if not self._reads_well:
                    await self._check()
                    self._reads_well = True
                await self._read()
                pause_s = 0.0
            except RedisError as error:
                if self._reads_well:
                    self._log.warning("the stream cannot be read; trying again", stream=self._key, reason=str(error))
                self._reads_well = False
                pause_s = min(max(RETRY_MIN_S, 2 * pause_s), RETRY_MAX_S)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            except Closed:  # whoever gave the Redis has closed it first
                self._reads_well = False
                self._log.warning("the Redis was closed before the server", what="stream", stream=self._key)
                return
            except Exception:  # noqa: BLE001 - our bug, but the events of all others must go on
                self._log.exception("reading the stream failed", stream=self._key)
                await asyncio.sleep(RETRY_MAX_S)

    async def _read(self) -> None:
        command = ("XREAD", "COUNT", self._count, "BLOCK", round(BLOCK_S * 1000), "STREAMS", self._key)
        limit_s = BLOCK_S + self._redis.options.command_timeout_s
        reply = await self._link.call(*command, format_id(self.position), timeout_s=limit_s)
        entries = read_entries(next(iter(reply.values()))) if reply else []
        asked_s, self._looked_s = self._looked_s, asyncio.get_running_loop().time()
        surely_whole = 0 < len(entries) < self._full and self._looked_s - asked_s < PAUSE_S
        if surely_whole or await self._check():
            await self._deliver(entries)

    async def _deliver(self, entries: Iterable[Read]) -> None:
        written = 0
        for position, entry in entries:
            written += self._hand_over(position, entry)
            self.position = self._witness = position
            while self._waiting and self._waiting[0][0] <= position:
                *_, waiting = heapq.heappop(self._waiting)
                if not waiting.done():
                    waiting.set_result(None)
            if written >= DELIVERIES_PER_TICK:
                written = 0
                await asyncio.sleep(0)

    def _hand_over(self, position: Position, entry: Entry) -> int:
        try:
            return self._take(position, entry)
        except Exception:  # noqa: BLE001 - one entry that cannot be delivered must not stop the others
            self._log.exception("an entry of the stream failed", stream=self._key, entry=format_id(position))
            return 0

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
        return facts.last if facts is not None and await self._is_there(facts.last) else await self._mark(BEGIN)

    async def _is_there(self, position: Position) -> bool:
        at = format_id(position)
        return bool(await self._redis.link.call("XRANGE", self._key, at, at, "COUNT", 1))

    async def _mark(self, *fields: bytes | str, at: Position | None = None) -> Position:
        place = "*" if at is None else format_id(at)
        return parse_id(await self._redis.link.call("XADD", self._key, place, MARKER, *fields))

    async def _check(self) -> bool:
        """Whether everything behind `position` is still there. Entries go at the front, by trimming, and at the end,
        when Redis loses some: so nothing is missing if the entry that was read last is there."""
        if await self._is_there(self._witness):
            return True
        facts = await self.facts()
        first = None if facts is None else facts.first
        # A stream that is whole is another one: Redis came back without the old, and somebody was quicker to write.
        cut = facts is not None and first is not None and first > self.position and not facts.whole
        before = self.position
        if cut:
            assert first is not None
            self._witness, self.position = first, _before(first)
        else:
            self._witness = await self._find_mark(facts)  # fails while Redis refuses it: then all this comes again
            self._loss = self.position, self._witness
        self.gaps += 1
        self._log.error(
            "events were trimmed before they were read: clients here begin anew"
            if cut
            else "Redis has lost events of the stream: clients that come back begin anew",
            stream=self._key,
            position=format_id(before),
            first=None if first is None else format_id(first),
            end=None if facts is None else format_id(facts.last),
        )
        self._on_lost(cut)
        return False

    async def _find_mark(self, facts: StreamFacts | None) -> Position:
        """The mark of a loss: that of a new stream, if it was made by one who had read no less, or one of our own. Ids
        go on behind all that were ever read, even if the clock does not: none may come twice."""
        first, told = (None, None) if facts is None else (facts.first, facts.told)
        if first is not None and told is not None and first > self.position and told >= self.position:
            return first
        seconds, microseconds = await self._redis.link.call("TIME")
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        comes_behind = now_ms > self.position[0] or (facts is not None and facts.last >= self.position)
        at = None if comes_behind else _after(self.position)
        return await self._mark(LOST, READ, format_id(self.position), at=at)


def _before(position: Position) -> Position:
    ms, sequence = position
    return (ms, sequence - 1) if sequence else (ms - 1, SEQUENCE_MAX)


def _after(position: Position) -> Position:
    return position[0], position[1] + 1
