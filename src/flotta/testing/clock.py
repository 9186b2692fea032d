"""A clock that a test turns by hand, for tickers, schedules and cron tasks.

Owns the waiting timers of everything that goes by it. Invariant: while it is turned, every timer that falls due is
woken in the order of its time, and what it woke is given the chance to finish and wait again before the next one.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final, final

__all__ = ["FakeClock"]

_START: Final = datetime(2030, 1, 1, tzinfo=UTC)


@final
class FakeClock:
    """Time stands still until ``advance`` turns it. ``start``: where it begins (aware; default 2030-01-01 UTC).

    It decides when tickers tick, schedules plan and cron tasks come round. It decides nothing else: leases, time-outs,
    retries and delays go by real time.
    """

    check_s_max = float("inf")

    def __init__(self, start: datetime = _START) -> None:
        self._now_ms = round(start.timestamp() * 1000)
        self._timers: dict[object, tuple[int, asyncio.Future[None]]] = {}
        self._busy: set[object] = set()
        self._settled = asyncio.Event()
        self._armed = asyncio.Event()

    @property
    def now(self) -> datetime:
        """The time it shows (UTC)."""
        return datetime.fromtimestamp(self._now_ms / 1000, UTC)

    async def advance(self, seconds: float, *, settle_timeout_s: float = 1.0) -> None:
        """Turn it forward. Each ticker, schedule and cron task that falls due on the way is woken at its time, in
        order, and the clock stands still until the ones it woke wait again; so an hour of ``every_s=60`` is sixty
        ticks. One whose consumer does not come back within ``settle_timeout_s`` of real time is not waited for.

        Raises nothing of what it wakes. Cancelling: it stands where it has come to.
        """
        target_ms = self._now_ms + round(seconds * 1000)
        while True:
            due_ms = min((ms for ms, future in self._timers.values() if not future.done()), default=target_ms + 1)
            if due_ms > target_ms:
                break
            self._now_ms = max(self._now_ms, due_ms)
            self._wake()
            await self._settle(settle_timeout_s)
        self._now_ms = target_ms

    async def armed(self, count: int = 1, *, timeout_s: float = 5.0) -> None:
        """Return when ``count`` tickers, schedules and cron loops wait by it: what is started just now asks Redis
        first, and one that does not wait yet is not woken. Raises ``TimeoutError`` after ``timeout_s`` seconds of real
        time. Cancelling is harmless."""
        async with asyncio.timeout(timeout_s):
            while len(self._timers) < count:
                self._armed.clear()
                await self._armed.wait()

    def now_ms(self) -> int:
        """The time it shows, in milliseconds since 1970 UTC."""
        return self._now_ms

    def timer(self, owner: object, delay_s: float) -> asyncio.Future[None]:
        """For schedules: a future that ``advance`` finishes."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timers[owner] = (self._now_ms + round(delay_s * 1000), future)
        self._armed.set()
        self._done(owner)
        return future

    def release(self, owner: object) -> None:
        """For schedules: this one waits no more."""
        self._timers.pop(owner, None)
        self._done(owner)

    def _wake(self) -> None:
        for owner, (due_ms, future) in list(self._timers.items()):
            if due_ms <= self._now_ms:
                del self._timers[owner]
                if not future.done():
                    self._busy.add(owner)
                    future.set_result(None)

    async def _settle(self, timeout_s: float) -> None:
        self._settled.clear()
        if not self._busy:
            return
        try:
            await asyncio.wait_for(self._settled.wait(), timeout_s)
        except TimeoutError:
            self._busy.clear()

    def _done(self, owner: object) -> None:
        self._busy.discard(owner)
        if not self._busy:
            self._settled.set()
