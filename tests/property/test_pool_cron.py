"""When cron expressions and intervals come round: laws over random expressions, zones and times; daylight saving."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotta.errors import ConfigError
from flotta.pool.schedules.cron import Cron, Every

ZONES = ("UTC", "Europe/Rome", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu")
TIMES_MS = st.integers(0, 4_102_444_800_000)  # 1970 to 2100


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    step = st.integers(1, high).map(lambda n: f"*/{n}")
    span = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    chosen = st.lists(number, min_size=1, max_size=3).map(lambda numbers: ",".join(map(str, numbers)))
    return st.one_of(st.just("*"), number.map(str), step, span, chosen)


EXPRESSIONS = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6)).map(" ".join)


def ms(*args: int, zone: str = "UTC", fold: int = 0) -> int:
    return round(datetime(*args, tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)  # type: ignore[misc,arg-type]


def times(cron: Cron, after_ms: int, count: int) -> list[str]:
    found = []
    for _ in range(count):
        after_ms = cron.next_ms(after_ms) or 0
        found.append(datetime.fromtimestamp(after_ms / 1000, UTC).isoformat(timespec="minutes")[:-6])
    return found


@given(EXPRESSIONS, st.sampled_from(ZONES), TIMES_MS)
def test_next_time_is_later_and_there_is_none_between(expression, zone, after_ms):
    cron = Cron(expression, zone)
    following = cron.next_ms(after_ms)
    if following is not None:
        assert following > after_ms
        assert following % 60_000 == 0
        assert cron.next_ms(following - 1) == following
        assert cron.next_ms((after_ms + following) // 2) == following


@given(EXPRESSIONS, st.sampled_from(ZONES), TIMES_MS, st.integers(0, 90 * 24 * 3600 * 1000))
def test_last_time_is_the_one_before_the_next(expression, zone, after_ms, span_ms):
    cron = Cron(expression, zone)
    until_ms = after_ms + span_ms
    last = cron.last_ms(after_ms, until_ms)
    if last is None:
        following = cron.next_ms(after_ms)
        assert following is None or following > until_ms
    else:
        assert after_ms < last <= until_ms
        assert cron.next_ms(last - 1) == last
        following = cron.next_ms(last)
        assert following is None or following > until_ms


@given(st.floats(0.1, 1e6), TIMES_MS)
def test_interval_goes_on_its_own_beat(seconds, after_ms):
    every = Every(seconds)
    following = every.next_ms(after_ms)
    assert following is not None
    assert 0 < following - after_ms <= round(seconds * 1000)
    assert every.next_ms(following) == following + round(seconds * 1000)
    assert every.last_ms(after_ms, following) == following
    assert every.last_ms(after_ms, following - 1) is None


def test_fixed_time_runs_once_on_the_day_without_it_and_on_the_day_with_it_twice():
    cron = Cron("30 2 * * *", "Europe/Rome")
    # 2026-03-29 02:00 becomes 03:00; 2026-10-25 03:00 becomes 02:00.
    assert times(cron, ms(2026, 3, 28, 12), 3) == ["2026-03-29T01:00", "2026-03-30T00:30", "2026-03-31T00:30"]
    assert times(cron, ms(2026, 10, 24, 12), 3) == ["2026-10-25T00:30", "2026-10-26T01:30", "2026-10-27T01:30"]


def test_fixed_time_is_not_given_again_from_within_the_repeated_hour():
    cron = Cron("45 2 * * *", "Europe/Rome")
    second_half_past_two = ms(2026, 10, 25, 2, 30, zone="Europe/Rome", fold=1)
    assert times(cron, second_half_past_two, 1) == ["2026-10-26T01:45"]


def test_expression_with_a_star_goes_by_real_time_through_a_change_of_clocks():
    cron = Cron("*/30 * * * *", "Europe/Rome")
    for start in (ms(2026, 3, 29, 0), ms(2026, 10, 24, 23)):
        after, found = start, []
        for _ in range(8):
            after = cron.next_ms(after) or 0
            found.append(after)
        assert [later - earlier for earlier, later in itertools.pairwise(found)] == [1_800_000] * 7


def test_leap_day_comes_every_fourth_year():
    assert times(Cron("0 0 29 2 *"), ms(2026, 1, 1), 2) == ["2028-02-29T00:00", "2032-02-29T00:00"]


def test_short_names_and_last_days():
    assert times(Cron("@daily", "Asia/Kathmandu"), ms(2026, 1, 1), 1) == ["2026-01-01T18:15"]
    assert times(Cron("0 9 L * *"), ms(2026, 2, 1), 2) == ["2026-02-28T09:00", "2026-03-31T09:00"]
    assert times(Cron("*/15 9 * * MON-FRI"), ms(2026, 11, 20, 9, 50), 1) == ["2026-11-23T09:00"]


def test_seconds_come_first_in_six_fields():
    after = ms(2026, 1, 1)
    assert Cron("*/10 * * * * *").next_ms(after) == after + timedelta(seconds=10) // timedelta(milliseconds=1)


@pytest.mark.parametrize(
    "expression", ["", "* * * *", "61 * * * *", "0 0 30 2 *", "0 0 31 2,4 *", "@often", "a b c d e"]
)
def test_wrong_expression_is_refused(expression):
    with pytest.raises(ConfigError, match=r"five fields|comes round"):
        Cron(expression)


@pytest.mark.parametrize("zone", ["", "Mars/Base", "/etc/passwd", "../x"])
def test_unknown_zone_is_refused(zone):
    with pytest.raises(ConfigError, match="time zone"):
        Cron("* * * * *", zone)


@pytest.mark.parametrize("seconds", [0, -1, 0.01, float("nan"), float("inf"), True, "60", 1e9])
def test_wrong_interval_is_refused(seconds):
    with pytest.raises(ConfigError):
        Every(seconds)
