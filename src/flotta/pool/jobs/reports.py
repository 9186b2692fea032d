"""Telling the records of jobs what has become of them, until they know it.

Invariants: a report is repeated through every outage for as long as the lease is trusted, and not a moment longer
(then ``LeaseOver``: somebody else may have the job); every step checks owner and fence on the server, so that a repeat
after a lost reply changes nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, final

from flotta.errors import Closed, RedisError
from flotta.pool.members.heartbeat import Lease

__all__ = ["LeaseOver", "Reports"]

R = TypeVar("R")

_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0


class LeaseOver(Exception):
    """The worker's lease has ended before the record knew."""


@final
class Reports:
    """The reports of one worker under one lease."""

    __slots__ = ("_lease", "_log", "_told_s")

    def __init__(self, lease: Lease, logger: Any) -> None:
        self._lease = lease
        self._log = logger
        self._told_s = float("-inf")

    async def persist(self, send: Callable[[], Awaitable[R]]) -> R:
        """What ``send`` gives, however long the server is away. Raises ``LeaseOver``.

        Cancelled: it may have arrived.
        """
        pause_s = _RETRY_MIN_S
        while True:
            if not self._lease.owned():
                raise LeaseOver
            try:
                return await send()
            except RedisError as error:
                self._tell(error)
            except Closed as error:  # the node is being taken down
                raise LeaseOver from error
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            pause_s = min(2 * pause_s, _RETRY_MAX_S)

    def _tell(self, error: RedisError) -> None:
        """Say it once a second at most, for all jobs together."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s >= _RETRY_MAX_S:
            self._told_s = now_s
            self._log.warning("a worker cannot report and tries again", worker=self._lease.worker, error=str(error))
