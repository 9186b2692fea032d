"""How long events stay: when a producer trims, and when it must refuse.

Owns the count of adds since the last check and the one check that may be under way. Invariants, for
``retain="until_acked"``: an add is never delayed by a check unless the stream is full or this producer is two check
intervals ahead of the last answer; while the last answer was "full" no add passes. So the backlog passes
``backlog_max`` by at most ``2 x check_every`` events per producer. Every decision about what goes is made in one atomic
script (``lua/trim.lua``), never here.

Why so: checking with every add would cost several times the add; trimming is only ever late, never early.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Literal, final

from flotta.errors import CommandError, RedisError, StreamFull
from flotta.redis import Link
from flotta.streaming.scripts import TRIM

__all__ = ["Overflow", "Retain", "Retention", "RetentionPolicy", "RetentionStats"]

Retain = Literal["until_acked", "maxlen"]
Overflow = Literal["raise", "drop"]

_CHECK_EVERY_MAX: Final = 1_000
_RECHECK_FULL_S: Final = 0.05


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionPolicy:
    """What to keep. See ``Stream`` for the meaning of each; raises ``ValueError`` at birth if one makes no sense."""

    maxlen: int = 10_000
    retain: Retain = "until_acked"
    backlog_max: int = 1_000_000
    overflow: Overflow = "raise"

    def __post_init__(self) -> None:
        if self.maxlen < 1:
            raise ValueError(f"maxlen: {self.maxlen} events, at least 1 is needed")
        if self.retain not in ("until_acked", "maxlen"):
            raise ValueError(f'retain: {self.retain!r}, allowed are "until_acked" and "maxlen"')
        if self.overflow not in ("raise", "drop"):
            raise ValueError(f'overflow: {self.overflow!r}, allowed are "raise" and "drop"')
        if self.retain == "until_acked" and self.backlog_max <= self.maxlen:
            raise ValueError(f"backlog_max: {self.backlog_max} events, more than maxlen ({self.maxlen}) are needed")

    @property
    def check_every(self) -> int:
        """Adds of one producer between two checks: a tenth of the room, at most 1,000."""
        return max(1, min(_CHECK_EVERY_MAX, self.maxlen // 10, (self.backlog_max - self.maxlen) // 10))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionStats:
    """What this producer's checks did. ``dropped`` are events that some sink still needed (``overflow="drop"``)."""

    checks: int
    failed_checks: int
    trimmed: int
    dropped: int
    refused: int


@final
class Retention:
    """One producer's side of ``retain="until_acked"`` on one stream."""

    def __init__(self, stream_name: str, key: str, policy: RetentionPolicy, link: Link) -> None:
        self._stream_name = stream_name
        self._key = key
        self._policy = policy
        self._link = link
        self._every = policy.check_every
        self._since = self._every - 1  # the first add checks: a producer may be short-lived
        self._full = False
        self._length = 0
        self._checked_at_s = 0.0
        self._checking: asyncio.Task[None] | None = None
        self._checks = self._failed = self._trimmed = self._dropped = self._refused = 0

    @property
    def stats(self) -> RetentionStats:
        """Counts since the stream was started here."""
        return RetentionStats(
            checks=self._checks,
            failed_checks=self._failed,
            trimmed=self._trimmed,
            dropped=self._dropped,
            refused=self._refused,
        )

    def count(self, adds: int) -> bool:
        """Note ``adds`` that are about to be written. True: await ``admit`` before writing them."""
        self._since += adds
        if self._full:
            return True
        if self._since < self._every:
            return False
        if self._since >= 2 * self._every:
            return True
        self._start_check()
        return False

    async def admit(self) -> None:
        """Wait for the check that is due. Cancelling leaves the check running.

        Raises ``StreamFull``, and ``CommandError`` if the server refuses the check (an ACL user without XINFO). A check
        that met a lost connection raises nothing: the add that follows meets the same link and tells its caller.
        """
        now_s = asyncio.get_running_loop().time()
        if not (self._full and now_s - self._checked_at_s < _RECHECK_FULL_S):
            check = self._start_check()
            await asyncio.wait({check})
            error = check.exception()
            if isinstance(error, CommandError) or (error is not None and not isinstance(error, RedisError)):
                raise error
        if self._full and self._policy.overflow == "raise":
            self._refused += 1
            raise StreamFull(self._stream_name, self._length, self._policy.backlog_max)

    async def aclose(self) -> None:
        """Wait for the check under way, if any: it is bounded by the link's time limit."""
        if self._checking is not None:
            await asyncio.wait({self._checking})

    def _start_check(self) -> asyncio.Task[None]:
        if self._checking is None:
            loop = asyncio.get_running_loop()
            self._checking = loop.create_task(self._check(), name=f"trim {self._stream_name}")
            self._checking.add_done_callback(lambda task: task.cancelled() or task.exception())  # admit asks later
        return self._checking

    async def _check(self) -> None:
        covered, self._since = self._since, 0
        policy = self._policy
        arguments = (policy.maxlen, policy.backlog_max, "1" if policy.overflow == "drop" else "0")
        try:
            length, trimmed, dropped = await TRIM(self._link, keys=[self._key], args=arguments)
        except RedisError:
            self._failed += 1
            self._since += covered  # stays due: after two intervals the adds wait for it and see its error
            raise
        else:
            self._checks += 1
            self._trimmed += trimmed
            self._dropped += dropped
            self._length = length
            self._full = length >= policy.backlog_max and policy.overflow == "raise"
        finally:
            self._checked_at_s = asyncio.get_running_loop().time()
            self._checking = None
