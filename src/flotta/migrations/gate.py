"""The gate: of N instances that start together one migrates and seeds, the others wait until the schema is ready.

Owns the advisory lock and the one direct connection that holds it.

Invariants:

- Nobody ever *blocks* on the lock: a blocked waiter holds a snapshot, and ``CREATE INDEX CONCURRENTLY`` would wait for
  it while it waits for us. Waiters poll, with jitter, up to a deadline; first the version, and only then the lock.
- Whoever wins the lock reads the ledger again before it does anything.
- The lock and the work are one session: its death ends both, and the next poller wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import structlog

from flotta.errors import (
    ConfigError,
    DatabaseUnavailable,
    DirectConnectionNeeded,
    MigrationError,
    MigrationMismatch,
    MigrationTimeout,
)
from flotta.migrations.files import SqlFile
from flotta.migrations.ledger import Ledger, Run
from flotta.migrations.lock import holder_pid, key_of, try_lock
from flotta.migrations.runner import Plan, Runner, SeedRunner, SqlRunner, failure
from flotta.postgres import Pool, application_name
from flotta.postgres.direct import Connection, SqlError, connect_direct, cut_after, holds_its_session, lost

__all__ = ["Migrations", "Report", "Status"]

_POLL_S = 0.25
_ANSWER_TIMEOUT_S = 5.0
"""How long a poll may take before its connection is given up."""
_NEWS_EVERY = 20
"""Polls."""

_Runners = tuple[SqlRunner, SeedRunner]


@final
@dataclass(frozen=True, slots=True)
class Report:
    """How ``run`` or ``stamp`` ended."""

    version: str
    """The schema's version now, as ``0045``; ``empty`` without migrations."""
    applied: tuple[str, ...]
    """Migrations that this call applied, in order; empty if there were none or another instance did it."""
    seeded: tuple[str, ...]
    waited_s: float
    """Until the lock was won or the schema was ready."""
    waited_on: str | None
    """The instance that migrated meanwhile, as far as it told."""

    def after(self, plan: Plan, applied: Iterable[SqlFile], seeded: Iterable[SqlFile]) -> Report:
        """The same once this work is done."""
        return replace(self, version=plan.version, applied=_names(applied), seeded=_names(seeded))


@final
@dataclass(frozen=True, slots=True)
class Status:
    """What a database has and lacks, compared with the folders."""

    version: str
    newest: str
    pending: tuple[str, ...]
    seeds_pending: tuple[str, ...]
    run: Run | None
    locked: bool
    """Whether somebody holds the lock now."""

    @property
    def ready(self) -> bool:
        return not self.pending and not self.seeds_pending

    def __str__(self) -> str:
        if self.locked and self.run is not None:
            return f"waiting on {self.run}"
        if self.ready:
            return f"ready at {self.version}"
        return f"at {self.version}, {len(self.pending)} migrations and {len(self.seeds_pending)} seeds to {self.newest}"


@final
class Migrations:
    """The migrations and seeds of one application: plain SQL files, applied once, by one of N instances.

    ``folder`` holds ``0001_title.sql`` and so on, ``seeds`` (optional) ``title.sql``; they are read at the first use.
    ``application`` names the ledger's rows and the lock: services that share a database take different ones.
    ``wait_timeout_s`` bounds the waiting, for the database and for another instance, not the work. ``lock_timeout_s``
    bounds how long a statement waits for a table lock (None: for ever).
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        seeds: Path | str | None = None,
        application: str = "app",
        instance: str | None = None,
        wait_timeout_s: float = 300.0,
        lock_timeout_s: float | None = None,
        logger: Any = None,
    ) -> None:
        for name, value in (("wait_timeout_s", wait_timeout_s), ("lock_timeout_s", lock_timeout_s)):
            if value is not None and not value > 0:
                raise ConfigError(f"Migrations.{name}", value, "more than 0 seconds", source="argument")
        if not application or "\0" in application:
            raise ConfigError("Migrations.application", application, "a text that is not empty", source="argument")
        self._folder = Path(folder)
        self._seeds = None if seeds is None else Path(seeds)
        self._application = application
        self._instance = instance or f"{socket.gethostname()}:{os.getpid()}"
        self._wait_timeout_s = wait_timeout_s
        self._lock_timeout_s = lock_timeout_s
        self._log = logger or structlog.get_logger("flotta.migrations")
        self._random = random.Random()  # noqa: S311 - jitter, no secret

    async def run(self, where: Pool | str) -> Report:
        """Bring the schema and the seeds up to date, or wait until another instance has.

        ``where`` is a URL of PostgreSQL itself, or a pool whose URL is one; the work is done over one connection of its
        own. Returns when everything in the folders is in the database; a database that is *ahead* of the folder counts
        as ready. Cancelling rolls the running step back and frees the lock.

        Raises ``MigrationFailed``, ``MigrationTimeout``, ``MigrationMismatch``, ``SeedChanged``,
        ``DirectConnectionNeeded``, ``DatabaseUnavailable``, ``InvalidName``, ``ConfigError``.
        """
        runners = await self._read()
        turn = await self._turn(_url(where), runners)
        try:
            return await self._migrate(turn, runners) if turn.won else turn.report
        finally:
            turn.ledger.connection.discard()

    async def stamp(self, where: Pool | str, *, version: int | None = None) -> Report:
        """Record migrations up to ``version`` (None: all, and all seeds) as applied, without running them.

        For a database whose schema came about otherwise. Takes the lock. Raises as ``run``.
        """
        runners = migrations, seeds = await self._read()
        if version is not None and version not in {file.version for file in migrations.files}:
            raise MigrationMismatch(f"version {version}", f"there is no such file in {self._folder}")
        turn = await self._turn(_url(where), runners)
        ledger = turn.ledger
        try:
            if not turn.won:
                return turn.report
            await ledger.create()
            steps = (await migrations.plan(ledger)).steps
            stamped = tuple(step for step in steps if version is None or step.version <= version)
            for step in stamped:
                await migrations.record(ledger, step)
            seeded = (await seeds.plan(ledger)).steps if version is None else ()
            for step in seeded:
                await seeds.record(ledger, step)
            return turn.report.after(await migrations.plan(ledger), stamped, seeded)
        except SqlError as error:
            raise failure(ledger.connection, "stamp", error, rolled_back=False) from error
        finally:
            ledger.connection.discard()

    async def status(self, where: Pool | str) -> Status:
        """What is there, what is missing, who migrates. Only reads. Raises as ``run`` (no ``MigrationTimeout``)."""
        migrations, seeds = await self._read()
        connection = await self._connect(_url(where))
        try:
            ledger = await Ledger.find(connection, self._application, self._instance)
            plan, lacking = await migrations.plan(ledger), await seeds.plan(ledger)
            return Status(
                version=plan.version,
                newest=plan.newest,
                pending=_names(plan.steps),
                seeds_pending=_names(lacking.steps),
                run=await ledger.news(),
                locked=await holder_pid(connection, await key_of(connection, self._application)) is not None,
            )
        except SqlError as error:
            raise failure(connection, "status", error) from error
        finally:
            connection.discard()

    # --- Waiting for one's turn --------------------------------------------------------------------------------------

    async def _turn(self, url: str, runners: _Runners) -> _Turn:
        """Poll until the schema is ready or the lock is ours. The connection is the caller's to discard."""
        began_s = time.monotonic()
        polls = itertools.count()
        connection: Connection | None = None
        waited_on: str | None = None
        news = "the database"
        try:
            while True:
                waited_s = time.monotonic() - began_s
                late = waited_s >= self._wait_timeout_s
                try:
                    if connection is None:
                        connection = await self._connect(url)
                        await self._refuse_pooler(connection, url)
                    look = await self._look(connection, runners)
                    if look.won or look.run is None:
                        report = Report(look.version, (), (), waited_s, waited_on)
                        return _Turn(look.won, look.ledger, look.lock, report)
                    waited_on, news = look.run.instance, str(look.run)
                except (SqlError, DatabaseUnavailable) as error:
                    self._forget(connection, error, late=late)
                    connection = None
                await self._pause(waited_s, news, next(polls))
        except BaseException:
            if connection is not None:
                connection.discard()
            raise

    async def _pause(self, waited_s: float, news: str, polls: int) -> None:
        if waited_s >= self._wait_timeout_s:
            raise MigrationTimeout(waited_s, news)
        if polls % _NEWS_EVERY == 0:
            self._log.info("migrations wait", on=news, waited_s=round(waited_s, 1))
        rest_s = max(0.0, self._wait_timeout_s - waited_s)
        await asyncio.sleep(min(rest_s, _POLL_S * (0.5 + self._random.random())))

    async def _look(self, connection: Connection, runners: _Runners) -> _Look:
        """One poll: the version first; then, if something is missing, the lock."""
        with cut_after(connection, _ANSWER_TIMEOUT_S):
            ledger = await Ledger.find(connection, self._application, self._instance)
            plans = [await runner.plan(ledger) for runner in runners]
            lock = await key_of(connection, self._application)
            missing = any(plan.steps for plan in plans)
            won = missing and await try_lock(connection, lock)
            run = (await ledger.news() or _UNTOLD) if missing and not won else None
        return _Look(won, plans[0].version, ledger, lock, run)

    @staticmethod
    def _forget(connection: Connection | None, error: SqlError | DatabaseUnavailable, *, late: bool) -> None:
        """A poll failed: go on with a new connection if that can help, raise if it cannot."""
        if isinstance(error, DatabaseUnavailable):
            if error.lasting or late:
                raise error
        elif connection is not None and not lost(connection):
            raise failure(connection, "ledger", error) from error
        if connection is not None:
            connection.discard()

    async def _refuse_pooler(self, connection: Connection, url: str) -> None:
        with cut_after(connection, 2 * _ANSWER_TIMEOUT_S):
            if not await holds_its_session(connection, url):
                raise DirectConnectionNeeded(f"{connection.info.host}:{connection.info.port}")

    async def _connect(self, url: str) -> Connection:
        return await connect_direct(url, application_name=application_name(self._application, self._instance))

    async def _read(self) -> _Runners:
        return await asyncio.to_thread(lambda: (SqlRunner(self._folder), SeedRunner(self._seeds)))

    # --- Migrating ---------------------------------------------------------------------------------------------------

    async def _migrate(self, turn: _Turn, runners: _Runners) -> Report:
        """Under the lock: read again what is missing, apply it, tell people."""
        ledger, at = turn.ledger, "ledger"
        try:
            await self._prepare(ledger.connection)
            await ledger.create()
            plan = await runners[0].plan(ledger)
            await ledger.tell(from_version=plan.version, to_version=plan.newest)
            done: list[tuple[SqlFile, ...]] = []
            for runner in runners:
                steps = (await runner.plan(ledger)).steps
                for step in steps:
                    at = step.name
                    await self._step(turn, runner, step)
                done.append(steps)
            at = "ledger"
            await ledger.tell_end("ready")
            return turn.report.after(await runners[0].plan(ledger), done[0], done[1])
        except SqlError as error:
            raise failure(ledger.connection, at, error, rolled_back=False) from error
        except MigrationError as error:
            if not lost(ledger.connection):
                with contextlib.suppress(SqlError):  # news for people; the error itself is raised
                    await ledger.tell_end("failed", str(error))
            raise

    async def _step(self, turn: _Turn, runner: Runner, step: SqlFile) -> None:
        began_s = time.monotonic()
        await turn.ledger.tell_step(step.name)
        await runner.apply(turn.ledger, step, turn.lock)
        await self._prepare(turn.ledger.connection)
        self._log.info("migration applied", step=step.name, took_s=round(time.monotonic() - began_s, 3))

    async def _prepare(self, connection: Connection) -> None:
        """Settings of the session; a step resets them."""
        lock_ms = 0 if self._lock_timeout_s is None else max(1, round(self._lock_timeout_s * 1000))
        await connection.execute(
            "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', '0', false),"
            " set_config('idle_in_transaction_session_timeout', '0', false),"
            " set_config('client_encoding', 'UTF8', false)",  # files are; a database need not be
            [str(lock_ms)],
        )
        if connection.info.server_version >= _NOTICES_A_DEAD_CLIENT:
            # Otherwise a statement of an hour would hold the lock for an hour after we are dead. Not on every system.
            with contextlib.suppress(SqlError):
                await connection.execute("SELECT set_config('client_connection_check_interval', '1000', false)")


_NOTICES_A_DEAD_CLIENT = 140000
_UNTOLD = Run("another instance", "migrating", "?", "?", "", 0.0, "")


@dataclass(frozen=True, slots=True)
class _Look:
    won: bool
    version: str
    ledger: Ledger
    lock: int
    run: Run | None
    """Who migrates; None if nothing is missing, or if it is us."""


@dataclass(frozen=True, slots=True)
class _Turn:
    won: bool
    ledger: Ledger
    lock: int
    report: Report


def _url(where: Pool | str) -> str:
    return where.url if isinstance(where, Pool) else where


def _names(steps: Iterable[SqlFile]) -> tuple[str, ...]:
    return tuple(step.name for step in steps)
