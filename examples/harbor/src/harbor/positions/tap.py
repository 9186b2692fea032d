"""The tap: each instance reads the stream of positions once, and hands each vessel's fixes to whoever follows it.

A job that watches a vessel needs its fixes in order, and after a takeover from where the last one stopped. So a
follower begins at an event of the stream: what lies between that event and the tap is read again, once for all who
ask at the same time; from there on the tap brings it. Invariants: a follower gets every fix of its vessel from the
events after the one it began at, in the order of the stream, each once; it never holds more than `WAITING_MAX` of
them: one that cannot keep up is put back to the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, final

from flotta.streaming import Event, Reader, Stream
from harbor.positions.fix import Fix, fixes_from_wire

__all__ = ["Again", "Follower", "Place", "Tap", "place_of"]

BATCH_EVENTS_MAX = 200
WAITING_MAX = 1_000
AGAIN_S = 2.0
"""When reading again brings nothing for so long, there is nothing more: all of it was there before."""

Place = tuple[int, int]
"""An event's place in the stream: the parts of its id."""


def place_of(event_id: str) -> Place:
    """``"1700000000000-3"`` as numbers, which order as the events do."""
    ms, _, number = event_id.partition("-")
    return int(ms), int(number)


@final
class Tap:
    """One per instance; `run` in the background."""

    def __init__(self, stream: Stream[Any]) -> None:
        self._stream = stream
        self._followers: dict[str, set[Follower]] = {}
        self._begun = asyncio.Event()
        self.again = Again(stream)
        self.place: Place | None = None
        """The last event that was handed out here; None until the tap runs."""

    async def run(self) -> None:
        """Reads for ever; after a crash it goes on where it was."""
        start = "new" if self.place is None else f"{self.place[0]}-{self.place[1]}"
        async with self._stream.reader(start=start) as reader:
            if self.place is None:
                self.place = place_of(next(iter(reader.cursors.values())))
            self._begun.set()
            while True:
                for event in await reader.batch(max=BATCH_EVENTS_MAX):
                    self._hand_out(event)

    @asynccontextmanager
    async def following(self, device: str, *, after: Place) -> AsyncIterator[Follower]:
        """The fixes of ``device`` from the events after ``after``. Waits until the tap runs."""
        await self._begun.wait()
        follower = Follower(self, device, after)
        group = self._followers.setdefault(device, set())
        group.add(follower)
        try:
            yield follower
        finally:
            group.discard(follower)
            if not group and self._followers.get(device) is group:
                del self._followers[device]

    def _hand_out(self, event: Event[Any]) -> None:
        self.place = place_of(event.id)
        for fix in fixes_from_wire(event.payload):
            for follower in self._followers.get(fix.device, ()):
                follower.offer(self.place, fix)


@final
class Follower:
    """The fixes of one vessel, for one reader."""

    def __init__(self, tap: Tap, device: str, after: Place) -> None:
        assert tap.place is not None, "the tap runs"
        self._tap = tap
        self._device = device
        self._waiting: list[Fix] = []
        self._from = tap.place
        """The tap brings what comes after this; what lies between `place` and this is read again."""
        self._news = asyncio.Event()
        self.place = after
        """Every fix of the events up to here has been given out."""

    def offer(self, place: Place, fix: Fix) -> None:
        """The tap has read this fix in the event at ``place``."""
        if place <= max(self.place, self._from):
            return
        if len(self._waiting) == WAITING_MAX:
            self._waiting.clear()
            self._from = place
        else:
            self._waiting.append(fix)
        self._news.set()

    async def batch(self, wait_s: float) -> list[Fix]:
        """The next fixes; none if nothing came for ``wait_s``. Cancelling loses nothing."""
        if self.place < self._from:
            end = self._from
            fixes = await self._tap.again.read(self._device, self.place, end)
            self.place = end
            return fixes
        if not self._waiting:
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
        if self.place < self._from:
            return []  # too many came at once: they are read again next
        fixes, self._waiting = self._waiting, []
        assert self._tap.place is not None, "the tap runs"
        self.place = max(self.place, self._tap.place)
        return fixes


@dataclass(slots=True, eq=False)
class _Wish:
    """The fixes of ``device`` in the events after ``after`` up to ``end``."""

    device: str
    after: Place
    end: Place
    found: list[Fix] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: BaseException | None = None


@final
class Again:
    """Reads a past part of the stream, once for all that ask while it is at it: when an instance dies, a hundred jobs
    begin elsewhere at the same time, and all want the same few seconds."""

    def __init__(self, stream: Stream[Any]) -> None:
        self._stream = stream
        self._wishes: list[_Wish] = []
        self._task: asyncio.Task[None] | None = None
        self.passes = 0
        """How often the stream was read again."""

    async def read(self, device: str, after: Place, end: Place) -> list[Fix]:
        """In the order of the stream. Raises what reading it raises."""
        wish = _Wish(device, after, end)
        self._wishes.append(wish)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve(), name="read positions again")
        await wish.done.wait()
        if wish.error is not None:
            raise wish.error
        return wish.found

    async def _serve(self) -> None:
        try:
            while self._wishes:
                wishes, self._wishes = self._wishes, []
                try:
                    await self._pass(wishes)
                except Exception as error:  # noqa: BLE001 - handed to those who asked
                    for wish in wishes:
                        wish.error = error
                for wish in wishes:
                    wish.done.set()
        finally:
            self._task = None

    async def _pass(self, wishes: Sequence[_Wish]) -> None:
        self.passes += 1
        by_device: dict[str, list[_Wish]] = {}
        for wish in wishes:
            by_device.setdefault(wish.device, []).append(wish)
        after, end = min(wish.after for wish in wishes), max(wish.end for wish in wishes)
        async with self._stream.reader(start=f"{after[0]}-{after[1]}") as reader:
            async for place, fix in _fixes_until(reader, end):
                for wish in by_device.get(fix.device, ()):
                    if wish.after < place <= wish.end:
                        wish.found.append(fix)


async def _fixes_until(reader: Reader[Any], end: Place) -> AsyncIterator[tuple[Place, Fix]]:
    """What the events up to ``end`` hold. All are there before the first is read, so a pause means their end."""
    place: Place = (0, 0)
    while place < end:
        try:
            async with asyncio.timeout(AGAIN_S):
                events = await reader.batch(max=BATCH_EVENTS_MAX, wait_s=0)
        except TimeoutError:
            return
        for event in events:
            place = place_of(event.id)
            if place > end:
                return
            for fix in fixes_from_wire(event.payload):
                yield place, fix
