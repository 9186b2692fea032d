"""How packets travel: what the server asks of a transport, and the packet that is encoded once for all of them."""

from __future__ import annotations

from typing import Any, Protocol, final

from flotta.realtime.engineio.packet import MESSAGE, encode_payload
from flotta.realtime.socketio.packet import Encoded
from flotta.realtime.transports.websocket import OP_BINARY, OP_TEXT, frame

__all__ = ["Outgoing", "Receiver", "Transport"]


@final
class Outgoing:
    """A packet as Engine.IO messages, encoded when it is made and never again.

    ``frames`` is the whole as WebSocket frames in one piece, for transports that write bytes; ``text`` (None for a
    packet that is all binary) and ``attachments`` are for those that frame by themselves.
    """

    __slots__ = ("_polled", "attachments", "frames", "size_bytes", "text")

    def __init__(self, packet: Encoded) -> None:
        # JavaScript's strings may hold lone surrogates; in JSON they travel as their escape, as JSON.stringify has it.
        self.text = None if packet.text is None else (MESSAGE + packet.text).encode("utf-8", "backslashreplace")
        self.attachments = packet.attachments
        self.frames = b"" if self.text is None else frame(OP_TEXT, self.text)
        if packet.attachments:
            self.frames = b"".join([self.frames, *(frame(OP_BINARY, part) for part in packet.attachments)])
        self.size_bytes = len(self.frames)
        self._polled: str | None = None

    def polled(self) -> str:
        """The whole as a part of a polling body: made for the first client that polls, kept for the others."""
        if self._polled is None:
            parts = [] if self.text is None else [self.text.decode()]
            self._polled = encode_payload([*parts, *self.attachments])
        return self._polled


class Transport(Protocol):
    """One connection's way to its client. No method blocks or raises; after the loss they do nothing."""

    @property
    def name(self) -> str:
        """``websocket`` or ``polling``."""
        ...

    @property
    def unsent_bytes(self) -> int:
        """What waits here for the client to read."""
        ...

    def write(self, packet: Outgoing) -> None:
        """Send, or end the connection as too slow if the send buffer would pass its limit."""
        ...

    def write_volatile(self, packet: Outgoing) -> bool:
        """Send if the client keeps up, else drop. False: dropped."""
        ...

    def write_control(self, text: str) -> None:
        """Send an Engine.IO packet that is no message (a ping)."""
        ...

    def release_polls(self, *, on: bool) -> None:
        """From now on (or no longer) answer polls with nothing instead of letting them wait; only polling has any."""
        ...

    def hand_over(self, successor: Transport) -> None:
        """Give what waits to the transport that takes the session over; only polling is ever followed."""
        ...

    def pause(self) -> None:
        """Stop reading: the client's events come faster than they are handled."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Send what is buffered and a close frame, then end."""
        ...


class Receiver(Protocol):
    """What a transport reports to. Called in the event loop, in order."""

    def receive(self, data: str | bytes) -> None:
        """A whole message came in."""
        ...

    def lost(self, reason: str) -> None:
        """The connection is gone. Called at least once."""
        ...

    def close(self, reason: str, code: int = 1000) -> None:
        """The transport ends the connection for a reason of its own."""
        ...

    @property
    def over(self) -> bool:
        """Nothing more is to be read."""
        ...

    def environ(self) -> dict[str, Any]:
        """The request that opened the session."""
        ...
