"""Raw sessions for the conformance tests: HTTP requests and WebSockets by hand, one class for both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

__all__ = ["Endpoint", "ended", "next_message", "ping"]

WAIT_S = 10.0


class Endpoint:
    """One path of a server (``/engine.io/``), and what can be asked of it."""

    def __init__(self, http: httpx.AsyncClient, port: int, path: str, engine: Any) -> None:
        self._http = http
        self._engine = engine
        self._base = f"127.0.0.1:{port}{path}"

    def sessions(self) -> int:
        """How many there are, by the server itself."""
        return len(self._engine.clients)

    def waiting(self) -> bool:
        """Whether the server has a GET to which it has nothing to say yet."""
        return any(client.transport.getting for client in self._engine.clients.values())

    def url(self, query: str, scheme: str = "http") -> str:
        return f"{scheme}://{self._base}?{query}"

    async def request(self, method: str, query: str, **options: Any) -> httpx.Response:
        return await self._http.request(method, self.url(query), timeout=WAIT_S, **options)

    async def open_polling(self) -> str:
        """A new session over polling; its id."""
        answer = await self.request("GET", "EIO=4&transport=polling")
        assert answer.status_code == 200
        return str(json.loads(answer.text[1:])["sid"])

    async def poll(self, sid: str) -> httpx.Response:
        return await self.request("GET", f"EIO=4&transport=polling&sid={sid}")

    def polling(self, sid: str) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self._poll(sid))

    def _poll(self, sid: str) -> Coroutine[Any, Any, httpx.Response]:
        return self.poll(sid)

    async def post(self, sid: str, body: str | bytes) -> httpx.Response:
        return await self.request("POST", f"EIO=4&transport=polling&sid={sid}", content=body)

    async def websocket(self, query: str = "EIO=4&transport=websocket") -> ClientConnection:
        return await ws_connect(self.url(query, "ws"))

    async def open_websocket(self) -> tuple[ClientConnection, dict[str, Any]]:
        """A new session over WebSocket, and what its first packet says."""
        socket = await self.websocket()
        first = await next_message(socket)
        assert isinstance(first, str)
        assert first.startswith("0")
        return socket, json.loads(first[1:])

    async def refused_websocket(self, query: str) -> int:
        """The status that a WebSocket with this query is refused with."""
        try:
            await self.websocket(query)
        except InvalidStatus as refusal:
            return refusal.response.status_code
        raise AssertionError(f"{query} was accepted")

    async def upgraded(self) -> tuple[str, ClientConnection]:
        """A session that has gone from polling to WebSocket."""
        sid = await self.open_polling()
        socket = await self.websocket(f"EIO=4&transport=websocket&sid={sid}")
        await socket.send("2probe")
        assert await next_message(socket) == "3probe"
        await socket.send("5")
        return sid, socket


async def next_message(socket: ClientConnection) -> str | bytes:
    """The next message that is no ping."""
    async with asyncio.timeout(WAIT_S):
        while (message := await socket.recv()) == "2":
            pass
        return message


async def ping(socket: ClientConnection) -> None:
    """The next message, which must be a ping."""
    async with asyncio.timeout(WAIT_S):
        assert await socket.recv() == "2"


async def ended(socket: ClientConnection) -> int:
    """Wait until the server ends the connection; its close code."""
    async with asyncio.timeout(WAIT_S):
        try:
            while True:
                await socket.recv()
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd is not None else 1006
