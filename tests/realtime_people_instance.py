"""One instance with presence as a process of its own, for tests that kill or stop it; prints ``ready <port>``.

realtime_people_instance.py <Redis URL> <channel prefix> <4 characters that name the instance> <presence_ttl_s>
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import uvicorn

from flotta.realtime import Server
from flotta.realtime.transports.native import ws_protocol_class


async def main(redis_url: str, prefix: str, instance: str, ttl_s: str) -> None:
    sio = Server(
        redis_url,
        channel_prefix=prefix,
        instance=instance,
        presence=True,
        presence_ttl_s=float(ttl_s),
        connections_per_user_max=2,
    )

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: dict[str, Any]) -> None:
        await sio.set_user(sid, auth["user"])

    await sio.start()
    listening = socket.create_server(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(sio.app(), ws=ws_protocol_class(), log_level="warning"))
    print("ready", listening.getsockname()[1], flush=True)
    await web.serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
