"""What every part of a server's API stands on: the core, and how a namespace and a socket of it are found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from flotta.errors import RealtimeError, StateError, UnknownClient
from flotta.realtime.adapters import Adapter, Target
from flotta.realtime.client import Socket
from flotta.realtime.core import Core, State
from flotta.realtime.delivery import Space
from flotta.realtime.targets import Names, client_event, name_of, names_of, server_event, target_of, value_of

__all__ = ["Base", "Names", "client_event", "name_of", "names_of", "server_event", "target_of", "value_of"]


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
        """Raises NotStarted before the start, Closed when `aclose` has ended."""
        adapter = self._core.adapter
        if adapter is None:
            raise self._core.unusable()
        self._check_loop()
        return adapter

    def _check_loop(self) -> None:
        """Raises StateError in another event loop, which would write to connections beside the one that reads them."""
        if asyncio.get_running_loop() is not self._core.loop:
            raise StateError(
                "the realtime server",
                "the realtime server belongs to another event loop: from other threads use emit_sync",
            )

    async def _settled(self) -> None:
        """What was sent before is sent before anything changes."""
        await self._adapter_in_use.settled()

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
            if not self._core.namespaces.known(str(namespace)):  # not everybody who says None runs a type checker
                raise RealtimeError(f"there is no namespace {namespace!r}: no handler was registered for it")
            space = Space(namespace)
        return space

    def _socket(self, sid: str, namespace: str) -> Socket | None:
        return self._space(namespace).rooms.get(sid)

    def _only_here(self, target: Target) -> bool:
        """It is a single session id of this instance: nobody elsewhere can be meant. Raises as `_space`."""
        rooms = self._space(target.namespace).rooms
        return len(target.rooms) == 1 and rooms.get(target.rooms[0]) is not None

    def _known(self, sid: str, namespace: str) -> Socket | None:
        """The socket, also if it has left and its ``disconnecting`` or ``disconnect`` handler runs."""
        space = self._space(namespace)
        leaving = space.leaving.get(sid)
        return space.rooms.get(sid) if leaving is None else leaving.socket

    def _mine(self, sid: str, namespace: str) -> Socket | None:
        """The socket, as `_known`; None: it has gone. Raises UnknownClient for one that was never here, which is a
        mistake of the program, while who goes may go at any moment."""
        socket = self._known(sid, namespace)
        if socket is None and self._core.adapter is not None:
            self._check_namespace(sid, namespace)
            if not self._core.was_here(sid):
                raise UnknownClient(sid, namespace)
        return socket

    def _check_namespace(self, sid: str, namespace: str) -> None:
        """Raises UnknownClient if it is in another namespace here: then it is in ``namespace`` nowhere."""
        for name, space in self._core.spaces.items():
            if name != namespace and space.rooms.get(sid) is not None:
                raise UnknownClient(sid, namespace, found_in=name)
