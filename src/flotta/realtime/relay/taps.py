"""What the adapter hears, on its way to `Delivery`: sessions that are just leaving or coming get their share of it.

A move has one instant, the cut, that both instances hear at the same place among all broadcasts. The old instance
gives the session what it hears before the cut, the new one what it hears after. Between the cut and the arrival of the
session the new one keeps a log, because it does not know yet which rooms the session is in.

What an instance itself sends is delivered at once to its own clients and is not part of that order, but for those who
are on their way: for the old instance they are gone from the moment that it asks for the cut; the new one gives them
its own broadcasts as they come back from Redis, until everything that it sent before they came has come back.

With nobody on the way a message passes with one check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, final

from flotta.realtime.adapters import Answer, Broadcast, OnAck, OnGone, SocketFacts, Target
from flotta.realtime.client import Socket
from flotta.realtime.delivery import Delivery
from flotta.realtime.engine.client import Reason

__all__ = ["LOG_MAX", "Comer", "Entry", "Leaver", "OwnTap", "Tap", "is_meant"]

LOG_MAX = 10_000
"""Messages kept for sessions whose rooms are not known yet; more end their connections."""

Entry: TypeAlias = Callable[[Socket, frozenset[str]], Any]
"""Does to a socket, that is in these rooms, what was heard."""


class Leaver(Protocol):
    """A session that is still served here for what is heard, and for nothing else."""

    @property
    def rooms(self) -> dict[Socket, set[str]]:
        """Its sockets and the rooms that each is in, its own id's included."""
        ...


class Comer(Protocol):
    """A session whose cut was heard here."""

    @property
    def is_here(self) -> bool:
        """It is in the rooms of this instance."""
        ...

    @property
    def sockets(self) -> Iterable[Socket]:
        """Its sockets, once it is here."""
        ...

    @property
    def begin(self) -> int:
        """Number of the first entry of the log that it needs."""
        ...

    def overflow(self) -> None:
        """The log is over its limit."""
        ...


def is_meant(target: Target, namespace: str, rooms: Iterable[str]) -> bool:
    """Whether a socket of ``namespace`` in ``rooms`` belongs to the target."""
    held = frozenset(rooms)
    return (
        target.namespace == namespace
        and (not target.rooms or not held.isdisjoint(target.rooms))
        and held.isdisjoint(target.except_rooms)
    )


@final
class Tap:
    """The `Node` of a relaying server's adapter; `own` is the one for what the server itself has sent."""

    def __init__(self, delivery: Delivery) -> None:
        self.leavers: dict[str, Leaver] = {}
        self.comers: dict[str, Comer] = {}
        self.hears = False
        """What is written now was heard, and not sent by this server."""
        self.delivery = delivery
        self._log: list[Entry] = []
        self._first = 0

    # --- the log ---

    @property
    def end(self) -> int:
        """Number of the next entry."""
        return self._first + len(self._log)

    def entries(self, begin: int) -> list[Entry]:
        """What was heard from ``begin`` on."""
        return self._log[begin - self._first :]

    def shorten(self) -> None:
        """Drop what no comer needs any more."""
        begin = min((comer.begin for comer in self.comers.values() if not comer.is_here), default=self.end)
        del self._log[: begin - self._first]
        self._first = begin

    def keep(self, entry: Entry) -> None:
        """Keep it for the comers whose rooms are not known yet."""
        if all(comer.is_here for comer in self.comers.values()):
            return
        self._log.append(entry)
        if len(self._log) > LOG_MAX:
            for comer in list(self.comers.values()):
                comer.overflow()

    def do(self, entry: Entry, socket: Socket) -> None:
        """Do to one socket, that is here, what was heard."""
        if socket.client.sockets.get(socket.namespace) is not socket:
            return  # it was disconnected by what was heard before
        with self.hearing():
            entry(socket, self.delivery.spaces[socket.namespace].rooms.rooms_of(socket.sid))

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """While what was heard is written."""
        self.hears = True
        try:
            yield
        finally:
            self.hears = False

    def _leaving(self, target: Target) -> list[Socket]:
        return [
            socket
            for leaver in self.leavers.values()
            for socket, rooms in leaver.rooms.items()
            if is_meant(target, socket.namespace, rooms) and socket.client.sockets.get(socket.namespace) is socket
        ]

    # --- Node ---

    def namespaces(self) -> Iterable[str]:
        """The names of the namespaces that exist."""
        return self.delivery.namespaces()

    def deliver(self, broadcast: Broadcast, *, offset: str | None = None) -> int:
        """Send to the own sockets that the broadcast is for."""
        if not self.leavers and not self.comers:
            return self.delivery.deliver(broadcast, offset=offset)
        leaving = self._leaving(broadcast.target)
        count = self.delivery.deliver_to(leaving, broadcast, offset=offset) if leaving else 0
        self.keep(deliver_entry(self.delivery, broadcast, offset))
        with self.hearing():
            return count + self.delivery.deliver(broadcast, offset=offset)

    def ask(
        self, target: Target, args: list[Any], on_ack: OnAck, timeout_s: float, on_gone: OnGone | None = None
    ) -> int:
        """Send an event to the own sockets of ``target``."""
        if not self.leavers and not self.comers:
            return self.delivery.ask(target, args, on_ack, timeout_s, on_gone)
        leaving = self._leaving(target)
        for socket in leaving:
            _ask(socket, args, on_ack, on_gone)
        self.keep(ask_entry(target, args, on_ack))
        with self.hearing():
            return len(leaving) + self.delivery.ask(target, args, on_ack, timeout_s, on_gone)

    def join(self, target: Target, rooms: Iterable[str]) -> None:
        """Put the own sockets of ``target`` into ``rooms``."""
        names = list(rooms)
        self._change_leavers(target, lambda held, _: held.update(names))
        self.keep(room_entry(self.delivery, target, names, enter=True))
        self.delivery.join(target, names)

    def leave(self, target: Target, rooms: Iterable[str]) -> None:
        """Take the own sockets of ``target`` out of ``rooms``."""
        names = list(rooms)
        self._change_leavers(target, lambda held, sid: held.difference_update({*names} - {sid}))
        self.keep(room_entry(self.delivery, target, names, enter=False))
        self.delivery.leave(target, names)

    def _change_leavers(self, target: Target, change: Callable[[set[str], str], None]) -> None:
        for leaver in self.leavers.values():
            for socket, held in leaver.rooms.items():
                if is_meant(target, socket.namespace, held):
                    change(held, socket.sid)

    def disconnect(self, target: Target, *, close: bool) -> None:
        """Disconnect the own sockets of ``target`` from the namespace."""
        for socket in self._leaving(target):
            _disconnect(socket, close=close)
        self.keep(disconnect_entry(target, close=close))
        self.delivery.disconnect(target, close=close)

    def sockets(self, target: Target) -> list[SocketFacts]:
        """The own sockets of ``target``."""
        return self.delivery.sockets(target)

    def server_side(self, namespace: str, args: list[Any], answer: Answer | None) -> None:
        """Another server's event for this one."""
        self.delivery.server_side(namespace, args, answer)

    def has_room(self, namespace: str, room: str) -> bool:
        """Whether some own socket is in ``room``, or may be."""
        return bool(self.leavers or self.comers) or self.delivery.has_room(namespace, room)

    def rooms(self, namespace: str) -> list[str]:
        """The rooms that own sockets are in."""
        return self.delivery.rooms(namespace)


@final
class OwnTap:
    """What this server itself has sent, as it comes back: only for sessions that are coming. A `Node` without facts."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap

    def deliver(self, broadcast: Broadcast, *, offset: str | None = None) -> int:
        """An own broadcast."""
        self._take(deliver_entry(self._tap.delivery, broadcast, offset))
        return 0

    def join(self, target: Target, rooms: Iterable[str]) -> None:
        """An own command."""
        self._take(room_entry(self._tap.delivery, target, list(rooms), enter=True))

    def leave(self, target: Target, rooms: Iterable[str]) -> None:
        """An own command."""
        self._take(room_entry(self._tap.delivery, target, list(rooms), enter=False))

    def disconnect(self, target: Target, *, close: bool) -> None:
        """An own command."""
        self._take(disconnect_entry(target, close=close))

    def ask(
        self,
        target: Target,
        args: list[Any],
        on_ack: OnAck,
        timeout_s: float,  # noqa: ARG002 - a Node's
        on_gone: OnGone | None = None,  # noqa: ARG002
    ) -> int:
        """An own question."""
        self._take(ask_entry(target, args, on_ack))
        return 0

    def namespaces(self) -> Iterable[str]:
        """None of its own."""
        return ()

    def sockets(self, target: Target) -> list[SocketFacts]:  # noqa: ARG002 - a Node's
        """The server knows its own sockets."""
        return []

    def server_side(self, namespace: str, args: list[Any], answer: Answer | None) -> None:
        """The server's own events are for the others."""

    def has_room(self, namespace: str, room: str) -> bool:  # noqa: ARG002 - a Node's
        """Whatever comes back is looked at."""
        return True

    def rooms(self, namespace: str) -> list[str]:  # noqa: ARG002 - a Node's
        """The server knows its own rooms."""
        return []

    def _take(self, entry: Entry) -> None:
        for comer in list(self._tap.comers.values()):
            for socket in list(comer.sockets):
                self._tap.do(entry, socket)
        self._tap.keep(entry)


def deliver_entry(delivery: Delivery, broadcast: Broadcast, offset: str | None) -> Entry:
    """A broadcast."""

    def entry(socket: Socket, rooms: frozenset[str]) -> None:
        if is_meant(broadcast.target, socket.namespace, rooms):
            delivery.deliver_to([socket], broadcast, offset=offset)

    return entry


def room_entry(delivery: Delivery, target: Target, names: list[str], *, enter: bool) -> Entry:
    """A command to join or to leave."""

    def entry(socket: Socket, rooms: frozenset[str]) -> None:
        if is_meant(target, socket.namespace, rooms):
            for name in names:
                if enter:
                    delivery.enter(socket, name)
                else:
                    delivery.spaces[socket.namespace].rooms.leave(socket.sid, name)

    return entry


def disconnect_entry(target: Target, *, close: bool) -> Entry:
    """A command to disconnect."""

    def entry(socket: Socket, rooms: frozenset[str]) -> None:
        if is_meant(target, socket.namespace, rooms):
            _disconnect(socket, close=close)

    return entry


def ask_entry(target: Target, args: list[Any], on_ack: OnAck) -> Entry:
    """A question. Whoever asked does not count on this answer, but the event is not lost."""

    def entry(socket: Socket, rooms: frozenset[str]) -> None:
        if is_meant(target, socket.namespace, rooms):
            _ask(socket, args, on_ack)

    return entry


def _ask(socket: Socket, args: list[Any], on_ack: OnAck, on_gone: OnGone | None = None) -> None:
    def on_answer(found: list[Any] | None) -> None:
        if found is not None:
            on_ack(found)
        elif on_gone is not None:
            on_gone()

    socket.emit(args, on_answer)


def _disconnect(socket: Socket, *, close: bool) -> None:
    if close:
        socket.client.expel(Reason.SERVER_DISCONNECT)
    else:
        socket.client.leave(socket)
