"""Single clients of this instance: their rooms, their session, their request, their end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from flotta.realtime.adapters import Command, Target
from flotta.realtime.api.base import Base

__all__ = ["Sockets"]


class Sockets(Base):
    """The part of `Server` for single clients."""

    async def enter_room(self, sid: str, room: str, *, namespace: str = "/") -> bool:
        """Put a client of this instance into a room. False: it is gone, or in ``rooms_max`` rooms already."""
        socket = self._socket(sid, namespace)
        return socket is not None and self._core.delivery.enter(socket, room)

    async def leave_room(self, sid: str, room: str, *, namespace: str = "/") -> None:
        """Take a client of this instance out of a room, if it is in it."""
        self._space(namespace).rooms.leave(sid, room)

    async def close_room(self, room: str, *, namespace: str = "/") -> None:
        """Take everybody out of a room, on every instance."""
        target = Target(namespace, (room,))
        self._core.delivery.leave(target, (room,))
        if self._core.adapter is not None:
            self._core.adapter.command(Command.LEAVE, target, rooms=(room,))

    def rooms(self, sid: str, *, namespace: str = "/") -> list[str]:
        """The rooms of a client of this instance, that of its own id included; those that it was in while its
        ``disconnecting`` or ``disconnect`` handler runs."""
        space = self._space(namespace)
        leaving = space.leaving.get(sid)
        return sorted(space.rooms.rooms_of(sid) if leaving is None else leaving.rooms)

    async def disconnect(self, sid: str, *, namespace: str = "/") -> None:
        """Disconnect a client from the namespace, wherever it is connected. Its ``disconnect`` handler runs there."""
        socket = self._socket(sid, namespace)
        if socket is not None:
            socket.client.leave(socket)
        elif self._core.adapter is not None:
            self._core.adapter.command(Command.DISCONNECT, Target(namespace, (sid,)))

    async def get_session(self, sid: str, *, namespace: str = "/") -> dict[str, Any]:
        """The user's data of a client of this instance; empty if none was saved or the client is gone."""
        socket = self._known(sid, namespace)
        return {} if socket is None else dict(socket.session or {})

    async def save_session(self, sid: str, session: dict[str, Any], *, namespace: str = "/") -> None:
        """Store the user's data with the connection; it ends with it."""
        socket = self._known(sid, namespace)
        if socket is not None:
            socket.session = dict(session)

    @asynccontextmanager
    async def session(self, sid: str, *, namespace: str = "/") -> AsyncIterator[dict[str, Any]]:
        """``async with sio.session(sid) as session:`` what is changed inside is saved at the end."""
        session = await self.get_session(sid, namespace=namespace)
        yield session
        await self.save_session(sid, session, namespace=namespace)

    def get_environ(self, sid: str, *, namespace: str = "/") -> dict[str, Any] | None:
        """The request that opened the client's connection; None if it is gone."""
        socket = self._known(sid, namespace)
        return None if socket is None else socket.client.environ()

    def is_connected(self, sid: str, *, namespace: str = "/") -> bool:
        """Whether the client is connected to this instance."""
        return self._socket(sid, namespace) is not None
