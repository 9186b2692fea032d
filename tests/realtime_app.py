"""An application that tests serve by real web servers, each as a process: prints what happens to its clients.

Environment: ``CONNECTIONS_MAX``, ``PING_INTERVAL_S``; ``REDIS_URL`` and ``CHANNEL_PREFIX`` if there are several.
"""

from __future__ import annotations

import os
from typing import Any

from flotta.errors import ConnectRefused
from flotta.realtime import Server

sio = Server(
    os.environ.get("REDIS_URL"),
    channel_prefix=os.environ.get("CHANNEL_PREFIX", "socket.io"),
    connections_max=int(os.environ.get("CONNECTIONS_MAX", "100")),
    transports=("polling", "websocket"),
    ping_interval_s=float(os.environ.get("PING_INTERVAL_S", "0.5")),
    ping_timeout_s=2,
    drain_s=2,
)


@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
    if auth and auth.get("token") == "wrong":
        raise ConnectRefused("unknown token", {"code": 7})
    print("connect", sid, environ["asgi.scope"]["type"], flush=True)


@sio.event
async def disconnect(sid: str, reason: str) -> None:
    print("disconnect", sid, reason, flush=True)


@sio.event
async def echo(_sid: str, *data: Any) -> tuple[Any, ...]:
    return data


@sio.event
async def enter(sid: str, room: str) -> list[str]:
    await sio.enter_room(sid, room)
    return sio.rooms(sid)


@sio.event
async def say(sid: str, room: str, data: Any) -> None:
    await sio.emit("said", data, room=room, skip_sid=sid)


@sio.event
async def transport(sid: str) -> str | None:
    return sio.transport(sid)


async def site(scope: Any, receive: Any, send: Any) -> None:
    """The rest of the application."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        print("lifespan ends", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"site"})


app = sio.app(site)
