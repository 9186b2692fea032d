"""What every part of a server's API stands on: the core, and how a namespace and a socket of it are found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flotta.errors import RealtimeError
from flotta.realtime.client import Socket
from flotta.realtime.core import Core, State
from flotta.realtime.delivery import Space

__all__ = ["Base", "args_of", "names_of"]


class Base:
    """The core of one server."""

    _core: Core
    _log: Any

    @property
    def running(self) -> bool:
        """Sessions can be opened."""
        return self._core.state is State.RUNNING

    @property
    def started(self) -> bool:
        """`start` has been called."""
        return self._core.state is not State.NEW

    def _space(self, namespace: str) -> Space:
        """The namespace; an empty one if a pattern could make it and nobody is in it here."""
        space = self._core.spaces.get(namespace)
        if space is None:
            if not self._core.namespaces.known(namespace):
                raise RealtimeError(f"there is no namespace {namespace!r}: no handler was registered for it")
            space = Space(namespace)
        return space

    def _socket(self, sid: str, namespace: str) -> Socket | None:
        return self._space(namespace).rooms.get(sid)

    def _known(self, sid: str, namespace: str) -> Socket | None:
        """The socket, also if it has left and its ``disconnecting`` or ``disconnect`` handler runs."""
        space = self._space(namespace)
        leaving = space.leaving.get(sid)
        return space.rooms.get(sid) if leaving is None else leaving.socket


def names_of(*given: str | Iterable[str] | None) -> tuple[str, ...]:
    """Every name in ``given``, in order."""
    names: list[str] = []
    for one in given:
        if isinstance(one, str):
            names.append(one)
        elif one is not None:
            names.extend(one)
    return tuple(names)


def args_of(data: Any) -> list[Any]:
    """An event's arguments: a tuple is several, None is none, anything else is one."""
    if data is None:
        return []
    return list(data) if isinstance(data, tuple) else [data]
