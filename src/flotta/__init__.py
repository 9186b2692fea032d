"""Flotta runs N copies of one Python service as one.

The names that a service uses most stand here; each part's own package has the rest. They are imported when they are
first asked for, so that a program pays only for the parts it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flotta._version import __version__

if TYPE_CHECKING:
    from flotta.errors import FlottaError
    from flotta.fleet import Fleet
    from flotta.migrations import Migrations
    from flotta.pool import WorkerPool
    from flotta.postgres import Pool
    from flotta.realtime import Server
    from flotta.redis import Link, Redis
    from flotta.rmap import Map
    from flotta.settings import Settings
    from flotta.streaming import Stream

__all__ = [
    "Fleet",
    "FlottaError",
    "Link",
    "Map",
    "Migrations",
    "Pool",
    "Redis",
    "Server",
    "Settings",
    "Stream",
    "WorkerPool",
    "__version__",
]

_HOMES = {
    "Fleet": "flotta.fleet",
    "FlottaError": "flotta.errors",
    "Link": "flotta.redis",
    "Map": "flotta.rmap",
    "Migrations": "flotta.migrations",
    "Pool": "flotta.postgres",
    "Redis": "flotta.redis",
    "Server": "flotta.realtime",
    "Settings": "flotta.settings",
    "Stream": "flotta.streaming",
    "WorkerPool": "flotta.pool",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flotta' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
