"""Engine.IO without Socket.IO above it: messages of text and bytes to and from ``engine.io-client``.

It is the `Server` without namespaces, events, rooms and other instances: the same transports, heartbeat, limits and
drain. All methods are for the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, final

import structlog

from flotta.errors import Closed
from flotta.realtime.engine.client import EngineClient, Reason
from flotta.realtime.engine.handling import Handling, Job
from flotta.realtime.engine.options import EngineOptions
from flotta.realtime.engine.request import Request
from flotta.realtime.engine.sessions import Engine, EngineCounters, State, connections_allowed
from flotta.realtime.engineio.packet import SEPARATOR
from flotta.realtime.engineio.rate import Rate
from flotta.realtime.engineio.session import Session
from flotta.realtime.mount import Mount
from flotta.realtime.option_names import options_of
from flotta.realtime.socketio.packet import Encoded
from flotta.realtime.transports import Outgoing, Transport
from flotta.realtime.transports.asgi import ASGIApp

__all__ = ["EngineServer", "EngineStats"]

H = TypeVar("H", bound=Callable[..., Any])
CLOSE_POLICY: Final = 1008


class EngineStats(NamedTuple):
    """What the server does now and has done."""

    state: str
    instance: str
    """The first 4 characters of every session id of this process."""
    connections: int
    connections_max: int
    opened: int
    refused: int
    ended: dict[str, int]
    """Ended connections by reason."""
    handlers_running: int
    """Clients whose handlers run."""
    handlers_failed: int


@final
class _RawClient(EngineClient):
    """A client whose messages go to the handlers as they are; a `Lane`."""

    __slots__ = ("_handling", "_rate", "held", "jobs", "refused")

    def __init__(self, *args: Any, handling: Handling, rate: Rate | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.jobs: deque[Job] | None = deque()  # until the ``connect`` handler has begun
        self.held = False
        self.refused = False
        self._handling = handling
        self._rate = rate

    def _deliver(self, data: str | bytes) -> None:
        if self._rate is not None and not self._rate.take(self._owner.now()):
            self.close(Reason.RATE_LIMIT, CLOSE_POLICY)
            return
        self._handling.submit(self, Job("message", (data,)))

    def _switched(self) -> None:
        """Nothing here remembers the transport."""

    def _ended(self, reason: str) -> None:
        self._handling.submit(self, Job("disconnect", (reason,)))

    def refuse(self) -> None:
        """The ``connect`` handler said no."""
        self.close(Reason.SERVER_DISCONNECT, CLOSE_POLICY)

    @property
    def joined(self) -> bool:
        """There is nothing to join."""
        return True


@final
class _RawEngine(Engine[_RawClient]):
    """Opens sessions whose messages go to the handlers."""

    def __init__(self, options: EngineOptions, handling: Handling, *, connections_max: int, logger: Any) -> None:
        self._handling = handling
        super().__init__(
            options,
            connections_max=connections_max,
            counters=EngineCounters(),
            work=handling,
            connect_timeout_s=None,
            logger=logger,
        )

    def _make_client(
        self, sid: str, transport: Transport, request: Request, session: Session, now_s: float
    ) -> _RawClient:
        rate_max = self.options.messages_per_s_max
        rate = None if rate_max is None else Rate(rate_max, now_s)
        client = _RawClient(
            sid, self, transport=transport, request=request, session=session, handling=self._handling, rate=rate
        )
        assert self._loop is not None
        # Not from here: what the handler sends must follow the packet that opens the session.
        self._loop.call_soon(self._begin, client)
        return client

    def _begin(self, client: _RawClient) -> None:
        self._handling.begin(client, Job("connect", (client.environ(),)))

    async def start(self) -> None:
        """Begin to serve."""
        self._run()

    async def aclose(self) -> None:
        """Close every connection at once and stop. Idempotent."""
        self._close_all()
        await self._handling.wait_idle(1.0)
        await self._handling.cancel_all()
        await self._stop()


@final
class EngineServer:
    """An Engine.IO 4 server for this process's clients.

    ::

        server = EngineServer()

        @server.on_message
        def echo(sid, data):
            server.send(sid, data)

        app = server.app(other_asgi_app)      # uvicorn module:app

    You owe `start` and `aclose`, or let `app` do both with the web server's lifespan.

    Args:
        options: all options; or give single ones by name (``EngineServer(path="/ws", connections_max=100)``).
        logger: a structlog logger.

    Raises:
        ConfigError: an option is wrong.
        TypeError: an option that does not exist.
    """

    reason = Reason

    def __init__(self, *, options: EngineOptions | None = None, logger: Any = None, **single_options: Any) -> None:
        self.options = options_of(EngineOptions, options, single_options)
        self._log = logger or structlog.get_logger("flotta.realtime")
        self._handling = Handling(backlog_max=self.options.backlog_max, logger=self._log)
        allowed = connections_allowed(self.options.connections_max)
        self._engine = _RawEngine(self.options, self._handling, connections_max=allowed, logger=self._log)
        self._changing = asyncio.Lock()  # start and aclose, one at a time

    # --- handlers ---

    def on_connect(self, handler: H) -> H:
        """Decorator: ``handler(sid, environ)`` runs first; raising `ConnectRefused` or returning False ends the
        session with close code 1008. Handlers are sync (quick: they run in the event loop) or async; those of one
        client run one after the other, and one that raises is logged and ends nothing (but for this one)."""
        self._handling.handlers["connect"] = handler
        return handler

    def on_message(self, handler: H) -> H:
        """Decorator: ``handler(sid, data)`` gets each message, a str or bytes."""
        self._handling.handlers["message"] = handler
        return handler

    def on_disconnect(self, handler: H) -> H:
        """Decorator: ``handler(sid, reason)`` runs last; not for a client that ``connect`` refused."""
        self._handling.handlers["disconnect"] = handler
        return handler

    # --- clients ---

    def send(self, sid: str, data: str | bytes, *, volatile: bool = False) -> bool:
        """Send one message. False: there is no such client, or a volatile message was dropped because the client does
        not keep up. A client that lets more than ``send_bytes_max`` wait is disconnected. It never waits.

        Raises:
            TypeError: ``data`` is neither str nor bytes.
            ValueError: a text that cannot travel: it holds a lone surrogate, or the record separator (U+001E), which
                ends a packet over HTTP polling.
        """
        client = self._engine.clients.get(sid)
        packet = _packet(data)
        if client is None:
            return False
        if volatile:
            return client.transport.write_volatile(packet)
        client.transport.write(packet)
        return True

    def broadcast(self, data: str | bytes, *, volatile: bool = False) -> int:
        """Send one message to every client of this process; how many. Encoded once. Raises as `send`."""
        packet = _packet(data)
        transports = [client.transport for client in self._engine.clients.values()]
        if volatile:
            return sum(transport.write_volatile(packet) for transport in transports)
        for transport in transports:
            transport.write(packet)
        return len(transports)

    def disconnect(self, sid: str) -> bool:
        """End the session. False: there is none."""
        client = self._engine.clients.get(sid)
        if client is not None:
            client.close(Reason.SERVER_DISCONNECT)
        return client is not None

    def transport(self, sid: str) -> str | None:
        """``"polling"`` or ``"websocket"``; None: there is no such client."""
        client = self._engine.clients.get(sid)
        return None if client is None else client.transport.name

    @property
    def sids(self) -> list[str]:
        """The session ids of the clients."""
        return list(self._engine.clients)

    # --- life ---

    @property
    def started(self) -> bool:
        """`start` has been called."""
        return self._engine.state is not State.NEW

    async def start(self) -> None:
        """Begin to serve. Calling it again does nothing. Raises Closed after `aclose`."""
        async with self._changing:
            if self._engine.state is State.CLOSED:
                raise Closed("the Engine.IO server")
            if self._engine.state is State.NEW:
                await self._engine.start()

    async def drain(self, deadline_s: float | None = None) -> None:
        """Refuse new clients with 503 and close the others in jittered batches. Returns when all are gone and their
        handlers have ended, at the latest after ``deadline_s`` (None: the option ``drain_s``). Cancelling the caller
        does not stop the drain."""
        await self._engine.drain(self.options.drain_s if deadline_s is None else deadline_s)

    async def aclose(self) -> None:
        """Close every connection and stop. Idempotent; before `start` it only marks the server as closed."""
        async with self._changing:
            await self._engine.aclose()

    async def __aenter__(self) -> EngineServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def app(self, other: ASGIApp | None = None) -> ASGIApp:
        """An ASGI app that serves Engine.IO under the path and gives everything else to ``other`` (None: 404).

        If the server has not been started when the web server's lifespan has, the app starts it, and then also drains
        and closes it at the end.
        """
        return Mount(self, self._engine, other)

    @property
    def stats(self) -> EngineStats:
        """Counters and sizes, cheap enough for every second."""
        engine, counters = self._engine, self._engine.counters
        return EngineStats(
            state=engine.state.value,
            instance=engine.instance,
            connections=len(engine.clients),
            connections_max=engine.connections_max,
            opened=counters.opened,
            refused=counters.refused,
            ended=dict(counters.ended),
            handlers_running=self._handling.running,
            handlers_failed=self._handling.failed,
        )


def _packet(data: str | bytes) -> Outgoing:
    if isinstance(data, bytes):
        return Outgoing(Encoded(None, (data,)))
    if not isinstance(data, str):
        raise TypeError(f"a message is a str or bytes, not {type(data).__name__}")
    if SEPARATOR in data:
        raise ValueError("a text message cannot hold the record separator (U+001E): send it as bytes")
    data.encode()  # a lone surrogate cannot travel
    return Outgoing(Encoded(data))
