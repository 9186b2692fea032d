"""Finds what clients missed, and writes it to them: a little at a time, of one client after the other.

Clients of a dead instance come back together, each with thousands of events to look through and to be sent. Invariant:
of all that is done here at most one piece (`LOOK_MAX` events looked through, `WRITE_MAX` packets written) is done
before the loop comes to everything else; a client that reads slowly delays no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import final

from flotta.realtime.client import Socket
from flotta.realtime.recovery.history import Past
from flotta.realtime.recovery.past import Archive, broadcast_of
from flotta.realtime.recovery.plan import Membership
from flotta.realtime.recovery.session import Position, Session
from flotta.realtime.transports import Outgoing

__all__ = ["Missed", "Replay", "is_current"]

LOOK_MAX = 500
WRITE_MAX = 100
AT_ONCE_MAX = 50
"""So many events are looked through in the tick in which the socket enters its rooms."""
PACE_S = 0.01


def is_current(socket: Socket) -> bool:
    """Its client is there, and has not asked anew."""
    return not socket.client.over and socket.client.sockets.get(socket.namespace) is socket


@final
class Missed:
    """What was for one session after ``begin``, as far as it has been looked through."""

    __slots__ = ("_membership", "_namespace", "events", "upto")

    def __init__(self, session: Session, namespace: str, begin: Position) -> None:
        self.events: list[Past] = []
        self.upto = begin
        self._membership = Membership(session)
        self._namespace = namespace

    def look(self, events: Sequence[Past], upto: Position) -> None:
        """Go on with ``events``, which are all up to there."""
        self.events += [
            past
            for past in events
            if past.namespace == self._namespace and self._membership.gets(broadcast_of(past).target, past.position)
        ]
        self.upto = upto


@final
class Replay:
    """See the module. One per server."""

    def __init__(self, archive: Archive, *, pace_bytes: int) -> None:
        self._archive = archive
        self._pace_bytes = pace_bytes
        self._turn = asyncio.Lock()

    # --- what was missed ---

    async def missed(self, session: Session, namespace: str, begin: Position) -> Missed | None:
        """What was for the session after ``begin``, but for what has come last, which `complete` looks through. None:
        some of it is gone. Raises what `Link.call` raises."""
        missed = Missed(session, namespace, begin)
        history = self._archive.history
        while True:
            if missed.upto < history.floor:
                older = await self._archive.older(missed.upto)
                if older is None:
                    return None
                await self._look(missed, older.events, older.upto)
                continue
            events = history.after(missed.upto)
            if len(events) <= AT_ONCE_MAX:
                return missed
            await self._look(missed, events, events[-1].position)

    async def _look(self, missed: Missed, events: Sequence[Past], upto: Position) -> None:
        for at in range(0, len(events), LOOK_MAX):
            piece = events[at : at + LOOK_MAX]
            async with self._turn:
                missed.look(piece, piece[-1].position)
                await asyncio.sleep(0)
        missed.upto = max(missed.upto, upto)

    def complete(self, missed: Missed) -> list[Past]:
        """Everything up to now. In the tick in which `missed` has returned."""
        events = self._archive.history.after(missed.upto)
        if events:
            missed.look(events, events[-1].position)
        return missed.events

    # --- sent ---

    async def write(self, socket: Socket, due: Iterator[Outgoing]) -> bool:
        """Write each packet in the tick in which it is found to be due: what was revoked before is not. No faster than
        the client takes it. False: the client is gone."""
        while True:
            await self._until_read(socket)
            async with self._turn:
                if not is_current(socket):
                    return False
                if not self._write_some(socket, due):
                    return True
                await asyncio.sleep(0)

    def _write_some(self, socket: Socket, due: Iterator[Outgoing]) -> bool:
        """Whether there may be more."""
        for _ in range(WRITE_MAX):
            packet = next(due, None)
            if packet is None:
                return False
            socket.client.transport.write(packet)
            if socket.client.transport.unsent_bytes > self._pace_bytes or not is_current(socket):
                break
        return True

    async def _until_read(self, socket: Socket) -> None:
        """Return when little enough waits for the client to read, or it is gone."""
        while socket.client.transport.unsent_bytes > self._pace_bytes and is_current(socket):  # noqa: ASYNC110 - no
            await asyncio.sleep(PACE_S)  # transport says when it is read
