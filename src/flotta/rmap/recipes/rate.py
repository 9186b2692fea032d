"""A rate limit that the whole fleet shares.

Owns the rule: the generic cell rate algorithm (ITU-T I.371), one number per key, by the clock of Redis. Invariants: any
window admits at most ``limit`` + the burst, whatever the number of instances; keys that no longer limit anything are
removed, a few with each grant.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Self, final

from flotta.errors import AmbiguousOutcome, ConfigError, NotApplied
from flotta.redis import Redis
from flotta.rmap import scripts
from flotta.rmap.codec import INT
from flotta.rmap.map import Map
from flotta.rmap.wire import check_key

__all__ = ["Decision", "RateLimit"]

SWEEP_KEYS = 4
"""Keys looked at with each grant, which adds one at most."""


@final
@dataclass(frozen=True, slots=True)
class Decision:
    """True in a condition if granted. ``retry_after_s``: when the same may be granted; 0 if it was."""

    granted: bool
    retry_after_s: float

    def __bool__(self) -> bool:
        return self.granted


@final
class RateLimit:
    """``limit`` units per ``window_s`` seconds for each key, in bursts of up to ``burst`` (default: ``limit``).

    ``limiter = await RateLimit.join("api", redis, limit=100, window_s=60); if not await limiter.take(user): ...429``.
    ``when_unavailable`` says what ``take`` does while Redis is gone.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int,
        window_s: float,
        burst: int | None = None,
        when_unavailable: Literal["raise", "grant", "refuse"] = "raise",
        logger: Any = None,
    ) -> None:
        if limit < 1:
            raise ConfigError("limit", limit, "a whole number from 1 on", source="RateLimit")
        if not 0 < window_s < math.inf:
            raise ConfigError("window_s", window_s, "a finite number of seconds above 0", source="RateLimit")
        if burst is not None and burst < 1:
            raise ConfigError("burst", burst, "a whole number from 1 on", source="RateLimit")
        self._unit_us = window_s * 1e6 / limit
        self._burst_us = self._unit_us * (burst or limit)
        self._when_unavailable = when_unavailable
        # Idle keys mean nothing after a window: if the whole fleet is idle, Redis forgets all of them.
        ttl_s = max(60.0, 2 * self._burst_us / 1e6)
        self.map: Map[int] = Map(name, codec=INT, ttl_s=ttl_s, sliding=True, logger=logger)
        self._unswept: Iterator[str] = iter(())

    @classmethod
    async def join(
        cls,
        name: str,
        redis: str | Redis,
        *,
        limit: int,
        window_s: float,
        burst: int | None = None,
        when_unavailable: Literal["raise", "grant", "refuse"] = "raise",
        logger: Any = None,
    ) -> Self:
        """A limiter that works. You owe it ``aclose``. Raises what ``Map.start`` raises."""
        limiter = cls(
            name, limit=limit, window_s=window_s, burst=burst, when_unavailable=when_unavailable, logger=logger
        )
        await limiter.map.start(redis)
        return limiter

    async def take(self, key: str, units: int = 1) -> Decision:
        """Take ``units`` for ``key``, or learn when they may be had. More than the burst is never granted.

        Raises RedisError if Redis is gone and ``when_unavailable`` is "raise". Cancelled: they may be taken.
        """
        if units < 1:
            raise ValueError(f"units is {units}; allowed: 1 and more")
        try:
            granted, ahead_us, seconds, micros = await self.map._run(  # noqa: SLF001 - a step of this package
                scripts.RATE_TAKE, check_key(key), repr(self._unit_us), repr(self._burst_us), units
            )
        except (NotApplied, AmbiguousOutcome):
            if self._when_unavailable == "raise":
                raise
            return Decision(self._when_unavailable == "grant", 0.0 if self._when_unavailable == "grant" else 1.0)
        if granted:
            await self._sweep(int(seconds) * 1_000_000 + int(micros))
            return Decision(granted=True, retry_after_s=0.0)
        wait_us = ahead_us + self._unit_us * units - self._burst_us
        return Decision(granted=False, retry_after_s=max(wait_us, 1.0) / 1e6)

    async def _sweep(self, now_us: int) -> None:
        """Remove a few keys whose time is over: absent means the same."""
        looked_at = list(islice(self._unswept, SWEEP_KEYS))
        if len(looked_at) < SWEEP_KEYS:
            self._unswept = iter(self.map.keys())
        arrivals = [(key, self.map.get(key, now_us)) for key in looked_at]
        idle = [(key, seen) for key, seen in arrivals if seen < now_us]
        await asyncio.gather(*(self.map.test_and_delete(key, seen) for key, seen in idle))

    async def aclose(self) -> None:
        """Stop following."""
        await self.map.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
