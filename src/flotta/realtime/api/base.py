"""What every part of a server's API stands on: the core, and how a namespace and a socket of it are found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from flotta.errors import NotStarted, RealtimeError
from flotta.realtime.adapters import Adapter, Target
from flotta.realtime.client import Socket
from flotta.realtime.core import Core, State
from flotta.realtime.delivery import Space
from flotta.realtime.rooms import user_room

__all__ = ["Base", "Names", "args_of", "names_of", "target_of", "value_of"]

Names: TypeAlias = str | Iterable[str] | None
"""One name, several, or none."""


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

    @property
    def _adapter_in_use(self) -> Adapter:
        adapter = self._core.adapter
        if adapter is None:
            raise NotStarted("the realtime server")
        return adapter

    @asynccontextmanager
    async def _hearing(self, namespace: str) -> AsyncIterator[None]:
        """Inside, what others answer in ``namespace`` arrives, also if it is a dynamic one and nobody here is in it."""
        space = self._core.spaces.get(namespace)
        if space is not None and space.gate is None:
            yield
        else:
            async with self._core.namespaces.visited(namespace):
                yield

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


def names_of(*given: Names) -> tuple[str, ...]:
    """Every name in ``given``, in order."""
    names: list[str] = []
    for one in given:
        if isinstance(one, str):
            names.append(one)
        elif one is not None:
            names.extend(one)
    return tuple(names)


def target_of(namespace: str, to: Names, room: Names, user: Names, skip_sid: Names) -> Target | None:
    """Whom the arguments of an API call mean. None: nobody; an empty list of targets is nobody, not everybody."""
    rooms = (*names_of(to, room), *map(user_room, names_of(user)))
    if not rooms and not (to is None and room is None and user is None):
        return None
    return Target(namespace, rooms, names_of(skip_sid))


def args_of(data: Any) -> list[Any]:
    """An event's arguments: a tuple is several, None is none, anything else is one."""
    if data is None:
        return []
    return list(data) if isinstance(data, tuple) else [data]


def value_of(args: list[Any]) -> Any:
    """The reverse: what one acknowledgement says."""
    return args[0] if len(args) == 1 else (tuple(args) or None)
