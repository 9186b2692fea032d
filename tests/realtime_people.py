"""What tests of users and presence share: raw clients that say who they are, and servers that believe them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed

from flotta.realtime import Server
from flotta.redis import Redis
from realtime_fixtures import serving

QUERY = "EIO=4&transport=websocket"


class Visitor:
    """A raw client that has asked to join with ``auth``."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.answer = ""

    @property
    def refusal(self) -> str:
        assert self.answer.startswith("44"), self.answer
        return str(json.loads(self.answer[2:])["message"])

    @property
    def sid(self) -> str:
        assert self.answer.startswith("40{"), self.answer
        return str(json.loads(self.answer[2:])["sid"])

    async def next(self) -> str:
        """What comes next, pings aside."""
        while (message := str(await asyncio.wait_for(self.socket.recv(), 10))) == "2":
            await self.socket.send("3")
        return message

    async def ended(self) -> tuple[list[str], int]:
        """What came until the end, and its close code."""
        came: list[str] = []
        try:
            while True:
                came.append(await self.next())
        except ConnectionClosed as closed:
            return came, 1006 if closed.rcvd is None else closed.rcvd.code


async def come(port: int, **auth: Any) -> Visitor:
    """Connect and ask to join the default namespace."""
    socket = await ws_connect(f"ws://127.0.0.1:{port}/socket.io/?{QUERY}")
    await socket.recv()
    await socket.send("40" + json.dumps(auth))
    visitor = Visitor(socket)
    visitor.answer = await visitor.next()
    return visitor


def make(redis: Redis | None, prefix: str, **options: Any) -> Server:
    """A server whose clients say who they are; ``auth`` may bring ``expires_at`` and ``issued_at``."""
    sio = Server(redis, channel_prefix=prefix, **options)

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: dict[str, Any]) -> None:
        await sio.set_user(sid, auth.pop("user"), **auth)

    return sio


@asynccontextmanager
async def fleet(
    redis: Redis | None, prefix: str, count: int = 2, **options: Any
) -> AsyncIterator[list[tuple[Server, int]]]:
    """Such servers, each with its port; the first through ASGI, the second natively, and so on."""
    async with AsyncExitStack() as stack:
        servers = [make(redis, prefix, **options) for _ in range(count)]
        ports = [await stack.enter_async_context(serving(sio, native=bool(n % 2))) for n, sio in enumerate(servers)]
        yield list(zip(servers, ports, strict=True))
