"""The Socket.IO side of one client as a machine: which namespaces it is in, and what each packet means there.

``on_event(event, now_s) -> actions``; it never waits and knows no handler. After `Abort` every event gives nothing.

States of a namespace: absent -> CONNECTING (asked, the handler decides) -> CONNECTED -> LEFT. Every (packet, state)
pair is in `_TABLE`; a pair that the protocol forbids ends the connection. An event that does not wait for the answer
to its CONNECT is handed up: the handlers' side keeps it until the ``connect`` handler is done. An acknowledgement there
can only be for an earlier connection, and is dropped. An event for a namespace that this side has
just left is not a fault: it crossed our DISCONNECT on the wire, and is dropped. So what was left is remembered, until
there is no room: a client may go through any number of namespaces, and be in so many at once.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Any, Final, NamedTuple, TypeAlias, final

from flotta.errors import PacketError
from flotta.realtime.engineio.rate import Rate
from flotta.realtime.socketio.packet import Encoded, Packet, PacketType
from flotta.realtime.socketio.parser import JSON, Parser

__all__ = [
    "Abort",
    "Accept",
    "Acked",
    "Action",
    "AskConnect",
    "Connection",
    "Event",
    "HandleEvent",
    "Leave",
    "Left",
    "Message",
    "Refuse",
    "SendPacket",
    "State",
]

PARSE_ERROR: Final = "parse error"
RATE_LIMIT: Final = "message rate exceeded"
NAMESPACES_MAX: Final = 64
"""Namespaces that one client may be in or ask for at once; those that it was in last are remembered beside them, up to
so many together."""


class State(StrEnum):
    """A namespace as one client sees it."""

    ABSENT = "absent"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    LEFT = "left"


class Message(NamedTuple):
    """The payload of an Engine.IO message came in."""

    data: str | bytes


class Accept(NamedTuple):
    """The connect handler agrees. ``pid``: what the client says to get its session back."""

    namespace: str
    sid: str
    pid: str | None = None


class Refuse(NamedTuple):
    """The connect handler refuses, or there is no such namespace."""

    namespace: str
    message: str
    data: Any = None


class Leave(NamedTuple):
    """This side ends the client's stay in a namespace."""

    namespace: str


Event: TypeAlias = Message | Accept | Refuse | Leave


class AskConnect(NamedTuple):
    """Ask the connect handler; answer with `Accept` or `Refuse`."""

    namespace: str
    auth: Any


class HandleEvent(NamedTuple):
    """Run the event's handlers, after the ``connect`` handler if that still decides; if ``id`` is not None the client
    waits for an acknowledgement."""

    namespace: str
    args: list[Any]
    id: int | None


class Acked(NamedTuple):
    """The client acknowledged our event ``id``."""

    namespace: str
    id: int
    args: list[Any]


class Left(NamedTuple):
    """The client left the namespace by itself."""

    namespace: str


class SendPacket(NamedTuple):
    """Send this."""

    packet: Encoded


class Abort(NamedTuple):
    """End the whole connection."""

    reason: str
    error: PacketError | None = None


Action: TypeAlias = AskConnect | HandleEvent | Acked | Left | SendPacket | Abort

_NOTHING: tuple[Action, ...] = ()


class _Move(Enum):
    ASK = "ask"
    HANDLE = "handle"
    ACK = "ack"
    LEAVE = "leave"
    DROP = "drop"
    FAULT = "fault"


# What a client's packet means in each state; a pair that is not here is a fault.
_TABLE: dict[tuple[PacketType, State], _Move] = {
    (PacketType.CONNECT, State.ABSENT): _Move.ASK,
    (PacketType.CONNECT, State.LEFT): _Move.ASK,
    (PacketType.EVENT, State.CONNECTING): _Move.HANDLE,
    (PacketType.EVENT, State.CONNECTED): _Move.HANDLE,
    (PacketType.EVENT, State.LEFT): _Move.DROP,
    (PacketType.ACK, State.CONNECTING): _Move.DROP,
    (PacketType.ACK, State.CONNECTED): _Move.ACK,
    (PacketType.ACK, State.LEFT): _Move.DROP,
    (PacketType.DISCONNECT, State.CONNECTED): _Move.LEAVE,
    (PacketType.DISCONNECT, State.CONNECTING): _Move.LEAVE,
    (PacketType.DISCONNECT, State.LEFT): _Move.DROP,
}


@final
class Connection:
    """The machine of one client. ``rate_max`` is messages per second, with a burst of one second's worth."""

    __slots__ = ("_aborted", "_decoder", "_namespaces", "_rate", "encode", "is_limited", "is_whole")

    def __init__(
        self, now_s: float, *, attachments_max: int, rate_max: float | None = None, parser: Parser = JSON
    ) -> None:
        self._decoder = parser.decoder(attachments_max)
        self.encode = parser.encode
        """Puts a packet on this client's wire."""
        self.is_whole = True
        """No packet waits for its attachments."""
        self._namespaces: dict[str, State] = {}  # what was left stands in the order of its leaving
        self._rate = None if rate_max is None else Rate(rate_max, now_s)
        self.is_limited = rate_max is not None
        """The time of a `Message` counts."""
        self._aborted = False

    def state(self, namespace: str) -> State:
        """Where the client stands in ``namespace``."""
        return self._namespaces.get(namespace, State.ABSENT)

    @property
    def states(self) -> dict[str, str]:
        """Where the client stands everywhere, for `take_over` elsewhere."""
        return {namespace: state.value for namespace, state in self._namespaces.items()}

    def take_over(self, states: dict[str, str]) -> None:
        """Go on where another one was. Raises ValueError for a state that there is none of."""
        self._namespaces = {namespace: State(state) for namespace, state in states.items()}

    def on_event(self, event: Event, now_s: float) -> tuple[Action, ...]:
        """Take one event, give what to do. Never raises for what a client sent."""
        if self._aborted:
            return _NOTHING
        if type(event) is Message:
            return self._message(event.data, now_s)
        if type(event) is Accept:
            return self._accept(event)
        if type(event) is Refuse:
            return self._refuse(event)
        assert type(event) is Leave
        return self._leave(event.namespace)

    def _message(self, data: str | bytes, now_s: float) -> tuple[Action, ...]:
        if self._rate is not None and not self._rate.take(now_s):
            return self._abort(RATE_LIMIT)
        try:
            packet = self._decoder.add(data)
        except PacketError as error:
            return self._abort(PARSE_ERROR, error)
        self.is_whole = packet is not None
        return _NOTHING if packet is None else self._packet(packet)

    def _packet(self, packet: Packet) -> tuple[Action, ...]:
        namespace = packet.namespace
        move = _TABLE.get((packet.type, self._namespaces.get(namespace, State.ABSENT)), _Move.FAULT)
        if move is _Move.HANDLE:
            return (HandleEvent(namespace, packet.data, packet.id),)
        if move is _Move.ACK:
            assert packet.id is not None
            return (Acked(namespace, packet.id, packet.data),)
        if move is _Move.ASK and self._has_room(namespace):
            self._namespaces[namespace] = State.CONNECTING
            return (AskConnect(namespace, packet.data),)
        if move is _Move.LEAVE:
            self._put_left(namespace)
            return (Left(namespace),)
        return _NOTHING if move is _Move.DROP else self._abort(PARSE_ERROR)

    def _has_room(self, namespace: str) -> bool:
        """Whether the client may ask for it. The namespace that was left first is forgotten for a new one."""
        if namespace not in self._namespaces and len(self._namespaces) >= NAMESPACES_MAX:
            first = next((name for name, state in self._namespaces.items() if state is State.LEFT), None)
            if first is None:
                return False
            del self._namespaces[first]
        return True

    def _put_left(self, namespace: str) -> None:
        del self._namespaces[namespace]
        self._namespaces[namespace] = State.LEFT

    def _accept(self, event: Accept) -> tuple[Action, ...]:
        if self.state(event.namespace) is not State.CONNECTING:
            return _NOTHING  # the client left while the handler ran
        self._namespaces[event.namespace] = State.CONNECTED
        ids = {"sid": event.sid} if event.pid is None else {"sid": event.sid, "pid": event.pid}
        return (SendPacket(self.encode(Packet(PacketType.CONNECT, event.namespace, ids))),)

    def _refuse(self, event: Refuse) -> tuple[Action, ...]:
        if self.state(event.namespace) is not State.CONNECTING:
            return _NOTHING
        answer = {"message": event.message} if event.data is None else {"message": event.message, "data": event.data}
        packet = self.encode(Packet(PacketType.CONNECT_ERROR, event.namespace, answer))
        del self._namespaces[event.namespace]
        return (SendPacket(packet),)

    def _leave(self, namespace: str) -> tuple[Action, ...]:
        state = self.state(namespace)
        if state not in {State.CONNECTING, State.CONNECTED}:
            return _NOTHING
        self._put_left(namespace)
        if state is State.CONNECTING:
            return _NOTHING  # it was never told that it is in
        return (SendPacket(self.encode(Packet(PacketType.DISCONNECT, namespace))),)

    def _abort(self, reason: str, error: PacketError | None = None) -> tuple[Action, ...]:
        self._aborted = True
        return (Abort(reason, error),)
