"""Stands before the application: answers health and metrics, counts requests, says goodbye while draining.

The paths that it answers are Flotta's even where the application has a route of the same name; the worker warns about
that at the start, and settings move them or turn them off.

Invariants: what is counted in is counted out, however the request ends. Metrics are told to loopback or to whoever
sends the token; a request that came through a proxy (it carries a forwarding header) is not loopback, wherever the
proxy runs.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol, final

from flotta.server.metrics import RequestMetrics

__all__ = ["ASGIApp", "Answers", "Gate", "Reply"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Reply = tuple[int, str, bytes]
"""Status, content type, body."""

_FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
_CLOSE: Final = (b"connection", b"close")
_STOPPING: Final[Reply] = (503, "text/plain; charset=utf-8", b"This instance is stopping; try again.\n")
_STATUS_OF_CRASH: Final = 500
_STATUS_NOT_FOUND: Final = 404
_STATUS_NONE: Final = 499
"""The client went away before there was an answer."""


class Answers(Protocol):
    """What the gate asks the worker."""

    async def health(self) -> Reply: ...

    def live(self) -> Reply: ...

    async def ready(self) -> Reply: ...

    async def metrics(self, accept: str) -> Reply: ...

    def not_found(self, path: str) -> None: ...


@final
class Gate:
    """An ASGI application around another one."""

    def __init__(
        self,
        app: ASGIApp,
        answers: Answers,
        *,
        health_path: str | None,
        metrics_path: str | None,
        metrics_token: str | None,
        log: Any,
    ) -> None:
        self._log = log
        self._app = app
        self._answers = answers
        self._token = None if metrics_token is None else metrics_token.encode()
        self._own: dict[str, Callable[[Scope], Awaitable[Reply]]] = {}
        if health_path is not None:
            self._own[health_path] = self._health
            self._own[f"{health_path}/live"] = self._live
            self._own[f"{health_path}/ready"] = self._ready
        if metrics_path is not None:
            self._own[metrics_path] = self._metrics
        self.requests = RequestMetrics()
        self.websockets = 0
        self.draining = False

    @property
    def own_paths(self) -> tuple[str, ...]:
        """The paths that the gate answers itself."""
        return tuple(self._own)

    @property
    def app(self) -> ASGIApp:
        """What it stands before: it gets every WebSocket as it came, which the native transport counts on."""
        return self._app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            own = self._own.get(_path_of(scope))
            if own is not None and scope["method"] in ("GET", "HEAD"):
                await self._reply(await own(scope), scope, send)
            else:
                await self._request(scope, receive, send)
        elif scope["type"] == "websocket":
            self.websockets += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self.websockets -= 1
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = _STATUS_NONE
        complete = False
        began = time.perf_counter()
        self.requests.in_flight += 1

        async def send_counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            elif message["type"] == "http.response.start":
                status = message["status"]
                if self.draining:
                    message = {**message, "headers": _closing(message.get("headers", ()))}
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        except asyncio.CancelledError:
            if not self.draining or status != _STATUS_NONE:
                raise
            # Past the deadline: better a clear answer than a connection that breaks.
            status, *_ = _STOPPING
            await self._reply(_STOPPING, scope, send)
        except Exception as error:
            status = _STATUS_OF_CRASH if status == _STATUS_NONE else status
            if not complete:
                raise
            # Frameworks answer 500 and raise again. uvicorn would then close a connection that it has promised to keep
            # alive, and the client's next request on it would fail.
            self._log.error("request failed", method=scope["method"], path=scope["path"], exc_info=error)
        finally:
            self.requests.in_flight -= 1
            self.requests.count(scope["method"], status, time.perf_counter() - began)
            if status == _STATUS_NOT_FOUND:
                self._answers.not_found(_path_of(scope))

    async def _reply(self, reply: Reply, scope: Scope, send: Send) -> None:
        status, content_type, body = reply
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if self.draining:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _health(self, _scope: Scope) -> Reply:
        return await self._answers.health()

    async def _live(self, _scope: Scope) -> Reply:
        await asyncio.sleep(0)  # the loop has turned
        return self._answers.live()

    async def _ready(self, _scope: Scope) -> Reply:
        return await self._answers.ready()

    async def _metrics(self, scope: Scope) -> Reply:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not self._may_read_metrics(scope.get("client"), headers):
            body = {"error": "metrics are for loopback, or for a bearer token (FLOTTA_METRICS_TOKEN)"}
            return 403, "application/json", json.dumps(body).encode()
        return await self._answers.metrics(headers.get(b"accept", b"").decode("latin-1"))

    def _may_read_metrics(self, client: tuple[str, int] | None, headers: dict[bytes, bytes]) -> bool:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if self._token is not None and scheme.lower() == b"bearer":
            return hmac.compare_digest(token.strip(), self._token)
        return not (_FORWARDED & headers.keys()) and _is_loopback(client)


def _path_of(scope: Scope) -> str:
    """As the application sees it. ASGI: ``path`` holds ``root_path``."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _closing(headers: Any) -> list[tuple[bytes, bytes]]:
    """``headers`` with ``Connection: close`` in place of what they said about the connection."""
    return [(name, value) for name, value in headers if name.lower() != b"connection"] + [_CLOSE]


def _is_loopback(client: tuple[str, int] | None) -> bool:
    if client is None:
        return True  # a Unix socket: the file's mode decides who may connect
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    # A socket for both families tells 127.0.0.1 as ::ffff:127.0.0.1.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
