"""Which fleets this process has made, and what the owner of the process told them.

The only state of the package that is not inside a `Fleet`. Invariant: nothing here keeps a fleet alive.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from flotta.settings import Settings

if TYPE_CHECKING:
    from flotta.fleet._fleet import Fleet

__all__ = ["in_loop_of", "process_settings", "register", "registered", "use_settings"]

T = TypeVar("T")

_registry: list[weakref.ref[Fleet]] = []
_process_settings: Settings | None = None


def register(fleet: Fleet) -> None:
    _registry.append(weakref.ref(fleet))


def registered() -> list[Fleet]:
    """Every fleet that this process has made and still uses, in order: what a worker starts and shows."""
    _registry[:] = [ref for ref in _registry if ref() is not None]
    return [fleet for ref in _registry if (fleet := ref()) is not None]


def use_settings(settings: Settings | None) -> None:
    """From here on fleets that were given no settings use these instead of reading their own. For whoever owns the
    process, as a worker does; None: each reads its own again."""
    global _process_settings  # noqa: PLW0603 - one process, one set of settings
    _process_settings = settings


def process_settings() -> Settings | None:
    """What `use_settings` was given last."""
    return _process_settings


async def in_loop_of(fleet: Fleet, coroutine: Coroutine[Any, Any, T]) -> T:
    """Awaits ``coroutine`` in the event loop in which ``fleet`` runs, which may be another thread's."""
    if fleet.loop is None or fleet.loop is asyncio.get_running_loop():
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, fleet.loop))
