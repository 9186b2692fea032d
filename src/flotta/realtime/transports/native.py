"""Socket.IO on the event loop's own transport, under uvicorn: no task, no queue, no ASGI message per packet.

``uvicorn.run(app, ws=ws_protocol_class())``; `flotta run` does it by itself. uvicorn builds the class for every
WebSocket upgrade and replays the request's head into it. A head is served here if uvicorn's app is that of a running
`Server` with this path, with nothing around it that might have a say (`engine_at`); any other goes to uvicorn's own
WebSocket implementation, and with it through the app.

Backpressure: the transport's high-water mark is ``volatile_bytes_max``. Below it nothing is measured; above it volatile
packets are dropped, and a packet that would pass ``send_bytes_max`` aborts the connection: what is buffered for a
client that does not read can reach nobody.

Shutdown: uvicorn tells every connection on SIGTERM. Its own answer, close code 1012 to all at once, would send every
client back in the same instant; here it begins the server's drain, which does it in jittered batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import cache
from http import HTTPStatus
from typing import Any, Protocol, cast, final

from flotta.realtime.engine.client import Reason
from flotta.realtime.engine.request import Request, parse_head
from flotta.realtime.engine.sessions import AnyEngine
from flotta.realtime.engineio.handshake import Refusal, Refused
from flotta.realtime.mount import engine_at
from flotta.realtime.transports import Outgoing, Receiver, Transport
from flotta.realtime.transports.websocket import (
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    TOO_BIG,
    FrameReader,
    WebSocketError,
    accept_key,
    close_frame,
    frame,
    read_close,
)

__all__ = ["ws_protocol_class"]

CLOSE_TIMEOUT_S = 5.0
"""How long the peer may take to answer a close frame."""
NO_STATUS = 1005
MESSAGES_PER_TURN = 128
"""Messages of one client that are delivered before others have their turn."""


class UvicornProtocol(Protocol):
    """What uvicorn and its other protocol classes ask of a WebSocket protocol."""

    def connection_made(self, transport: Any) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def shutdown(self) -> None: ...


@cache
def ws_protocol_class() -> type[asyncio.Protocol]:
    """The class for uvicorn's ``ws=``. Needs uvicorn with a WebSocket implementation of its own (`flotta[server]`)."""
    return _Router


class _Router(asyncio.Protocol):
    """Looks at the replayed head of one upgrade and hands the connection to the one who serves it."""

    __slots__ = ("_config", "_kwargs", "_made", "_target")

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], **kwargs: Any) -> None:
        self._config = config
        self._kwargs = {"config": config, "server_state": server_state, "app_state": app_state, **kwargs}
        self._made: asyncio.Transport | None = None
        self._target: UvicornProtocol | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._target is None:
            self._route(data)
        else:
            self._target.data_received(data)

    def _route(self, head: bytes) -> None:
        """uvicorn replays the whole head in one piece, then makes this object the transport's protocol."""
        assert self._made is not None
        path = head.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1")
        loop = asyncio.get_running_loop()
        core = engine_at(self._config.loaded_app, path)
        target: UvicornProtocol
        if core is None or not core.options.native or core.loop is not loop:
            target = _own_implementation(self._config)(**self._kwargs)
        else:
            target = NativeTransport(core, self._kwargs["server_state"], self._kwargs["config"])
        self._target = target
        target.connection_made(self._made)
        target.data_received(head)
        # After uvicorn has set this object as the protocol: from then on there is nothing between.
        loop.call_soon(self._step_aside, target)

    def _step_aside(self, target: UvicornProtocol) -> None:
        assert self._made is not None
        if self._made.get_protocol() is self:
            self._made.set_protocol(cast("asyncio.Protocol", target))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._target is not None:
            self._target.connection_lost(exc)

    def eof_received(self) -> None:
        if self._target is not None:
            self._target.eof_received()

    def pause_writing(self) -> None:
        if self._target is not None:
            self._target.pause_writing()

    def resume_writing(self) -> None:
        if self._target is not None:
            self._target.resume_writing()


@cache
def _implementation() -> type[Any]:
    # The imports belong to the optional extra, so they wait until a connection needs them.
    try:
        from uvicorn.protocols.websockets.websockets_sansio_impl import (  # noqa: PLC0415
            WebSocketsSansIOProtocol,
        )
    except ImportError:
        from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol  # noqa: PLC0415

        assert AutoWebSocketsProtocol is not None, "uvicorn has no WebSocket implementation: install websockets"
        return cast("type[Any]", AutoWebSocketsProtocol)
    return WebSocketsSansIOProtocol


def _own_implementation(_config: Any) -> type[Any]:
    return _implementation()


@final
class NativeTransport(asyncio.Protocol):
    """One WebSocket of a `Server`; a `Transport`. After the loss, or its own close, writing does nothing."""

    __slots__ = (
        "_behind",
        "_clear",
        "_client",
        "_close_timer",
        "_config",
        "_core",
        "_open",
        "_paused",
        "_reader",
        "_send_bytes_max",
        "_server_state",
        "_transport",
    )

    name = "websocket"

    def __init__(self, core: AnyEngine, server_state: Any, config: Any) -> None:
        self._core = core
        self._server_state = server_state
        self._send_bytes_max = core.options.send_bytes_max
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._client: Receiver | None = None
        self._config = config
        self._reader: FrameReader | None = None
        self._paused = False
        self._behind = False  # read further than delivered
        self._open = False  # messages may be written
        self._clear = False  # and little enough is buffered to write without measuring
        self._close_timer: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there; its request's head comes next."""
        self._transport = cast("asyncio.Transport", transport)
        _send_at_once(transport)
        self._server_state.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """The head first, then frames."""
        if self._reader is None:
            if not self._transport.is_closing():  # it is after a refusal
                self._handshake(data)
            return
        self._reader.feed(data)
        self._pump()

    def _pump(self) -> None:
        """Deliver what was read, until the client has enough to do or others should have their turn."""
        assert self._reader is not None
        try:
            for _ in range(MESSAGES_PER_TURN):
                if self._paused:
                    return
                message = self._reader.take()
                if message is None:
                    if self._behind:
                        self._behind = False
                        self._resume_reading()
                    return
                self._message(*message)
        except WebSocketError as error:
            self._fail(error)
            return
        if not self._behind:
            self._behind = True
            self._transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._pump)

    def eof_received(self) -> None:
        """The peer writes no more: the transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._server_state.connections.discard(self)
        self._open = self._clear = False
        if self._close_timer is not None:
            self._close_timer.cancel()
        client, self._client = self._client, None  # no cycle is left for the garbage collector
        if client is not None:
            client.lost(Reason.TRANSPORT_CLOSE if exc is None else Reason.TRANSPORT_ERROR)

    def pause_writing(self) -> None:
        """More is buffered than ``volatile_bytes_max``."""
        self._clear = False

    def resume_writing(self) -> None:
        """The client keeps up again."""
        self._clear = self._open

    def shutdown(self) -> None:
        """uvicorn stops: drain, in batches."""
        if self._client is None:
            self._transport.close()
        else:
            self._core.begin_drain(self._core.options.drain_s)

    # --- the handshake ---

    def _handshake(self, head: bytes) -> None:
        try:
            request, key = self._request(head), _check_upgrade(head)
            facts = request.facts()
        except ValueError:
            self._refuse(Refusal(Refused.BAD_REQUEST))
            return
        refusal = self._core.admit(facts) or (None if key else Refusal(Refused.NO_WEBSOCKET))
        if refusal is not None:
            self._refuse(refusal)
            return
        self._reader = FrameReader(self._core.options.payload_bytes_max)
        self._transport.set_write_buffer_limits(high=self._core.options.volatile_bytes_max)
        self._open = self._clear = True
        self._client, packet = self._core.accept_websocket(self, request, facts)
        # One write for the answer and the session's first packet: one system call, one segment.
        first = b"" if packet is None else frame(OP_TEXT, packet.encode())
        self._transport.write(self._accept(key) + first)

    def _request(self, head: bytes) -> Request:
        """The request; client and scheme are those that a proxy tells, if uvicorn is told to trust it."""
        scheme = "wss" if self._transport.get_extra_info("sslcontext") else "ws"
        request = Request(head=head, client=_peer(self._transport), scheme=scheme)
        if not self._config.proxy_headers or b"\r\nx-forwarded-" not in head.lower():
            return request
        told = _apply_forwarded(dict(request.scope()), self._config.forwarded_allow_ips)
        return Request(head=head, client=told["client"], scheme=told["scheme"])

    def _accept(self, key: bytes) -> bytes:
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + accept_key(key.decode("latin-1")).encode(),
        ]
        if self._core.cookie is not None:
            lines.append(b"Set-Cookie: " + self._core.cookie.encode())
        lines.extend(name + b": " + value for name, value in self._server_state.default_headers)
        return b"\r\n".join([*lines, b"", b""])

    def _refuse(self, refusal: Refusal) -> None:
        body = refusal.body
        head = (
            f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
            # RFC 6455 4.4: who asked for another version learns which one is spoken.
            "Sec-WebSocket-Version: 13\r\n\r\n"
        )
        self._transport.write(head.encode("ascii") + body)
        self._transport.close()

    # --- frames ---

    def _message(self, opcode: int, payload: str | bytes) -> None:
        if not self._open:
            if opcode == OP_CLOSE:
                self._transport.close()  # the peer's answer to our close
            return
        assert self._client is not None
        if opcode < OP_CLOSE:
            self._client.receive(payload)
            return
        assert isinstance(payload, bytes)
        if opcode == OP_PING:
            pong = frame(OP_PONG, payload)  # under the same limit: who pings and does not read is too slow
            if self._clear or not self._is_too_slow(len(pong)):
                self._transport.write(pong)
        elif opcode == OP_CLOSE:
            self._closed_by_peer(payload)

    def _closed_by_peer(self, payload: bytes) -> None:
        try:
            code = read_close(payload)
        except WebSocketError as error:
            self._fail(error)
            return
        self._open = self._clear = False
        # RFC 6455 5.5.1: answer with the code that was received.
        self._transport.write(frame(OP_CLOSE, b"") if code == NO_STATUS else close_frame(code))
        self._hang_up()
        assert self._client is not None
        self._client.lost(Reason.TRANSPORT_CLOSE)

    def _fail(self, error: WebSocketError) -> None:
        """The peer broke the protocol: say so, end, expect no answer."""
        if self._open:
            self._open = self._clear = False
            self._transport.write(close_frame(error.code, error.reason))
        self._hang_up()
        if self._client is None:
            return
        too_large = error.code == TOO_BIG
        if too_large:
            self._core.journal.too_large(self._core.options.payload_bytes_max)
        self._client.lost(Reason.PARSE_ERROR if too_large else Reason.TRANSPORT_ERROR)

    def _hang_up(self) -> None:
        """Close once everything is written; a peer that does not read cannot hold the connection for long."""
        self._abort_later()
        self._transport.close()

    def _abort_later(self) -> None:
        if self._close_timer is None:
            self._close_timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    # --- Transport ---

    @property
    def unsent_bytes(self) -> int:
        """What waits here for the client to read."""
        return self._transport.get_write_buffer_size()

    def write(self, packet: Outgoing) -> None:
        """Send, or end the connection as too slow."""
        if self._clear or (self._open and not self._is_too_slow(packet.size_bytes)):
            self._transport.write(packet.frames)

    def write_volatile(self, packet: Outgoing) -> bool:
        """Send if the client keeps up. False: dropped."""
        if not self._clear:
            return False
        self._transport.write(packet.frames)  # which may fill the buffer: the next one is dropped
        return True

    def write_control(self, text: str) -> None:
        """Send a packet that is no message."""
        if self._open:
            self._transport.write(frame(OP_TEXT, text.encode()))

    def _is_too_slow(self, size_bytes: int) -> bool:
        if self._transport.get_write_buffer_size() + size_bytes <= self._send_bytes_max:
            return False
        self._open = self._clear = False
        self._transport.abort()
        assert self._client is not None
        self._client.close(Reason.SLOW_CLIENT)
        return True

    def release_polls(self, *, on: bool) -> None:
        """There are none here."""

    def hand_over(self, successor: Transport) -> None:
        """Nothing follows a WebSocket."""

    def pause(self) -> None:
        """Stop reading."""
        if self._open:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._open:
            self._read_on()

    def close(self, code: int, reason: str) -> None:
        """Send a close frame behind what is buffered; end when the peer answers, or after a while."""
        if not self._open:
            return
        self._open = self._clear = False
        if self._paused:
            self._read_on()
        self._transport.write(close_frame(code, reason))
        self._abort_later()

    def _resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _read_on(self) -> None:
        self._paused = False
        if not self._transport.is_closing():
            if not self._behind:
                self._resume_reading()
            asyncio.get_running_loop().call_soon(self._pump)  # not from here: a handler's task resumes


def _check_upgrade(head: bytes) -> bytes:
    """The key of a valid upgrade of version 13; empty if it is none."""
    _, _, pairs = parse_head(head)
    headers = dict(pairs)
    key = headers.get(b"sec-websocket-key", b"")
    return key if headers.get(b"sec-websocket-version") == b"13" and len(key) == 24 else b""


@cache
def _forwarded(trusted: str) -> Any:
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware  # noqa: PLC0415 - of the optional extra

    async def nothing(_scope: Any, _receive: Any, _send: Any) -> None:
        pass

    return ProxyHeadersMiddleware(cast("Any", nothing), trusted_hosts=trusted.split(",") if trusted != "*" else trusted)


def _apply_forwarded(scope: dict[str, Any], trusted: list[str] | str) -> dict[str, Any]:
    """What uvicorn's own rules make of X-Forwarded-For and -Proto: the same proxies are trusted as for every route."""
    names = trusted if isinstance(trusted, str) else ",".join(trusted)
    with contextlib.suppress(StopIteration):
        _forwarded(names)(scope, None, None).send(None)  # it waits for nothing
    return scope


def _send_at_once(transport: asyncio.BaseTransport) -> None:
    """Let no small packet wait until the one before it is acknowledged, 40 ms or more. asyncio asks for this only where
    the listening socket names its protocol, which those of uvicorn's worker processes do not."""
    own = transport.get_extra_info("socket")
    if own is not None and own.family != socket.AF_UNIX:
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _peer(transport: asyncio.Transport) -> tuple[str, int] | None:
    peer = transport.get_extra_info("peername")
    return (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else None
