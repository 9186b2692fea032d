"""WebSockets whose session another instance holds. The one with the WebSocket has the `Near` end, the holder the `Far`.

A tunnel carries whole messages both ways, in order, so the holder upgrades the session exactly as if the WebSocket
were its own: the probe, its answer, the switch, and from then on everything. That is correct at any time and for any
session, whatever its handlers do; it costs a hop over Redis per packet. So the session moves to the near end as soon as
it is quiet (`departures`), and the tunnel ends.

Messages are numbered. One that is missing, an end that is not heard any more, or a peer that is gone ends the tunnel
and with it the connection: the client comes back with a new session. Never a gap.

Bounded: what is on its way to Redis for one tunnel is limited like a socket's send buffer, in both directions; and what
is on its way to one instance for all tunnels together waits its turn (`pace`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Protocol, TypeAlias, final

from flotta.realtime.client import Client
from flotta.realtime.engine.client import Reason
from flotta.realtime.engine.options import EngineOptions
from flotta.realtime.engine.request import Request
from flotta.realtime.relay.post import Post
from flotta.realtime.relay.wire import (
    Along,
    Broken,
    Close,
    Control,
    Freeze,
    Frozen,
    Lost,
    Message,
    Moved,
    Packet,
    Reading,
    Received,
    Thaw,
)
from flotta.realtime.socketio.packet import Encoded
from flotta.realtime.transports import Outgoing, Receiver, Transport

__all__ = ["Far", "Near", "NearOwner"]

CLOSE_RESTART = 1012
READ_BYTES_MAX = 262_144
"""Bytes of one client on their way to the holder; then it is not read until half have arrived."""

Make: TypeAlias = Callable[[str, int], Message]
"""Makes a message of a tunnel's id and a number."""


@final
class _Line:
    """One direction out: numbers messages, and knows how many bytes are on their way to Redis, or wait to be."""

    __slots__ = ("_on_unheard", "_post", "_seq", "bytes", "to", "tunnel")

    def __init__(self, post: Post, to: str, tunnel: str, on_unheard: Callable[[], None]) -> None:
        self.to = to
        self.tunnel = tunnel
        self.bytes = 0
        self._post = post
        self._seq = 0
        self._on_unheard = on_unheard

    def send(
        self,
        make: Make,
        size_bytes: int = 0,
        on_sent: Callable[[], None] | None = None,
        on_unheard: Callable[[], None] | None = None,
    ) -> None:
        """Send the next message. ``on_unheard``: instead of the line's own."""
        self._seq += 1
        self.bytes += size_bytes

        def sent() -> None:
            self.bytes -= size_bytes
            if on_sent is not None:
                on_sent()

        self._post.pace.send(self.to, make(self.tunnel, self._seq), size_bytes, on_unheard or self._on_unheard, sent)

    def say_broken(self) -> None:
        """Tell the other end that this one is gone."""
        self._post.send(self.to, Broken(self.tunnel), _nothing)


class NearOwner(Protocol):
    """What a near end asks of its server."""

    def near_over(self, near: Near) -> None:
        """The tunnel has ended."""
        ...


class Arriving(Protocol):
    """What a near end tells of a session that may come."""

    def freeze_asked(self, near: Near, rooms: dict[str, list[str]]) -> None:
        """The session may come here: answer with `Near.answer_freeze` when everything for it is ready."""
        ...

    def thawed(self, near: Near) -> None:
        """The session does not come now."""
        ...

    def moved(self, near: Near, moved: Moved) -> None:
        """The session is here: answer with `Near.settle`, or break the tunnel."""
        ...


class _State(Enum):
    RELAYED = auto()
    FROZEN = auto()
    """Nothing of the client goes to the holder: the session may come here any moment."""
    SETTLED = auto()
    """The session is here."""
    OVER = auto()


@final
class Near:
    """The end with the WebSocket; the `Receiver` of its transport for as long as that lives."""

    def __init__(
        self,
        owner: NearOwner,
        arrivals: Arriving,
        transport: Transport,
        options: EngineOptions,
        post: Post,
        *,
        holder: str,
    ) -> None:
        self.tunnel = secrets.token_urlsafe(9)
        self.holder = holder
        self.transport = transport
        self._owner = owner
        self._arrivals = arrivals
        self._send_max = options.send_bytes_max
        self._line = _Line(post, holder, self.tunnel, self.broken)
        self._state = _State.RELAYED
        self._seq = 0
        self._client: Client | None = None
        self._gone: str | None = None
        self._holds_reading: set[str] = set()
        self._kept: list[str | bytes] | None = None

    # --- Receiver: told by the transport ---

    @property
    def over(self) -> bool:
        """Nothing more is to be read."""
        if self._client is not None:
            return self._client.over
        return self._state is _State.OVER or self._gone is not None

    def receive(self, data: str | bytes) -> None:
        """A whole message came in."""
        if self._kept is not None:
            self._kept.append(data)  # under ASGI one message may be on its way when reading stops
        elif self._client is not None:
            self._client.receive(data)
        elif self._state is _State.RELAYED:
            is_text = isinstance(data, str)
            payload = data.encode() if isinstance(data, str) else data
            self._line.send(lambda tunnel, seq: Received(tunnel, seq, payload, is_text), len(payload), self._relieve)
            if self._line.bytes > READ_BYTES_MAX:
                self._hold_reading("way")

    def lost(self, reason: str) -> None:
        """The connection is gone."""
        if self._client is not None:
            self._client.lost(reason)
        else:
            self._lose(reason)

    def close(self, reason: str, code: int = 1000) -> None:
        """The transport, or this server, wants the end."""
        if self._client is not None:
            self._client.close(reason, code)
        elif not self.over:
            self._lose(reason)
            self.transport.close(code, reason)

    def _lose(self, reason: str) -> None:
        if self._state is _State.FROZEN:
            self._gone = self._gone or reason  # the session may be on its way here, and ends where it arrives
        elif self._state is _State.RELAYED:
            self._line.send(lambda tunnel, seq: Lost(tunnel, seq, reason))
            self._end()

    def environ(self) -> dict[str, Any]:
        """The request that opened the session: it is not here yet."""
        return {} if self._client is None else self._client.environ()

    # --- reading ---

    def _relieve(self) -> None:
        if "way" in self._holds_reading and self._line.bytes <= READ_BYTES_MAX // 2:
            self._read_on("way")

    def _hold_reading(self, why: str) -> None:
        if not self._holds_reading:
            self.transport.pause()
        self._holds_reading.add(why)

    def _read_on(self, why: str) -> None:
        self._holds_reading.discard(why)
        if not self._holds_reading and self._state is not _State.OVER:
            self.transport.resume()

    # --- told by the far end ---

    def take(self, message: Along) -> None:
        """A message of the far end, in order or the tunnel is broken."""
        if self._state in {_State.OVER, _State.SETTLED}:
            return
        self._seq += 1
        if message.seq != self._seq:
            self.broken()
        elif type(message) is Packet:
            self._write(message)
        elif type(message) is Control:
            self.transport.write_control(message.text)
        elif type(message) is Reading:
            (self._read_on if message.on else self._hold_reading)("far")
        elif type(message) is Close:
            self._end()
            self.transport.close(message.code, message.reason)
        else:
            self._take_move(message)

    def _write(self, packet: Packet) -> None:
        text = None if packet.text is None else packet.text.decode("utf-8", "replace")
        self.transport.write(Outgoing(Encoded(text, tuple(packet.attachments))))

    def _take_move(self, message: Along) -> None:
        if type(message) is Freeze and self._state is _State.RELAYED:
            self._arrivals.freeze_asked(self, message.rooms)
        elif type(message) is Thaw and self._state is _State.RELAYED:
            self._arrivals.thawed(self)  # the holder has not waited for the answer, which is no from now on
        elif type(message) is Thaw and self._state is _State.FROZEN:
            self._state = _State.RELAYED
            self._arrivals.thawed(self)
            self.read_on()
            if self._gone is not None:
                self._lose(self._gone)
        elif type(message) is Moved and self._state is _State.FROZEN:
            self._arrivals.moved(self, message)
        else:
            self.broken()

    # --- moves ---

    @property
    def frozen(self) -> bool:
        """The session may come here any moment."""
        return self._state is _State.FROZEN

    def answer_freeze(self, *, ready: bool) -> None:
        """Say whether the session may come; if so, nothing of the client is handed on any more."""
        if self._state is not _State.RELAYED:
            return
        if ready:
            self._state = _State.FROZEN
            self._kept = []
            self._hold_reading("move")
        self._line.send(lambda tunnel, seq: Frozen(tunnel, seq, ready))

    def settle(self, client: Client) -> None:
        """The session is here: everything goes to ``client`` from now on. Reading waits for `read_on`."""
        assert self._state is _State.FROZEN
        self._state = _State.SETTLED
        self._client = client
        self._holds_reading.intersection_update({"move"})
        self._owner.near_over(self)
        if self._gone is not None:
            client.lost(self._gone)

    def read_on(self) -> None:
        """The client may be read again."""
        kept, self._kept = self._kept, None
        for data in kept or ():
            self.receive(data)
        self._read_on("move")

    # --- the end ---

    def broken(self) -> None:
        """The holder cannot be reached, or something was lost on the way. It is told, in case it can hear."""
        if self._state in {_State.RELAYED, _State.FROZEN}:
            self._end()
            self._line.say_broken()
            self.transport.close(CLOSE_RESTART, "the session cannot be reached")

    def _end(self) -> None:
        self._state = _State.OVER
        self._owner.near_over(self)


class FarOwner(Protocol):
    """What a far end asks of its server."""

    def far_over(self, far: Far) -> None:
        """The tunnel has ended."""
        ...


class Departing(Protocol):
    """What a far end tells of a session that may go."""

    def frozen(self, far: Far, *, ready: bool) -> None:
        """The near end reads no further; all that it read before has been handled. Not ``ready``: it cannot now."""
        ...


@final
class Far:
    """The holder's end; the `Transport` of the session once it has switched."""

    name = "websocket"

    def __init__(
        self, owner: FarOwner, departures: Departing, options: EngineOptions, post: Post, *, tunnel: str, near: str
    ) -> None:
        self.tunnel = tunnel
        self.near = near
        self.receiver: Receiver | None = None
        self._owner = owner
        self._departures = departures
        self._options = options
        self._line = _Line(post, near, tunnel, self.broken)
        self._seq = 0
        self._open = True

    # --- Transport ---

    @property
    def unsent_bytes(self) -> int:
        """What is on its way to the near end."""
        return self._line.bytes

    def write(self, packet: Outgoing) -> None:
        """Send, or end the connection as too slow."""
        if not self._open:
            return
        if self._line.bytes and self._line.bytes + packet.size_bytes > self._options.send_bytes_max:
            assert self.receiver is not None
            self.receiver.close(Reason.SLOW_CLIENT, 1008)
            return
        text = None if packet.text is None else packet.text[1:]  # the near end puts the type before it again
        attachments = list(packet.attachments)
        self._line.send(lambda tunnel, seq: Packet(tunnel, seq, text, attachments), packet.size_bytes)

    def write_volatile(self, packet: Outgoing) -> bool:
        """Send if little is on its way. False: dropped."""
        if not self._open or self._line.bytes > self._options.volatile_bytes_max:
            return False
        self.write(packet)
        return True

    def write_control(self, text: str) -> None:
        """Send a packet that is no message."""
        if self._open:
            self._line.send(lambda tunnel, seq: Control(tunnel, seq, text))

    def release_polls(self, *, on: bool) -> None:
        """There are none here."""

    def hand_over(self, successor: Transport) -> None:
        """Nothing follows a WebSocket."""

    def pause(self) -> None:
        """Let the near end read no further. What is on its way comes all the same, and is bounded."""
        self._reading(on=False)

    def resume(self) -> None:
        """Let it read on."""
        self._reading(on=True)

    def _reading(self, *, on: bool) -> None:
        if self._open:
            self._line.send(lambda tunnel, seq: Reading(tunnel, seq, on))

    def close(self, code: int, reason: str) -> None:
        """Let the near end send what it has, and a close frame."""
        if self._open:
            self._line.send(lambda tunnel, seq: Close(tunnel, seq, code, reason))
            self.end()

    # --- told by the near end ---

    def take(self, message: Along) -> None:
        """A message of the near end, in order or the tunnel is broken."""
        if not self._open:
            return
        self._seq += 1
        receiver = self.receiver
        if message.seq != self._seq or receiver is None:
            self.broken()
        elif type(message) is Received:
            receiver.receive(message.data.decode("utf-8", "replace") if message.is_text else message.data)
        elif type(message) is Lost:
            self.end()
            receiver.lost(message.reason)
        elif type(message) is Frozen:
            self._departures.frozen(self, ready=message.ready)
        else:
            self.broken()

    # --- moves ---

    @property
    def is_open(self) -> bool:
        """Messages come and go."""
        return self._open

    def freeze(self, rooms: dict[str, list[str]]) -> None:
        """Ask the near end to read no further."""
        self._line.send(lambda tunnel, seq: Freeze(tunnel, seq, rooms))

    def thaw(self) -> None:
        """Not now."""
        self._line.send(Thaw)

    def hand_session(self, make: Make, on_unheard: Callable[[], None]) -> None:
        """The last message: the session itself."""
        self._line.send(make, on_unheard=on_unheard)
        self.end()

    # --- the end ---

    def broken(self) -> None:
        """The near end cannot be reached, or something was lost on the way. It is told, in case it can hear."""
        if self._open:
            self.end()
            self._line.say_broken()
            if self.receiver is not None:
                self.receiver.lost(Reason.TRANSPORT_ERROR)

    def end(self) -> None:
        """Nothing goes through any more."""
        if self._open:
            self._open = False
            self._owner.far_over(self)


def request_of(seen: Any) -> Request:
    """The request that another instance saw."""
    return Request(
        scope={
            "type": "websocket",
            "http_version": seen.http_version,
            "method": seen.method,
            "scheme": seen.scheme,
            "path": seen.path,
            "raw_path": b"",
            "root_path": "",
            "query_string": seen.query,
            "headers": seen.headers,
            "client": seen.client,
        }
    )


def _nothing() -> None:
    pass
