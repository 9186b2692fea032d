"""One of several instances that official clients rove over while instances die, for tests.

realtime_roved_instance.py <file descriptor of a listening socket> <Redis URL> <channel prefix> <adapter>

Writes a line for each client that comes (``+ sid``) and goes (``- sid reason``), and what is wrong (``! ...``); on
SIGUSR1 what it keeps.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import struct
import sys
from typing import Any

import uvicorn

from flotta.errors import FlottaError
from flotta.realtime import Server
from flotta.realtime.transports.native import ws_protocol_class

PAUSE_S = 0.1


def _say(*words: object) -> None:
    print(*words, flush=True)


def make_server(redis_url: str, prefix: str, adapter: str) -> Server:
    """A server whose clients are told and asked something for what they say, which is numbered."""
    sio = Server(
        redis_url,
        channel_prefix=prefix,
        stream_name=prefix,
        recovery_key_prefix=f"{prefix}:session:",
        adapter=adapter,
        ping_interval_s=5.0,
        ping_timeout_s=6.0,
        connect_timeout_s=10.0,
    )

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        _say("+", sid)
        await sio.save_session(sid, {})

    @sio.event
    async def join(sid: str, room: str) -> str:
        await sio.enter_room(sid, room)
        return room

    @sio.event
    async def say(sid: str, number: int, data: bytes, connection: str) -> tuple[int, bytes]:
        async with sio.session(sid) as session:
            if number == 0:
                session["connection"] = connection
            elif session.get("connection") == connection and session["said"] != number - 1:
                _say("!", sid, "said", session["said"], number)
            if session.get("connection") == connection:  # else of the one before: this one is recovered
                session["said"] = number
        await sio.emit("told", (number, connection), to=sid)
        if number % 4 == 3:
            await _ask(sid, number, data)
        return number, data

    async def _ask(sid: str, number: int, data: bytes) -> None:
        try:
            found = await sio.call("ask", (number, data), to=sid, timeout_s=20.0)
        except FlottaError:
            return  # the client has gone: the checker hears when it is still there
        if list(found) != [number, data]:
            _say("!", sid, "asked", number, found)

    @sio.event
    def disconnect(sid: str, reason: str) -> None:
        _say("-", sid, reason)

    return sio


async def count_up(sio: Server) -> None:
    """Numbered events to the room ``crowd``, for ever."""
    number = 0
    while True:
        await sio.emit("n", (str(os.getpid()), number, struct.pack("!I", number)), room="crowd")
        number += 1
        await asyncio.sleep(PAUSE_S)


def kept(sio: Server) -> dict[str, Any]:
    """What the server keeps, by name: sizes."""
    relay: Any = sio._relay
    stats = sio.stats
    gc.collect()
    sizes = {
        "near": relay._near,
        "far": relay._far,
        "pending": relay._asks._pending,
        "serving": relay._asks._serving,
        "going": relay._departures._going,
        "awaited": relay._departures._awaited,
        "coming": relay._arrivals._coming,
        "preparing": relay._arrivals._preparing,
        "leavers": relay._tap.leavers,
        "comers": relay._tap.comers,
        "log": relay._tap._log,
        "holds": sio._core.delivery._holds,
        "in flight": relay._post._in_flight,
        "bodies": relay._asks._budget._spent,
    }
    return {
        "sizes": {name: len(value) for name, value in sizes.items() if value},
        "connections": stats.connections,
        "sockets": stats.sockets,
        "failed": stats.handlers_failed,
        "tasks": sorted(task.get_name() for task in asyncio.all_tasks()),
        "relay": {} if stats.relay is None else stats.relay._asdict(),
    }


async def main(descriptor: str, redis_url: str, prefix: str, adapter: str) -> None:
    sio = make_server(redis_url, prefix, adapter)
    await sio.start()
    counting = asyncio.create_task(count_up(sio), name="counting")
    config = uvicorn.Config(sio.app(), ws=ws_protocol_class(), log_level="warning", timeout_graceful_shutdown=5)
    web = uvicorn.Server(config)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: _say(json.dumps(kept(sio))))
    _say("ready", sio.stats.instance)
    await web.serve(sockets=[socket.socket(fileno=int(descriptor))])
    counting.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
