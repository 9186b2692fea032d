"""The shape of an area: a ring of corners, checked once when it is drawn, asked often whether a place lies in it. Pure.

Coordinates are whole numbers of a millionth of a degree (a tenth of a metre). So every decision here is exact: a place
on the border is always on the same side, on every instance, however often it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = ["CORNERS_MAX", "CORNERS_MIN", "Place", "Shape", "ShapeError", "checked_shape", "micro"]

CORNERS_MIN, CORNERS_MAX = 3, 100
LAT_MAX = 85.0
"""The map is a Mercator map, which ends there."""
SPAN_MAX_DEG = 10.0
"""Wide enough for a sea; and it keeps the metres below true to a few per cent."""
_MICRO = 1_000_000
_METRES_PER_DEGREE = 111_195.0  # of a great circle: 6,371,009 m * pi / 180

Place = tuple[int, int]
"""``(lat, lon)`` in millionths of a degree."""


class ShapeError(Exception):
    """These corners are no area; ``code`` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def micro(lat: float, lon: float) -> Place:
    """Degrees as millionths."""
    return round(lat * _MICRO), round(lon * _MICRO)


@dataclass(frozen=True, slots=True)
class Shape:
    """A ring of corners, the last one joined to the first, and the box around it."""

    corners: tuple[Place, ...]
    south: int
    west: int
    north: int
    east: int

    @classmethod
    def of(cls, corners: Sequence[Place]) -> Shape:
        """The shape of corners that have been checked."""
        lats, lons = zip(*corners, strict=True)
        return cls(tuple(corners), min(lats), min(lons), max(lats), max(lons))

    @classmethod
    def from_wire(cls, degrees: Sequence[Sequence[float]]) -> Shape:
        """The inverse of `to_wire`, without the checks."""
        return cls.of([micro(lat, lon) for lat, lon in degrees])

    def to_wire(self) -> list[list[float]]:
        """``[[lat, lon], ...]`` in degrees."""
        return [[lat / _MICRO, lon / _MICRO] for lat, lon in self.corners]

    def contains(self, place: Place) -> bool:
        """Whether the place lies inside. A border belongs to exactly one of two areas that share it (the half-open rule
        of crossing numbers: W. R. Franklin, PNPOLY)."""
        y, x = place
        if not (self.south <= y <= self.north and self.west <= x <= self.east):
            return False
        inside = False
        y1, x1 = self.corners[-1]
        for y2, x2 in self.corners:
            if (y1 > y) != (y2 > y):  # the edge crosses the line to the east at most once
                side = (x2 - x1) * (y - y1) - (x - x1) * (y2 - y1)
                if side != 0 and (side > 0) == (y2 > y1):
                    inside = not inside
            y1, x1 = y2, x2
        return inside

    def distance_m(self, place: Place) -> float:
        """From the place to the nearest point of the border, in metres on a flat map around the place."""
        lat, lon = place
        north = _METRES_PER_DEGREE / _MICRO
        east = north * math.cos(math.radians(lat / _MICRO))
        flat = [((y - lat) * north, (x - lon) * east) for y, x in self.corners]
        return min(_distance_to_edge(a, b) for a, b in pairwise([flat[-1], *flat]))


def _distance_to_edge(a: tuple[float, float], b: tuple[float, float]) -> float:
    """From the origin to the piece between ``a`` and ``b``."""
    dy, dx = b[0] - a[0], b[1] - a[1]
    squared = dy * dy + dx * dx
    share = 0.0 if squared == 0 else min(1.0, max(0.0, -(a[0] * dy + a[1] * dx) / squared))
    return math.hypot(a[0] + share * dy, a[1] + share * dx)


def checked_shape(said: object) -> Shape:
    """The shape that JSON says: ``[[lat, lon], ...]``, 3 to 100 corners, the first not repeated (if it is, that is
    undone). Raises `ShapeError` for what is out of range, crosses itself or has no inside."""
    if not isinstance(said, list) or len(said) > CORNERS_MAX + 1:
        raise ShapeError("points_wrong", f"points is a list of {CORNERS_MIN} to {CORNERS_MAX} corners [lat, lon].")
    corners = _without_repeats([_corner(index, item) for index, item in enumerate(said)])
    if not CORNERS_MIN <= len(corners) <= CORNERS_MAX:
        words = f"An area has {CORNERS_MIN} to {CORNERS_MAX} different corners, this one has {len(corners)}."
        raise ShapeError("points_wrong", words)
    shape = Shape.of(corners)
    if max(shape.north - shape.south, shape.east - shape.west) > SPAN_MAX_DEG * _MICRO:
        words = f"An area spans at most {SPAN_MAX_DEG:g} degrees and does not cross the 180th meridian."
        raise ShapeError("area_too_large", words)
    if _crosses_itself(corners):
        raise ShapeError("crosses_itself", "The border crosses or touches itself.")
    return shape


def _corner(index: int, said: Any) -> Place:
    if not isinstance(said, list) or len(said) != 2:
        raise ShapeError("point_wrong", f"Corner {index + 1} must be [lat, lon].")
    for value, limit, name in ((said[0], LAT_MAX, "latitude"), (said[1], 180.0, "longitude")):
        if isinstance(value, bool) or not isinstance(value, int | float) or not -limit <= value <= limit:
            raise ShapeError("point_wrong", f"Corner {index + 1}: the {name} is between {-limit:g} and {limit:g}.")
    return micro(said[0], said[1])


def _without_repeats(corners: Sequence[Place]) -> list[Place]:
    """Without corners that the next one repeats: a closed ring's last corner goes, too."""
    if len(corners) < 2:
        return list(corners)
    return [corner for index, corner in enumerate(corners) if corner != corners[(index + 1) % len(corners)]]


def _crosses_itself(corners: Sequence[Place]) -> bool:
    """Whether two edges meet anywhere but at the corner that neighbours share."""
    count = len(corners)
    edges = [(corners[index], corners[(index + 1) % count]) for index in range(count)]
    for index, (a, b) in enumerate(edges):
        if _turns_back(a, b, edges[(index + 1) % count][1]):
            return True
        for other in range(index + 2, count):
            if (other + 1) % count != index and _meet(a, b, *edges[other]):
                return True
    return False


def _turns_back(a: Place, b: Place, c: Place) -> bool:
    """Whether the border goes from b straight back towards a."""
    ahead = (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1])
    return _side(a, b, c) == 0 and ahead < 0


def _meet(a: Place, b: Place, c: Place, d: Place) -> bool:
    """Whether the pieces ab and cd have a point in common."""
    ends = (_side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b))
    if ends[0] * ends[1] < 0 and ends[2] * ends[3] < 0:
        return True
    pieces = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
    return any(end == 0 and _in_box(*piece) for end, piece in zip(ends, pieces, strict=True))


def _side(a: Place, b: Place, c: Place) -> int:
    """On which side of the line ab c lies: 1, -1, or 0 on it."""
    value = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return (value > 0) - (value < 0)


def _in_box(a: Place, b: Place, c: Place) -> bool:
    return min(a[0], b[0]) <= c[0] <= max(a[0], b[0]) and min(a[1], b[1]) <= c[1] <= max(a[1], b[1])
