"""Tickers: a clock of the whole pool that ticks on one of the nodes that have it.

Owns how a node takes a tick. Invariants:

* A time is given to one node at most, by one atomic step in Redis, and by the server's clock.
* Only a node that waits for a tick takes one: what is still busy with the last leaves the next to the others.
* Times that passed while nobody waited are one tick, which says how many were missed.
* A tick whose answer was lost, or whose wait was cancelled, is not lost: the same attempt gets it again.

There is no task behind a ticker and nothing that runs ahead: ``async for`` asks, waits as long as the server said, and
asks again. A node that dies takes nothing with it but the tick it was given.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, final

import structlog

from flotta.errors import Closed, ConfigError, RedisError, StateError
from flotta.pool.keys import PoolKeys, check_name
from flotta.pool.schedules.clock import SERVER_CLOCK, Clock
from flotta.pool.scripts import load_script
from flotta.redis import Effect, Link

__all__ = ["Tick", "Ticker", "to_ms"]

_TICK: Final = load_script("schedules", "tick", Effect.CHECKED)
_SET: Final = load_script("schedules", "tick_set", Effect.CHECKED)
_HOLD: Final = load_script("schedules", "tick_hold", Effect.CHECKED)

EVERY_S_MIN: Final = 0.01
EVERY_S_MAX: Final = 366 * 24 * 3600.0
_RETRY_S_MAX: Final = 1.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@final
@dataclass(frozen=True, slots=True)
class Tick:
    """One tick, given to this node alone."""

    name: str
    at: datetime
    """The time it stands for (UTC)."""
    late_s: float
    """How long after that time it was taken, by the server's clock."""
    missed: int
    """Times before it that nobody took."""


@final
class Ticker(AsyncIterator[Tick]):
    """The ticker ``name`` on this node: ``async for tick in ticker``. Made by ``node.ticker`` and ``pool.ticker``.

    You owe it ``close``, which the node also does when it closes.
    """

    def __init__(
        self,
        link: Link,
        keys: PoolKeys,
        name: str,
        *,
        every_s: float,
        first_s: float | None = None,
        hold_s: float = 0.0,
        clock: Clock = SERVER_CLOCK,
        logger: Any = None,
        kind: str = "ticker",
    ) -> None:
        self.name = check_name(kind, name)
        self._every_ms = to_ms(every_s)
        self._first_ms = self._every_ms if first_s is None else round(first_s * 1000)
        self._hold_ms = round(hold_s * 1000)
        self._link = link
        self._keys = (keys.meta,)
        self._tickers = keys.tickers
        self._field = name if kind == "ticker" else f"{kind}:{name}"
        self._clock = clock
        self._log: Any = (logger or structlog.get_logger("flotta.pool")).bind(ticker=self._field, pool=keys.name)
        self._token = secrets.token_hex(8)
        self._attempt = 0
        self._timer: asyncio.Future[None] | None = None
        self._waiting = False
        self._closed = False
        self._stopped = False
        self._failing = False

    @property
    def every_s(self) -> float:
        """The interval as this node knows it. A change elsewhere arrives with the next look at Redis."""
        return self._every_ms / 1000

    @property
    def stopped(self) -> bool:
        """Whether it has been stopped everywhere, as far as this node knows."""
        return self._stopped

    @property
    def ended(self) -> bool:
        """Whether it gives no more ticks here: closed, or stopped everywhere."""
        return self._closed or self._stopped

    async def start(self) -> Self:
        """Declare it: make it in Redis if it is not there. If it is there with another interval, this one is valid for
        every node from now on. Raises ``RedisError``; after that, or when cancelled, it may have been declared."""
        await self._declare(self._first_ms)
        return self

    async def change(self, every_s: float) -> None:
        """Give it another interval, on every node: the next tick comes after ``every_s`` seconds (0.01 s to 366 days).

        Raises ``ConfigError``, ``Closed``, ``RedisError``. After an error of Redis, or when cancelled, it may be valid
        or not: call it again.
        """
        every_ms = to_ms(every_s)
        self._check_open()
        self._every_ms = every_ms
        await self._declare(every_ms)
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tick:
        """The next tick that this node is given. Ends when the ticker is closed here or stopped everywhere.

        An outage of Redis is waited out. Cancelling it loses no tick: the next call gets the one that was taken, while
        it is the newest. One call at a time: a second raises ``RuntimeError``.
        """
        if self._waiting:
            raise StateError(f"ticker {self.name!r}", f"somebody waits for the next tick of {self.name!r} here already")
        self._waiting = True
        try:
            while not self.ended:
                tick, wait_s = await self._ask()
                if tick is not None:
                    self._attempt += 1
                    return tick
                await self._sleep(wait_s)
        finally:
            self._waiting = False
        self._clock.release(self)
        raise StopAsyncIteration

    async def hold(self) -> bool:
        """Hold the last tick on: until ``hold_s`` from now nobody is given the next. False: it is too late. Raises what
        ``Link.call`` raises; then, or when cancelled, it may be held or not."""
        args = (self._field, self._name_of(self._attempt - 1), self._hold_ms)
        return bool(await _HOLD(self._link, keys=self._keys, args=args))

    async def let_go(self) -> None:
        """The work of the last tick is done: the next may be taken. Raises what ``Link.call`` raises; then, or when
        cancelled, the next may have to wait until the hold is over."""
        args = (self._field, self._name_of(self._attempt - 1), 0)
        await _HOLD(self._link, keys=self._keys, args=args)

    async def close(self) -> None:
        """End it on this node; other nodes go on. Who waits for a tick here gets none. Twice: harmless.

        It asks nobody and waits for nothing: it raises nothing and cannot be cancelled half-way.
        """
        self._closed = True
        self._wake()
        self._clock.release(self)

    async def stop(self) -> None:
        """End it on every node, each at its next look at Redis (within two seconds). A node that declares it again
        starts it again. Raises ``RedisError``; then, or when cancelled, it is closed here, and perhaps only here."""
        await self.close()
        await self._link.call("HSET", self._tickers, self._field, "stopped")
        self._stopped = True

    async def _declare(self, first_ms: int) -> None:
        now_ms = self._clock.now_ms()
        args = (self._field, self._every_ms, first_ms, "" if now_ms is None else now_ms)
        await _SET(self._link, keys=self._keys, args=args)

    async def _ask(self) -> tuple[Tick | None, float]:
        """The tick, or how long to wait before asking again."""
        now_ms = self._clock.now_ms()
        args = (
            self._field, self._name_of(self._attempt), self._every_ms, self._hold_ms, "" if now_ms is None else now_ms
        )  # fmt: skip
        try:
            answer, *facts = await _TICK(self._link, keys=self._keys, args=args)
        except Closed:
            self._closed = True
            return None, 0.0
        except RedisError as error:
            self._report(error)
            return None, min(self.every_s, _RETRY_S_MAX)
        self._report(None)
        if answer == b"TICK":
            at_ms, missed, now, self._every_ms = map(int, facts)
            return Tick(self.name, _EPOCH + timedelta(milliseconds=at_ms), (now - at_ms) / 1000, missed), 0.0
        if answer == b"WAIT":
            for_ms, self._every_ms = map(int, facts)
            return None, for_ms / 1000
        self._stopped = True
        return None, 0.0

    async def _sleep(self, wait_s: float) -> None:
        if self.ended:
            return
        self._timer = self._clock.timer(self, min(wait_s, self._clock.check_s_max))
        try:
            await self._timer
        finally:
            self._timer = None

    def _wake(self) -> None:
        if self._timer is not None and not self._timer.done():
            self._timer.set_result(None)

    def _report(self, error: RedisError | None) -> None:
        """An outage is told once when it begins and once when it ends."""
        if error is not None and not self._failing:
            self._log.warning("a ticker cannot ask Redis, it goes on trying", error=str(error))
        elif error is None and self._failing:
            self._log.info("a ticker reaches Redis again")
        self._failing = error is not None

    def _check_open(self) -> None:
        if self.ended:
            raise Closed(f"ticker {self.name!r}")

    def _name_of(self, attempt: int) -> str:
        return f"{self._token}.{attempt}"


def to_ms(every_s: Any) -> int:
    """An interval as the scripts take it. Raises ``ConfigError``."""
    number = isinstance(every_s, int | float) and not isinstance(every_s, bool)
    if not number or not EVERY_S_MIN <= every_s <= EVERY_S_MAX:
        raise ConfigError("every_s", every_s, f"{EVERY_S_MIN} to {EVERY_S_MAX:.0f} seconds", source="ticker")
    return round(float(every_s) * 1000)
