"""One of several instances behind a balancer that is not sticky, for tests.

realtime_balanced_instance.py <file descriptor of a listening socket> <Redis URL> <channel prefix> <name> <adapter>
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import sys
from typing import Any

import uvicorn

from flotta.realtime import Server
from flotta.realtime.transports.native import ws_protocol_class


def make_server(redis_url: str, prefix: str, name: str | None, **options: Any) -> Server:
    """A server whose clients join rooms, echo, and are asked; `count_up` sends them numbered events."""
    sio = Server(redis_url, channel_prefix=prefix, stream_name=prefix, instance=name, **options)

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        await sio.save_session(sid, {"counted": 0})

    @sio.event
    async def join(sid: str, room: str) -> str:
        await sio.enter_room(sid, room)
        return room

    @sio.event
    async def echo(sid: str, number: int, data: bytes) -> tuple[int, bytes]:
        async with sio.session(sid) as session:
            session["counted"] += 1
        if number % 10 == 0:
            back, raw = await sio.call("ask", number, to=sid, timeout_s=20.0)
            assert (back, raw) == (number, bytes([number & 255]))
        return number, data

    return sio


async def count_up(sio: Server, name: str, pause_s: float) -> None:
    """Numbered events to the room ``crowd``, for ever."""
    number = 0
    while True:
        await sio.emit("n", (name, number, struct.pack("!I", number)), room="crowd")
        number += 1
        await asyncio.sleep(pause_s)


async def main(descriptor: str, redis_url: str, prefix: str, name: str, adapter: str) -> None:
    sio = make_server(redis_url, prefix, name, adapter=adapter)
    await sio.start()
    pause_s = float(os.environ.get("FLOTTA_TEST_PAUSE_S", "0.1"))
    counting = asyncio.create_task(count_up(sio, name, pause_s))
    config = uvicorn.Config(sio.app(), ws=ws_protocol_class(), log_level="warning", timeout_graceful_shutdown=5)
    web = uvicorn.Server(config)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _tell, sio)
    print("ready", flush=True)
    await web.serve(sockets=[socket.socket(fileno=int(descriptor))])
    counting.cancel()


def _tell(sio: Server) -> None:
    stats = sio.stats
    assert stats.relay is not None
    facts = {"relay": stats.relay._asdict(), "failed": stats.handlers_failed, "connections": stats.connections}
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
