"""Flotta's server for the realtime bench: ``go`` broadcasts, as every peer's does; with ``REDIS_URL`` to a fleet."""

from __future__ import annotations

import asyncio
import os

import uvicorn

from flotta.realtime import Server
from flotta.realtime.transports.native import ws_protocol_class

sio = Server(
    os.environ.get("REDIS_URL"),
    native=os.environ.get("BENCH_ASGI") != "1",
    backlog_max=1_000,
    adapter=os.environ.get("ADAPTER", "classic"),
    recovery_s=None,
)


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
        sio.app(),
        port=int(os.environ["PORT"]),
        ws=ws_protocol_class() if sio.options.native else "websockets-sansio",
        log_level="warning",
        loop="uvloop",
        backlog=4096,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
    )
