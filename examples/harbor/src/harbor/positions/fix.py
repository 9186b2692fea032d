"""A fix: one device, one time, one place. And the forms in which it travels. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

__all__ = ["Fix", "distance_nm", "fixes_from_wire", "fixes_to_wire", "from_text", "to_text"]

_EARTH_RADIUS_NM = 3_440.065


@dataclass(frozen=True, slots=True)
class Fix:
    """A position that was accepted. Time in ms since 1970, speed in knots, angles in degrees."""

    device: str
    time_ms: int
    lat: float
    lon: float
    speed_kn: float | None = None
    course_deg: float | None = None
    heading_deg: float | None = None

    def as_tuple(self) -> tuple[Any, ...]:
        """The order that every wire form and the page use."""
        return astuple(self)


def distance_nm(a: Fix, b: Fix) -> float:
    """Great-circle distance in nautical miles (haversine formula)."""
    lat_a, lat_b = math.radians(a.lat), math.radians(b.lat)
    half_lat = math.sin((lat_b - lat_a) / 2)
    half_lon = math.sin(math.radians(b.lon - a.lon) / 2)
    squared = half_lat**2 + math.cos(lat_a) * math.cos(lat_b) * half_lon**2
    return 2 * _EARTH_RADIUS_NM * math.asin(min(1.0, math.sqrt(squared)))


def fixes_to_wire(fixes: Iterable[Fix]) -> list[list[Any]]:
    """Fixes as JSON arrays: the payload of one event of the stream."""
    return [list(fix.as_tuple()) for fix in fixes]


def fixes_from_wire(rows: list[list[Any]]) -> list[Fix]:
    """The inverse of `fixes_to_wire`. Raises TypeError for what is none."""
    return [Fix(*row) for row in rows]


def to_text(fix: Fix) -> str:
    """A fix as one line, beginning with its time so that a script in Redis can compare."""
    return f"{fix.time_ms} {json.dumps(list(fix.as_tuple()), separators=(',', ':'))}"


def from_text(text: bytes) -> Fix:
    """The inverse of `to_text`."""
    return Fix(*json.loads(text.partition(b" ")[2]))
