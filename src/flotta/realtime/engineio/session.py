"""One Engine.IO session as a machine: ``on_event(event, now_s) -> actions``.

It owns the heartbeat and the end of a session; it never waits. The shell feeds it what the transport received, the time
when its deadline (`due_s`) has passed, and the loss of the transport; it answers with packets to send, payloads to hand
up, and at most one `End`, after which every event gives nothing.

Engine.IO 4: the server pings every ``ping_interval_s`` after the last pong, and the client must answer within
``ping_timeout_s``. A client that pings, opens or upgrades on a WebSocket session breaks the protocol.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple, TypeAlias, final

from flotta.errors import PacketError
from flotta.realtime.engineio.packet import MESSAGE, PING, PacketType, decode

__all__ = [
    "Action",
    "Close",
    "Deliver",
    "End",
    "Event",
    "Lost",
    "Received",
    "Send",
    "Session",
    "State",
    "Tick",
]

PING_TIMEOUT: Final = "ping timeout"
TRANSPORT_CLOSE: Final = "transport close"
TRANSPORT_ERROR: Final = "transport error"
LATE_SHARE: Final = 0.25
"""Part of the time for a pong that a late ping may use up."""


class State(Enum):
    """Where the heartbeat stands."""

    RESTING = "resting"
    """The next ping is not due yet."""
    PINGED = "pinged"
    """A ping was sent, its pong is awaited."""
    ENDED = "ended"


class Received(NamedTuple):
    """One WebSocket message (or one packet of a polling body) came in."""

    data: str | bytes


class Tick(NamedTuple):
    """The time has come to look at the deadline."""


class Lost(NamedTuple):
    """The transport is gone."""

    reason: str = TRANSPORT_CLOSE


class Close(NamedTuple):
    """This side wants the session to end."""

    reason: str
    code: int = 1000


Event: TypeAlias = Received | Tick | Lost | Close


class Send(NamedTuple):
    """Send this packet."""

    packet: str


class Deliver(NamedTuple):
    """Hand this payload of a message up to Socket.IO."""

    data: str | bytes


class End(NamedTuple):
    """The session is over: tell the layers above, close the transport with this code (None: it is gone already)."""

    reason: str
    code: int | None


Action: TypeAlias = Send | Deliver | End

_NOTHING: tuple[Action, ...] = ()
_PING: tuple[Action, ...] = (Send(PING),)


@final
class Session:
    """The machine. ``due_s`` is the time of its next deadline; a `Tick` before it does nothing."""

    __slots__ = ("_interval_s", "_state", "_timeout_s", "due_s")

    def __init__(self, now_s: float, *, ping_interval_s: float, ping_timeout_s: float) -> None:
        self._interval_s = ping_interval_s
        self._timeout_s = ping_timeout_s
        self._state = State.RESTING
        self.due_s = now_s + ping_interval_s

    @property
    def state(self) -> State:
        """Where the heartbeat stands."""
        return self._state

    def on_event(self, event: Event, now_s: float) -> tuple[Action, ...]:
        """Take one event, give what to do. Never raises: a malformed packet ends the session."""
        if self._state is State.ENDED:
            return _NOTHING
        if type(event) is Received:
            return self._received(event.data, now_s)
        if type(event) is Tick:
            return self._tick(now_s)
        if type(event) is Lost:
            return self._end(event.reason, None)
        assert type(event) is Close
        return self._end(event.reason, event.code)

    def message(self, data: str | bytes) -> str | bytes | None:
        """The payload, if ``data`` is a message: what `Received` gives as `Deliver`, without their making. It changes
        nothing. None: ask `on_event`."""
        if self._state is State.ENDED:
            return None
        if isinstance(data, bytes):
            return data
        return data[1:] if data[:1] == MESSAGE else None

    def _received(self, data: str | bytes, now_s: float) -> tuple[Action, ...]:
        try:
            packet = decode(data)
        except PacketError:
            return self._end(TRANSPORT_ERROR, 1002)
        if packet.type is PacketType.MESSAGE:
            return (Deliver(packet.data),)
        if packet.type is PacketType.PONG:
            self._state = State.RESTING
            self.due_s = now_s + self._interval_s
            return _NOTHING
        if packet.type is PacketType.NOOP:
            return _NOTHING
        if packet.type is PacketType.CLOSE:
            return self._end(TRANSPORT_CLOSE, 1000)
        return self._end(TRANSPORT_ERROR, 1002)

    def _tick(self, now_s: float) -> tuple[Action, ...]:
        if now_s < self.due_s:
            return _NOTHING
        if self._state is State.PINGED:
            return self._end(PING_TIMEOUT, 1001)
        self._state = State.PINGED
        # From when the ping was due, so that a ping that was sent a little late does not put the end off.
        self.due_s = max(self.due_s, now_s - LATE_SHARE * self._timeout_s) + self._timeout_s
        return _PING

    def excuse(self, now_s: float) -> None:
        """Give the client a new deadline for its pong: this side did not read for a while."""
        if self._state is State.PINGED:
            self.due_s = now_s + self._timeout_s

    def _end(self, reason: str, code: int | None) -> tuple[Action, ...]:
        self._state = State.ENDED
        return (End(reason, code),)
