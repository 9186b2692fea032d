"""One client as Engine.IO sees it: its transport and its session. What is above it overrides three methods.

The machine decides, this class does: it feeds it what comes in and carries out its actions, synchronously, in the event
loop.

Invariant: `EngineOwner.ended` is called exactly once per client, after `_ended`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Any, Protocol

from flotta.realtime.engine.request import Request
from flotta.realtime.engineio import session as engine
from flotta.realtime.engineio.session import Session
from flotta.realtime.transports import Transport

__all__ = ["Attempt", "EngineClient", "EngineOwner", "Reason"]


class Reason(StrEnum):
    """Why a client was disconnected; the second argument of a ``disconnect`` handler."""

    CLIENT_DISCONNECT = "client namespace disconnect"
    SERVER_DISCONNECT = "server namespace disconnect"
    PING_TIMEOUT = "ping timeout"
    TRANSPORT_CLOSE = "transport close"
    TRANSPORT_ERROR = "transport error"
    PARSE_ERROR = "parse error"
    RATE_LIMIT = "message rate exceeded"
    SLOW_CLIENT = "slow client"
    CONNECT_TIMEOUT = "connect timeout"
    DRAINING = "server draining"
    EXPIRED = "access expired"
    """The time that `Server.set_user` was told is over."""
    REVOKED = "access revoked"
    IDLE = "idle"
    """No event for `idle_s`."""


class EngineOwner(Protocol):
    """What a client asks of the server."""

    def now(self) -> float:
        """Seconds of a clock that does not go back."""
        ...

    def reschedule(self, client: Any) -> None:
        """The deadline of the client's session has moved."""
        ...

    def ended(self, client: Any, reason: str) -> None:
        """The client is gone."""
        ...


class Attempt(Protocol):
    """A WebSocket that tries to take the session over."""

    def give_up(self) -> None:
        """The session has ended."""
        ...


class EngineClient(ABC):
    """Glue between one transport and what is above; a `Receiver`. All methods are for the event loop's thread."""

    __slots__ = ("_owner", "_session", "callers", "pauses", "request", "sid", "transport", "upgrade")

    def __init__(
        self, sid: str, owner: EngineOwner, *, transport: Transport, request: Request, session: Session
    ) -> None:
        self.sid = sid
        self.transport = transport
        self.request = request
        self.pauses = 0
        self.callers = 0
        """``connect`` and ``disconnect`` handlers of this client that run."""
        self.upgrade: Attempt | None = None
        self._owner = owner
        self._session = session

    # --- what is above ---

    @abstractmethod
    def _deliver(self, data: str | bytes) -> None:
        """The payload of a message came in."""

    @abstractmethod
    def _switched(self) -> None:
        """`transport` is another one now."""

    @abstractmethod
    def _ended(self, reason: str) -> None:
        """The session has ended."""

    @property
    @abstractmethod
    def joined(self) -> bool:
        """The client has done what it must do within ``connect_timeout_s``."""

    # --- the session ---

    @property
    def due_s(self) -> float:
        """When the session's next deadline is."""
        return self._session.due_s

    @property
    def pinged(self) -> bool:
        """A pong is awaited."""
        return self._session.state is engine.State.PINGED

    @property
    def over(self) -> bool:
        """The session has ended."""
        return self._session.state is engine.State.ENDED

    def environ(self) -> dict[str, Any]:
        """The request that opened the session."""
        return self.request.environ()

    def receive(self, data: str | bytes) -> None:
        """A whole message came in."""
        payload = self._session.message(data)
        if payload is not None:
            self._deliver(payload)
            return
        due_s = self._session.due_s
        self._perform(self._session.on_event(engine.Received(data), self._owner.now()))
        if self._session.due_s != due_s:
            self._owner.reschedule(self)

    def tick(self) -> None:
        """The session's deadline has passed. While this side does not read, no client is to blame for silence."""
        now_s = self._owner.now()
        if self.pauses:
            self._session.excuse(now_s)
        self._perform(self._session.on_event(engine.Tick(), now_s))
        if not self.over:
            self._owner.reschedule(self)

    def lost(self, reason: str = Reason.TRANSPORT_CLOSE) -> None:
        """The transport is gone. Calling it again does nothing."""
        self._perform(self._session.on_event(engine.Lost(reason), self._owner.now()))

    def close(self, reason: str, code: int = 1000) -> None:
        """End the whole connection. Calling it again does nothing."""
        self._perform(self._session.on_event(engine.Close(reason, code), self._owner.now()))

    def expel(self, reason: str, code: int = 1000) -> None:
        """The same, and tell the client that it is meant: it should not come back by itself, where it can be told."""
        self.close(reason, code)

    def _perform(self, actions: tuple[engine.Action, ...]) -> None:
        for action in actions:
            if type(action) is engine.Deliver:
                self._deliver(action.data)
            elif type(action) is engine.Send:
                self.transport.write_control(action.packet)
            else:
                assert type(action) is engine.End
                self._end(action)

    def switch(self, transport: Transport) -> None:
        """Go on over ``transport``; what waits on the old one goes first."""
        old, self.transport = self.transport, transport
        old.hand_over(transport)
        self._switched()
        if self.pauses:
            transport.pause()

    def _end(self, end: engine.End) -> None:
        if self.upgrade is not None:
            self.upgrade.give_up()
        if end.code is not None:
            self.transport.close(end.code, end.reason)
        self._ended(end.reason)
        self._owner.ended(self, end.reason)

    # --- backpressure ---

    def pause(self) -> None:
        """Read no further until as many `resume` as `pause` were called."""
        self.pauses += 1
        if self.pauses == 1:
            self.transport.pause()

    def resume(self) -> None:
        """Undo one `pause`. A pong may lie behind all that was not read: the client gets its time again."""
        self.pauses -= 1
        if self.pauses == 0:
            if self.pinged:
                self._session.excuse(self._owner.now())
                self._owner.reschedule(self)
            self.transport.resume()
