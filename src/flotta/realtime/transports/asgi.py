"""Socket.IO over the WebSocket of any ASGI server.

Reading is the loop in `serve`; writing is a queue that one short-lived task empties, so an idle connection has no task
for it. The queue is bounded in bytes: volatile packets are dropped above one limit, the connection ends above another.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, final

from flotta.realtime.engine.client import Reason
from flotta.realtime.engine.request import Request
from flotta.realtime.engine.sessions import AnyEngine
from flotta.realtime.engineio.handshake import Refusal
from flotta.realtime.transports import Outgoing, Receiver, Transport

__all__ = ["ASGIApp", "Message", "Receive", "Scope", "Send", "serve_websocket"]

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

CLOSE_POLICY = 1008
MESSAGES_PER_TURN = 128
"""Messages of one client that are taken before others have their turn."""
FLUSH_S = 5.0
"""How long a close waits for what is queued before it."""


async def serve_websocket(core: AnyEngine, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one WebSocket from its handshake to its end."""
    request = Request(scope=scope)
    facts = request.facts()
    await receive()  # websocket.connect
    refusal = core.admit(facts)
    if refusal is not None:
        await _refuse(scope, refusal, send)
        return
    headers = [] if facts.sid or core.cookie is None else [(b"set-cookie", core.cookie.encode())]
    try:
        await send({"type": "websocket.accept", "headers": headers})
    except OSError:
        return  # the peer has gone: how servers of ASGI's specification say it
    refusal = core.admit(facts)
    if refusal is not None:  # others came meanwhile, a drain began, or the session to go on with has ended
        await send({"type": "websocket.close", "code": CLOSE_POLICY, "reason": refusal.message})
        return
    transport = _ASGITransport(send, core.options.send_bytes_max, core.options.volatile_bytes_max)
    client, packet = core.accept_websocket(transport, request, facts)
    transport.client = client
    if packet is not None:
        transport.write_control(packet)
    try:
        await _serve(core, client, transport, receive)
    except asyncio.CancelledError:
        if not transport.gave_up:
            raise
        transport.task.uncancel()


async def _serve(core: AnyEngine, client: Receiver, transport: _ASGITransport, receive: Receive) -> None:
    try:
        await _read(core, client, transport, receive)
    finally:
        client.lost(Reason.TRANSPORT_CLOSE)
        await transport.finish()


def _size_of(data: str | bytes) -> int:
    """Bytes on the wire."""
    return len(data) if isinstance(data, bytes) or data.isascii() else len(data.encode())


async def _refuse(scope: Scope, refusal: Refusal, send: Send) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        # Without the extension a close before the accept is answered with 403 by the web server.
        await send({"type": "websocket.close", "code": CLOSE_POLICY, "reason": refusal.message})
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(refusal.body)).encode())]
    await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": refusal.body})


async def _read(core: AnyEngine, client: Receiver, transport: _ASGITransport, receive: Receive) -> None:
    payload_bytes_max = core.options.payload_bytes_max
    for number in itertools.count(1):
        if number % MESSAGES_PER_TURN == 0:
            await asyncio.sleep(0)  # what waits is given without a pause for others
        if client.over:
            return
        await transport.reading.wait()
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        if message["type"] != "websocket.receive":
            continue
        data = message.get("text")
        if data is None:
            data = message.get("bytes") or b""
        if _size_of(data) > payload_bytes_max:
            core.journal.too_large(payload_bytes_max)
            client.close(Reason.PARSE_ERROR, 1009)
            return
        client.receive(data)


@final
class _ASGITransport:
    """See the module; a `Transport`."""

    __slots__ = (
        "_bytes",
        "_closing",
        "_queue",
        "_send",
        "_send_max",
        "_volatile_max",
        "_writer",
        "client",
        "gave_up",
        "reading",
        "task",
    )

    name = "websocket"

    def __init__(self, send: Send, send_bytes_max: int, volatile_bytes_max: int) -> None:
        self._send = send
        self._send_max = send_bytes_max
        self._volatile_max = volatile_bytes_max
        self._queue: deque[Message] = deque()
        self._bytes = 0
        self._closing = False
        self._writer: asyncio.Task[None] | None = None
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.gave_up = False
        self.client: Receiver | None = None
        self.reading = asyncio.Event()
        self.reading.set()

    @property
    def unsent_bytes(self) -> int:
        """What waits here for the web server to take it."""
        return self._bytes

    def write(self, packet: Outgoing) -> None:
        """Queue, or end the connection as too slow."""
        if self._closing:
            return
        if self._bytes and self._bytes + packet.size_bytes > self._send_max:
            self._too_slow()
            return
        if packet.text is not None:
            self._put({"type": "websocket.send", "text": packet.text.decode()}, len(packet.text))
        for part in packet.attachments:
            self._put({"type": "websocket.send", "bytes": part}, len(part))

    def write_volatile(self, packet: Outgoing) -> bool:
        """Queue if little waits. False: dropped."""
        if self._closing or self._bytes > self._volatile_max:
            return False
        self.write(packet)
        return True

    def write_control(self, text: str) -> None:
        """Queue a packet that is no message."""
        if not self._closing:
            self._put({"type": "websocket.send", "text": text}, len(text))

    def release_polls(self, *, on: bool) -> None:
        """There are none here."""

    def hand_over(self, successor: Transport) -> None:
        """Nothing follows a WebSocket."""

    def pause(self) -> None:
        """Stop reading."""
        self.reading.clear()

    def resume(self) -> None:
        """Read on."""
        self.reading.set()

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then the close."""
        if not self._closing:
            self._put({"type": "websocket.close", "code": code, "reason": reason}, 0)
            self._closing = True
            self._leave()

    def _leave(self) -> None:
        """Let `serve_websocket` read no further. ASGI does not say whether a close of our own ends a `receive` that
        waits: with some servers nothing does, and they send the close only when the app has returned."""
        if not self.gave_up and asyncio.current_task() is not self.task:  # else it sees that its client is over
            self.gave_up = True
            self.task.cancel()

    def _too_slow(self) -> None:
        self._queue.clear()
        assert self.client is not None
        self.client.close(Reason.SLOW_CLIENT, CLOSE_POLICY)
        # Nothing that is queued can reach a client that does not read: leave, and let the web server drop it.
        if self._writer is not None:
            self._writer.cancel()
        self._leave()

    def _put(self, message: Message, size_bytes: int) -> None:
        message["size"] = size_bytes
        self._bytes += size_bytes
        self._queue.append(message)
        if self._writer is None:
            name = "socket.io writer"
            self._writer = asyncio.get_running_loop().create_task(self._write_all(), name=name)

    async def _write_all(self) -> None:
        try:
            while self._queue:
                message = self._queue.popleft()
                size_bytes = message.pop("size")
                await self._send(message)
                self._bytes -= size_bytes
        except Exception:  # noqa: BLE001 - once the peer is gone servers raise what they like; the reading side tells
            self._queue.clear()
            self._closing = True
        finally:
            self._writer = None

    async def finish(self) -> None:
        """Wait a little for what is queued, then stop writing."""
        self._closing = True
        if self._writer is not None:
            done, _ = await asyncio.wait({self._writer}, timeout=FLUSH_S)
            if not done:
                self._writer.cancel()
