"""The namespaces of this process with who is in which room, and what is sent to them: the `Node` of the adapter.

Invariant: a broadcast is encoded once, whatever the number of its recipients, and written to all of them in one go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, final

from flotta.realtime.adapters import Broadcast, OnAck, SocketFacts, Target
from flotta.realtime.client import Reason, Socket
from flotta.realtime.handlers import Handlers, MaySee
from flotta.realtime.rooms import Rooms
from flotta.realtime.socketio.packet import Packet, PacketType, encode
from flotta.realtime.transports import Outgoing

__all__ = ["Counters", "Delivery", "Space", "encode_event"]


@final
class Space:
    """One namespace: its handlers and who is in which room."""

    __slots__ = ("handlers", "name", "rooms")

    def __init__(self, name: str) -> None:
        self.name = name
        self.handlers = Handlers()
        self.rooms: Rooms[Socket] = Rooms()


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    opened: int = 0
    refused: int = 0
    delivered: int = 0
    broadcasts: int = 0
    volatile_dropped: int = 0
    filtered: int = 0
    ended: dict[str, int] = field(default_factory=dict)


@final
class Delivery:
    """See the module. Nothing here waits."""

    def __init__(self, *, rooms_max: int | None, logger: Any) -> None:
        self.spaces: dict[str, Space] = {"/": Space("/")}
        self.counters = Counters()
        self._rooms_max = rooms_max
        self._log = logger
        self._full_told = False

    def namespaces(self) -> list[str]:
        """The namespaces that exist."""
        return list(self.spaces)

    def deliver(self, broadcast: Broadcast, packet: Outgoing | None = None) -> int:
        """Send to the own sockets that the broadcast is for; how many got it. ``packet``: encoded already."""
        space = self.spaces.get(broadcast.target.namespace)
        if space is None:
            return 0
        recipients = space.rooms.recipients(broadcast.target.rooms, broadcast.target.except_rooms)
        if broadcast.may_see is not None:
            recipients = self._visible(space, recipients, broadcast.may_see, broadcast.args)
        if not recipients:
            return 0
        packet = packet or encode_event(broadcast)
        self.counters.broadcasts += 1
        self.counters.delivered += len(recipients)
        if broadcast.volatile:
            dropped = sum(not socket.write_volatile(packet) for socket in recipients)
            self.counters.volatile_dropped += dropped
            self.counters.delivered -= dropped
            return len(recipients) - dropped
        for socket in recipients:
            socket.write(packet)
        return len(recipients)

    def ask(self, target: Target, args: list[Any], on_ack: OnAck, timeout_s: float) -> int:
        """Send an event to the own sockets of ``target``; ``on_ack`` gets each answer that comes in time. How many."""
        asked = [(socket, socket.emit(args, on_ack)) for socket in self._targeted(target)]

        def forget() -> None:
            for socket, ack_id in asked:
                assert ack_id is not None
                socket.forget_ack(ack_id)

        asyncio.get_running_loop().call_later(timeout_s, forget)
        return len(asked)

    def _visible(self, space: Space, sockets: list[Socket], name: str, args: list[Any]) -> list[Socket]:
        """Those that pass the filter. Unknown filter, or one that raises: nobody sees the event."""
        may_see = space.handlers.filter(name)
        if may_see is None:
            self._log.error("unknown filter: nobody here gets the event", may_see=name, namespace=space.name)
            passed: list[Socket] = []
        else:
            passed = [socket for socket in sockets if self._passes(may_see, name, socket, args)]
        self.counters.filtered += len(sockets) - len(passed)
        return passed

    def _passes(self, may_see: MaySee, name: str, socket: Socket, args: list[Any]) -> bool:
        try:
            return may_see(socket.sid, socket.session or {}, *args[1:]) is True
        except Exception:  # noqa: BLE001 - a user's filter may raise anything; logged, and it fails closed
            self._log.exception("filter failed: the socket does not get the event", may_see=name, sid=socket.sid)
            return False

    def _targeted(self, target: Target) -> list[Socket]:
        space = self.spaces.get(target.namespace)
        return [] if space is None else space.rooms.recipients(target.rooms, target.except_rooms)

    def join(self, target: Target, rooms: Iterable[str]) -> None:
        """Put the own sockets of ``target`` into ``rooms``, as far as their limit allows."""
        names = list(rooms)
        for socket in self._targeted(target):
            for room in names:
                self.enter(socket, room)

    def enter(self, socket: Socket, room: str) -> bool:
        """Put one socket into a room. False: it is gone, or in too many."""
        held = self.spaces[socket.namespace].rooms
        limit = self._rooms_max
        if limit is not None and held.rooms_count_of(socket.sid) >= limit and room not in held.rooms_of(socket.sid):
            if not self._full_told:  # once: a client may ask as often as it likes
                self._full_told = True
                self._log.warning("a socket may be in no more rooms", sid=socket.sid, rooms_max=limit)
            return False
        return held.join(socket.sid, room)

    def leave(self, target: Target, rooms: Iterable[str]) -> None:
        """Take the own sockets of ``target`` out of ``rooms``."""
        names = list(rooms)
        for socket in self._targeted(target):
            for room in names:
                self.spaces[socket.namespace].rooms.leave(socket.sid, room)

    def disconnect(self, target: Target, *, close: bool) -> None:
        """Disconnect the own sockets of ``target``; ``close``: end their connections."""
        for socket in self._targeted(target):
            if close:
                socket.client.close(Reason.SERVER_DISCONNECT)
            else:
                socket.client.leave(socket)

    def sockets(self, target: Target) -> list[SocketFacts]:
        """The own sockets of ``target``, for other instances."""
        return [
            SocketFacts(socket.sid, self.spaces[target.namespace].rooms.rooms_of(socket.sid), _handshake(socket))
            for socket in self._targeted(target)
        ]

    def has_room(self, namespace: str, room: str) -> bool:
        """Whether some own socket is in ``room``."""
        return namespace in self.spaces and room in self.spaces[namespace].rooms

    def rooms(self, namespace: str) -> list[str]:
        """The rooms that own sockets are in, their own ids included."""
        rooms = self.spaces[namespace].rooms
        return [*rooms, *rooms.names()]


def encode_event(broadcast: Broadcast) -> Outgoing:
    """The packet for every recipient. Raises TypeError or ValueError for what cannot travel."""
    return Outgoing(encode(Packet(PacketType.EVENT, broadcast.target.namespace, broadcast.args)))


def _handshake(socket: Socket) -> dict[str, Any]:
    """What other instances may know of a request: no headers, they may hold credentials."""
    environ = socket.client.environ()
    return {"address": environ["REMOTE_ADDR"], "url": environ["PATH_INFO"], "headers": {}, "query": {}}
