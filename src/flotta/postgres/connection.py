"""One connection to PostgreSQL: made within a bound, its failures named, cut off without waiting for the server.

``PooledConnection`` is psycopg's own ``AsyncConnection`` with four additions: it can be put back into the state it was
made in, be cut off from outside, give itself back instead of closing (for libraries that only know ``close``), and it
waits for a cancelled query no longer than it was told (psycopg: ten seconds).

Invariant: of psycopg's private attributes only those in ``_PRISTINE`` are touched, because its public setters wait and
a pool's books must not. ``connect`` refuses a psycopg that has them no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, final

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from flotta.errors import ConfigError, DatabaseUnavailable
from flotta.postgres.target import Target, explain

__all__ = ["PooledConnection", "connect", "cut_after"]

T = TypeVar("T")

_WAIT_INTERVAL_S = 0.1
_PRISTINE: Mapping[str, object] = MappingProxyType(
    {
        "_autocommit": False,
        "_isolation_level": None,
        "_read_only": None,
        "_deferrable": None,
        "_begin_statement": b"",
    }
)
"""What a borrower may have set by psycopg's ``set_...`` methods, as a new connection has it."""


@final
class PooledConnection(psycopg.AsyncConnection[TupleRow]):
    """A psycopg connection that a ``Pool`` lends. Use it as psycopg's; do not keep it."""

    _give_back: Callable[[], None] | None = None
    _at_home: bool = False
    _threshold: int | None = None
    _patience_s: float = 5.0
    _cut_timer: asyncio.TimerHandle | None = None
    _poll: select.poll | None = None

    async def close(self) -> None:
        """Close it; a connection got by ``Pool.borrow`` returns to its pool instead, once."""
        if self._give_back is not None:
            self._give_back()
        elif not self._at_home:
            await super().close()

    async def wait(self, gen: PQGen[T], interval: float = _WAIT_INTERVAL_S, timeout: float | None = None) -> T:
        """psycopg's waiting for the server; see ``cancel_safe``."""
        try:
            return await super().wait(gen, interval, timeout)
        finally:
            self._keep()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to end the running query. If it has not within ``patience_s``, the connection is cut.

        psycopg calls this when our task is cancelled during a query, and then goes on to wait for the query's end,
        which a server that is stuck does not give.
        """
        timeout = min(timeout, self._patience_s)
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            self._keep()
            self._cut_timer = asyncio.get_running_loop().call_later(timeout, self.cut)
        await super().cancel_safe(timeout=timeout)

    def _keep(self) -> None:
        """Do not cut it after all."""
        if self._cut_timer is not None:
            self._cut_timer.cancel()
            self._cut_timer = None

    def discard(self) -> None:
        """Close it now, without waiting for the server (libpq sends a farewell if it can)."""
        self._keep()
        self.pgconn.finish()

    @property
    def usable(self) -> bool:
        """Whether it is open and at rest, or in a transaction that can be rolled back."""
        resting = (TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR)
        return (
            self.pgconn.status == ConnStatus.OK
            and self.pgconn.transaction_status in resting
            and self.pgconn.pipeline_status == PipelineStatus.OFF
        )

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return bool(self.pgconn.transaction_status != TransactionStatus.IDLE)

    @property
    def has_news(self) -> bool:
        """Whether something has arrived that nobody asked for: its end, most of the time. Costs one system call."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.pgconn.socket, select.POLLIN)
        return bool(self._poll.poll(0))

    def restore(self) -> None:
        """Undo what a borrower may have set on the Python side. It must not be in a transaction."""
        assert not self.in_transaction
        self.__dict__.update(_PRISTINE)
        self.row_factory = tuple_row
        self.cursor_factory = psycopg.AsyncCursor
        self.prepare_threshold = self._threshold

    def commit_each(self) -> None:
        """From here to ``restore``: every statement is its own transaction."""
        self._autocommit = True

    def set_up(self, *, prepare_threshold: int | None, patience_s: float) -> None:
        """What ``restore`` restores, and how long a cancelled query may take to end."""
        self._threshold = prepare_threshold
        self._patience_s = patience_s

    def leave_home(self, give_back: Callable[[], None] | None) -> None:
        """It is lent. ``close`` calls ``give_back``, or, if that is None, closes."""
        self._give_back, self._at_home = give_back, False

    def come_home(self) -> None:
        """It is lent no more: whoever still holds it must not close it."""
        self._give_back, self._at_home = None, True
        self._keep()

    def cut(self) -> None:
        """End the conversation from outside, also under a task that waits on it: that task gets an
        ``OperationalError`` at once. Its file descriptor stays taken until the connection is discarded, so that no
        stranger inherits a reader that the loop still has on it."""
        if self.pgconn.status == ConnStatus.BAD:
            return
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.pgconn.socket)) as twin:
            twin.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cut_after(connection: PooledConnection, timeout_s: float) -> Iterator[None]:
    """Within this block the server has ``timeout_s`` seconds in all; then the connection is cut.

    Cancelling the task instead would make psycopg open a second connection to ask for the query's end, and wait for an
    answer that a stuck server does not give.
    """
    timer = asyncio.get_running_loop().call_later(timeout_s, connection.cut)
    try:
        yield
    finally:
        timer.cancel()


async def connect(
    target: Target,
    *,
    timeout_s: float,
    patience_s: float = 5.0,
    prepare_threshold: int | None = 5,
    **arguments: Any,
) -> PooledConnection:
    """A new connection, or ``DatabaseUnavailable`` with the cause and its cure; ``ConfigError`` if psycopg has changed.

    ``timeout_s`` is for each host of the URL, ``patience_s`` for the end of a query whose task was cancelled.
    Cancelling this call leaves nothing open.
    """
    limit_s = timeout_s * target.hosts
    try:
        async with asyncio.timeout(limit_s):
            made = await PooledConnection.connect(target.conninfo, prepare_threshold=prepare_threshold, **arguments)
    except TimeoutError:
        reason = explain(f"timeout expired: no answer in {limit_s:g} s")
        raise DatabaseUnavailable(target.address, str(reason), lasting=reason.lasting) from None
    except (psycopg.Error, OSError) as error:
        reason = explain(str(error))
        raise DatabaseUnavailable(target.address, str(reason), lasting=reason.lasting) from error
    if missing := _PRISTINE.keys() - vars(made).keys():
        made.discard()
        allowed = f"a version whose connections have {', '.join(sorted(missing))} (3.3 has): pip install 'psycopg<3.4'"
        raise ConfigError("psycopg", psycopg.__version__, allowed, source="installed package")
    made.set_up(prepare_threshold=prepare_threshold, patience_s=patience_s)
    return made
