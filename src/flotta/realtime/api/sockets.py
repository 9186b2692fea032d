"""Single clients of this instance: their rooms, their session, their request, their end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from flotta.realtime.adapters import Command, Target
from flotta.realtime.api.base import Base, name_of
from flotta.realtime.client import Socket

__all__ = ["Sockets"]


class Sockets(Base):
    """The part of `Server` for single clients.

    What changes something raises NotStarted before `start` and Closed when `aclose` has ended; what only asks answers
    then as for a client that is gone.
    """

    async def enter_room(self, sid: str, room: str, *, namespace: str = "/") -> bool:
        """Put a client into a room. False: it is gone, or in ``rooms_max`` rooms already.

        For a client that is not connected here the other instances are told, and True only says that there are some.

        What is sent to the room after this has returned reaches the client, whichever instance sends it, as long as
        Redis is there. With the adapter ``"sharded"`` that takes a round trip for the first client of a room; a Redis
        that is away or slow holds nobody up for more than a second. Cancelling leaves the client in the room.

        Raises:
            TypeError: the room's name is no text.
            UnknownClient: ``sid`` is a client of this instance in another namespace.
        """
        name_of(room)
        await self._settled()
        socket = self._socket(sid, namespace)
        if socket is None:
            return await self._tell_holder(Command.JOIN, sid, namespace, rooms=(room,))
        if not self._core.delivery.enter(socket, room):
            return False
        await self._adapter_in_use.room_heard(namespace, room)
        await self._stored(socket)
        return True

    async def leave_room(self, sid: str, room: str, *, namespace: str = "/") -> None:
        """Take a client out of a room, if it is in it. For one that is not connected here the others are told.

        Raises:
            TypeError, UnknownClient: as `enter_room`.
        """
        name_of(room)
        await self._settled()
        socket = self._socket(sid, namespace)
        if socket is None:
            await self._tell_holder(Command.LEAVE, sid, namespace, rooms=(room,))
        else:
            self._space(namespace).rooms.leave(sid, room)
            await self._stored(socket)

    async def _stored(self, socket: Socket) -> None:
        """What has changed outlives this process, if sessions do."""
        if self._core.keeper is not None:
            await self._core.keeper.stored(socket)

    async def _tell_holder(self, command: Command, sid: str, namespace: str, *, rooms: tuple[str, ...] = ()) -> bool:
        """Tell the instance that holds the client, whichever it is. False: there are no others."""
        self._check_namespace(sid, namespace)
        adapter = self._adapter_in_use
        if adapter.alone:
            return False
        adapter.command(command, Target(namespace, (sid,)), rooms=rooms)
        await adapter.wait_for_room()
        return True

    async def close_room(self, room: str, *, namespace: str = "/") -> None:
        """Take everybody out of a room, on every instance."""
        target = Target(namespace, (name_of(room),))
        await self._settled()
        self._core.delivery.leave(target, (room,))
        adapter = self._adapter_in_use
        adapter.command(Command.LEAVE, target, rooms=(room,))
        await adapter.wait_for_room()

    def rooms(self, sid: str, *, namespace: str = "/") -> list[str]:
        """The rooms of a client of this instance, that of its own id included; those that it was in while its
        ``disconnecting`` or ``disconnect`` handler runs."""
        space = self._space(namespace)
        leaving = space.leaving.get(sid)
        return sorted(space.rooms.rooms_of(sid) if leaving is None else leaving.rooms)

    async def disconnect(self, sid: str, *, namespace: str = "/") -> None:
        """Disconnect a client from the namespace, wherever it is connected. Its ``disconnect`` handler runs there.

        Raises:
            UnknownClient: ``sid`` is a client of this instance in another namespace.
        """
        await self._settled()
        socket = self._socket(sid, namespace)
        if socket is not None:
            socket.client.leave(socket)
        else:
            await self._tell_holder(Command.DISCONNECT, sid, namespace)

    async def get_session(self, sid: str, *, namespace: str = "/") -> dict[str, Any]:
        """The user's data of a client of this instance; empty if none was saved or the client is gone.

        Raises:
            UnknownClient: ``sid`` was never a client of this instance in this namespace.
        """
        socket = self._mine(sid, namespace)
        return {} if socket is None else dict(socket.session or {})

    async def save_session(self, sid: str, session: dict[str, Any], *, namespace: str = "/") -> bool:
        """Store the user's data with the connection; it ends with it. False: the client is gone.

        With recovery it is what the client gets back, and what other instances see as ``data``: then it must be what
        MessagePack can carry (text, numbers, bytes, lists, maps), or the client cannot be recovered.

        Raises:
            UnknownClient: ``sid`` was never a client of this instance in this namespace.
        """
        await self._settled()
        socket = self._mine(sid, namespace)
        if socket is None:
            return False
        socket.session = dict(session)
        await self._stored(socket)
        return True

    @asynccontextmanager
    async def session(self, sid: str, *, namespace: str = "/") -> AsyncIterator[dict[str, Any]]:
        """``async with sio.session(sid) as session:`` what is changed inside is saved at the end, if the client has not
        gone. Raises as `save_session`."""
        session = await self.get_session(sid, namespace=namespace)
        yield session
        await self.save_session(sid, session, namespace=namespace)

    def get_environ(self, sid: str, *, namespace: str = "/") -> dict[str, Any] | None:
        """The request that opened the client's connection; None if it is gone."""
        socket = self._known(sid, namespace)
        return None if socket is None else socket.client.environ()

    def recovered(self, sid: str, *, namespace: str = "/") -> bool:
        """Whether a client of this instance came back to an earlier session, and got what it had missed."""
        socket = self._known(sid, namespace)
        return socket is not None and socket.kept is not None and socket.kept.recovered

    def is_connected(self, sid: str, *, namespace: str = "/") -> bool:
        """Whether the client is connected to this instance."""
        return self._socket(sid, namespace) is not None
