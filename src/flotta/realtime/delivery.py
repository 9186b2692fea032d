"""The namespaces of this process with who is in which room, and what is sent to them: the `Node` of the adapter.

Invariant: a broadcast is encoded once, whatever the number of its recipients, and written to all of them in one go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, final

from flotta.realtime.adapters import Adapter, Answer, Broadcast, OnAck, OnGone, SocketFacts, Target
from flotta.realtime.adapters.wire import pack
from flotta.realtime.client import Reason, Socket
from flotta.realtime.engine.sessions import EngineCounters
from flotta.realtime.handlers import Handler, Handlers, MaySee, finish
from flotta.realtime.rooms import Rooms
from flotta.realtime.socketio.packet import Packet, PacketType
from flotta.realtime.socketio.parser import JSON, Parser
from flotta.realtime.transports import Outgoing

if TYPE_CHECKING:
    from flotta.realtime.namespaces import Gate

__all__ = ["Counters", "Delivery", "Leaving", "Run", "Space"]

Run: TypeAlias = Callable[[Coroutine[Any, Any, Any], str], None]
"""Runs a coroutine of the user's, named, beside the handlers."""
OnRooms: TypeAlias = Callable[[Socket, str, bool], None]
"""A socket has joined (True) or left a room."""


class Leaving(NamedTuple):
    """A socket that has left, as its last handlers may still ask for it."""

    socket: Socket
    rooms: frozenset[str]
    reason: str


@final
class Space:
    """One namespace: its handlers and who is in which room."""

    __slots__ = ("gate", "handlers", "leaving", "name", "rooms", "server_side")

    def __init__(self, name: str) -> None:
        self.name = name
        self.handlers = Handlers()
        self.rooms: Rooms[Socket] = Rooms()
        self.server_side: dict[str, Handler] = {}
        """Handlers of other servers' events, by name."""
        self.leaving: dict[str, Leaving] = {}
        """Sockets that have left and whose last handlers have not run yet, by session id."""
        self.gate: Gate | None = None
        """Of a dynamic namespace: who may come in."""


@dataclass(slots=True)
class Counters(EngineCounters):
    """What has happened since the start."""

    delivered: int = 0
    broadcasts: int = 0
    volatile_dropped: int = 0
    filtered: int = 0


@final
class Delivery:
    """See the module. Nothing here waits."""

    def __init__(self, *, rooms_max: int | None, run: Run, logger: Any, parser: Parser = JSON) -> None:
        self.spaces: dict[str, Space] = {"/": Space("/")}
        self.counters = Counters()
        self._parser = parser
        self._adapter: Adapter | None = None
        self._rooms_max = rooms_max
        self._run = run
        self._log = logger
        self._full_told = False
        self._unportable_told = False
        self._on_rooms: OnRooms | None = None
        self._holds: dict[tuple[str, str], int] = {}

    def watch_rooms(self, on_rooms: OnRooms) -> None:
        """Tell of every socket that joins or leaves a room while it is here."""
        self._on_rooms = on_rooms
        for space in self.spaces.values():
            space.rooms.on_changed = on_rooms

    def join_cluster(self, adapter: Adapter) -> None:
        """Tell the adapter from now on which rooms have own sockets. Before the first of them."""
        self._adapter = None if adapter.alone else adapter
        for space in self.spaces.values():
            self._watch(space)

    def add_space(self, name: str) -> Space:
        """A new namespace; ``name`` must be new."""
        assert name not in self.spaces, f"there is a namespace {name} already"
        space = self.spaces[name] = Space(name)
        self._watch(space)
        return space

    def _watch(self, space: Space) -> None:
        space.rooms.on_changed = self._on_rooms
        if self._adapter is not None:
            space.rooms.on_made = partial(self._adapter.room_made, space.name)
            space.rooms.on_gone = partial(self._room_gone, space.name)
            space.rooms.tells_own = self._adapter.wants_own_rooms

    # --- rooms that the adapter listens to for somebody who is not in them yet, or no longer (`relay`) ---

    def hold_room(self, namespace: str, room: str) -> None:
        """Let the adapter listen to a room, whoever comes and goes, until as many `release_room`."""
        key = namespace, room
        self._holds[key] = self._holds.get(key, 0) + 1
        if self._adapter is not None:
            self._adapter.room_made(namespace, room)

    def release_room(self, namespace: str, room: str) -> None:
        """Undo one `hold_room`."""
        key = namespace, room
        left = self._holds.pop(key) - 1
        if left:
            self._holds[key] = left
        elif not self.has_room(namespace, room):
            self._room_gone(namespace, room)

    def _room_gone(self, namespace: str, room: str) -> None:
        if self._adapter is not None and (namespace, room) not in self._holds:
            self._adapter.room_gone(namespace, room)

    def namespaces(self) -> list[str]:
        """The namespaces that exist."""
        return list(self.spaces)

    def encode(self, broadcast: Broadcast, offset: str | None = None) -> Outgoing:
        """The packet for every recipient; ``offset`` as in `deliver`. Raises TypeError or ValueError for what cannot
        travel."""
        args = broadcast.args if offset is None else [*broadcast.args, offset]
        return Outgoing(self._parser.encode(Packet(PacketType.EVENT, broadcast.target.namespace, args)))

    def deliver(self, broadcast: Broadcast, packet: Outgoing | None = None, *, offset: str | None = None) -> int:
        """Send to the own sockets that the broadcast is for; how many got it. ``packet``: encoded already; ``offset``:
        what the clients get as the last argument, for their recovery."""
        space = self.spaces.get(broadcast.target.namespace)
        if space is None:
            return 0
        recipients = space.rooms.recipients(broadcast.target.rooms, broadcast.target.except_rooms)
        return self.deliver_to(recipients, broadcast, packet, offset=offset)

    def deliver_to(
        self,
        recipients: list[Socket],
        broadcast: Broadcast,
        packet: Outgoing | None = None,
        *,
        offset: str | None = None,
    ) -> int:
        """`deliver` to these sockets, whatever their rooms are; the filter, if there is one, is applied."""
        if broadcast.may_see is not None:
            space = self.spaces[broadcast.target.namespace]
            ready = self._hold_filtered(recipients, broadcast, packet, offset)
            recipients = self._visible(space, ready, broadcast.may_see, broadcast.args)
        if not recipients:
            return 0
        packet = packet or self.encode(broadcast, offset)
        self.counters.broadcasts += 1
        self.counters.delivered += len(recipients)
        if broadcast.volatile:
            dropped = sum(not socket.write_volatile(packet) for socket in recipients)
            self.counters.volatile_dropped += dropped
            self.counters.delivered -= dropped
            return len(recipients) - dropped
        for socket in recipients:
            write = socket.write  # apart: CPython has a fast path for reading a slot, none for calling one
            write(packet)
        return len(recipients)

    def _hold_filtered(
        self, recipients: list[Socket], broadcast: Broadcast, packet: Outgoing | None, offset: str | None
    ) -> list[Socket]:
        """Let the sockets that hold what comes hold this too: the filter is asked when it is written, for then they are
        who they are, and what was revoked meanwhile is revoked. Gives the others."""
        ready = [socket for socket in recipients if not socket.holding]
        if len(ready) == len(recipients) or broadcast.volatile:
            return ready
        packet = packet or self.encode(broadcast, offset)
        for socket in recipients:
            if socket.holding:
                socket.hold(packet, lambda socket: self.may_get(socket, broadcast))
        return ready

    def ask(
        self,
        target: Target,
        args: list[Any],
        on_ack: OnAck,
        timeout_s: float,
        on_gone: OnGone | None = None,
    ) -> int:
        """Send an event to the own sockets of ``target``; ``on_ack`` gets each answer that comes in time, ``on_gone``
        is called for each of them that leaves without. How many sockets."""
        sockets = self._targeted(target)
        if not sockets:
            return 0
        # One id that is new to all of them: so the packet is encoded once.
        ack_id = 1 + max(socket.last_ack for socket in sockets)
        packet = Outgoing(self._parser.encode(Packet(PacketType.EVENT, target.namespace, args, ack_id)))
        due = len(sockets)

        def on_answer(found: list[Any] | None) -> None:
            nonlocal due
            due -= 1
            if not due:
                timer.cancel()
            if found is not None:
                on_ack(found)
            elif on_gone is not None:
                on_gone()

        def forget() -> None:
            for socket in sockets:
                socket.forget_ack(ack_id)

        timer = asyncio.get_running_loop().call_later(timeout_s, forget)
        for socket in sockets:
            socket.ask(packet, ack_id, on_answer)
        return len(sockets)

    def may_get(self, socket: Socket, broadcast: Broadcast) -> bool:
        """Whether the socket passes the broadcast's filter, if it has one."""
        if broadcast.may_see is None:
            return True
        return bool(self._visible(self.spaces[socket.namespace], [socket], broadcast.may_see, broadcast.args))

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
                socket.client.expel(Reason.SERVER_DISCONNECT)
            else:
                socket.client.leave(socket)

    def sockets(self, target: Target) -> list[SocketFacts]:
        """The own sockets of ``target``, for other instances."""
        return [
            SocketFacts(
                sid=socket.sid,
                rooms=self.spaces[target.namespace].rooms.rooms_of(socket.sid),
                handshake=_handshake(socket),
                data=self._portable(socket),
            )
            for socket in self._targeted(target)
        ]

    def _portable(self, socket: Socket) -> Any:
        """The session as other servers may know it; None if it holds what cannot travel."""
        session = socket.session or {}
        try:
            pack(session)
        except (TypeError, ValueError) as error:
            if not self._unportable_told:
                self._unportable_told = True
                self._log.warning(
                    "a session cannot travel: fetch_sockets shows None for it",
                    sid=socket.sid,
                    reason=str(error),
                    cure="save_session: keep to what JSON and bytes can carry",
                )
            return None
        return dict(session)

    def server_side(self, namespace: str, args: list[Any], answer: Answer | None) -> None:
        """Another server's event: its handler's result is the answer; who has no handler answers None."""
        space = self.spaces.get(namespace)
        handler = space.server_side.get(args[0]) if space is not None and args else None
        if handler is not None:
            self._run(_serve(handler, args[1:], answer), f"server-side {args[0]}")
        elif answer is not None:
            answer(None)

    def has_room(self, namespace: str, room: str) -> bool:
        """Whether some own socket is in ``room``."""
        return namespace in self.spaces and room in self.spaces[namespace].rooms

    def rooms(self, namespace: str) -> list[str]:
        """The rooms that own sockets are in, their own ids included."""
        space = self.spaces.get(namespace)
        return [] if space is None else [*space.rooms, *space.rooms.names()]


async def _serve(handler: Handler, args: list[Any], answer: Answer | None) -> None:
    result = await finish(handler(*args))
    if answer is not None:
        answer(result)


def _handshake(socket: Socket) -> dict[str, Any]:
    """What other instances may know of a request: no headers and no query, they may hold credentials."""
    scope = socket.client.request.scope()
    return {
        "address": (scope.get("client") or ("", 0))[0],
        "url": scope["path"],
        "secure": scope.get("scheme") in {"https", "wss"},
        "issued": round(socket.since * 1000),
        "headers": {},
        "query": {},
    }
