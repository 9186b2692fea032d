"""Messages: stored once, numbered without gaps in each room.

Invariants: the numbers of a room become visible in their order (see the migration); what a user sends twice with one
``client_id`` is one message.
"""

from __future__ import annotations

import uuid
from typing import Any, TypedDict, final

import psycopg

from flotta.fleet import Fleet
from quay.accounts.accounts import milliseconds
from quay.bodies import NewMessage
from quay.problem import Problem
from quay.rooms.rooms import Rooms, not_a_member

__all__ = ["HISTORY_MAX", "Message", "Messages"]

HISTORY_MAX = 200

# One statement, one transaction: the next number, the message, and that its writer has read up to it.
_STORE = """
WITH place AS (
    UPDATE rooms SET last_id = last_id + 1
    WHERE id = %(room)s AND EXISTS (SELECT FROM members WHERE room_id = %(room)s AND user_id = %(user)s)
    RETURNING id, last_id
), said AS (
    INSERT INTO messages (room_id, id, user_id, client_id, body)
    SELECT id, last_id, %(user)s, %(client_id)s, %(body)s FROM place
    RETURNING room_id, id, user_id, client_id, body, created_at
), seen AS (
    UPDATE members SET read_id = said.id FROM said
    WHERE members.room_id = said.room_id AND members.user_id = said.user_id
)
SELECT said.room_id, said.id, said.user_id, users.name, users.display, said.client_id, said.body, said.created_at
FROM said JOIN users ON users.id = said.user_id
"""
_COLUMNS = """
SELECT messages.room_id, messages.id, messages.user_id, users.name, users.display, messages.client_id, messages.body,
       messages.created_at
FROM messages JOIN users ON users.id = messages.user_id
"""
_SAME = _COLUMNS + "WHERE messages.user_id = %s AND messages.client_id = %s"
_BEFORE = _COLUMNS + "WHERE messages.room_id = %s AND messages.id < %s ORDER BY messages.id DESC LIMIT %s"
_AFTER = _COLUMNS + "WHERE messages.room_id = %s AND messages.id > %s ORDER BY messages.id LIMIT %s"
_ID_MAX = 2**63 - 1


class Message(TypedDict):
    """A message as clients get it."""

    room: int
    id: int
    """Its number in the room, from 1 on, without gaps."""
    user: dict[str, Any]
    client_id: str
    body: str
    at: int | None
    """Milliseconds since 1970."""


@final
class Messages:
    """Stores and reads messages."""

    def __init__(self, fleet: Fleet, rooms: Rooms) -> None:
        self._fleet = fleet
        self._rooms = rooms

    async def store(self, user_id: int, room_id: int, new: NewMessage) -> Message:
        """Stores it, or finds it if it was stored before. Raises `Problem`: 403 for who is no member, 409 if
        ``client_id`` names another message."""
        values = {"room": room_id, "user": user_id, "client_id": new.client_id, "body": new.body}
        try:
            row = await self._fleet.postgres.fetch_one(_STORE, values)
        except psycopg.errors.UniqueViolation:
            return await self._stored_before(user_id, room_id, new)
        if row is None:
            raise not_a_member()
        return _message(row)

    async def _stored_before(self, user_id: int, room_id: int, new: NewMessage) -> Message:
        row = await self._fleet.postgres.fetch_one(_SAME, (user_id, new.client_id))
        assert row is not None, "messages are never deleted"
        if (row[0], row[6]) != (room_id, new.body):
            raise Problem(409, "client_id_used", "This client_id names another message.")
        return _message(row)

    async def history(
        self, user_id: int, room_id: int, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """Messages in their order: the newest ones (before ``before``), or those that follow ``after``. ``more`` says
        whether there are further ones in that direction. Raises `Problem` 403."""
        await self._rooms.check(user_id, room_id)
        limit = max(1, min(limit, HISTORY_MAX))
        if after is not None:
            rows = await self._fleet.postgres.fetch(_AFTER, (room_id, after, limit + 1))
            found = rows[:limit]
        else:
            rows = await self._fleet.postgres.fetch(_BEFORE, (room_id, before or _ID_MAX, limit + 1))
            found = rows[:limit][::-1]
        return {"messages": [_message(row) for row in found], "more": len(rows) > limit}


def _message(row: tuple[Any, ...]) -> Message:
    room_id, number, user_id, name, display, client_id, body, created_at = row
    assert isinstance(client_id, uuid.UUID)
    return {
        "room": room_id,
        "id": number,
        "user": {"id": user_id, "name": name, "display": display},
        "client_id": str(client_id),
        "body": body,
        "at": milliseconds(created_at),
    }
