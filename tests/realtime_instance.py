"""One instance as a process of its own, for tests that kill it: serves Socket.IO natively on an inherited socket.

realtime_instance.py <file descriptor> <Redis URL> <channel prefix> <4 characters that name the instance> [adapter]
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn

from flotta.realtime import Server
from flotta.realtime.options import AdapterName
from flotta.realtime.transports.native import ws_protocol_class


async def main(descriptor: str, redis_url: str, prefix: str, instance: str, adapter: AdapterName = "classic") -> None:
    sio = Server(redis_url, channel_prefix=prefix, stream_name=prefix, instance=instance, adapter=adapter)
    await sio.start()
    web = uvicorn.Server(uvicorn.Config(sio.app(), ws=ws_protocol_class(), log_level="warning"))
    print("ready", flush=True)
    await web.serve(sockets=[socket.socket(fileno=int(descriptor))])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))  # type: ignore[arg-type]
