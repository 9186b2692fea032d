"""Laws of Harbor's pure parts: which reports are accepted, what a token proves, when a recorded report is due."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harbor import demo
from harbor.accounts.tokens import Claims, TokenError, read_token, sign_token
from harbor.config import HarborConfig
from harbor.positions.fix import Fix, distance_nm, fixes_from_wire, fixes_to_wire, from_text, to_text
from harbor.positions.validation import Limits, Plan, Refusal, parse, plan
from harbor.replay.__main__ import start_after
from harbor.replay.recording import read_recording
from harbor.replay.timeline import BREAK_S, Timeline
from harbor.status.alive import ALIVE_S, Alive

LIMITS = Limits(age_max_s=86_400, future_max_s=60, speed_kn_max=70)
NOW_MS = 1_790_000_000_000
RECORDING = read_recording()
THIN = replace(RECORDING, reports=RECORDING.reports[::60])

coordinates = st.tuples(st.floats(-89, 89), st.floats(-179, 179))
fixes = st.builds(
    lambda device, ago_s, at: Fix(device, NOW_MS - ago_s * 1_000, *at),
    st.sampled_from(["a", "b"]),
    st.integers(0, 7_200),
    st.tuples(st.floats(40, 41), st.floats(-75, -74)),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
reports = st.dictionaries(
    st.sampled_from(["device", "time", "lat", "lon", "speed", "course", "heading"]), json_values, max_size=7
)


def planned(batch: list[Fix], last: dict[str, Fix] | None = None) -> Plan:
    return plan(batch, last=last or {}, may_report=lambda _: True, limits=LIMITS)


@given(json_values | reports, st.none() | st.just("d"))
def test_whatever_is_said_becomes_a_true_fix_or_a_refusal(said: object, device: str | None) -> None:
    result = parse(3, said, device=device, now_ms=NOW_MS, limits=LIMITS)
    if isinstance(result, Refusal):
        assert result.index == 3
        assert result.code
        assert result.message
    else:
        assert abs(result.lat) <= 90
        assert abs(result.lon) <= 180
        assert (result.lat, result.lon) != (0, 0)
        assert NOW_MS - 86_400_000 <= result.time_ms <= NOW_MS + 60_000


@given(coordinates, st.integers(0, 86_000))
def test_a_plain_report_is_accepted_as_it_is(at: tuple[float, float], ago_s: int) -> None:
    lat, lon = at
    said = {"time": NOW_MS / 1_000 - ago_s, "lat": lat, "lon": lon, "heading": 511}
    result = parse(0, said, device="d", now_ms=NOW_MS, limits=LIMITS)
    if math.hypot(lat, lon) > 0.001:
        assert result == Fix("d", NOW_MS - ago_s * 1_000, lat, lon)


@pytest.mark.parametrize(
    ("time", "expected_ms"),
    [
        ("2026-09-21T14:13:20Z", 1_790_000_000_000),
        ("2026-09-21T16:13:20+02:00", 1_790_000_000_000),
        ("2026-09-21 14:13:20.250Z", 1_790_000_000_250),
        (1_790_000_000.5, 1_790_000_000_500),
        ("2026-09-21T14:13:20", None),
        ("2026-02-30T14:13:20Z", None),
        ("now", None),
        (True, None),
        (math.nan, None),
        (10**400, None),
        (1e308, None),
        (-1e308, None),
        ("9999-12-31T23:59:59-12:00", None),
    ],
)
def test_a_time_leaves_no_doubt_or_is_refused(time: object, expected_ms: int | None) -> None:
    result = parse(0, {"time": time, "lat": 40.0, "lon": -74.0}, device="d", now_ms=NOW_MS, limits=LIMITS)
    assert (result.time_ms if isinstance(result, Fix) else None) == expected_ms


@given(st.lists(fixes, max_size=12))
def test_every_report_is_accepted_or_a_duplicate_or_refused(batch: list[Fix]) -> None:
    decided = planned(batch)
    assert len(decided.accepted) + decided.duplicates + len(decided.refused) == len(batch)
    keys = [(fix.device, fix.time_ms) for fix in decided.accepted]
    assert len(keys) == len(set(keys))


@given(st.lists(fixes, max_size=12))
def test_accepted_reports_need_no_impossible_speed(batch: list[Fix]) -> None:
    by_device: dict[str, list[Fix]] = {}
    for fix in planned(batch).accepted:
        by_device.setdefault(fix.device, []).append(fix)
    for track in by_device.values():
        track.sort(key=lambda fix: fix.time_ms)
        for before, after in pairwise(track):
            hours = (after.time_ms - before.time_ms) / 3_600_000
            assert distance_nm(before, after) <= 70 * hours + 0.061


@given(st.lists(fixes, max_size=12), st.randoms(use_true_random=False))
def test_the_order_within_a_request_does_not_matter(batch: list[Fix], random: object) -> None:
    distinct = list({(fix.device, fix.time_ms): fix for fix in batch}.values())
    shuffled = list(distinct)
    random.shuffle(shuffled)
    assert set(planned(distinct).accepted) == set(planned(shuffled).accepted)


@given(st.lists(fixes, min_size=1, max_size=12))
def test_repeating_the_newest_report_is_a_duplicate_wherever_it_says_it_is(batch: list[Fix]) -> None:
    accepted = planned(batch).accepted
    newest = {fix.device: fix for fix in sorted(accepted, key=lambda fix: fix.time_ms)}
    moved = [Fix(fix.device, fix.time_ms, fix.lat / 2, fix.lon / 2) for fix in newest.values()]
    again = planned(moved, newest)
    assert (again.accepted, again.duplicates, again.refused) == ([], len(moved), [])
    assert set(again.shown) == set(newest.values()), "as they were accepted"


@given(st.lists(fixes, min_size=1, max_size=12))
def test_a_repeated_request_is_shown_whole_in_the_order_of_time(batch: list[Fix]) -> None:
    accepted = planned(batch).accepted
    newest = {fix.device: fix for fix in sorted(accepted, key=lambda fix: fix.time_ms)}
    again = planned(accepted, newest)
    refused = {accepted[refusal.index] for refusal in again.refused}
    assert set(again.shown) == set(accepted) - refused
    assert len(again.shown) == len(accepted) - len(refused)
    assert [fix.time_ms for fix in again.shown] == sorted(fix.time_ms for fix in again.shown)


def test_a_report_of_a_foreign_device_is_refused() -> None:
    decided = plan([Fix("a", NOW_MS, 1, 1)], last={}, may_report=lambda device: device == "b", limits=LIMITS)
    assert [refusal.code for refusal in decided.refused] == ["unknown_device"]


@given(st.lists(fixes, max_size=5))
def test_fixes_survive_their_wire_forms(batch: list[Fix]) -> None:
    assert fixes_from_wire(fixes_to_wire(batch)) == batch
    assert [from_text(to_text(fix).encode()) for fix in batch] == batch


@given(st.integers(1, 2**62), st.floats(0, 4e9), st.binary(min_size=32, max_size=40))
def test_a_token_proves_its_claims_until_it_ends(account_id: int, ends_s: float, secret: bytes) -> None:
    claims = Claims(account_id=account_id, signed_in_s=0.0, ends_s=ends_s)
    token = sign_token(claims, secret)
    assert read_token(token, secret, now_s=ends_s - 1) == claims
    with pytest.raises(TokenError):
        read_token(token, secret, now_s=ends_s)


@given(st.data())
def test_a_changed_token_proves_nothing(data: st.DataObject) -> None:
    secret = b"s" * 32
    token = sign_token(Claims(account_id=7, signed_in_s=0, ends_s=1e9), secret)
    at = data.draw(st.integers(0, len(token) - 2))  # the last character has bits that mean nothing
    other = data.draw(st.sampled_from("abcXYZ019-_.").filter(lambda letter: letter != token[at]))
    with pytest.raises(TokenError):
        read_token(token[:at] + other + token[at + 1 :], secret, now_s=0)
    with pytest.raises(TokenError):
        read_token(token, b"t" * 32, now_s=0)
    with pytest.raises(TokenError):
        read_token(data.draw(st.text(max_size=40)), secret, now_s=0)


@given(st.floats(1, 120), st.lists(st.floats(0.01, 400), min_size=1, max_size=30))
def test_the_feed_tells_every_report_once_in_order_and_never_early(speed: float, steps: list[float]) -> None:
    timeline = Timeline(THIN, speed=speed, start_s=1_000.0)
    elapsed_s = 0.0
    told: list[float] = []
    for step in steps:
        elapsed_s += step
        told += [at for at, _ in timeline.due(elapsed_s)]
    assert told == sorted(told)
    rounds, within_s = divmod(elapsed_s * speed, THIN.length_s)
    wanted = rounds * len(THIN.reports) + sum(report.at_s <= within_s for report in THIN.reports)
    assert abs(len(told) - wanted) <= 2  # the very edge of a float
    assert not told or told[-1] <= 1_000 + rounds * (THIN.length_s + BREAK_S) + within_s + 1e-3


def test_the_recording_has_what_it_is_known_for_and_no_quirks() -> None:
    assert (len(RECORDING.reports), len(RECORDING.devices)) == (8_689, 295)
    assert {device["kind"] for device in RECORDING.devices} >= {"tug", "passenger", "cargo", "tanker", "pleasure"}
    assert all(report.course_deg is None or 0 <= report.course_deg < 360 for report in RECORDING.reports)
    shrike = next(report for report in RECORDING.reports if report.device == "mmsi:366999618")
    assert (shrike.course_deg, shrike.heading_deg) == (347.8, 349.0)


@settings(deadline=None)  # it plays two and a half rounds: a busy machine takes its time
@given(st.none() | st.floats(0, 4_000), st.floats(0, 3_000))
def test_the_demonstration_takes_its_feed_for_ever_and_when_started_again(
    told_days: float | None, away_days: float
) -> None:
    """``told_days``: how far earlier runs have told times, from their start; ``away_days``: since then."""
    config = HarborConfig.load(demo.environment({}))
    limits = Limits(age_max_s=config.age_max_s, future_max_s=config.future_max_s, speed_kn_max=config.speed_kn_max)
    now_s = NOW_MS / 1_000
    newest_s = None if told_days is None else start_after(None, now_s=now_s - away_days * 86_400) + told_days * 86_400
    start_s = start_after(newest_s, now_s=now_s)
    last = {r.device: Fix(r.device, round((newest_s or 0) * 1_000), r.lat, r.lon) for r in THIN.reports}
    for at_s, report in Timeline(THIN, speed=1, start_s=start_s).due(2.5 * THIN.length_s):
        said = {"device": report.device, "time": at_s, "lat": report.lat, "lon": report.lon}
        fix = parse(0, said, device=None, now_ms=NOW_MS, limits=limits)
        assert isinstance(fix, Fix), fix
        assert plan([fix], last=last, may_report=lambda _: True, limits=limits).accepted == [fix]
        last[report.device] = fix


def test_the_whole_recording_is_possible() -> None:
    timeline = Timeline(RECORDING, speed=1, start_s=NOW_MS / 1_000 - 80_000)
    batch = [Fix(report.device, round(at * 1_000), report.lat, report.lon) for at, report in timeline.due(2.5 * 3_600)]
    decided = planned(batch)
    assert decided.refused == []
    assert decided.duplicates == len(batch) - len({(fix.device, fix.time_ms) for fix in batch}) > 0


@given(st.lists(st.tuples(st.floats(0.1, 10), st.sets(st.sampled_from("abc"))), max_size=20))
def test_alive_is_who_changed_lately(steps: list[tuple[float, set[str]]]) -> None:
    alive, entries, changed, now_s = Alive(), {}, {}, 0.0
    for number, (step_s, beating) in enumerate(steps):
        now_s += step_s
        for name in beating:
            entries[name], changed[name] = number, now_s
        assert alive.look(entries, now_s=now_s) == sorted(n for n, at in changed.items() if now_s - at < ALIVE_S)
