"""Rooms and who is in them."""

from __future__ import annotations

from typing import Any, final

import psycopg

from flotta.fleet import Fleet
from quay.accounts.accounts import milliseconds
from quay.bodies import NewRoom
from quay.problem import Problem

__all__ = ["Rooms", "not_a_member"]

_OPEN_MAX = 200
_MEMBERS_MAX = 1_000

# The rooms of a user, each with its newest message; a direct room shows the other of the two.
_OF_USER = """
SELECT rooms.id, rooms.kind, rooms.name, rooms.topic, rooms.last_id, mine.read_id,
       (SELECT count(*) FROM members WHERE members.room_id = rooms.id),
       other.id, other.name, other.display,
       speaker.display, messages.body, messages.created_at
FROM members AS mine
JOIN rooms ON rooms.id = mine.room_id
LEFT JOIN members AS theirs ON rooms.kind = 'direct' AND theirs.room_id = rooms.id AND theirs.user_id <> mine.user_id
LEFT JOIN users AS other ON other.id = theirs.user_id
LEFT JOIN messages ON messages.room_id = rooms.id AND messages.id = rooms.last_id
LEFT JOIN users AS speaker ON speaker.id = messages.user_id
WHERE mine.user_id = %(user)s AND (%(room)s::bigint IS NULL OR rooms.id = %(room)s)
ORDER BY rooms.id
"""
_OPEN = """
SELECT rooms.id, rooms.name, rooms.topic, (SELECT count(*) FROM members WHERE members.room_id = rooms.id)
FROM rooms WHERE rooms.kind = 'open'
AND NOT EXISTS (SELECT FROM members WHERE members.room_id = rooms.id AND members.user_id = %s)
ORDER BY lower(rooms.name) LIMIT %s
"""
_MEMBERS = """
SELECT users.id, users.name, users.display, users.last_seen_at
FROM members JOIN users ON users.id = members.user_id WHERE members.room_id = %s
ORDER BY users.display, users.id LIMIT %s
"""
_CREATE = """
WITH room AS (INSERT INTO rooms (kind, name, topic, created_by) VALUES ('open', %s, %s, %s) RETURNING id, created_by)
INSERT INTO members (room_id, user_id) SELECT id, created_by FROM room RETURNING room_id
"""
# What was said before somebody came counts as read: unread is what came since.
_JOIN = """
INSERT INTO members (room_id, user_id, read_id) SELECT id, %s, last_id FROM rooms WHERE id = %s AND kind = 'open'
ON CONFLICT (room_id, user_id) DO UPDATE SET read_id = members.read_id RETURNING room_id
"""
_LEAVE = """
DELETE FROM members USING rooms
WHERE rooms.id = members.room_id AND rooms.kind = 'open' AND members.room_id = %s AND members.user_id = %s
"""
_IS_MEMBER = "SELECT 1 FROM members WHERE room_id = %s AND user_id = %s"
# Two instances may open the same direct room at once: the second finds the first's.
_DIRECT = """
INSERT INTO rooms (kind, name, created_by) VALUES ('direct', %s, %s)
ON CONFLICT (kind, lower(name)) DO UPDATE SET name = excluded.name RETURNING id
"""
_DIRECT_MEMBERS = "INSERT INTO members (room_id, user_id) VALUES (%s, %s), (%s, %s) ON CONFLICT DO NOTHING"
_READ = """
UPDATE members SET read_id = greatest(members.read_id, least(%s, rooms.last_id))
FROM rooms WHERE rooms.id = members.room_id AND members.room_id = %s AND members.user_id = %s RETURNING members.read_id
"""
_HEADS = (
    "SELECT rooms.id, rooms.last_id FROM rooms JOIN members ON members.room_id = rooms.id WHERE members.user_id = %s"
)


@final
class Rooms:
    """Who is where. Every question says who asks, and only members are told what is inside."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def of_user(self, user_id: int, room_id: int | None = None) -> list[dict[str, Any]]:
        """The rooms of a user (or one of them), with what is unread and what was said last."""
        rows = await self._fleet.postgres.fetch(_OF_USER, {"user": user_id, "room": room_id})
        return [_room(row) for row in rows]

    async def one(self, user_id: int, room_id: int) -> dict[str, Any]:
        """One room of a user. Raises `Problem` 403."""
        rooms = await self.of_user(user_id, room_id)
        if not rooms:
            raise not_a_member()
        return rooms[0]

    async def others(self, user_id: int) -> list[dict[str, Any]]:
        """Open rooms that the user could join."""
        rows = await self._fleet.postgres.fetch(_OPEN, (user_id, _OPEN_MAX))
        return [{"id": row[0], "name": row[1], "topic": row[2], "members": row[3]} for row in rows]

    async def create(self, user_id: int, new: NewRoom) -> int:
        """Open a room and be its first member; its id. Raises `Problem` 409."""
        try:
            row = await self._fleet.postgres.fetch_one(_CREATE, (new.name, new.topic, user_id))
        except psycopg.errors.UniqueViolation as error:
            raise Problem(409, "name_taken", "There is a room of this name already.") from error
        assert row is not None, "RETURNING gives a row"
        return int(row[0])

    async def direct(self, user_id: int, other_id: int) -> int:
        """The id of the room of these two; made if it is not there. Raises `Problem`."""
        if user_id == other_id:
            raise Problem(422, "does_not_fit", "You cannot write to yourself.")
        name = ":".join(map(str, sorted((user_id, other_id))))
        try:
            async with self._fleet.postgres.connection() as connection:
                row = await (await connection.execute(_DIRECT, (name, user_id))).fetchone()
                assert row is not None, "RETURNING gives a row"
                await connection.execute(_DIRECT_MEMBERS, (row[0], user_id, row[0], other_id))
        except psycopg.errors.ForeignKeyViolation as error:
            raise Problem(404, "no_such_user", "There is no such user.") from error
        return int(row[0])

    async def join(self, user_id: int, room_id: int) -> None:
        """Become a member; once more is fine. Raises `Problem` 404 for what is no open room."""
        if await self._fleet.postgres.fetch_one(_JOIN, (user_id, room_id)) is None:
            raise Problem(404, "no_such_room", "There is no such room.")

    async def leave(self, user_id: int, room_id: int) -> None:
        """Be a member no more; direct rooms cannot be left. Raises `Problem` 403."""
        if not await self._fleet.postgres.execute(_LEAVE, (room_id, user_id)):
            raise not_a_member()

    async def members(self, user_id: int, room_id: int) -> list[dict[str, Any]]:
        """Who is in a room, and when they were last seen. Raises `Problem` 403."""
        await self.check(user_id, room_id)
        rows = await self._fleet.postgres.fetch(_MEMBERS, (room_id, _MEMBERS_MAX))
        return [{"id": row[0], "name": row[1], "display": row[2], "last_seen": milliseconds(row[3])} for row in rows]

    async def check(self, user_id: int, room_id: int) -> None:
        """Raises `Problem` 403 for who is no member."""
        if await self._fleet.postgres.fetch_one(_IS_MEMBER, (room_id, user_id)) is None:
            raise not_a_member()

    async def read(self, user_id: int, room_id: int, message_id: int) -> int:
        """Everything up to ``message_id`` was read; gives how far that is now. Raises `Problem` 403."""
        row = await self._fleet.postgres.fetch_one(_READ, (message_id, room_id, user_id))
        if row is None:
            raise not_a_member()
        return int(row[0])

    async def heads(self, user_id: int) -> dict[str, int]:
        """The number of the newest message in each of the user's rooms."""
        return {str(row[0]): row[1] for row in await self._fleet.postgres.fetch(_HEADS, (user_id,))}


def not_a_member() -> Problem:
    """Also for rooms that do not exist: who is not inside is not told."""
    return Problem(403, "not_a_member", "You are not in this room.")


def _room(row: tuple[Any, ...]) -> dict[str, Any]:
    other = None if row[7] is None else {"id": row[7], "name": row[8], "display": row[9]}
    last = None if row[12] is None else {"display": row[10], "body": row[11], "at": milliseconds(row[12])}
    return {
        "id": row[0],
        "kind": row[1],
        "name": row[2] if other is None else other["display"],
        "topic": row[3],
        "last_id": row[4],
        "read_id": row[5],
        "members": row[6],
        "other": other,
        "last": last,
    }
