"""One instance with recovery as a process of its own, to be killed: serves on an inherited socket.

realtime_recovery_instance.py <file descriptor> <Redis URL> <name of the stream> <JSON of more options>

A client says in its auth which room it wants; the ``connect`` handler puts it there, also when it is recovered.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from typing import Any

import uvicorn

from flotta.realtime import Server
from flotta.realtime.transports.native import ws_protocol_class


async def main(descriptor: str, redis_url: str, stream: str, options: str) -> None:
    sio = Server(
        redis_url,
        adapter="streams",
        stream_name=stream,
        channel_prefix=stream,
        recovery_key_prefix=f"{stream}:session:",
        **json.loads(options),
    )

    @sio.event
    async def connect(sid: str, _environ: dict[str, Any], auth: dict[str, Any]) -> None:
        await sio.enter_room(sid, auth["room"])

    @sio.event
    def stall(_sid: str, seconds: float) -> None:
        time.sleep(seconds)

    await sio.start()
    web = uvicorn.Server(uvicorn.Config(sio.app(), ws=ws_protocol_class(), log_level="warning"))
    print("ready", flush=True)
    await web.serve(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
