"""A bounded pool of psycopg 3 connections: what its users see. The books are in ``keeper.py``, with their invariants.

Why not ``psycopg_pool``: see ``docs/design/postgres.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, LiteralString, Self, final

import psycopg
import structlog
from psycopg import sql
from psycopg.rows import TupleRow

from flotta.errors import Closed, DatabaseUnavailable
from flotta.postgres.connection import PooledConnection, cut_after
from flotta.postgres.keeper import Configure, Keeper, Seat, State
from flotta.postgres.options import PoolOptions, PoolStats, check_sizes
from flotta.postgres.target import Target

__all__ = ["Pool"]

Query = LiteralString | bytes | sql.SQL | sql.Composed
Params = Sequence[Any] | Mapping[str, Any] | None


@final
class Pool:
    """At most ``size_max`` connections to one PostgreSQL database, shared by the tasks of one event loop.

    ``application_name`` is what ``pg_stat_activity`` shows (the function of that name makes ours), ``configure`` is
    awaited with every new connection (register types there). Nothing is connected before ``start``. A database that is
    gone never ends the process: the pool keeps trying, and every caller gets a connection or a typed error.

    What you owe: ``aclose``. ``async with Pool(url) as pool`` does both.
    """

    def __init__(
        self,
        url: str,
        *,
        options: PoolOptions | None = None,
        application_name: str | None = None,
        configure: Configure | None = None,
        logger: Any = None,
    ) -> None:
        self._options = options or PoolOptions()
        self._url = url
        self._target = Target.parse(
            url, application=application_name, connect_timeout_s=self._options.connect_timeout_s
        )
        self._log = logger or structlog.get_logger("flotta.postgres")
        self._keeper = Keeper(self._target, self._options, configure, self._log)

    # --- Life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the pool and begin to connect in the background; does not wait for the database (``check`` does).

        Starting twice does nothing. Raises ``Closed`` after ``aclose``.
        """
        if self._keeper.state is State.NEW:
            self._keeper.open()
        elif self._keeper.state is not State.OPEN:
            raise Closed("Pool")

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Lend no more, serve who waits already, wait for what is lent, close everything. Idempotent.

        After ``timeout_s`` what is still lent is cut off: its users get an ``OperationalError`` at their next
        statement, waiters get ``Closed``. Cancelling goes to that step at once.
        """
        keeper = self._keeper
        if keeper.state is State.OPEN:
            keeper.begin_to_close()
        try:
            if keeper.state is State.CLOSING:
                async with asyncio.timeout(timeout_s):
                    await keeper.until(lambda: keeper.lent == 0 and keeper.waiting == 0)
        except TimeoutError:
            self._log.warning("postgres connections cut off", lent=keeper.lent, waiting=keeper.waiting)
        finally:
            keeper.close()
        await keeper.end_tasks()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    # --- Connections -------------------------------------------------------------------------------------------------

    def connection(self, timeout_s: float | None = None) -> AbstractAsyncContextManager[PooledConnection]:
        """``async with pool.connection() as connection``: one connection, one transaction.

        The transaction is committed at the end of the block and rolled back on an exception, cancelling included.
        ``timeout_s`` is the longest wait for a connection (None: ``acquire_timeout_s``). Do not keep the connection
        after the block. Cancelling at any point loses nothing.

        Raises ``PoolFull`` (at once), ``PoolTimeout``, ``DatabaseUnavailable``, ``NotStarted``, ``Closed``; psycopg's
        own errors come from the statements and from the commit.
        """
        return _Loan(self._keeper, timeout_s)

    async def borrow(self, timeout_s: float | None = None) -> PooledConnection:
        """A connection that goes back to the pool when its ``close`` is called: for libraries that manage transactions
        themselves (SQLAlchemy). An open transaction is then rolled back. Raises as ``connection``."""
        keeper = self._keeper
        seat = await keeper.acquire(timeout_s)
        seat.connection.leave_home(lambda: keeper.give_back(seat))
        return seat.connection

    async def execute(self, query: Query, params: Params = None, *, timeout_s: float | None = None) -> int:
        """Run one statement, a transaction by itself; the number of rows it touched (-1 where that has no meaning)."""
        cursor = await self._run(query, params, timeout_s)
        return cursor.rowcount

    async def fetch(self, query: Query, params: Params = None, *, timeout_s: float | None = None) -> list[TupleRow]:
        """Run one statement, a transaction by itself; all its rows."""
        cursor = await self._run(query, params, timeout_s)
        return await cursor.fetchall()

    async def fetch_one(
        self, query: Query, params: Params = None, *, timeout_s: float | None = None
    ) -> TupleRow | None:
        """Run one statement, a transaction by itself; its first row, or None."""
        cursor = await self._run(query, params, timeout_s)
        return await cursor.fetchone()

    async def _run(self, query: Query, params: Params, timeout_s: float | None) -> psycopg.AsyncCursor[TupleRow]:
        seat = await self._keeper.acquire(timeout_s)
        try:
            # In autocommit, since BEGIN and COMMIT would be two more round trips. Rows are with us when it returns.
            seat.connection.commit_each()
            return await seat.connection.execute(query, params)
        finally:
            self._keeper.give_back(seat)

    async def check(self, timeout_s: float | None = None) -> None:
        """Ask the database for a sign of life over a connection of the pool.

        Raises as ``connection``; takes at most ``timeout_s`` (None: ``acquire_timeout_s``) plus ``check_timeout_s``.
        """
        seat = await self._keeper.acquire(timeout_s)
        try:
            with cut_after(seat.connection, self._options.check_timeout_s):
                seat.connection.commit_each()
                await seat.connection.execute("SELECT 1")
        except psycopg.Error as error:
            raise DatabaseUnavailable(self._target.address, f"it does not answer: {error}") from error
        finally:
            self._keeper.give_back(seat)

    # --- Size --------------------------------------------------------------------------------------------------------

    async def resize(self, *, size_max: int, size_min: int | None = None, timeout_s: float | None = None) -> None:
        """Change the limits. They hold before this method first waits; it returns once ``size <= size_max``.

        Growing is done on demand. Shrinking closes idle connections now and lent ones as they come back. Cancelling,
        or ``TimeoutError`` after ``timeout_s``, leaves the new limits in force.
        """
        keeper = self._keeper
        size_min = keeper.size_min if size_min is None else size_min
        check_sizes(size_min, size_max)
        keeper.size_max, keeper.size_min = size_max, min(size_min, size_max)
        if keeper.state is not State.OPEN:
            return
        keeper.shrink()
        keeper.refill()
        async with asyncio.timeout(timeout_s):
            await keeper.until(lambda: keeper.size <= keeper.size_max)

    @property
    def url(self) -> str:
        """The URL it was made with. Holds a secret: do not log it (``address`` may be shown)."""
        return self._url

    @property
    def address(self) -> str:
        """Where it connects to, fit to be shown: ``host:port/database``."""
        return self._target.address

    @property
    def stats(self) -> PoolStats:
        """The pool at this moment."""
        return self._keeper.stats

    def __repr__(self) -> str:
        return f"<Pool {self.address} {self._keeper.state.value} {self._keeper.size}/{self._keeper.size_max}>"


class _Loan(AbstractAsyncContextManager[PooledConnection]):
    """A connection for the length of a block, in one transaction."""

    __slots__ = ("_keeper", "_seat", "_timeout_s")

    def __init__(self, keeper: Keeper, timeout_s: float | None) -> None:
        self._keeper = keeper
        self._timeout_s = timeout_s
        self._seat: Seat | None = None

    async def __aenter__(self) -> PooledConnection:
        assert self._seat is None, "a loan is for one block"
        self._seat = await self._keeper.acquire(self._timeout_s)
        return self._seat.connection

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seat, self._seat = self._seat, None
        assert seat is not None
        connection = seat.connection
        try:
            if exc_type is None:
                # A connection that broke under the borrower must fail here; one that it closed on purpose must not.
                if connection.broken or not connection.closed:
                    await connection.commit()
            elif connection.usable and connection.in_transaction:
                # The borrower has an error of its own to report; what happens to the connection shows in its state.
                with suppress(psycopg.Error):
                    await self._keeper.roll_back(seat)
        finally:
            self._keeper.give_back(seat)
