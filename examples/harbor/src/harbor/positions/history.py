"""Past positions, read from PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from flotta.fleet import Fleet

__all__ = ["History"]

TRAIL_POINTS_MAX = 30
TRACK_POINTS_MAX = 1_000


@final
class History:
    """Trails and tracks. Whoever asks has checked who may see what."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def trails(self, devices: Sequence[str]) -> dict[str, list[list[Any]]]:
        """Per device its last half hour, at most 30 points: ``[time in ms, lat, lon]``, oldest first."""
        rows = await self._fleet.postgres.fetch(
            """SELECT id, (extract(epoch FROM time) * 1000)::bigint, lat, lon
               FROM unnest(%s::text[]) AS wanted (id) CROSS JOIN LATERAL (
                   SELECT time, lat, lon, first_value(time) OVER (ORDER BY time DESC) AS newest
                   FROM positions WHERE device_id = id ORDER BY time DESC LIMIT %s) AS recent
               WHERE time > newest - interval '30 minutes'
               ORDER BY id, time""",
            (list(devices), TRAIL_POINTS_MAX),
        )
        trails: dict[str, list[list[Any]]] = {}
        for device, *point in rows:
            trails.setdefault(device, []).append(point)
        return trails

    async def track(self, device: str) -> list[list[Any]]:
        """The hour before the newest position: ``[time in ms, lat, lon, speed in knots]``, oldest first."""
        rows = await self._fleet.postgres.fetch(
            """SELECT (extract(epoch FROM time) * 1000)::bigint, lat, lon, speed_kn FROM positions
               WHERE device_id = %(device)s
                 AND time > (SELECT max(time) FROM positions WHERE device_id = %(device)s) - interval '1 hour'
               ORDER BY time DESC LIMIT %(max)s""",
            {"device": device, "max": TRACK_POINTS_MAX},
        )
        return [list(row) for row in reversed(rows)]
