"""The advisory lock that decides who migrates: one per application and database, held by a session until it ends."""

from __future__ import annotations

import hashlib

from flotta.postgres.direct import Connection

__all__ = ["holder_pid", "holds", "key_of", "lock_key", "try_lock"]

_HELD = (
    "SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
    " AND classid = %s AND objid = %s"
    " AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"
)
"""``pg_locks`` shows a 64-bit key as classid (upper half) and objid (lower half), with objsubid 1."""


def lock_key(application: str, database: str) -> int:
    """The key of an application in a database: 64 bits of SHA-256, signed as PostgreSQL wants it."""
    digest = hashlib.sha256(f"flotta migrations\0{application}\0{database}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


async def key_of(connection: Connection, application: str) -> int:
    """The key of an application in the database that the connection is in."""
    row = await (await connection.execute("SELECT current_database()")).fetchone()
    assert row is not None
    return lock_key(application, row[0])


async def try_lock(connection: Connection, key: int) -> bool:
    """Take the lock for this session if it is free. Never waits for it."""
    row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", [key])).fetchone()
    assert row is not None
    return bool(row[0])


async def holder_pid(connection: Connection, key: int) -> int | None:
    """The server process that holds the lock, if any."""
    unsigned = key % 2**64
    row = await (await connection.execute(_HELD, [unsigned >> 32, unsigned & 0xFFFFFFFF])).fetchone()
    return None if row is None else int(row[0])


async def holds(connection: Connection, key: int) -> bool:
    """Whether this very session holds the lock."""
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None
    return await holder_pid(connection, key) == int(row[0])
