"""The ways of serving that the suites run against, each a command for a process of its own.

ways.py <name> <port> serves ``served:app`` in that way.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

__all__ = ["WAYS", "command"]

HOST = "127.0.0.1"
WAYS = {
    "flotta run": "native WebSockets, as every service gets them",
    "uvicorn native": "uvicorn with ws=ws_protocol_class()",
    "uvicorn asgi": "plain ASGI under uvicorn",
    "hypercorn asgi": "plain ASGI under hypercorn",
    "granian asgi": "plain ASGI under granian",
}


def command(way: str, port: int) -> list[str]:
    """The command that serves in this way; its working directory must be this folder."""
    if way == "flotta run":
        tool = str(Path(sys.executable).with_name("flotta"))
        return [tool, "run", "served:app", "-n", "1", "--host", HOST, "--port", str(port), "--drain", "1"]
    return [sys.executable, "ways.py", way, str(port)]


def _uvicorn(port: int, *, native: bool) -> None:
    import uvicorn

    from flotta.realtime.transports.native import ws_protocol_class

    ws = ws_protocol_class() if native else "websockets-sansio"
    uvicorn.run("served:app", host=HOST, port=port, ws=ws, log_level="warning", timeout_graceful_shutdown=1)


def _hypercorn(port: int) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config
    from served import app

    config = Config()
    config.bind = [f"{HOST}:{port}"]
    config.graceful_timeout = 1
    asyncio.run(serve(app, config))


def _granian(port: int) -> None:
    from granian.constants import Interfaces
    from granian.server import Server

    Server("served:app", address=HOST, port=port, interface=Interfaces.ASGI, websockets=True, log_enabled=False).serve()


if __name__ == "__main__":
    name, number = sys.argv[1], int(sys.argv[2])
    if name.startswith("uvicorn"):
        _uvicorn(number, native=name.endswith("native"))
    elif name.startswith("hypercorn"):
        _hypercorn(number)
    else:
        _granian(number)
