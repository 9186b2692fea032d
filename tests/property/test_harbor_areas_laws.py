"""Laws of Harbor's areas: which rings are areas, what lies inside, when a vessel enters and leaves."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harbor.areas.area import COLOURS, checked_drawing
from harbor.areas.atlas import CELL, Area, Atlas
from harbor.areas.crossing import MARGIN_M, Crossing, Track, step
from harbor.areas.shape import CORNERS_MAX, Place, Shape, ShapeError, checked_shape, micro
from harbor.positions.fix import Fix

MICRO = 1_000_000
SQUARE = [[40.0, -74.0], [40.0, -73.9], [40.1, -73.9], [40.1, -74.0]]
ME, OTHER = 1, 2

degrees = st.tuples(st.floats(-85, 85), st.floats(-180, 180)).map(list)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@st.composite
def stars(draw: st.DrawFn) -> list[list[float]]:
    """Rings that never cross themselves: corners around a middle, in the order of their directions."""
    lat, lon = draw(st.floats(-60, 60)), draw(st.floats(-170, 170))
    count = draw(st.integers(3, 12))
    radii = draw(st.lists(st.floats(0.01, 1.0), min_size=count, max_size=count))
    turns = [2 * math.pi * index / count for index in range(count)]
    return [[lat + r * math.sin(turn), lon + r * math.cos(turn)] for r, turn in zip(radii, turns, strict=True)]


def tried(said: object) -> Shape | ShapeError:
    try:
        return checked_shape(said)
    except ShapeError as error:
        return error


def winding(corners: tuple[Place, ...], place: Place) -> int | None:
    """How often the ring goes round the place, counted by exact angles' quadrants; None on the border. A second,
    deliberately plain way."""
    y, x = place
    total = 0
    for (y1, x1), (y2, x2) in pairwise([corners[-1], *corners]):
        side = (x2 - x1) * (y - y1) - (x - x1) * (y2 - y1)
        if side == 0 and min(y1, y2) <= y <= max(y1, y2) and min(x1, x2) <= x <= max(x1, x2):
            return None
        if y1 <= y < y2 and side < 0:
            total += 1
        elif y2 <= y < y1 and side > 0:
            total -= 1
    return total


def cross(a: Place, b: Place, c: Place, d: Place) -> bool:
    """Whether two edges have a point in common, by solving for it with fractions."""
    r, s, q = (b[0] - a[0], b[1] - a[1]), (d[0] - c[0], d[1] - c[1]), (c[0] - a[0], c[1] - a[1])
    det = r[0] * s[1] - r[1] * s[0]
    if det != 0:
        t, u = Fraction(q[0] * s[1] - q[1] * s[0], det), Fraction(q[0] * r[1] - q[1] * r[0], det)
        return 0 <= t <= 1 and 0 <= u <= 1
    if q[0] * r[1] - q[1] * r[0] != 0:
        return False
    length = r[0] ** 2 + r[1] ** 2
    first, last = sorted(
        (Fraction(q[0] * r[0] + q[1] * r[1], length), Fraction((q[0] + s[0]) * r[0] + (q[1] + s[1]) * r[1], length))
    )
    return first <= 1 and last >= 0


# --- shapes ----------------------------------------------------------------------------------------------------------


@given(json_values | st.lists(degrees | json_values, max_size=6))
def test_whatever_is_said_becomes_an_area_or_a_refusal_that_says_why(said: object) -> None:
    shape = tried(said)
    if isinstance(shape, ShapeError):
        assert shape.code
        assert str(shape)
    else:
        assert 3 <= len(shape.corners) <= CORNERS_MAX
        assert checked_shape(shape.to_wire()) == shape


@given(stars())
def test_a_plain_ring_is_accepted_and_travels_unchanged(ring: list[list[float]]) -> None:
    shape = checked_shape(ring)
    assert [micro(*corner) for corner in ring] == list(shape.corners)
    assert checked_shape([*ring, ring[0]]) == shape, "a closed ring is the same ring"
    assert Shape.from_wire(shape.to_wire()) == shape


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=7, unique=True))
def test_exactly_the_rings_whose_edges_meet_elsewhere_are_refused(corners: list[Place]) -> None:
    count = len(corners)
    edges = [(corners[index], corners[(index + 1) % count]) for index in range(count)]
    meets = any(cross(*edges[i], *edges[j]) for i in range(count) for j in range(i + 2, count) if (j + 1) % count != i)
    spikes = any(
        winding((a, b, c), a) is None
        and (b[0] - a[0]) * (c[1] - b[1]) == (b[1] - a[1]) * (c[0] - b[0])
        and (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1]) < 0
        for (a, b), (_, c) in zip(edges, [*edges[1:], edges[0]], strict=True)
    )
    shape = tried([[lat / MICRO, lon / MICRO] for lat, lon in corners])
    assert (isinstance(shape, ShapeError) and shape.code == "crosses_itself") == (meets or spikes)


@pytest.mark.parametrize(
    ("points", "code"),
    [
        (None, "points_wrong"),
        (SQUARE[:2], "points_wrong"),
        ([SQUARE[0]] * 5, "points_wrong"),
        ([[40 + n / 1e4, -74 + n * n / 1e7] for n in range(CORNERS_MAX + 1)], "points_wrong"),
        ([[40, -74], [40, -73], [86, -73]], "point_wrong"),
        ([[40, -74], [40, -73], [41, -181]], "point_wrong"),
        ([[40, -74], [40, math.nan], [41, -73]], "point_wrong"),
        ([[40, -74], [40, -73], [41]], "point_wrong"),
        ([[40, -74], [True, -73], [41, -73]], "point_wrong"),
        ([[40, -179], [40, 179], [41, 179]], "area_too_large"),
        ([[40, -74], [41, -73], [41, -74], [40, -73]], "crosses_itself"),
        ([[40, -74], [40, -73], [40, -72]], "crosses_itself"),
    ],
)
def test_what_is_no_area_is_named(points: object, code: str) -> None:
    with pytest.raises(ShapeError) as caught:
        checked_shape(points)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"points": SQUARE}, "name_wrong"),
        ({"name": " \n ", "points": SQUARE}, "name_wrong"),
        ({"name": "two\nlines", "points": SQUARE}, "name_wrong"),
        ({"name": "x" * 61, "points": SQUARE}, "name_wrong"),
        ({"name": "x", "points": SQUARE, "colour": "#123456"}, "colour_wrong"),
    ],
)
def test_names_and_colours_are_checked(said: dict[str, object], code: str) -> None:
    with pytest.raises(ShapeError) as caught:
        checked_drawing(said)
    assert caught.value.code == code
    assert checked_drawing({"name": " Roads ", "points": SQUARE}).name == "Roads"
    assert checked_drawing({"name": "Roads", "points": SQUARE}).colour in COLOURS


@given(stars(), st.floats(-1.1, 1.1), st.floats(-1.1, 1.1))
def test_inside_is_what_the_ring_goes_round(ring: list[list[float]], north: float, east: float) -> None:
    shape = checked_shape(ring)
    middle = (shape.south + shape.north) // 2, (shape.west + shape.east) // 2
    place = middle[0] + round(north * MICRO), middle[1] + round(east * MICRO)
    turns = winding(shape.corners, place)
    if turns is not None:
        assert shape.contains(place) == (turns != 0)


@given(st.integers(-3, 13), st.integers(-3, 13), st.integers(1, 9))
def test_a_border_belongs_to_exactly_one_of_the_two_beside_it(lat: int, lon: int, cut: int) -> None:
    """A square cut in two: every place of it lies in one half, also on the cut."""
    left = Shape.of([(0, 0), (10, 0), (10, cut), (0, cut)])
    right = Shape.of([(0, cut), (10, cut), (10, 10), (0, 10)])
    whole = Shape.of([(0, 0), (10, 0), (10, 10), (0, 10)])
    assert left.contains((lat, lon)) + right.contains((lat, lon)) == whole.contains((lat, lon))


def test_the_distance_is_in_metres_on_the_ground() -> None:
    shape = checked_shape(SQUARE)
    assert shape.distance_m(micro(40.2, -73.95)) == pytest.approx(0.1 * 111_195, rel=1e-3)
    east = 0.1 * 111_195 * math.cos(math.radians(40.05))
    assert shape.distance_m(micro(40.05, -73.8)) == pytest.approx(east, rel=1e-3)
    assert shape.distance_m(micro(40.0, -73.95)) == 0


# --- the atlas -------------------------------------------------------------------------------------------------------


@given(st.lists(stars(), max_size=8), st.data())
def test_the_atlas_finds_what_looking_at_every_area_finds(rings: list[list[list[float]]], data: st.DataObject) -> None:
    areas = [Area(number, ME, checked_shape(ring)) for number, ring in enumerate(rings)]
    removed = data.draw(st.sets(st.sampled_from(range(len(areas))))) if areas else set()
    atlas = Atlas(areas)
    for number in removed:
        atlas.remove(number)
        atlas.remove(number)
    kept = [area for area in areas if area.id not in removed]
    assert len(atlas) == len(kept)
    for area in areas:
        shape = area.shape
        lat = data.draw(st.integers(shape.south - CELL, shape.north + CELL))
        lon = data.draw(st.integers(shape.west - CELL, shape.east + CELL))
        assert atlas.at((lat, lon)) == [one for one in kept if one.shape.contains((lat, lon))]


# --- crossings -------------------------------------------------------------------------------------------------------

ATLAS = Atlas(
    [
        Area(1, ME, checked_shape(SQUARE)),
        Area(2, ME, checked_shape([[40.05, -73.95], [40.05, -73.8], [40.2, -73.8]])),
        Area(3, OTHER, checked_shape(SQUARE)),
    ]
)
walks = st.lists(
    st.tuples(st.integers(1, 500), st.floats(39.95, 40.2), st.floats(-74.05, -73.75)), min_size=1, max_size=25
)


def track_of(walk: list[tuple[int, float, float]]) -> list[Fix]:
    fixes, time_ms = [], 1_000
    for later_ms, lat, lon in walk:
        time_ms += later_ms
        fixes.append(Fix("v", time_ms, lat, lon))
    return fixes


def play(
    fixes: list[Fix], track: Track | None = None, *, atlas: Atlas = ATLAS, accounts: tuple[int, ...] = (ME,)
) -> tuple[Track, list[Crossing]]:
    track, raised = track or Track(), []
    for fix in fixes:
        track, crossings = step(track, fix, atlas, accounts)
        raised += crossings
    return track, raised


@given(walks, st.integers(0, 25), st.integers(0, 25))
def test_a_job_that_goes_on_elsewhere_repeats_itself_and_loses_nothing(
    walk: list[tuple[int, float, float]], kept: int, died: int
) -> None:
    """It checkpoints after ``kept`` fixes and dies after ``died``; the next one begins at the checkpoint."""
    fixes = track_of(walk)
    kept = min(kept, died)
    _, whole = play(fixes)
    at_checkpoint, first = play(fixes[:kept])
    _, lost_with_it = play(fixes[kept:died], at_checkpoint)
    _, after = play(fixes[kept:], at_checkpoint)
    assert first + after == whole
    assert all(crossing in after for crossing in lost_with_it), "what it had raised is raised again, the same"


@given(walks, st.randoms(use_true_random=False))
def test_fixes_that_come_late_or_twice_change_nothing(walk: list[tuple[int, float, float]], random: object) -> None:
    fixes = track_of(walk)
    track: Track = Track()
    raised: list[Crossing] = []
    for index, fix in enumerate(fixes):
        earlier = fixes[random.randrange(index + 1)]  # type: ignore[attr-defined]
        again = random.choice([earlier, replace(earlier, lat=40.02, lon=-73.98), replace(earlier, lat=41.0)])  # type: ignore[attr-defined]
        for one in (fix, again):
            track, crossings = step(track, one, ATLAS, (ME,))
            raised += crossings
    assert (track, raised) == play(fixes)


@given(walks)
def test_entering_and_leaving_alternate_and_the_state_tells_who_is_inside(walk: list[tuple[int, float, float]]) -> None:
    fixes = track_of(walk)
    track, raised = play(fixes)
    for area_id in (1, 2):
        shape = ATLAS.get(area_id).shape  # type: ignore[union-attr]
        kinds = [crossing.kind for crossing in raised if crossing.area_id == area_id]
        began_inside = shape.contains(micro(fixes[0].lat, fixes[0].lon))
        expected = "leave" if began_inside else "enter"
        for kind in kinds:
            assert kind == expected
            expected = "leave" if kind == "enter" else "enter"
        assert (area_id in track.inside) == (expected == "leave")
    assert not any(crossing.area_id == 3 for crossing in raised), "another account's area"


@given(walks)
def test_each_crossing_has_a_fix_on_each_side(walk: list[tuple[int, float, float]]) -> None:
    fixes = track_of(walk)
    before = {after.time_ms: fix for fix, after in pairwise(fixes)}
    for crossing in play(fixes)[1]:
        shape = ATLAS.get(crossing.area_id).shape  # type: ignore[union-attr]
        here = micro(crossing.fix.lat, crossing.fix.lon)
        previous = micro(before[crossing.fix.time_ms].lat, before[crossing.fix.time_ms].lon)
        if crossing.kind == "enter":
            assert shape.contains(here)
            assert not shape.contains(previous)
            assert crossing.since_ms == crossing.fix.time_ms
        else:
            assert not shape.contains(here)
            assert shape.distance_m(here) > MARGIN_M
            assert crossing.since_ms < crossing.fix.time_ms


@given(st.lists(st.floats(-MARGIN_M + 1, MARGIN_M - 1), min_size=1, max_size=30))
def test_wandering_about_the_border_is_one_entering_at_most(offsets_m: list[float]) -> None:
    """A vessel moored at the eastern border, whose receiver wanders to both sides of it."""
    metre = 1 / (111_195 * math.cos(math.radians(40.05)))
    outside = Fix("v", 500, 40.05, -73.85)
    fixes = [Fix("v", 1_000 * (n + 1), 40.05, -73.9 + offset * metre) for n, offset in enumerate(offsets_m)]
    _, raised = play([outside, *fixes], atlas=Atlas([Area(1, ME, checked_shape(SQUARE))]))
    assert [crossing.kind for crossing in raised] in ([], ["enter"])


@given(walks, st.integers(0, 25))
def test_an_area_that_is_drawn_around_a_vessel_raises_nothing_until_it_leaves(
    walk: list[tuple[int, float, float]], drawn: int
) -> None:
    fixes = track_of(walk)
    assume(drawn < len(fixes))
    wide = Atlas([Area(9, ME, checked_shape([[39, -75], [39, -73], [41, -73], [41, -75]]))])
    track, _ = play(fixes[:drawn], atlas=Atlas())
    track, raised = play(fixes[drawn:], track, atlas=wide)
    assert raised == []
    assert track.inside == {9: fixes[drawn].time_ms}
    away = Fix("v", fixes[-1].time_ms + 1, 42.0, -74.0)
    assert [crossing.kind for crossing in play([away], track, atlas=wide)[1]] == ["leave"]


@given(walks)
def test_what_was_deleted_or_may_be_seen_no_more_is_forgotten_in_silence(walk: list[tuple[int, float, float]]) -> None:
    fixes = track_of(walk)
    track, _ = play(fixes)
    after = Fix("v", fixes[-1].time_ms + 1, 50.0, 0.0)
    for atlas, accounts in ((Atlas(), (ME,)), (ATLAS, ())):
        forgot, raised = play([after], track, atlas=atlas, accounts=accounts)
        assert (raised, dict(forgot.inside)) == ([], {})
