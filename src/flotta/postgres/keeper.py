"""The books of a pool: which connection is where, who waits for one, and the tasks that make, check and repair them.

Invariants:

- ``size <= size_max`` at every moment: a place is taken before a connect begins and given back after the socket is
  closed. ``size == idle + lent + connecting + in care``; a connection is in exactly one of these books.
- The books change only in synchronous code. A caller waits on nothing but a future of its own; what takes time is done
  by tasks of the keeper, whose outcome is booked by their done-callback, cancelled or not. So a caller may be cancelled
  at any point: either it has no connection yet, or its future holds one and that goes back.
- First come, first served: a connection that comes free is handed to the oldest waiter, and nobody passes a queue.
- A connection that failed, or came back in the middle of something, is never handed out again.
- A database that is gone ends nothing: one attempt at a time goes on with back-off, and every waiter is served or gets
  a typed error within its time; at once if the fault is lasting and no connection is left that could come free.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, final

from flotta.errors import Closed, DatabaseUnavailable, NotStarted, PoolFull, PoolTimeout
from flotta.postgres.connection import PooledConnection, connect, cut_after
from flotta.postgres.options import PoolOptions, PoolStats
from flotta.postgres.target import Target

__all__ = ["Configure", "Keeper", "Seat", "State"]

Configure = Callable[[PooledConnection], Awaitable[None]]

_LIFETIME_JITTER = 0.1
_BACKOFF_JITTER = 0.25
_TICK_S_MAX = 1.0


class State(Enum):
    """Of a keeper, in this order and never back."""

    NEW = "new"
    OPEN = "open"
    CLOSING = "closing"
    """Nobody new is served; who waits still is."""
    CLOSED = "closed"


@final
class Seat:
    """One connection and what the keeper knows about it."""

    __slots__ = ("connection", "expires_s", "idle_since_s")

    def __init__(self, connection: PooledConnection, *, expires_s: float, now_s: float) -> None:
        self.connection = connection
        self.expires_s = expires_s
        self.idle_since_s = now_s


_Waiter = asyncio.Future[Seat]


@final
class Keeper:
    """Lends seats, takes them back, and keeps their number between ``size_min`` and ``size_max``."""

    def __init__(self, target: Target, options: PoolOptions, configure: Configure | None, logger: Any) -> None:
        self.state = State.NEW
        self.size_max = options.size_max
        self.size_min = min(options.size_min, options.size_max)
        self.changed = asyncio.Event()
        """Set when the size may have gone down or the queue become empty."""
        self._target = target
        self._options = options
        self._configure = configure
        self._log = logger
        self._random = random.Random()  # noqa: S311 - jitter, no secret
        self._loop: asyncio.AbstractEventLoop

        self._idle: deque[Seat] = deque()  # the right end was used last
        self._lent: set[Seat] = set()
        self._connecting = 0
        self._care = 0
        self._waiters: OrderedDict[_Waiter, float] = OrderedDict()  # and when each began to wait
        self._tasks: set[asyncio.Task[Any]] = set()

        self._fault: DatabaseUnavailable | None = None
        self._failures_row = 0
        self._retry_at_s = 0.0
        self._retry_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None

        self._acquired = self._waited = self._timeouts = self._refused = self._waiting_peak = 0
        self._connects = self._failures = self._broken = self._retired = 0
        self._wait_s = 0.0

    # --- Life --------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to keep ``size_min`` connections."""
        assert self.state is State.NEW
        self._loop = asyncio.get_running_loop()
        self.state = State.OPEN
        self._tick()

    def begin_to_close(self) -> None:
        """Serve nobody new, close what is idle."""
        self.state = State.CLOSING
        self._stop_tick()
        self.retire_idle(len(self._idle))

    def close(self) -> None:
        """End everything now: waiters, tasks, and the connections that are still lent."""
        self.state = State.CLOSED
        self._stop_tick()
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self._fail_waiters(lambda: Closed("Pool"))
        self.retire_idle(len(self._idle))
        for seat in self._lent:
            seat.connection.cut()
        for task in self._tasks:
            task.cancel()
        self.changed.set()

    async def end_tasks(self) -> None:
        """Wait for the tasks that ``close`` has cancelled."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until ``reached()``, asked again whenever something has changed. Cancelling is harmless."""
        while not reached():
            self.changed.clear()
            await self.changed.wait()

    @property
    def size(self) -> int:
        """How many connections exist or are being made."""
        return len(self._idle) + len(self._lent) + self._connecting + self._care

    @property
    def lent(self) -> int:
        return len(self._lent)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def stats(self) -> PoolStats:
        return PoolStats(
            size=self.size,
            size_max=self.size_max,
            size_min=self.size_min,
            idle=len(self._idle),
            in_use=len(self._lent),
            connecting=self._connecting,
            in_care=self._care,
            waiting=len(self._waiters),
            waiting_peak=self._waiting_peak,
            acquired=self._acquired,
            waited=self._waited,
            wait_s=self._wait_s,
            timeouts=self._timeouts,
            refused=self._refused,
            connects=self._connects,
            failures=self._failures,
            broken=self._broken,
            retired=self._retired,
            fault=self._fault.reason if self._fault else None,
        )

    # --- Lending -----------------------------------------------------------------------------------------------------

    async def acquire(self, timeout_s: float | None) -> Seat:
        """A seat within ``timeout_s`` (None: ``acquire_timeout_s``). Owes ``give_back``.

        Raises ``PoolFull``, ``PoolTimeout``, ``DatabaseUnavailable``, ``NotStarted``, ``Closed``.
        """
        if self.state is not State.OPEN:
            raise NotStarted("Pool") if self.state is State.NEW else Closed("Pool")
        if self._idle and not self._waiters and self._trusted(self._idle[-1]):
            return self._lend(self._idle.pop())
        return await self._wait(self._options.acquire_timeout_s if timeout_s is None else timeout_s)

    async def _wait(self, timeout_s: float) -> Seat:
        self._refuse_if_full()
        waiter: _Waiter = self._loop.create_future()
        self._waiters[waiter] = self._loop.time()
        self._waiting_peak = max(self._waiting_peak, len(self._waiters))
        timer = self._loop.call_later(timeout_s, self._expire, waiter, timeout_s)
        self._serve()
        try:
            return await waiter
        except BaseException:
            self._leave(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give_back(waiter.result())
            raise
        finally:
            timer.cancel()

    def _refuse_if_full(self) -> None:
        # Waiters for whom there is a place (a check or a connect will serve them) do not count as a queue.
        places = max(0, self.size_max - len(self._lent))
        if len(self._waiters) >= self._options.waiting_max + places:
            self._refused += 1
            raise PoolFull(len(self._waiters), self._options.waiting_max)

    def _leave(self, waiter: _Waiter) -> None:
        if self._waiters.pop(waiter, None) is not None and not self._waiters:
            self.changed.set()

    def _expire(self, waiter: _Waiter, timeout_s: float) -> None:
        if waiter.done():
            return
        self._leave(waiter)
        self._timeouts += 1
        waiter.set_exception(
            PoolTimeout(timeout_s, self.size, self.size_max) if self._fault is None else _copy(self._fault)
        )

    def _fail_waiters(self, error: Callable[[], Exception]) -> None:
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(error())
        self.changed.set()

    def _trusted(self, seat: Seat) -> bool:
        """Whether it may be lent as it is. What has lain for long, or has something to say, is checked first."""
        limit_s = self._options.check_idle_s
        rested_s = self._loop.time() - seat.idle_since_s
        return (limit_s is None or rested_s <= limit_s) and not seat.connection.has_news

    def _lend(self, seat: Seat) -> Seat:
        self._lent.add(seat)
        seat.connection.leave_home(None)
        self._acquired += 1
        return seat

    def _hand_over(self, seat: Seat) -> bool:
        """Give the seat to the oldest waiter; False if nobody waits."""
        while self._waiters:
            waiter, began_s = self._waiters.popitem(last=False)
            if waiter.done():  # cancelled in this very turn of the loop
                continue
            self._waited += 1
            self._wait_s += self._loop.time() - began_s
            waiter.set_result(self._lend(seat))
            return True
        return False

    def _serve(self) -> None:
        """Match waiters with seats: hand over what is ready, set going what can become ready."""
        while self._waiters and self._idle:
            if self._trusted(self._idle[-1]):
                self._hand_over(self._idle.pop())
            elif len(self._waiters) > self._connecting + self._care:
                self._care_for(self._idle.pop(), self._check, "check")
            else:
                break
        while len(self._waiters) > self._connecting + self._care and self._may_connect():
            self._begin_connect()

    # --- Taking back -------------------------------------------------------------------------------------------------

    def give_back(self, seat: Seat) -> None:
        """Take a lent seat back (a second time: nothing). Never waits and never fails: nothing can come in between."""
        if seat not in self._lent:
            return
        self._lent.discard(seat)
        connection = seat.connection
        connection.come_home()
        if not connection.usable:
            self._drop(seat, broken=True)
        elif self.state is State.CLOSED:
            self._drop(seat, broken=False)
        elif connection.in_transaction:
            self._care_for(seat, self.roll_back, "roll back")
        else:
            self._place(seat)

    def _place(self, seat: Seat) -> None:
        """Of a connection in order, in no book now: to the oldest waiter, to the idle ones; if surplus or old, away."""
        seat.idle_since_s = now_s = self._loop.time()
        seat.connection.restore()
        surplus = self.size >= self.size_max or now_s >= seat.expires_s or self.state is State.CLOSED
        if surplus or not (self._hand_over(seat) or self.state is State.OPEN):
            self._drop(seat, broken=False)
        elif seat not in self._lent:
            self._idle.append(seat)
        elif not self._waiters:
            self.changed.set()

    def _drop(self, seat: Seat, *, broken: bool) -> None:
        """Close a connection that is in no book any more, and see to a replacement."""
        seat.connection.discard()
        self._broken += broken
        self._retired += not broken
        self.changed.set()
        self.refill()

    def retire_idle(self, count: int) -> None:
        """Close the ``count`` connections that have been idle longest."""
        for _ in range(count):
            self._idle.popleft().connection.discard()
            self._retired += 1
        self.changed.set()

    def shrink(self) -> None:
        """Close idle connections as far as ``size_max`` asks for it; lent ones are closed when they come back."""
        self.retire_idle(max(0, min(len(self._idle), self.size - self.size_max)))

    # --- Care: what has to be asked of the server before a seat is in order ------------------------------------------

    def _care_for(self, seat: Seat, treat: Callable[[Seat], Awaitable[None]], name: str) -> None:
        self._care += 1
        self._spawn(_awaiting(treat, seat), f"postgres {name}", lambda task: self._cared_for(seat, task))

    def _cared_for(self, seat: Seat, task: asyncio.Task[Any]) -> None:
        self._care -= 1
        healthy = not task.cancelled() and task.exception() is None and seat.connection.usable
        if healthy and not seat.connection.in_transaction:
            self._place(seat)
        else:
            self._drop(seat, broken=True)

    async def _check(self, seat: Seat) -> None:
        with cut_after(seat.connection, self._options.check_timeout_s):
            seat.connection.commit_each()
            # PostgreSQL protocol, 53.2.2: an empty query is answered as such.
            await seat.connection.execute("", prepare=False)

    async def roll_back(self, seat: Seat) -> None:
        """Roll back within ``check_timeout_s``; a server that does not answer loses the connection."""
        with cut_after(seat.connection, self._options.check_timeout_s):
            await seat.connection.rollback()

    # --- Connecting --------------------------------------------------------------------------------------------------

    def refill(self) -> None:
        """Set going the connects that ``size_min`` and the queue ask for."""
        while self.state is State.OPEN and self.size < self.size_min and self._may_connect():
            self._begin_connect()
        self._serve()

    def _may_connect(self) -> bool:
        if self.state not in {State.OPEN, State.CLOSING} or self.size >= self.size_max:
            return False
        # After a failure one attempt at a time tries the ground.
        return self._fault is None or (self._connecting == 0 and self._loop.time() >= self._retry_at_s)

    def _begin_connect(self) -> None:
        self._connecting += 1
        self._spawn(self._connect(), "postgres connect", self._connect_ended)

    async def _connect(self) -> PooledConnection:
        options = self._options
        made = await connect(
            self._target,
            timeout_s=options.connect_timeout_s,
            patience_s=options.check_timeout_s,
            prepare_threshold=options.prepare_threshold,
        )
        try:
            if self._configure is not None:
                with cut_after(made, options.connect_timeout_s):
                    await self._configure(made)
                    await made.commit()
        except BaseException as error:
            made.discard()
            if isinstance(error, Exception):
                reason = f"its configuration failed: {error!r}"
                raise DatabaseUnavailable(self._target.address, reason, lasting=True) from error
            raise
        return made

    def _connect_ended(self, task: asyncio.Task[PooledConnection]) -> None:
        self._connecting -= 1
        self.changed.set()
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._connected(task.result())
        elif isinstance(error, DatabaseUnavailable):
            self._failed(error)
        else:
            self._failed(DatabaseUnavailable(self._target.address, str(error) or repr(error), lasting=True))

    def _connected(self, connection: PooledConnection) -> None:
        self._connects += 1
        if self._fault is not None:
            self._log.info("postgres reached again", address=self._target.address, failures=self._failures_row)
        self._fault = None
        self._failures_row = 0
        now_s = self._loop.time()
        lifetime_s = self._options.lifetime_s * (1 - _LIFETIME_JITTER * self._random.random())
        self._place(Seat(connection, expires_s=now_s + lifetime_s, now_s=now_s))
        self.refill()

    def _failed(self, error: DatabaseUnavailable) -> None:
        self._failures += 1
        if self._fault is None:
            self._log.warning("postgres not reached", address=error.address, reason=error.reason)
        self._fault = error
        if error.lasting and not (self._lent or self._care):
            self._fail_waiters(lambda: _copy(error))  # nothing is left that could come free for them
        now_s = self._loop.time()
        if now_s < self._retry_at_s or self.state is State.CLOSED:
            return  # one of several that failed together
        options = self._options
        delay_s = min(options.retry_delay_max_s, options.retry_delay_s * 2.0 ** min(self._failures_row, 16))
        delay_s *= 1 - _BACKOFF_JITTER * self._random.random()
        self._failures_row += 1
        self._retry_at_s = now_s + delay_s
        self._retry_timer = self._loop.call_at(self._retry_at_s, self.refill)

    # --- Upkeep ------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Once in a while: look after what lies idle."""
        self._tick_timer = self._loop.call_later(min(_TICK_S_MAX, self._options.idle_s / 2), self._tick)
        now_s = self._loop.time()
        for seat in [seat for seat in self._idle if seat.connection.has_news]:
            self._idle.remove(seat)
            self._care_for(seat, self._check, "check")
        for seat in [seat for seat in self._idle if now_s >= seat.expires_s]:
            self._idle.remove(seat)
            self._drop(seat, broken=False)
        while self._idle and self.size > self.size_min and now_s - self._idle[0].idle_since_s >= self._options.idle_s:
            self.retire_idle(1)
        self.refill()

    def _stop_tick(self) -> None:
        if self._tick_timer is not None:
            self._tick_timer.cancel()

    def _spawn(self, work: Any, name: str, booked: Callable[[asyncio.Task[Any]], None]) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)

        def done(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            booked(task)

        task.add_done_callback(done)


async def _awaiting(treat: Callable[[Seat], Awaitable[None]], seat: Seat) -> None:
    await treat(seat)


def _copy(fault: DatabaseUnavailable) -> DatabaseUnavailable:
    """One exception object for each caller: tracebacks grow on them."""
    return DatabaseUnavailable(fault.address, fault.reason, lasting=fault.lasting)
