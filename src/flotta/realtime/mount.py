"""The ASGI app of a server: routes its path to the transports, everything else to another app, and joins lifespans;
and how a web server's app is seen to lead to it.

The native transport serves a WebSocket beside the app, so it must know before the first one comes that the app would
hand it on, untouched, to this server. `engine_at` knows it where nothing but what is listed there stands before the
`Mount`. Below another app's path, or behind middleware, every connection goes through the app, with its guards.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, final

from flotta.realtime.engine.sessions import AnyEngine
from flotta.realtime.transports.asgi import ASGIApp, Message, Receive, Scope, Send, serve_websocket
from flotta.realtime.transports.polling import serve_http

__all__ = ["Mount", "engine_at"]

_CLEAR: Final = frozenset({"flotta", "uvicorn"})
"""Whose wrappers of an app hand every WebSocket on as it came, at any path: `Mount` (but for its own path) and the gate
of `flotta run`, and what uvicorn puts around an app for proxies and for its trace. Each holds the next one as ``app``.
"""


class Startable(Protocol):
    """The part of a server's life that a lifespan drives."""

    @property
    def started(self) -> bool:
        """`start` has been called."""
        ...

    async def start(self) -> None:
        """Begin."""
        ...

    async def drain(self) -> None:
        """Send clients away."""
        ...

    async def aclose(self) -> None:
        """End."""
        ...


@final
class Mount:
    """See `Server.app`."""

    def __init__(self, server: Startable, core: AnyEngine, other: ASGIApp | None) -> None:
        self._server = server
        self._core = core
        self._other = other

    @property
    def app(self) -> ASGIApp | None:
        """What gets everything else."""
        return self._other

    @property
    def engine(self) -> AnyEngine:
        """Whose path it serves."""
        return self._core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        kind = scope["type"]
        if kind == "lifespan":
            await _Lifespan(self._server, receive, send).run(scope, self._other)
        elif not self._is_ours(scope):
            await (self._other or _not_found)(scope, receive, send)
        elif kind == "websocket":
            await serve_websocket(self._core, scope, receive, send)
        else:
            await serve_http(self._core, scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        # ASGI: path holds root_path, which a mount in another app has put there.
        whole, root, own = scope["path"].rstrip("/"), scope.get("root_path", ""), self._core.options.path
        return bool(whole.removeprefix(root) == own or (whole == root and root.endswith(own)))  # mounted right at it


@final
class _Lifespan:
    """One lifespan: that of the other app with the server's inside, started after its start, ended before its end.

    ASGI: an app that knows no lifespan may raise. Some pass over it instead, or take it for a request, or return when
    they have started; then the server goes on alone.
    """

    def __init__(self, server: Startable, receive: Receive, send: Send) -> None:
        self._server = server
        self._receive_event = receive
        self._send_answer = send
        self._owned = False
        self._asked = False
        """The other app has taken an event."""
        self._answered = False
        self._is_request = False
        """It has answered, but not to a lifespan."""
        self._failed = False
        self._ended = False

    async def run(self, scope: Scope, other: ASGIApp | None) -> None:
        """Live it."""
        if other is not None:
            try:
                await other(scope, self._receive, self._send)
            except Exception:
                if self._answered or (self._asked and not self._is_request):
                    raise
        alone = not self._answered
        if alone:
            if not self._asked:
                await self._receive()
            await self._send({"type": "lifespan.startup.complete"})
        if (alone or self._owned) and not self._ended:
            await self._receive()
            await self._send({"type": "lifespan.shutdown.complete"})

    async def _receive(self) -> Message:
        message = await self._receive_event()
        self._asked = True
        if message["type"] == "lifespan.shutdown":
            self._ended = True
            if self._owned:
                await self._server.drain()
                await self._server.aclose()
        return message

    async def _send(self, message: Message) -> None:
        if not message["type"].startswith("lifespan."):
            self._is_request = True
            raise RuntimeError(f"{message['type']!r} is no answer to a lifespan event")
        self._answered = True
        if self._failed:  # that is told already; the other app has only heard of it by the exception
            return
        if message["type"] == "lifespan.startup.complete" and not self._server.started:
            await self._start()
        await self._send_answer(message)

    async def _start(self) -> None:
        try:
            await self._server.start()
        except Exception as error:
            # A web server takes an app that only raises for one without a lifespan (uvicorn does), and serves.
            self._failed = True
            text = f"the realtime server cannot start: {error}"
            await self._send_answer({"type": "lifespan.startup.failed", "message": text})
            raise
        self._owned = True


def engine_at(app: object, path: str) -> AnyEngine | None:
    """The server that the app of a web server leads to at ``path``, if that can be told by looking. None: ask the app,
    for it has no server there, or one that stands below a path or behind somebody's middleware."""
    path = path.rstrip("/")
    while type(app).__module__.partition(".")[0] in _CLEAR:
        if isinstance(app, Mount) and app.engine.options.path == path:
            return app.engine
        app = getattr(app, "app", None)
    return None


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1000})
        return
    headers: list[Any] = [(b"content-type", b"text/plain"), (b"content-length", b"9")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": b"Not Found"})
