"""The same with python-socketio on uvicorn, with its fastest WebSocket class."""

from __future__ import annotations

import asyncio
import os

import socketio
import uvicorn

redis_url = os.environ.get("REDIS_URL")
manager = None if redis_url is None else socketio.AsyncRedisManager(redis_url)
sio = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*", client_manager=manager)


@sio.event
async def go(_sid: str, event: object, times: int) -> None:
    for _ in range(times):
        await sio.emit("tick", event)
        await asyncio.sleep(0)


@sio.event
async def enter(sid: str, room: str) -> None:
    await sio.enter_room(sid, room)


@sio.event
async def goroom(_sid: str, event: object, room: str) -> None:
    await sio.emit("tick", event, room=room)


@sio.event
async def echo(_sid: str, event: object) -> object:
    return event


if __name__ == "__main__":
    uvicorn.run(
        socketio.ASGIApp(sio),
        port=int(os.environ["PORT"]),
        ws="websockets-sansio",
        log_level="warning",
        loop="uvloop",
        backlog=4096,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
    )
