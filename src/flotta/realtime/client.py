"""One client of a Socket.IO server: above its Engine.IO session its Socket.IO connection, and a `Socket` per namespace.

The machines decide, this class does: it feeds them what comes in and carries out their actions, synchronously, in the
event loop. Handlers belong to the dispatcher, rooms to the core; both are reached through `Owner`.

Invariants:

- `Owner.ended` is called exactly once per client, after every socket of it was reported by `Owner.left`;
- what is sent to a socket while its ``connect`` handler runs is held and follows the CONNECT packet, so a client never
  gets an event of a namespace that it has not joined.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias, final

from flotta.realtime.engine.client import EngineClient, EngineOwner, Reason
from flotta.realtime.engine.request import Request
from flotta.realtime.engineio.session import Session
from flotta.realtime.recovery.kept import Kept
from flotta.realtime.recovery.session import Position
from flotta.realtime.socketio import connection as sio
from flotta.realtime.socketio.connection import Connection
from flotta.realtime.socketio.packet import Encoded, Packet, PacketType
from flotta.realtime.transports import Outgoing, Transport

__all__ = ["Client", "Elder", "Held", "OnAnswer", "Owner", "Reason", "Socket"]

HELD_MAX = 1_000
"""Packets held for a socket whose ``connect`` handler runs; one more ends the connection: it would be missed."""
ACKS_MAX = 1_000
"""Acknowledgements that one socket may owe; the oldest is forgotten for the next."""

OnAnswer: TypeAlias = Callable[[list[Any] | None], None]
"""Gets the arguments of an acknowledgement; None: it will not come, the client has left. Called once at most."""


class Held(NamedTuple):
    """A packet that waits for its socket."""

    packet: Outgoing
    passes: Callable[[Socket], bool] | None
    """Whether the socket may still have it, asked when it is written; None: it may."""


class Elder(Protocol):
    """Another instance, where a socket was before."""

    def acked(self, ack_id: int, args: list[Any]) -> None:
        """The client answered an event that this instance did not send."""
        ...

    def gone(self) -> None:
        """The client has left."""
        ...


class Owner(EngineOwner, Protocol):
    """What a client asks of the server."""

    def connect_asked(self, client: Client, namespace: str, auth: Any) -> None:
        """The client wants to join a namespace."""
        ...

    def event_came(self, socket: Socket, args: list[Any], ack_id: int | None) -> None:
        """An event came in."""
        ...

    def left(self, socket: Socket, reason: str) -> None:
        """The socket is gone from its namespace."""
        ...


# WebSocket close codes for connections that a packet of the client ends.
_CODES = {sio.PARSE_ERROR: 1002, sio.RATE_LIMIT: 1008}


@final
class Client(EngineClient):
    """A client that speaks Socket.IO. All methods are for the event loop's thread."""

    __slots__ = ("_connection", "heard", "mark", "sockets")

    _owner: Owner

    def __init__(
        self,
        sid: str,
        owner: Owner,
        *,
        transport: Transport,
        request: Request,
        session: Session,
        connection: Connection,
    ) -> None:
        super().__init__(sid, owner, transport=transport, request=request, session=session)
        self.sockets: dict[str, Socket] = {}
        self.mark: Position | None = None
        """Where the stream was when the ping was sent whose pong is awaited."""
        self.heard: Position | None = None
        """Everything up to here has reached the client: a later ping was answered."""
        self._connection = connection

    # --- what Engine.IO reports ---

    def _deliver(self, data: str | bytes) -> None:
        now_s = self._owner.now() if self._connection.is_limited else 0.0
        self._perform_connection(self._connection.on_event(sio.Message(data), now_s))

    def _switched(self) -> None:
        for socket in self.sockets.values():
            socket.rebind()

    def _ended(self, reason: str) -> None:
        for socket in list(self.sockets.values()):
            self._drop(socket, reason)

    @property
    def joined(self) -> bool:
        """The client is in a namespace, or about to be."""
        return bool(self.sockets)

    @property
    def is_quiet(self) -> bool:
        """Nothing of it is half done: no handler runs or waits, no packet waits for its attachments."""
        unread = self.pauses or self.callers or self.over or self.upgrade is not None
        return not unread and self._connection.is_whole and all(socket.is_quiet for socket in self.sockets.values())

    def take_over(self, states: dict[str, str]) -> None:
        """Go on where the client of another instance was. Raises ValueError."""
        self._connection.take_over(states)

    @property
    def namespace_states(self) -> dict[str, str]:
        """What the client has asked for, and how it stands there, for another instance."""
        return self._connection.states

    def encode(self, packet: Packet) -> Encoded:
        """Put a packet on this client's wire. Raises TypeError or ValueError for what cannot travel."""
        return self._connection.encode(packet)

    # --- namespaces ---

    def accept(self, socket: Socket) -> bool:
        """The ``connect`` handler agrees. False: the client has gone meanwhile, or has left and asked again."""
        if self.over or self.sockets.get(socket.namespace) is not socket:
            return False
        pid = None if socket.kept is None else socket.kept.pid
        actions = self._connection.on_event(sio.Accept(socket.namespace, socket.sid, pid), 0.0)
        if actions:
            socket.connecting = False  # before the answer, which may be too much for its transport: then it leaves
            self._perform_connection(actions)
            socket.release()
        return bool(actions)

    def refuse(self, namespace: str, message: str, data: Any = None) -> None:
        """Answer with an error: there is no such namespace, or the client may not join it."""
        if not self.over:
            self._perform_connection(self._connection.on_event(sio.Refuse(namespace, message, data), 0.0))

    def leave(self, socket: Socket, reason: str = Reason.SERVER_DISCONNECT) -> None:
        """Disconnect the client from one namespace; nothing if it has left, also if it has come back meanwhile."""
        if self.sockets.get(socket.namespace) is not socket:
            return
        if socket.connecting:
            told = "disconnected by the server" if reason == Reason.SERVER_DISCONNECT else str(reason)
            self.refuse(socket.namespace, told)
        elif not self.over:
            self._perform_connection(self._connection.on_event(sio.Leave(socket.namespace), 0.0))
        self._drop(socket, reason)

    def expel(self, reason: str, code: int = 1000) -> None:
        """Disconnect from every namespace, which official clients take as a reason to stay away, then close."""
        for socket in list(self.sockets.values()):
            self.leave(socket, reason)
        self.close(reason, code)

    def turn_away(self, socket: Socket, message: str, data: Any = None) -> None:
        """The ``connect`` handler refuses; nothing if the client has left, or has left and asked again. Raises
        TypeError or ValueError, and does nothing, for data that cannot travel."""
        if self.sockets.get(socket.namespace) is socket:
            self.refuse(socket.namespace, message, data)
            self._drop(socket, Reason.SERVER_DISCONNECT)

    def abandon(self, socket: Socket) -> None:
        """The client is at another server, or on another connection, and has left this one without a word."""
        if self.sockets.get(socket.namespace) is not socket:
            return
        # What it may still say here is said to nobody.
        self._connection.on_event(sio.Leave(socket.namespace), 0.0)
        self._drop(socket, Reason.TRANSPORT_CLOSE)
        if not self.sockets:
            self.close(Reason.TRANSPORT_CLOSE)

    def _drop(self, socket: Socket, reason: str) -> None:
        if self.sockets.get(socket.namespace) is socket:
            del self.sockets[socket.namespace]
            socket.gone()
            self._owner.left(socket, reason)

    def _perform_connection(self, actions: tuple[sio.Action, ...]) -> None:
        for action in actions:
            if type(action) is sio.HandleEvent:
                self._owner.event_came(self.sockets[action.namespace], action.args, action.id)
            elif type(action) is sio.Acked:
                self.sockets[action.namespace].acked(action.id, action.args)
            elif type(action) is sio.SendPacket:
                self.transport.write(Outgoing(action.packet))
            elif type(action) is sio.AskConnect:
                self._owner.connect_asked(self, action.namespace, action.auth)
            elif type(action) is sio.Left:
                if action.namespace in self.sockets:
                    self._drop(self.sockets[action.namespace], Reason.CLIENT_DISCONNECT)
            else:
                assert type(action) is sio.Abort
                self.close(action.reason, _CODES[action.reason])


@final
class Socket:
    """A client in one namespace: the member of rooms, the receiver of events, the holder of a user's session."""

    __slots__ = (
        "_acks",
        "_held",
        "backlog",
        "client",
        "connecting",
        "elder",
        "kept",
        "last_ack",
        "namespace",
        "paused",
        "person",
        "running",
        "session",
        "sid",
        "since",
        "write",
        "write_volatile",
    )

    def __init__(self, sid: str, namespace: str, client: Client) -> None:
        self.sid = sid
        self.namespace = namespace
        self.client = client
        self.connecting = True
        """The ``connect`` handler has not agreed yet."""
        self.kept: Kept | None = None
        """What its recovery needs (`Keeper`)."""
        self.session: dict[str, Any] | None = None
        self.since = time.time()
        """When the client asked to join (Unix seconds)."""
        self.person: Any = None
        """Who it belongs to (`People`), also while its last handlers run."""
        self.running = 0
        self.backlog: deque[tuple[Any, int | None]] | None = None
        self.paused = False
        # The transport's own methods once the client is in: a broadcast calls them without anything between.
        self.write: Callable[[Outgoing], None] = self._hold
        self.write_volatile: Callable[[Outgoing], bool] = _drop_volatile
        self._held: list[Held] | None = []
        self._acks: dict[int, OnAnswer] | None = None
        self.last_ack = 0
        """The highest id of an acknowledgement that was asked for."""
        self.elder: Elder | None = None
        """The instance where it was before, if that one waits for acknowledgements (`relay`)."""

    @property
    def holding(self) -> bool:
        """What is sent to it now is held: the ``connect`` handler runs, or what it missed goes first."""
        return self._held is not None

    def _hold(self, packet: Outgoing) -> None:
        self.hold(packet, None)

    def hold(self, packet: Outgoing, passes: Callable[[Socket], bool] | None) -> None:
        """Keep a packet until the client is in, and has what it missed."""
        if self._held is None:
            return
        if len(self._held) < HELD_MAX:
            self._held.append(Held(packet, passes))
        else:
            self.client.close(Reason.SLOW_CLIENT, 1013)

    def release(self) -> None:
        """The client is in. What waits for it is sent; with recovery by whoever looks that it can take so much."""
        if self.kept is None or not (self.kept.missed or self._held):
            self.flow()

    def take_held(self) -> list[Held]:
        """What is held, to be sent; what comes is held on."""
        assert self._held is not None, "nothing is held"
        held, self._held = self._held, []
        return held

    def still_due(self, held: Iterable[Held]) -> Iterator[Outgoing]:
        """What the socket may still have of it: write each before you ask for the next."""
        return (packet for packet, passes in held if passes is None or passes(self))

    def flow(self) -> None:
        """Send what is held, and from now on at once."""
        held, self._held = self._held, None
        self.rebind()
        for packet in self.still_due(held or ()):
            self.write(packet)

    def resume(
        self,
        session: dict[str, Any] | None,
        last_ack: int,
        write: Callable[[Outgoing], None],
        write_volatile: Callable[[Outgoing], bool],
    ) -> None:
        """It was connected to another instance and is here now; until `rebind` everything is written with these."""
        self.connecting, self._held = False, None
        self.session, self.last_ack = session, last_ack
        self.write, self.write_volatile = write, write_volatile

    @property
    def is_quiet(self) -> bool:
        """No handler of it runs or waits, and nothing is held for it."""
        return not (self.connecting or self.running or self.backlog or self.paused or self._held is not None)

    @property
    def is_awaited(self) -> bool:
        """It owes acknowledgements."""
        return bool(self._acks)

    def rebind(self) -> None:
        """The client's transport is another one now."""
        if self._held is None:
            self.write = self.client.transport.write
            self.write_volatile = self.client.transport.write_volatile

    def emit(self, args: list[Any], on_answer: OnAnswer | None = None) -> int | None:
        """Send one event; ``on_answer`` gets its acknowledgement, and the acknowledgement's id is given."""
        ack_id = None if on_answer is None else self.last_ack + 1
        packet = Outgoing(self.client.encode(Packet(PacketType.EVENT, self.namespace, args, ack_id)))
        if ack_id is not None and on_answer is not None:
            self.ask(packet, ack_id, on_answer)
        else:
            self.write(packet)
        return ack_id

    def ask(self, packet: Outgoing, ack_id: int, on_answer: OnAnswer) -> None:
        """Send an event that carries ``ack_id``, which must be above `last_ack`. A client that has left is not waited
        for."""
        if self.client.sockets.get(self.namespace) is not self:
            on_answer(None)
            return
        assert ack_id > self.last_ack, f"{ack_id} is not above {self.last_ack}"
        self.last_ack = ack_id
        if self._acks is None:
            self._acks = {}
        elif len(self._acks) >= ACKS_MAX:
            self._acks.pop(next(iter(self._acks)))(None)
        self._acks[ack_id] = on_answer
        self.write(packet)

    def acknowledge(self, ack_id: int, args: list[Any]) -> None:
        """Answer an event of the client."""
        self.write(Outgoing(self.client.encode(Packet(PacketType.ACK, self.namespace, args, ack_id))))

    def acked(self, ack_id: int, args: list[Any]) -> None:
        """The client answered one of ours. An id that nobody waits for is dropped: it came too late."""
        on_answer = self._acks.pop(ack_id, None) if self._acks else None
        if on_answer is not None:
            on_answer(args)
        elif self.elder is not None:
            self.elder.acked(ack_id, args)

    def gone(self) -> None:
        """The client has left: nobody waits for its answers any more, and nothing follows the last packet of its
        namespace, acknowledgements of handlers that still run among it."""
        self.write, self.write_volatile = _drop, _drop_volatile
        if self.elder is not None:
            self.elder.gone()
        acks, self._acks = self._acks, None
        for on_answer in acks.values() if acks else ():
            on_answer(None)

    def forget_ack(self, ack_id: int) -> None:
        """Nobody waits for this acknowledgement any more."""
        if self._acks:
            self._acks.pop(ack_id, None)


def _drop(_packet: Outgoing) -> None:
    pass


def _drop_volatile(_packet: Outgoing) -> bool:
    return False
