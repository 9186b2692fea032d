"""What pages are told, wherever they are connected: messages, rooms, how far one has read.

Every socket is known to be its user's, and is in the Socket.IO rooms of the chat rooms that its user is a member of
(``room:<id>``). Order: first PostgreSQL, then the broadcast. So nobody is told what could still fail, and whoever
missed a broadcast finds it stored.
"""

from __future__ import annotations

from typing import Any, final

from flotta.realtime import Server
from quay.bodies import Direct, NewMessage, NewRoom, Read
from quay.rooms.messages import Message, Messages
from quay.rooms.rooms import Rooms

__all__ = ["Telling", "room_of"]


def room_of(room_id: int) -> str:
    """The Socket.IO room of a chat room's members."""
    return f"room:{room_id}"


@final
class Telling:
    """Does what changes something for others, and tells them. REST views and socket handlers both call it."""

    def __init__(self, server: Server, rooms: Rooms, messages: Messages) -> None:
        self._server = server
        self._rooms = rooms
        self._messages = messages

    async def post(self, user_id: int, room_id: int, new: NewMessage) -> Message:
        """Store a message and tell the room. One that was stored before is told again: the instance that stored it
        may have died before it told anybody, and who has it already knows its number. Raises `Problem`."""
        message = await self._messages.store(user_id, room_id, new)
        await self._server.emit("message", message, room=room_of(room_id))
        return message

    async def create(self, user_id: int, new: NewRoom) -> dict[str, Any]:
        """Open a room; everybody is told that there is one more to join. Raises `Problem`."""
        room_id = await self._rooms.create(user_id, new)
        await self._enter(user_id, room_id)
        await self._server.emit("rooms")
        return await self._rooms.one(user_id, room_id)

    async def join(self, user_id: int, room_id: int) -> dict[str, Any]:
        """Become a member of an open room. Raises `Problem`."""
        await self._rooms.join(user_id, room_id)
        await self._enter(user_id, room_id)
        room = await self._rooms.one(user_id, room_id)
        await self._server.emit("members", {"room": room_id, "members": room["members"]}, room=room_of(room_id))
        return room

    async def leave(self, user_id: int, room_id: int) -> None:
        """Be a member no more. Raises `Problem`."""
        await self._rooms.leave(user_id, room_id)
        await self._server.sockets_leave(room_of(room_id), user=str(user_id))
        await self._server.emit("left", {"room": room_id}, user=str(user_id))

    async def direct(self, user_id: int, asked: Direct) -> dict[str, Any]:
        """The room with another user; both get it on all their pages. Raises `Problem`."""
        room_id = await self._rooms.direct(user_id, asked.user)
        for member in (user_id, asked.user):
            await self._enter(member, room_id)
        return await self._rooms.one(user_id, room_id)

    async def read(self, user_id: int, read: Read) -> int:
        """The user has read up to there; its other pages are told. Raises `Problem`."""
        read_id = await self._rooms.read(user_id, read.room, read.id)
        await self._server.emit("read", {"room": read.room, "id": read_id}, user=str(user_id))
        return read_id

    async def _enter(self, user_id: int, room_id: int) -> None:
        """All sockets of the user, on every instance, hear the room from now on, and show it."""
        await self._server.sockets_join(room_of(room_id), user=str(user_id))
        await self._server.emit("entered", await self._rooms.one(user_id, room_id), user=str(user_id))
