"""What the database remembers: which migrations and seeds it has, and who is migrating.

Three tables in the schema where the connection creates its tables. ``flotta_migration`` and ``flotta_seed`` are the
truth about the schema and change in the transaction of the step they record. ``flotta_migration_run`` is news for
people; nothing is decided by it. Who may migrate is decided by an advisory lock alone.

Rows are kept apart by ``application``: several services may share a database.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, LiteralString, final

from flotta.errors import ConfigError
from flotta.postgres.direct import Connection, sql

__all__ = ["Applied", "Ledger", "Run"]


@final
@dataclass(frozen=True, slots=True)
class Applied:
    """A migration that the ledger knows. ``finished`` is False for one without a transaction that was interrupted."""

    version: int
    name: str
    checksum: str
    finished: bool


@final
@dataclass(frozen=True, slots=True)
class Run:
    """The latest run of an application's migrations, for people."""

    instance: str
    state: str
    """``migrating``, ``ready`` or ``failed``."""
    from_version: str
    to_version: str
    step: str
    since_s: float
    """Seconds since it began, by the server's clock."""
    error: str

    def __str__(self) -> str:
        if self.state == "failed":
            return f"{self.instance} failed at {self.step}: {self.error}"
        return f"{self.instance}, {self.from_version} -> {self.to_version}, {self.since_s:.0f} s"


_TABLES_LOCK = int.from_bytes(hashlib.sha256(b"flotta migrations tables").digest()[:8], "big", signed=True)
_TABLES: LiteralString = """
CREATE TABLE IF NOT EXISTS {migration} (
    application text NOT NULL,
    version integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_at timestamptz,
    applied_by text NOT NULL,
    PRIMARY KEY (application, version)
);
CREATE TABLE IF NOT EXISTS {seed} (
    application text NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_by text NOT NULL,
    PRIMARY KEY (application, name)
);
CREATE TABLE IF NOT EXISTS {run} (
    application text PRIMARY KEY,
    instance text NOT NULL,
    state text NOT NULL,
    from_version text NOT NULL,
    to_version text NOT NULL,
    step text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    error text NOT NULL DEFAULT ''
);
COMMENT ON TABLE {migration} IS 'Flotta: migrations applied; applied_at is null while one without transaction runs';
COMMENT ON TABLE {seed} IS 'Flotta: seeds applied';
COMMENT ON TABLE {run} IS 'Flotta: who migrates now, or did last; for people only'
"""


@final
class Ledger:
    """The three tables, of one application, over one connection."""

    def __init__(self, connection: Connection, application: str, instance: str, schema: str) -> None:
        self.connection = connection
        self.application = application
        self.instance = instance
        names = ("flotta_migration", "flotta_seed", "flotta_migration_run")
        self._names = {
            key: sql.Identifier(schema, name) for key, name in zip(("migration", "seed", "run"), names, strict=True)
        }
        self._regclass = f"{_quoted(schema)}.flotta_migration_run"

    @classmethod
    async def find(cls, connection: Connection, application: str, instance: str) -> Ledger:
        """The ledger in the connection's current schema, whether or not its tables exist yet."""
        row = await (await connection.execute("SELECT current_schema()")).fetchone()
        if row is None or row[0] is None:
            raise ConfigError("search_path", "empty", "at least one schema that exists", source="database")
        return cls(connection, application, instance, row[0])

    async def _execute(self, query: LiteralString, *params: Any) -> list[tuple[Any, ...]]:
        cursor = await self.connection.execute(sql.SQL(query).format(**self._names), params or None)
        return await cursor.fetchall() if cursor.description else []

    async def exists(self) -> bool:
        return bool((await self._execute("SELECT to_regclass(%s) IS NOT NULL", self._regclass))[0][0])

    async def create(self) -> None:
        """Make the tables if there are none."""
        if await self.exists():
            return
        async with self.connection.transaction():
            # Other applications share the tables and hold other locks, and IF NOT EXISTS is no protection against
            # another session that is making the same table. Blocking is harmless: this transaction does nothing else.
            await self._execute("SELECT pg_advisory_xact_lock(%s)", _TABLES_LOCK)
            await self._execute(_TABLES)

    # --- Migrations --------------------------------------------------------------------------------------------------

    async def applied(self) -> dict[int, Applied]:
        """What the ledger knows, by version; empty if there are no tables."""
        if not await self.exists():
            return {}
        rows = await self._execute(
            "SELECT version, name, checksum, applied_at IS NOT NULL FROM {migration} WHERE application = %s",
            self.application,
        )
        return {row[0]: Applied(*row) for row in rows}

    async def begin(self, version: int, name: str, checksum: str) -> None:
        """Note that a migration without transaction begins (again)."""
        await self._execute(
            "INSERT INTO {migration} (application, version, name, checksum, applied_by) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (application, version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum,"
            " began_at = clock_timestamp(), applied_by = excluded.applied_by",
            *(self.application, version, name, checksum, self.instance),
        )

    async def finish(self, version: int) -> None:
        """Note that it has ended well."""
        await self._execute(
            "UPDATE {migration} SET applied_at = clock_timestamp() WHERE application = %s AND version = %s",
            *(self.application, version),
        )

    # --- Seeds -------------------------------------------------------------------------------------------------------

    async def seeds(self) -> dict[str, str]:
        """Names and checksums of the seeds that were applied."""
        if not await self.exists():
            return {}
        rows = await self._execute("SELECT name, checksum FROM {seed} WHERE application = %s", self.application)
        return {row[0]: row[1] for row in rows}

    async def add_seed(self, name: str, checksum: str) -> None:
        """Note a seed, in the transaction that applies it."""
        await self._execute(
            "INSERT INTO {seed} (application, name, checksum, applied_by) VALUES (%s, %s, %s, %s)",
            *(self.application, name, checksum, self.instance),
        )

    # --- News for people ---------------------------------------------------------------------------------------------

    async def tell(self, *, from_version: str, to_version: str) -> None:
        """Say that a run begins."""
        await self._execute(
            "INSERT INTO {run} (application, instance, state, from_version, to_version, step)"
            " VALUES (%s, %s, 'migrating', %s, %s, '') ON CONFLICT (application) DO UPDATE SET"
            " instance = excluded.instance, state = 'migrating', from_version = excluded.from_version,"
            " to_version = excluded.to_version, step = '', error = '',"
            " began_at = clock_timestamp(), changed_at = clock_timestamp()",
            *(self.application, self.instance, from_version, to_version),
        )

    async def tell_step(self, step: str) -> None:
        """Say which step runs now."""
        await self._execute(
            "UPDATE {run} SET step = %s, changed_at = clock_timestamp() WHERE application = %s",
            *(step, self.application),
        )

    async def tell_end(self, state: str, error: str = "") -> None:
        """Say how the run ended."""
        await self._execute(
            "UPDATE {run} SET state = %s, error = %s, changed_at = clock_timestamp() WHERE application = %s",
            *(state, error, self.application),
        )

    async def news(self) -> Run | None:
        """The latest run, if there ever was one."""
        if not await self.exists():
            return None
        rows = await self._execute(
            "SELECT instance, state, from_version, to_version, step,"
            " extract(epoch FROM clock_timestamp() - began_at)::float8, error FROM {run} WHERE application = %s",
            self.application,
        )
        return Run(*rows[0]) if rows else None


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
