"""When a vessel enters or leaves an area. Pure: a vessel's state and its next fix in, the next state and crossings out.

Laws: the same fixes give the same crossings, with the same times, however often they are played from the same state, so
a job that goes on elsewhere repeats itself and invents nothing; of one vessel and area, entering and leaving alternate;
a fix that is not newer than the last changes nothing.

A crossing needs two fixes, one on each side. So nothing is raised for an area that is drawn around a vessel: nobody saw
it enter. And leaving needs some distance: positions of a receiver that stands still wander by a hundred metres, and a
vessel moored at the border must not come and go all day.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from harbor.areas.atlas import Atlas
from harbor.areas.shape import Place, micro
from harbor.positions.fix import Fix

__all__ = ["MARGIN_M", "Crossing", "Track", "step"]

MARGIN_M = 110.0
"""How far outside a vessel must be before it has left, in metres."""


@dataclass(frozen=True, slots=True)
class Track:
    """What must be known of a vessel to judge its next fix."""

    time_ms: int = 0
    place: Place | None = None
    inside: Mapping[int, int] = field(default_factory=dict)
    """The areas in which it is, with the time of the fix that entered (ms since 1970)."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A vessel entered or left an area: ``fix`` is the first on the other side."""

    kind: Literal["enter", "leave"]
    area_id: int
    fix: Fix
    since_ms: int
    """When the stay that a leaving ends began; the time of the fix for an entering."""


def step(track: Track, fix: Fix, atlas: Atlas, accounts: Collection[int]) -> tuple[Track, list[Crossing]]:
    """The vessel's state after ``fix``. ``accounts``: those that may see it; the areas of others do not count."""
    if fix.time_ms <= track.time_ms:
        return track, []
    place = micro(fix.lat, fix.lon)
    inside, crossings = _stays(track, fix, place, atlas, accounts)
    for area in atlas.at(place):
        if area.id in inside or area.owner_id not in accounts:
            continue
        inside[area.id] = fix.time_ms
        if track.place is not None and not area.shape.contains(track.place):
            crossings.append(Crossing("enter", area.id, fix, fix.time_ms))
    return replace(track, time_ms=fix.time_ms, place=place, inside=inside), crossings


def _stays(
    track: Track, fix: Fix, place: Place, atlas: Atlas, accounts: Collection[int]
) -> tuple[dict[int, int], list[Crossing]]:
    """The areas in which it still is, and those that it leaves. One that was deleted, or whose owner may see the vessel
    no more, is forgotten in silence."""
    inside: dict[int, int] = {}
    crossings: list[Crossing] = []
    for area_id, since_ms in track.inside.items():
        area = atlas.get(area_id)
        if area is None or area.owner_id not in accounts:
            continue
        if area.shape.contains(place) or area.shape.distance_m(place) <= MARGIN_M:
            inside[area_id] = since_ms
        else:
            crossings.append(Crossing("leave", area_id, fix, since_ms))
    return inside, crossings
