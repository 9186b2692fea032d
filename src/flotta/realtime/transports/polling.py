"""Engine.IO over HTTP long-polling, under any ASGI server.

A GET takes what is buffered, or waits until something is; a POST brings packets. One of each at a time: a second GET
or POST of the same session breaks the protocol and ends it, and so does a GET that the client cancels. The buffer is
bounded like a socket's: volatile packets are dropped while no GET waits, a packet over the limit ends the session.

Whoever is sent away is told, also if no GET waits just then (`Engine.part`), and what was sent before goes first, in an
answer of its own: of one answer that holds both, official clients hear the close before the events. What such a client
still says meanwhile (that it goes, for one: official clients do when they have left their last namespace) is taken and
handled by nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, final

from flotta.errors import PacketError
from flotta.realtime.engine.client import EngineClient, Reason
from flotta.realtime.engine.request import Request
from flotta.realtime.engine.sessions import SENT_AWAY_S, AnyEngine
from flotta.realtime.engineio.handshake import Facts, Refusal, Refused, origin_allowed
from flotta.realtime.engineio.packet import SEPARATOR, PacketType, read_payload
from flotta.realtime.transports import Outgoing, Transport

__all__ = ["RELAYED", "TEXT", "PollingTransport", "Relayed", "client_left", "read_body", "serve_http"]

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

SWITCH_GRACE_S = 0.05
UNTOLD: Final = frozenset({Reason.TRANSPORT_CLOSE, Reason.TRANSPORT_ERROR, Reason.PARSE_ERROR, Reason.PING_TIMEOUT})
"""Reasons of which the next GET hears nothing: Engine.IO wants its session to be unknown."""
PACKETS_PER_TURN = 128
"""Packets of one body that are taken before other clients have their turn."""
TEXT = b"text/plain; charset=UTF-8"
RELAYED: Final = "flotta.relayed"
"""Key of a scope: the `Relayed` that the request is."""


class Relayed(Protocol):
    """A GET that another instance hands on."""

    async def again(self, query: bytes) -> bytes | None:
        """What it was answered, if a GET with this query is the same one, sent again by a proxy because that instance
        is gone. None: it is another one."""
        ...


@final
class PollingTransport:
    """What waits for the next GET of one session; a `Transport`."""

    __slots__ = (
        "_bytes",
        "_closed",
        "_pending",
        "_releasing",
        "_send_max",
        "_tells",
        "_wake",
        "client",
        "getting",
        "parting",
        "paused",
        "posting",
        "reading",
        "relayed",
    )

    name = "polling"

    def __init__(self, send_bytes_max: int) -> None:
        self._send_max = send_bytes_max
        self._pending: list[Outgoing | str] = []
        self._bytes = 0
        self._closed = False
        self._releasing = False
        self._tells = False
        self._wake = asyncio.Event()
        self.client: EngineClient | None = None
        self.getting = False
        self.posting = False
        self.paused = False
        """The client was told that it may switch, and no GET has come since then."""
        self.parting: Callable[[], None] | None = None
        """Call it, and the requests of a session that has ended still come here for a while."""
        self.relayed: Relayed | None = None
        """The last GET, if another instance has handed it on."""
        self.reading = asyncio.Event()
        self.reading.set()

    # --- Transport ---

    @property
    def unsent_bytes(self) -> int:
        """What waits here for the next GET."""
        return self._bytes

    def write(self, packet: Outgoing) -> None:
        """Buffer, or end the session as too slow."""
        if self._closed:
            return
        if self._bytes and self._bytes + packet.size_bytes > self._send_max:
            assert self.client is not None
            self._pending.clear()
            self.client.close(Reason.SLOW_CLIENT)
            return
        self._bytes += packet.size_bytes
        self._pending.append(packet)
        self._wake.set()

    def write_volatile(self, packet: Outgoing) -> bool:
        """Buffer if a GET waits with nothing before it. False: dropped."""
        if self._closed or not self.getting or self._pending:
            return False
        self.write(packet)
        return True

    def write_control(self, text: str) -> None:
        """Buffer a packet that is no message."""
        if not self._closed:
            self._pending.append(text)
            self._wake.set()

    def release_polls(self, *, on: bool) -> None:
        """Let no GET wait while the client upgrades: it goes on when the one that is under way has come back, and a
        GET may still be on its way here when the probe is answered."""
        self._releasing = on
        self.paused = self.paused or on
        self._wake.set()

    def pause(self) -> None:
        """Let a POST wait for its answer."""
        self.reading.clear()

    def resume(self) -> None:
        """Take POSTs again."""
        self.reading.set()

    def close(self, code: int, reason: str) -> None:  # noqa: ARG002 - polling has no close code
        """Give the pending or the next GET what waits, and then a close packet (a noop if the client closed)."""
        ours = reason != Reason.TRANSPORT_CLOSE
        self.write_control(PacketType.CLOSE.value if ours else PacketType.NOOP.value)
        self._closed = True
        self._tells = reason not in UNTOLD
        self.reading.set()
        self.part()

    def part(self) -> None:
        """Let requests still come here, from now on for a while, if the client is to hear of an end."""
        if self._tells and self._pending and self.parting is not None:
            self.parting()

    @property
    def has_last_words(self) -> bool:
        """The session has ended, and a GET is to hear of it."""
        return self._closed and bool(self._pending)

    @property
    def is_parting(self) -> bool:
        """The client has closed the session, and no GET was there to be told."""
        return self._closed and not self.getting and self._pending == [PacketType.NOOP.value]

    def hand_over(self, successor: Transport) -> None:
        """Give what waits to the transport that takes the session over."""
        pending, self._pending = self._pending, []
        for packet in pending:
            if isinstance(packet, Outgoing):
                successor.write(packet)
            elif packet != PacketType.NOOP.value:
                successor.write_control(packet)
        self._pending = [PacketType.NOOP.value]
        self._closed = True
        self._wake.set()
        self.reading.set()  # from now on it is the successor that is told to read on

    # --- the requests ---

    async def _wait_for_switch(self) -> None:
        """A GET that comes after the probe's answer: the client's word that it switches may be in the next segment."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SWITCH_GRACE_S):
                await self._wake.wait()

    async def take(self) -> str:
        """Wait for something to send and take all of it, as a polling body."""
        self.paused = self._releasing
        if self._releasing and not self._pending:
            await self._wait_for_switch()
        while not self._pending and not self._releasing:
            self._wake.clear()
            await self._wake.wait()
        pending, self._pending, self._bytes = self._pending or [PacketType.NOOP.value], [], 0
        if self._tells and any(isinstance(packet, Outgoing) for packet in pending):
            self._pending = [pending.pop()]
        return SEPARATOR.join(packet if isinstance(packet, str) else packet.polled() for packet in pending)


async def serve_http(core: AnyEngine, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request to the path: a handshake, a GET or POST of a session, or a preflight."""
    request = Request(scope=scope)
    facts = request.facts()
    answer = _Answer(send, _cors(core, facts, scope))
    if facts.method == "OPTIONS":
        await answer.send(204 if origin_allowed(facts, core.options.origins) else 403, b"")
        return
    if (parted := core.parted(facts.sid)) is not None and facts.method in {"GET", "POST"}:
        assert isinstance(parted, PollingTransport)
        await _after_the_end(core, facts, parted, receive, answer)
    elif (refusal := core.admit(facts)) is not None:
        await answer.refuse(refusal)
    elif not facts.sid:
        await _open(core, request, facts, answer)
    elif (client := core.clients.get(facts.sid)) is None:
        assert core.elsewhere is not None
        await core.elsewhere.serve(facts, request, receive, answer)
    else:
        assert isinstance(client.transport, PollingTransport)
        if facts.method != "GET":
            await _post(core, client, client.transport, receive, answer)
        elif (body := await _repeated(client.transport, scope)) is not None:
            await answer.send(200, body)
        else:
            await _get(client, client.transport, receive, answer)


async def _after_the_end(
    core: AnyEngine, facts: Facts, transport: PollingTransport, receive: Receive, answer: _Answer
) -> None:
    """Serve a request of a session that has ended: a GET hears the end once, what a POST brings is let fall. Official
    clients send the next GET before they look at what the last one brought, so that their POST may come after both. One
    that has paused polling for a WebSocket which is gone never polls again: only a refused POST lets it begin anew."""
    if facts.method == "POST" and not transport.paused:
        assert transport.client is not None
        await _post(core, transport.client, transport, receive, answer)
    elif facts.method == "GET" and transport.has_last_words and not transport.getting:
        last = await transport.take()
        transport.part()
        await answer.send(200, last.encode())
    else:
        await answer.refuse(Refusal(Refused.SESSION_UNKNOWN))


async def _repeated(transport: PollingTransport, scope: Scope) -> bytes | None:
    """The answer to a GET that has been answered, or is about to be, to an instance that is gone."""
    last, transport.relayed = transport.relayed, scope.get(RELAYED)
    return None if last is None else await last.again(bytes(scope["query_string"]))


def _cors(core: AnyEngine, facts: Facts, scope: Scope) -> Headers:
    if facts.origin is None or not origin_allowed(facts, core.options.origins):
        return []
    headers = [(b"access-control-allow-origin", facts.origin.encode("latin-1")), (b"vary", b"Origin")]
    if core.options.credentials:
        headers.append((b"access-control-allow-credentials", b"true"))
    if facts.method == "OPTIONS":
        # The origin is trusted: it may send what headers it likes (the client's `extraHeaders`).
        wanted = next((value for name, value in scope["headers"] if name == b"access-control-request-headers"), None)
        headers.append((b"access-control-allow-methods", b"GET, POST, OPTIONS"))
        headers.append((b"access-control-allow-headers", wanted or b"Content-Type, Authorization"))
        headers.append((b"vary", b"Access-Control-Request-Headers"))
    return headers


@final
class _Answer:
    """The response of one request."""

    def __init__(self, send: Send, headers: Headers) -> None:
        self._send = send
        self._headers = headers

    async def send(self, status: int, body: bytes, *, kind: bytes = TEXT, extra: Headers | None = None) -> None:
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *self._headers,
            *(extra or []),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, refusal: Refusal, status: int | None = None) -> None:
        await self.send(status or refusal.status, refusal.body, kind=b"application/json")


async def _open(core: AnyEngine, request: Request, facts: Facts, answer: _Answer) -> None:
    transport = PollingTransport(core.options.send_bytes_max)
    transport.client, packet = core.open(transport, request, facts)
    transport.parting = partial(core.part, transport.client.sid, transport, SENT_AWAY_S)
    cookie: Headers = [] if core.cookie is None else [(b"set-cookie", core.cookie.encode())]
    await answer.send(200, packet.encode(), extra=cookie)


async def _get(client: EngineClient, transport: PollingTransport, receive: Receive, answer: _Answer) -> None:
    if transport.getting:
        client.close(Reason.TRANSPORT_ERROR)
        await answer.refuse(Refusal(Refused.BAD_REQUEST))
        return
    body = await _next_body(transport, receive)
    if body is None:
        if client.transport is transport:
            client.lost(Reason.TRANSPORT_ERROR)
    elif client.transport is not transport:  # it has switched
        await answer.refuse(Refusal(Refused.BAD_REQUEST))
    else:
        transport.part()
        await answer.send(200, body.encode())


async def _next_body(transport: PollingTransport, receive: Receive) -> str | None:
    """What a GET is answered, once there is something. None: its client has left, and what was for it is lost."""
    transport.getting = True
    taking = asyncio.ensure_future(transport.take())
    leaving = asyncio.ensure_future(client_left(receive))
    try:
        await asyncio.wait({taking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return None if leaving.done() else taking.result()
    finally:
        transport.getting = False
        for task in (taking, leaving):
            task.cancel()
        await asyncio.gather(taking, leaving, return_exceptions=True)


async def client_left(receive: Receive) -> None:
    """Wait until the client of a request has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _post(
    core: AnyEngine, client: EngineClient, transport: PollingTransport, receive: Receive, answer: _Answer
) -> None:
    if transport.posting:
        client.close(Reason.TRANSPORT_ERROR)
        await answer.refuse(Refusal(Refused.BAD_REQUEST))
        return
    transport.posting = True  # until the answer: while events wait for their handlers no second body is taken
    options = core.options
    try:
        async with asyncio.timeout(options.ping_interval_s + options.ping_timeout_s):  # longer no session is silent
            body = await read_body(receive, options.payload_bytes_max)
        if body is None:
            core.journal.too_large(options.payload_bytes_max)
            client.close(Reason.PARSE_ERROR)
            await answer.refuse(Refusal(Refused.BAD_REQUEST), status=413)
            return
        await _receive(client, transport, body.decode())
        if client.over and transport.is_parting:
            core.part(client.sid, transport)
        await answer.send(200, b"ok", kind=b"text/html")
    except EOFError:
        client.close(Reason.TRANSPORT_ERROR)
    except TimeoutError:
        client.close(Reason.TRANSPORT_ERROR)
        await answer.refuse(Refusal(Refused.BAD_REQUEST), status=408)
    except (PacketError, UnicodeDecodeError):
        client.close(Reason.PARSE_ERROR)
        await answer.refuse(Refusal(Refused.BAD_REQUEST))
    finally:
        transport.posting = False


async def _receive(client: EngineClient, transport: PollingTransport, body: str) -> None:
    """Take the packets of a body, with a pause for other clients after every so many."""
    for number, packet in enumerate(read_payload(body), 1):
        client.receive(packet.data if isinstance(packet.data, bytes) else packet.type.value + packet.data)
        if client.over:
            return
        if number % PACKETS_PER_TURN == 0:
            await asyncio.sleep(0)
        await transport.reading.wait()


async def read_body(receive: Receive, bytes_max: int) -> bytearray | None:
    """The whole body; None if it is larger than allowed. Raises EOFError if the client leaves before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise EOFError("the client has left within its request")
        body += message.get("body", b"")
        if len(body) > bytes_max:
            return None
        if not message.get("more_body"):
            return body
