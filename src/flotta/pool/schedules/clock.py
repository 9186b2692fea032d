"""What schedules go by: the Redis server's clock, or in a test one that is turned by hand.

Owns how a schedule waits. Invariant: no node's own clock decides when something is due: the server says how long that
is, a node only waits so long on its monotonic clock and asks again. A clock here never touches leases, time-outs or the
delays of tasks.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, final

__all__ = ["SERVER_CLOCK", "Clock", "ServerClock"]


class Clock(Protocol):
    """The clock of tickers, schedules and cron tasks."""

    check_s_max: float
    """The longest wait before the server is asked again: another node may have stopped or changed a ticker."""

    def now_ms(self) -> int | None:
        """The time in milliseconds since 1970 UTC; None: the server's."""
        ...

    def timer(self, owner: object, delay_s: float) -> asyncio.Future[None]:
        """A future that gets a result after ``delay_s``; its owner may set it, or cancel it, earlier. An owner has one
        timer at a time."""
        ...

    def release(self, owner: object) -> None:
        """The owner asks for no more timers."""
        ...


@final
class ServerClock:
    """Redis' own time, waited for on the event loop. Holds nothing: one serves everybody."""

    check_s_max = 2.0

    def now_ms(self) -> int | None:
        """None: the scripts ask their server."""
        return None

    def timer(self, owner: object, delay_s: float) -> asyncio.Future[None]:  # noqa: ARG002 - the protocol's signature
        """As the protocol says."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        handle = loop.call_later(delay_s, _finish, future)
        future.add_done_callback(lambda _: handle.cancel())
        return future

    def release(self, owner: object) -> None:
        """Nothing to do."""


SERVER_CLOCK: Final[Clock] = ServerClock()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
