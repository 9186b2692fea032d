"""The last known fix of every device: one hash in Redis, read when a report is checked and when a page opens.

A hash and not a replicated map: it is written with every report and read by the one instance that has the request, so
sending every write to every instance would cost much and gain nothing. If Redis loses it, `restore` reads it back from
PostgreSQL. Invariant: a field's time never goes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import final

from flotta.fleet import Fleet
from flotta.redis import Effect, Script
from harbor.positions.fix import Fix, from_text, to_text

__all__ = ["Latest"]

READ_MAX = 1_000

# KEYS[1] the hash; ARGV: device, time, text and so on. Running it twice is running it once.
_NEWER = Script(
    """
for i = 1, #ARGV, 3 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  if not known or tonumber(string.match(known, '^%d+')) < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  end
end
return #ARGV / 3
""",
    name="harbor latest",
    effect=Effect.LAST_WRITE_WINS,
)


@final
class Latest:
    """Last known fixes, fleet-wide."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    @property
    def _key(self) -> str:
        return self._fleet.redis.key("harbor:latest")

    async def of(self, devices: Collection[str]) -> dict[str, Fix]:
        """Those of ``devices`` that have one."""
        found: dict[str, Fix] = {}
        wanted = list(devices)
        for start in range(0, len(wanted), READ_MAX):
            group = wanted[start : start + READ_MAX]
            texts = await self._fleet.redis.link.call("HMGET", self._key, *group)
            found |= {device: from_text(text) for device, text in zip(group, texts, strict=True) if text is not None}
        return found

    async def update(self, fixes: Iterable[Fix]) -> None:
        """Notes the newest of ``fixes`` per device, where it is newer than the known one."""
        newest: dict[str, Fix] = {}
        for fix in fixes:
            if fix.device not in newest or newest[fix.device].time_ms < fix.time_ms:
                newest[fix.device] = fix
        args: list[str | int] = []
        for fix in newest.values():
            args += [fix.device, fix.time_ms, to_text(fix)]
        if args:
            await _NEWER(self._fleet.redis.link, keys=[self._key], args=args)

    async def restore(self) -> int:
        """Fills a hash that lost its data from PostgreSQL; how many fixes it read."""
        row = await self._fleet.postgres.fetch_one("SELECT count(*) FROM devices")
        if row is not None and int(await self._fleet.redis.link.call("HLEN", self._key)) * 2 > row[0]:
            return 0  # devices that never reported have no field: half of them is no loss
        rows = await self._fleet.postgres.fetch(
            """SELECT id, (extract(epoch FROM time) * 1000)::bigint, lat, lon, speed_kn, course_deg, heading_deg
               FROM devices CROSS JOIN LATERAL (
                   SELECT * FROM positions WHERE device_id = devices.id ORDER BY time DESC LIMIT 1) AS last"""
        )
        for start in range(0, len(rows), READ_MAX):
            await self.update(Fix(*row) for row in rows[start : start + READ_MAX])
        return len(rows)
