"""What a consumer holds and has not handed out yet, and the last look before it does.

Owns the buffer of a sink. Invariants:

* An event leaves it only in the step that returns it to the program, or because it is somebody else's by now; a wait
  that is cancelled leaves everything in its place.
* Deliveries are counted when events are handed out. Reading counts the first one (the server does that); what was taken
  over from another consumer is counted here, before the program gets it, so that an event which kills its process is
  found out by its count and what only waited beside it is not.
* The last delivery that an event may have is handed out alone: what shared a batch with a deadly event gets through.
* A consumer that was silent for a grace period (a stopped process, a lost server) asks what is still its own before it
  hands out anything more.

Why so: an event read for the first time goes out without a round trip; only what has been delivered before pays one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar, final

from flotta.errors import CommandError, Outcome, RedisError
from flotta.streaming.event import Event
from flotta.streaming.inbox import Inbox
from flotta.streaming.membership import Membership
from flotta.streaming.options import SinkOptions

__all__ = ["Custody", "group_is_gone", "ids_by_stream"]

E = TypeVar("E")
T = TypeVar("T")

_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 2.0


@final
class Custody(Generic[E]):
    """The buffered events of one consumer. Until ``begin`` it can only be closed."""

    def __init__(self, options: SinkOptions) -> None:
        self.inbox: Inbox[E] = Inbox(options.buffer_max)
        self._no_ack = options.no_ack
        self._deliveries_max = options.max_deliveries
        self._taken_over: set[tuple[str, str]] = set()  # those in the inbox whose next delivery is not counted yet
        self._remade: set[str] = set()  # streams whose group was made anew since the last touch
        self._closed = False
        self._showing_life = asyncio.Lock()
        self._member: Membership

    def begin(self, member: Membership) -> None:
        """Work for ``member`` from now on."""
        self._member = member

    def add(self, events: Sequence[Event[E]], *, taken_over: bool) -> None:
        """Buffer ``events``: fresh ones, or those that another consumer had."""
        if taken_over:
            self._taken_over.update((event.stream, event.id) for event in events)
        self.inbox.put(events)

    def remove(self, stream: str) -> list[str]:
        """Take out everything of ``stream``; gives the ids whose counted delivery nobody saw."""
        waiting = [event for event in self.inbox.waiting() if event.stream == stream]
        unseen = [event.id for event in waiting if (stream, event.id) not in self._taken_over]
        self._drop({(stream, event.id) for event in waiting})
        return unseen

    def close(self) -> dict[str, list[str]]:
        """Hand out nothing any more; gives per stream the ids whose counted delivery nobody saw."""
        self._closed = True
        self.inbox.end()
        left = self.inbox.clear()
        return ids_by_stream(event for event in left if (event.stream, event.id) not in self._taken_over)

    # --- handing out --------------------------------------------------------------------------------------------

    async def next(self) -> Event[E] | None:
        """The next event; None after the end. Raises the error with which reading ended. Cancelling loses nothing."""
        while True:
            event = await self.inbox.get()
            if event is None or self._is_plain():
                return event
            if await self._confirmed([event]):
                return event

    async def batch(self, max_events: int, wait_s: float) -> list[Event[E]]:
        """As ``Inbox.batch``, less what is not this consumer's any more."""
        while True:
            events = await self.inbox.batch(max_events, wait_s)
            if not events or self._is_plain():
                return events
            confirmed = await self._confirmed(events)
            if confirmed:
                return confirmed

    def _is_plain(self) -> bool:
        return self._no_ack or not (self._taken_over or self._member.is_late())

    async def _confirmed(self, events: list[Event[E]]) -> list[Event[E]]:
        """Those of ``events`` (out of the inbox) that may be handed out now; what must wait is put back."""
        try:
            if self._member.is_late():
                self.inbox.put_back(events)
                events = []
                await self._insist(self.show_life)
                return []
            events = self._without_last_chances(events)
            kept = await self._insist(lambda: self._count(events))
        except BaseException:
            if not self._closed:
                self.inbox.put_back(events)
            raise
        self._taken_over -= {(event.stream, event.id) for event in events}
        return [] if self._closed or kept is None else kept

    def _without_last_chances(self, events: list[Event[E]]) -> list[Event[E]]:
        """``events`` up to the first one whose last delivery this is; that one alone if it comes first."""
        for place, event in enumerate(events):
            if event.deliveries == self._deliveries_max and (event.stream, event.id) in self._taken_over:
                cut = max(place, 1)
                self.inbox.put_back(events[cut:])
                return events[:cut]
        return events

    async def _count(self, events: list[Event[E]]) -> list[Event[E]]:
        counted: dict[str, list[Event[E]]] = {}
        for event in events:
            if (event.stream, event.id) in self._taken_over:
                counted.setdefault(event.stream, []).append(event)
        gone: set[tuple[str, str]] = set()
        for stream, those in counted.items():
            try:
                gone |= await self._member.count(stream, [(event.id, event.deliveries) for event in those])
            except CommandError as error:  # no group, nobody else's
                if not group_is_gone(error):
                    raise
        return [event for event in events if (event.stream, event.id) not in gone] if gone else events

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """``work`` until it succeeds (None if closed): without the server nobody can say whose the events are."""
        pause_s = _RETRY_MIN_S
        while not self._closed:
            try:
                return await work()
            except RedisError as error:
                if error.outcome is Outcome.APP and not group_is_gone(error):
                    raise
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause_s = min(2 * pause_s, _RETRY_MAX_S)
        return None

    # --- staying the holder -------------------------------------------------------------------------------------

    async def show_life(self) -> None:
        """Start the grace period of what is buffered anew, drop what others took, and show that this consumer lives.

        Does nothing if another task has just done it. Raises ``RedisError``. Cancelling is harmless.
        """
        async with self._showing_life:
            if not self._member.is_due():
                return
            if not self._no_ack:
                await self._touch()
            await self._member.beat()

    async def _touch(self) -> None:
        # Nobody else can have acked what is fresh here while this consumer was punctual: pending for nobody, it is so
        # because the group was made anew. One that knows of that itself may be late: rather twice than never. What was
        # taken over may have been acked late by the consumer that had it.
        punctual = not self._member.is_late()
        waiting = self.inbox.waiting()
        taken_over = [event for event in waiting if (event.stream, event.id) in self._taken_over]
        fresh = [event for event in waiting if (event.stream, event.id) not in self._taken_over]
        remade, self._remade = self._remade, set()
        try:
            for stream, ids in ids_by_stream(fresh).items():
                self._drop(await self._member.touch(stream, ids, adopt=punctual or stream in remade))
            for stream, ids in ids_by_stream(taken_over).items():
                self._drop(await self._member.touch(stream, ids, adopt=False))
        except BaseException:
            self._remade |= remade
            raise

    def regrouped(self, stream: str) -> None:
        """The group on ``stream`` was made anew: what is buffered is nobody else's any more."""
        self._taken_over = {held for held in self._taken_over if held[0] != stream}
        self._remade.add(stream)

    def _drop(self, unwanted: set[tuple[str, str]]) -> None:
        if unwanted:
            self.inbox.discard(unwanted)
            self._taken_over -= unwanted


def ids_by_stream(events: Iterable[Event[Any]]) -> dict[str, list[str]]:
    """The ids of ``events`` under the name of their stream."""
    ids: dict[str, list[str]] = {}
    for event in events:
        ids.setdefault(event.stream, []).append(event.id)
    return ids


def group_is_gone(error: RedisError) -> bool:
    """Whether ``error`` says that the group, or its stream, is not there (any more)."""
    # XREADGROUP: NOGROUP; inside a script of a server before 7.0 it is not the code; a read that was blocked when the
    # key went: UNBLOCKED the stream key no longer exists.
    return isinstance(error, CommandError) and ("NOGROUP" in error.text or "no longer exists" in error.text)
