"""What the users of a map wait for: coarse events, the value of one key, their own write coming back.

Owns the folding. Invariants: each subscriber holds at most one event that it has not taken, whatever the number of
writes; a watcher holds none, it compares the value now with the one it gave last. Both are known to the map by weak
reference only: an iterator that nobody holds any more is gone, so subscribing in a loop leaks nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar, final

from flotta.rmap.wire import EventKind

__all__ = ["Board", "Events", "MapEvent", "Waiters", "Watch"]

V = TypeVar("V")


@final
@dataclass(frozen=True, slots=True)
class MapEvent:
    """That the map has changed. ``kind`` is the strongest of the ``count`` writes that folded into it, ``revision`` the
    map's when it was made. After a reload ``count`` is 1 however many writes were missed. Read the map for what is now.
    """

    kind: EventKind
    revision: int
    count: int


class _Bell:
    """Rings one waiting task; rung while nobody waits, it is remembered. Closed, it never blocks again."""

    __slots__ = ("__weakref__", "_rung", "_waiter", "closed")

    def __init__(self) -> None:
        self.closed = False
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        self.closed = True
        self.ring()

    async def wait(self) -> None:
        """Until rung since the last wait. One task at a time."""
        if self._waiter is not None:
            raise RuntimeError("two tasks wait on one iterator: give each its own")
        if not self._rung and not self.closed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._rung = False


@final
class Events(_Bell):
    """The events of a map, as an asynchronous iterator for one task. It ends when the map or it is closed.

    Cancelling ``anext`` loses nothing.
    """

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        super().__init__()
        self._pending: MapEvent | None = None

    def put(self, event: MapEvent) -> None:
        """Fold ``event`` into the one that waits."""
        old = self._pending
        if old is not None:
            event = MapEvent(max(old.kind, event.kind), event.revision, old.count + event.count)
        self._pending = event
        self.ring()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MapEvent:
        while self._pending is None:
            if self.closed:
                raise StopAsyncIteration
            await self.wait()
        event, self._pending = self._pending, None
        return event

    async def aclose(self) -> None:
        """End it. Events not taken yet are forgotten. Calling it again is harmless."""
        self._pending = None
        self.close()


@final
class Watch(_Bell, Generic[V]):
    """The values of one key, as an asynchronous iterator for one task: first the present one, then each that differs.

    None stands for no value. Values that are overwritten before they are taken are skipped. Cancelling ``anext`` loses
    nothing. A value that the codec cannot read raises WireError; the iterator goes on after it.
    """

    __slots__ = ("_decode", "_last", "_read")

    def __init__(self, read: Callable[[], bytes | None], decode: Callable[[bytes], V]) -> None:
        super().__init__()
        self._read = read
        self._decode = decode
        self._last: bytes | _Nothing | None = _NOTHING

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> V | None:
        while not self.closed:
            raw = self._read()
            if raw != self._last:
                self._last = raw
                return None if raw is None else self._decode(raw)
            await self.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it. Calling it again is harmless."""
        self.close()


class _Nothing:
    """Before the first value: differs from every value and from no value."""

    __slots__ = ()


_NOTHING = _Nothing()


@final
class Board(Generic[V]):
    """Who is told of the changes of one map.

    Changes of one turn of the loop are folded before anyone is told, so a burst costs one wake-up per subscriber.
    """

    __slots__ = ("_count", "_kind", "_revision", "_subscribers", "_watches")

    def __init__(self) -> None:
        self._subscribers: weakref.WeakSet[Events] = weakref.WeakSet()
        self._watches: dict[str, weakref.WeakSet[Watch[V]]] = {}
        self._kind = EventKind.CHANGE
        self._revision = 0
        self._count = 0

    def subscribe(self) -> Events:
        """A new subscriber: it hears of what is applied from now on."""
        self._tell()
        events = Events()
        self._subscribers.add(events)
        return events

    def watch(self, key: str, watch: Watch[V]) -> Watch[V]:
        """A new watcher of ``key``."""
        for gone in [other for other, watches in self._watches.items() if not watches]:
            del self._watches[gone]
        self._watches.setdefault(key, weakref.WeakSet()).add(watch)
        return watch

    def note(self, kind: EventKind, revision: int, key: str) -> None:
        """A change was applied, to ``key`` or ("") to any number of keys."""
        if self._count == 0:
            asyncio.get_running_loop().call_soon(self._tell)
            self._kind = kind
        elif kind > self._kind:
            self._kind = kind
        self._count += 1
        self._revision = revision
        if self._watches:
            self._ring(key)

    def note_sets(self, revision: int, keys: list[str]) -> None:
        """Several sets were applied, the last one with ``revision``."""
        self.note(EventKind.CHANGE, revision, keys[0])
        self._count += len(keys) - 1
        if self._watches:
            for key in keys[1:]:
                self._ring(key)

    def _ring(self, key: str) -> None:
        for watches in [self._watches.get(key, ())] if key else list(self._watches.values()):
            for watch in list(watches):
                watch.ring()

    def _tell(self) -> None:
        if self._count == 0:
            return  # a new subscriber had the others told already
        event = MapEvent(self._kind, self._revision, self._count)
        self._count = 0
        for events in list(self._subscribers):
            if not events.closed:
                events.put(event)

    def close(self) -> None:
        """Every iterator ends, after the event that it still holds."""
        for events in list(self._subscribers):
            events.close()
        for watches in self._watches.values():
            for watch in list(watches):
                watch.close()


@final
class Waiters:
    """Writers that wait until the local copy holds their own write."""

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def add(self, revision: int, load: int) -> asyncio.Future[None]:
        """A future that is done once ``revision`` is here; ``load`` is the number of the last load that began."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heap, (revision, next(self._order), load, future))
        return future

    def reach(self, revision: int) -> None:
        """The local copy is at ``revision``."""
        while self._heap and self._heap[0][0] <= revision:
            _settle(heapq.heappop(self._heap)[3])

    def loaded(self, load: int) -> None:
        """Load number ``load`` is installed: it began after every waiter with a lower number had its write answered, so
        the write is in it, or was lost by the server and will never come."""
        for waiter in self._heap:
            if waiter[2] < load:
                _settle(waiter[3])
        self._heap = [waiter for waiter in self._heap if not waiter[3].done()]
        heapq.heapify(self._heap)

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        for waiter in self._heap:
            if not waiter[3].done():
                waiter[3].set_exception(error)
        self._heap.clear()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
