"""A connection outside every pool, for what needs a session of its own: migrations, locks, LISTEN.

Also the names of the driver that rooms above this one need, since only this package imports it.
"""

from __future__ import annotations

import asyncio

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from flotta.postgres.connection import PooledConnection, connect, cut_after
from flotta.postgres.target import Target

__all__ = ["Connection", "SqlError", "connect_direct", "cut_after", "holds_its_session", "line_of", "lost", "sql"]

Connection = PooledConnection
SqlError = psycopg.Error
"""The root of psycopg's errors: what statements raise."""

_PROBE_TIMEOUT_S = 5.0


async def connect_direct(url: str, *, application_name: str | None = None, timeout_s: float = 5.0) -> Connection:
    """A connection in autocommit that belongs to the caller, who closes it.

    Raises ``DatabaseUnavailable``, ``ConfigError``. Cancelling leaves nothing open.
    """
    target = Target.parse(url, application=application_name, connect_timeout_s=timeout_s)
    return await connect(target, timeout_s=timeout_s, prepare_threshold=None, autocommit=True)


async def holds_its_session(connection: Connection, url: str) -> bool:
    """Whether this connection keeps one server session between its transactions. False behind a pooler in transaction
    or statement mode.

    A pooler tells another process id in its greeting than the server does in a query. To learn its mode, a second
    connection opens a transaction: in transaction mode it takes the session that served us last, and our next query
    comes from another one, or, with a pool of one, not at all.
    """
    mine = await _backend(connection)
    if mine == connection.pgconn.backend_pid:
        return True
    other = await connect_direct(url, timeout_s=_PROBE_TIMEOUT_S)
    try:
        with cut_after(other, _PROBE_TIMEOUT_S):
            await other.execute("BEGIN")
            theirs = await _backend(other)
            if theirs == mine:
                return False
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                return await _backend(connection) == mine
    except (psycopg.Error, TimeoutError):
        return False
    finally:
        other.discard()


async def _backend(connection: Connection) -> int:
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None
    return int(row[0])


def lost(connection: Connection) -> bool:
    """Whether the connection is gone, or in a state that nobody can tell."""
    return connection.closed or connection.pgconn.transaction_status == TransactionStatus.UNKNOWN


def line_of(error: psycopg.Error, text: str) -> int | None:
    """The line of ``text`` (from 1) that the server's error points at, if it points at one."""
    position = error.diag.statement_position
    return None if position is None else text.count("\n", 0, int(position) - 1) + 1
