"""What the official protocol test suites talk to: both servers with the parameters and the answers that they expect.

``app`` serves Engine.IO at /engine.io (it echoes) and Socket.IO at /socket.io. The parameters are those of the servers
in the reference repository: docs/engine.io-protocol and docs/socket.io-protocol, "Test suite".
"""

from __future__ import annotations

from typing import Any

from flotta.realtime import EngineServer, Server

__all__ = ["app", "make_app"]

PARAMETERS: dict[str, Any] = {"ping_interval_s": 0.3, "ping_timeout_s": 0.2, "payload_bytes_max": 1_000_000}


def make_engine(**changed: Any) -> EngineServer:
    """Sends every message back."""
    server = EngineServer(**{**PARAMETERS, **changed})

    @server.on_message
    def echo(sid: str, data: str | bytes) -> None:
        server.send(sid, data)

    return server


def make_socketio(**changed: Any) -> Server:
    """Tells what it was told at the connect, and answers two events."""
    sio = Server(**{"connect_timeout_s": 1.0, **PARAMETERS, **changed})
    for namespace in ("/", "/custom"):
        _register(sio, namespace)
    return sio


def _register(sio: Server, namespace: str) -> None:
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        await sio.emit("auth", auth or {}, to=sid, namespace=namespace)

    async def message(sid: str, *data: Any) -> None:
        await sio.emit("message-back", data, to=sid, namespace=namespace)

    def with_ack(sid: str, *data: Any) -> tuple[Any, ...]:
        return data

    sio.on("connect", connect, namespace=namespace)
    sio.on("message", message, namespace=namespace)
    sio.on("message-with-ack", with_ack, namespace=namespace)


def make_app() -> Any:
    """Both, in one ASGI app whose lifespan starts and ends them."""
    return make_engine().app(make_socketio().app())


app = make_app()
