"""Runners: what is missing in a database, and how one step of it is applied.

``Runner`` is the place where other tools (Alembic) will plug in: the gate holds the lock, tells people and decides who
runs; a runner knows files and steps. Here are the two that read plain SQL.

Invariants:

- A step runs on the connection that holds the lock. If that connection dies, the server ends the step with it: there is
  no moment in which two instances migrate.
- A step and its row in the ledger are one transaction, unless its file asks for none; then the ledger says *begun*
  before and *applied* after, and an interrupted one is run again from its first statement: such files are written to
  be repeatable.
- A step cannot leave anything behind in the session: settings and role are reset, and the lock is looked at again
  before the commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from flotta.errors import MigrationFailed, MigrationMismatch, SeedChanged
from flotta.migrations.files import SqlFile, read_migrations, read_seeds
from flotta.migrations.ledger import Applied, Ledger
from flotta.migrations.lock import holds
from flotta.postgres.direct import Connection, SqlError, line_of, lost

__all__ = ["Plan", "Runner", "SeedRunner", "SqlRunner", "failure", "missing_migrations", "missing_seeds"]

_HINTS: Mapping[str | None, str] = {
    "25001": "begin the file with: -- flotta: no-transaction",  # active_sql_transaction
    "42501": "the role of the migrations' URL lacks this right",  # insufficient_privilege
    "55P03": "somebody holds a lock on it for longer than lock_timeout_s",  # lock_not_available
}


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What is missing, in order. Versions are words for people; "empty" where there is none."""

    version: str
    newest: str
    steps: tuple[SqlFile, ...]


class Runner(Protocol):
    """Knows what is missing and applies one step of it, over the connection of the ledger it is given."""

    async def plan(self, ledger: Ledger) -> Plan:
        """What is missing. Only reads. Raises ``MigrationMismatch`` or ``SeedChanged`` if nothing can be right."""
        ...

    async def apply(self, ledger: Ledger, step: SqlFile, lock: int) -> None:
        """Run one step and record it, all or nothing. Raises ``MigrationFailed``."""
        ...

    async def record(self, ledger: Ledger, step: SqlFile) -> None:
        """Record one step as applied without running it."""
        ...


def missing_migrations(files: Sequence[SqlFile], applied: Mapping[int, Applied]) -> Plan:
    """Compare a folder with a ledger.

    A database that is ahead of the folder is fine (an older instance in a rolling restart). One that has other contents
    under a number, or lacks one in the middle, is not.
    """
    known = {file.version: file for file in files}
    newest = max(known, default=0)
    for version, row in sorted(applied.items()):
        file = known.get(version)
        if file is None:
            if min(known, default=0) <= version <= newest:
                raise MigrationMismatch(row.name, "is applied, and its file is gone")
        elif row.finished and row.checksum != file.checksum:
            raise MigrationMismatch(
                f"{file.name}.sql", f"was changed after it was applied (as {row.name}): put the change into a new file"
            )
    done = {version for version, row in applied.items() if row.finished}
    steps = tuple(file for file in files if file.version not in done)
    late = [file for file in steps if any(version > file.version for version in applied)]
    if late:
        raise MigrationMismatch(f"{late[0].name}.sql", f"was skipped: the database is at {max(applied)} already")
    if steps and done and min(known) > max(done) + 1:
        raise MigrationMismatch(f"{steps[0].name}.sql", f"does not follow: the database is at {max(done)}")
    return Plan(_label(max(done, default=0)), _label(newest), steps)


def missing_seeds(files: Sequence[SqlFile], applied: Mapping[str, str]) -> tuple[SqlFile, ...]:
    """The seeds that were not applied. Raises ``SeedChanged``. A seed whose file is gone is history, no fault."""
    for file in files:
        if file.name in applied and applied[file.name] != file.checksum:
            raise SeedChanged(file.name)
    return tuple(file for file in files if file.name not in applied)


def _label(version: int) -> str:
    return f"{version:04d}" if version else "empty"


def failure(
    connection: Connection, at: str, error: SqlError, *, where: str = "", rolled_back: bool = True
) -> MigrationFailed:
    """What the server's error means for people, told without its SQL. ``where``: the place in a file."""
    gone = lost(connection)
    words = str(error.diag.message_primary or error).strip()
    if gone:
        words = f"the connection was lost: {words}"
    hint = _HINTS.get(error.sqlstate, error.diag.message_hint)
    code = f"{error.sqlstate} " if error.sqlstate else ""
    reason = f"{code}{words}{where}" + (f". {hint}" if hint else "")
    return MigrationFailed(at, reason, rolled_back=rolled_back and not gone)


def _failure(ledger: Ledger, step: SqlFile, error: SqlError) -> MigrationFailed:
    line = line_of(error, step.text)
    where = f" (line {line})" if line is not None and step.transactional else ""
    return failure(ledger.connection, step.name, error, where=where, rolled_back=step.transactional)


async def _reset_session(ledger: Ledger) -> None:
    # Not DISCARD ALL: that would drop the advisory lock.
    await ledger.connection.execute(b"RESET SESSION AUTHORIZATION; RESET ALL")


async def _still_ours(ledger: Ledger, step: SqlFile, lock: int) -> None:
    if not await holds(ledger.connection, lock):
        reason = "it has released our advisory lock (DISCARD ALL, pg_advisory_unlock)"
        raise MigrationFailed(step.name, reason, rolled_back=step.transactional)


@final
class SqlRunner:
    """Migrations: numbered SQL files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.files = read_migrations(folder)

    async def plan(self, ledger: Ledger) -> Plan:
        return missing_migrations(self.files, await ledger.applied())

    async def apply(self, ledger: Ledger, step: SqlFile, lock: int) -> None:
        try:
            if step.transactional:
                await self._in_one(ledger, step, lock)
            else:
                await self._one_by_one(ledger, step, lock)
        except SqlError as error:
            raise _failure(ledger, step, error) from error

    async def record(self, ledger: Ledger, step: SqlFile) -> None:
        async with ledger.connection.transaction():
            await ledger.begin(step.version, step.name, step.checksum)
            await ledger.finish(step.version)

    async def _in_one(self, ledger: Ledger, step: SqlFile, lock: int) -> None:
        async with ledger.connection.transaction():
            await ledger.connection.execute(step.text.encode())
            await _reset_session(ledger)
            await ledger.begin(step.version, step.name, step.checksum)
            await ledger.finish(step.version)
            await _still_ours(ledger, step, lock)

    async def _one_by_one(self, ledger: Ledger, step: SqlFile, lock: int) -> None:
        await ledger.begin(step.version, step.name, step.checksum)
        for statement in step.statements:
            await ledger.connection.execute(statement.encode())
        await _reset_session(ledger)
        await _still_ours(ledger, step, lock)
        await self._refuse_invalid_indexes(ledger, step)
        await ledger.finish(step.version)

    async def _refuse_invalid_indexes(self, ledger: Ledger, step: SqlFile) -> None:
        """An interrupted CREATE INDEX CONCURRENTLY leaves an index that is never used; IF NOT EXISTS steps over it."""
        cursor = await ledger.connection.execute(
            "SELECT indexrelid::regclass::text FROM pg_catalog.pg_index WHERE NOT indisvalid ORDER BY 1"
        )
        invalid = [row[0] for row in await cursor.fetchall() if row[0].rpartition(".")[2].strip('"') in step.text]
        if invalid:
            raise MigrationFailed(
                step.name,
                f"index {invalid[0]} is invalid (an earlier attempt was interrupted): let the file begin with "
                f"DROP INDEX CONCURRENTLY IF EXISTS {invalid[0]};",
                rolled_back=False,
            )


@final
class SeedRunner:
    """Seeds: named SQL files of one folder, each applied once, in the transaction of its row in the ledger."""

    def __init__(self, folder: Path | None) -> None:
        self.files = read_seeds(folder)

    async def plan(self, ledger: Ledger) -> Plan:
        return Plan("", "", missing_seeds(self.files, await ledger.seeds()))

    async def apply(self, ledger: Ledger, step: SqlFile, lock: int) -> None:
        try:
            async with ledger.connection.transaction():
                await ledger.connection.execute(step.text.encode())
                await _reset_session(ledger)
                await ledger.add_seed(step.name, step.checksum)
                await _still_ours(ledger, step, lock)
        except SqlError as error:
            raise _failure(ledger, step, error) from error

    async def record(self, ledger: Ledger, step: SqlFile) -> None:
        await ledger.add_seed(step.name, step.checksum)
