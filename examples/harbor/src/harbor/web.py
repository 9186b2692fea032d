"""The page: the files that the build in ``web/`` made, and the headers that keep a browser strict.

The policy allows nothing from anywhere else and no inline script or style; ``connect-src 'self'`` covers the WebSocket
of the same origin.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PAGE", "SecurityHeaders", "assets", "routes"]

PAGE = Path(__file__).parent / "static" / "app"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_NOT_BUILT = """<!doctype html><meta charset="utf-8"><title>Harbor</title>
<h1>The page is not built</h1><p>Run <code>npm ci &amp;&amp; npm run build</code> in <code>examples/harbor/web</code>
(or <code>make web</code>). The API works without it.</p>"""


def routes() -> APIRouter:
    """``/``: the page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        index = PAGE / "index.html"
        if not index.is_file():
            return HTMLResponse(_NOT_BUILT, status_code=503)
        return HTMLResponse(index.read_bytes(), headers={"cache-control": "no-cache"})

    return router


@final
class Assets(StaticFiles):
    """Files whose names carry their hash: a browser may keep them for ever."""

    async def check_config(self) -> None:
        """Nothing: where the page is not built there are no files, which is no fault of the server."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if response.status_code == 200:
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def assets() -> Assets:
    """``/assets``; the folder may appear later."""
    return Assets(directory=PAGE / "assets", check_dir=False)


@final
class SecurityHeaders:
    """Adds the headers to every HTTP answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
