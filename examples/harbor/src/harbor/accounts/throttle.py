"""Attempts per minute, counted in Redis for all instances together."""

from __future__ import annotations

import hashlib
from typing import final

from flotta.fleet import Fleet
from harbor.problem import Problem

__all__ = ["Throttle"]

WINDOW_S = 60


@final
class Throttle:
    """Counts attempts in windows of a minute."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def check(self, what: str, who: str, *, attempts_max: int) -> None:
        """Counts one attempt. Raises `Problem` 429 when there were too many in this minute."""
        digest = hashlib.sha256(who.encode()).hexdigest()[:32]  # addresses are not for everyone who may read Redis
        key = self._fleet.redis.key(f"harbor:attempts:{what}:{digest}")
        link = self._fleet.redis.link
        await link.call("SET", key, 0, "EX", WINDOW_S, "NX")
        if int(await link.call("INCR", key)) > attempts_max:
            raise Problem(429, "too_many_attempts", "Too many attempts. Please wait a minute.")
