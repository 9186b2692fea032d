"""`Server.app` by the name and with the arguments that python-socketio gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flotta.realtime.transports.asgi import ASGIApp as App

if TYPE_CHECKING:
    from flotta.realtime.server import Server

__all__ = ["ASGIApp"]

_CURES = {
    "on_shutdown": "use the other app's lifespan",
    "on_startup": "use the other app's lifespan",
    "socketio_path": "say Server(path='/socket.io')",
    "static_files": "let the other app serve files (Starlette's StaticFiles, for one)",
}


def ASGIApp(socketio_server: Server, other_asgi_app: App | None = None, **options: Any) -> App:  # noqa: N802 - their name
    """An ASGI app that serves ``socketio_server`` under its path and gives everything else to ``other_asgi_app``.

    Raises:
        TypeError: an option that python-socketio has and `Server.app` has not; the message says what to do instead.
    """
    for name in options:
        raise TypeError(f"ASGIApp takes no {name!r} here: {_CURES.get(name, 'see Server.app')}")
    return socketio_server.app(other_asgi_app)
