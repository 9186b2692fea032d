"""The servers that run in this process, for the native transport to find by path.

A web server's WebSocket class knows neither the app nor its mounts, only the request. So a path is served natively only
if exactly one running server of this event loop has it; when two do, both are reached through their ASGI apps.
"""

from __future__ import annotations

import asyncio

from flotta.realtime.engine.sessions import AnyEngine

__all__ = ["add", "find", "remove"]

_running: list[AnyEngine] = []


def add(core: AnyEngine) -> None:
    """Make a started server known, if it wants to be served natively."""
    if core.options.native:
        _running.append(core)


def remove(core: AnyEngine) -> None:
    """Forget a server; unknown ones are fine."""
    if core in _running:
        _running.remove(core)


def find(path: str, loop: asyncio.AbstractEventLoop) -> AnyEngine | None:
    """The one server of ``loop`` at ``path``."""
    path = path.rstrip("/")
    found = [core for core in _running if core.options.path == path and core.loop is loop]
    return found[0] if len(found) == 1 else None
