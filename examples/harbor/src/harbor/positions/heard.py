"""Which devices report: two sorted sets in Redis, by the server's clock.

One says when a device was last heard, the other since when it has been reporting without a long silence. Both are
written once per request, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import final

from flotta.fleet import Fleet
from flotta.redis import Effect, Script

__all__ = ["Heard"]

# KEYS: last heard, heard since. ARGV: devices. Running it twice is running it once.
_NOTE = Script(
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #ARGV do
  redis.call('ZADD', KEYS[1], now, ARGV[i])
  redis.call('ZADD', KEYS[2], 'NX', now, ARGV[i])
end
return now
""",
    name="harbor heard",
    effect=Effect.LAST_WRITE_WINS,
)

# ARGV: how long a silence may last, in ms. Forgets who has been silent for longer.
_REPORTING = Script(
    """
local time = redis.call('TIME')
local before = '(' .. (time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1])
local silent = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, 1000)
for i = 1, #silent do
  redis.call('ZREM', KEYS[1], silent[i])
  redis.call('ZREM', KEYS[2], silent[i])
end
return redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
""",
    name="harbor reporting",
    effect=Effect.LAST_WRITE_WINS,
)


@final
class Heard:
    """Who reports, fleet-wide."""

    def __init__(self, fleet: Fleet, *, silent_s: float) -> None:
        self._fleet = fleet
        self._silent_ms = round(silent_s * 1_000)

    async def note(self, devices: Collection[str]) -> None:
        """They have reported now."""
        if devices:
            await _NOTE(self._fleet.redis.link, keys=self._keys, args=sorted(devices))

    async def reporting(self) -> dict[str, int]:
        """The devices that have not been silent for long, and since when they report (ms since 1970, Redis' clock)."""
        found = await _REPORTING(self._fleet.redis.link, keys=self._keys, args=[self._silent_ms])
        return {device.decode(): int(float(since)) for device, since in zip(found[::2], found[1::2], strict=True)}

    @property
    def _keys(self) -> list[str]:
        """With a hash tag: both must live in one slot of a cluster."""
        return [self._fleet.redis.key("harbor:{heard}:last"), self._fleet.redis.key("harbor:{heard}:since")]
