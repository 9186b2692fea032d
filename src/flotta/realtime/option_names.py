"""Options as a constructor is given them: all in one object, or single ones by name.

Names that python-socketio and Node's socket.io give them are refused, with the name that they have here. They are not
taken silently under both names: some mean another unit (milliseconds), some another default, and an option that does
nothing would be worse than an error. Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

__all__ = ["check_option_names", "options_of"]

T = TypeVar("T")

_ELSEWHERE = "the web server's business: uvicorn, hypercorn or a proxy compress and log"

_PYTHON_SOCKETIO = {
    "always_connect": "not needed: what is sent to a client while its connect handler runs follows the confirmation",
    "async_handlers": "say handlers_max=n for handlers of one client that run at once; the default 1 keeps their order",
    "async_mode": "leave it out: the server is for asyncio and ASGI",
    "client_manager": "give the Redis URL: Server('redis://...'), and adapter= for how events travel",
    "compression_threshold": _ELSEWHERE,
    "cors_allowed_origins": "say cors_origins=('https://app.example.com',)",
    "cors_credentials": "say credentials=",
    "engineio_logger": "say logger= (a structlog logger)",
    "engineio_path": "say path='/socket.io'",
    "http_compression": _ELSEWHERE,
    "json": "leave it out: msgspec encodes and decodes",
    "manager_args": "give the Redis URL with its own options: Server('redis://...')",
    "max_http_buffer_size": "say payload_bytes_max=",
    "monitor_clients": "leave it out: inactive clients are always closed",
    "allow_upgrades": "say transports=('websocket',) or ('polling',)",
    "ping_interval": "say ping_interval_s=",
    "ping_timeout": "say ping_timeout_s=",
    "serializer": "say parser='json' or 'msgpack'",
    "socketio_path": "say path='/socket.io'",
}
_NODE = {
    "adapter": "say adapter='classic', 'sharded' or 'streams'",
    "allowEIO3": "not supported: clients of Socket.IO 3 and newer speak Engine.IO 4",
    "allowRequest": "use middleware: @sio.use",
    "allowUpgrades": _PYTHON_SOCKETIO["allow_upgrades"],
    "cleanupEmptyChildNamespaces": "leave it out: empty dynamic namespaces are always removed",
    "connectTimeout": "say connect_timeout_s= (seconds)",
    "connectionStateRecovery": "say adapter='streams' and recovery_s=",
    "cors": "say cors_origins=('https://app.example.com',) and credentials=",
    "httpCompression": _ELSEWHERE,
    "maxHttpBufferSize": "say payload_bytes_max=",
    "perMessageDeflate": _ELSEWHERE,
    "pingInterval": "say ping_interval_s= (seconds)",
    "pingTimeout": "say ping_timeout_s= (seconds)",
    "serveClient": "serve the client's script as any static file",
    "upgradeTimeout": "leave it out: an upgrade has its own limit",
}


def options_of(make: Callable[..., T], options: T | None, single_options: Mapping[str, Any]) -> T:
    """``options`` if they were given, else those that ``make`` makes of single ones. Raises TypeError for both."""
    if options is None:
        return make(**single_options)
    if single_options:
        raise TypeError("give either options= or single options")
    return options


def check_option_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for the first of ``given`` that is not ``known``, and say what it is called here."""
    names = list(known)
    for name in given:
        if name in names:
            continue
        cure = _PYTHON_SOCKETIO.get(name) or _NODE.get(name)
        if cure is None:
            close = difflib.get_close_matches(name, names, n=1)
            cure = f"did you mean {close[0]}?" if close else "see ServerOptions for what there is"
        raise TypeError(f"a realtime server has no option {name!r}: {cure}")
