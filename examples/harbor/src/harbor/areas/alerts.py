"""Alerts: stored once each in PostgreSQL, listed by page, for whoever may see the vessel.

An alert belongs to the area's owner. Who may see the vessel no more, sees its alerts no more: that is asked at every
reading, as for the vessels themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, final

from flotta.fleet import Fleet
from harbor.areas.crossing import Crossing, Track

__all__ = ["PAGE_MAX", "Alerts", "Query"]

PAGE_MAX = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Which alerts: the newest ``limit`` (by when they were raised) that fit; ``before``: an alert's id, for the page
    after it. Times are those of the fixes."""

    area_id: int | None = None
    device: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    before: int | None = None
    limit: int = 50


@final
class Alerts:
    """What crossings became."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def store(self, crossings: Sequence[Crossing]) -> list[dict[str, Any]]:
        """The alerts of these crossings, in their order; each is stored once, however often it comes. One whose area
        was deleted meanwhile is left out."""
        stored = []
        async with self._fleet.postgres.connection() as connection:
            for crossing in crossings:
                fix = crossing.fix
                at, since = (_moment(fix.time_ms), _moment(crossing.since_ms))
                values = (fix.device, crossing.kind, at, since, fix.lat, fix.lon, crossing.area_id)
                row = await (await connection.execute(_STORE, values)).fetchone()
                if row is not None:
                    stored.append(_as_json(row))
        return stored

    async def last_track(self, device: str) -> Track:
        """The vessel's state as far as alerts tell: what it has entered and not left, as of its last alert."""
        rows = await self._fleet.postgres.fetch(_LAST, (device,))
        last_ms = max((_ms(at) for _, _, at in rows), default=0)
        return Track(time_ms=last_ms, inside={area_id: _ms(at) for area_id, kind, at in rows if kind == "enter"})

    async def list(self, owner_id: int, visible: Collection[str], query: Query) -> list[dict[str, Any]]:
        """The alerts of the account's areas and of ``visible`` vessels, newest first."""
        devices = list(visible) if query.device is None else [query.device] if query.device in visible else []
        rows = await self._fleet.postgres.fetch(
            _LIST,
            {
                "owner": owner_id,
                "visible": devices,
                "area": query.area_id,
                "start": query.start,
                "end": query.end,
                "before": query.before,
                "limit": query.limit,
            },
        )
        return [_as_json(row) for row in rows]


def _moment(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1_000, UTC)


def _as_json(row: Sequence[Any]) -> dict[str, Any]:
    alert_id, area_id, device, kind, at, since, lat, lon, raised = row
    return {
        "id": alert_id,
        "area": area_id,
        "device": device,
        "kind": kind,
        "at_ms": _ms(at),
        "since_ms": _ms(since),
        "lat": lat,
        "lon": lon,
        "raised_ms": _ms(raised),
    }


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000)


# The row that is there already is touched, for an INSERT gives back only rows that it wrote. FOR KEY SHARE: an area
# that is being deleted is waited for, and then is not found.
_STORE = """
INSERT INTO alerts (device_id, kind, at, since, lat, lon, area_id)
SELECT %s, %s, %s, %s, %s, %s, id FROM areas WHERE id = %s FOR KEY SHARE
ON CONFLICT (device_id, area_id, at, kind) DO UPDATE SET kind = EXCLUDED.kind
RETURNING id, area_id, device_id, kind, at, since, lat, lon, raised_at
"""
_LAST = "SELECT DISTINCT ON (area_id) area_id, kind, at FROM alerts WHERE device_id = %s ORDER BY area_id, at DESC"
_LIST = """
SELECT alerts.id, area_id, device_id, kind, at, since, lat, lon, raised_at
FROM alerts JOIN areas ON areas.id = area_id
WHERE owner_id = %(owner)s AND device_id = ANY(%(visible)s)
  AND (%(area)s::bigint IS NULL OR area_id = %(area)s)
  AND (%(start)s::timestamptz IS NULL OR at >= %(start)s)
  AND (%(end)s::timestamptz IS NULL OR at < %(end)s)
  AND (%(before)s::bigint IS NULL OR alerts.id < %(before)s)
ORDER BY alerts.id DESC LIMIT %(limit)s
"""
