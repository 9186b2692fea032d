"""Laws of the pure room of streams: ids, names, where to start, filters, and what is made of bytes from outside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotta.errors import InvalidName, WireError
from flotta.streaming import BYTES
from flotta.streaming.event import (
    Accept,
    Origin,
    TopicFilter,
    check_name,
    count_gap,
    event_fields,
    format_id,
    parse_entries,
    parse_id,
    start_id,
    ulid,
)
from flotta.streaming.membership import is_dead

U64 = st.integers(0, 2**64 - 1)
IDS = st.tuples(U64, U64)
TOPICS = st.none() | st.text(min_size=1, max_size=20)
EVERYTHING = Accept(TopicFilter(), "me")
ORIGIN = Origin("s", BYTES)


def encoded(fields: list[bytes | str]) -> list[bytes]:
    return [field.encode() if isinstance(field, str) else field for field in fields]


@given(IDS)
def test_an_id_survives_its_text(event_id: tuple[int, int]) -> None:
    assert parse_id(format_id(event_id)) == event_id
    assert parse_id(format_id(event_id).encode()) == event_id


@given(IDS, IDS)
def test_ids_order_by_time_then_sequence(one: tuple[int, int], two: tuple[int, int]) -> None:
    assert (parse_id(format_id(one)) < parse_id(format_id(two))) == (
        one[0] < two[0] or (one[0] == two[0] and one[1] < two[1])
    )


@given(st.text() | st.binary())
def test_junk_is_no_id_and_raises_only_wire_error(junk: str | bytes) -> None:
    try:
        parse_id(junk)
    except WireError:
        pass
    else:
        text = junk if isinstance(junk, str) else junk.decode()
        assert text.replace("-", "", 1).isdigit()


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1", "1-2-3", "18446744073709551616-0", "0-18446744073709551616", "١-٢"]
)
def test_no_id(text: str) -> None:
    with pytest.raises(WireError):
        parse_id(text)


@given(st.text(min_size=1, max_size=30), st.binary(max_size=200), TOPICS)
def test_an_event_survives_the_wire(name: str, data: bytes, topic: str | None) -> None:
    parsed = parse_entries([[b"5-1", encoded(event_fields(name, data, topic))]], ORIGIN, EVERYTHING, 3)
    (event,) = parsed.events
    assert (event.id, event.name, event.data, event.payload, event.topic) == ("5-1", name, data, data, topic)
    assert (event.stream, event.deliveries, parsed.last_id) == ("s", 3, "5-1")


@given(st.lists(st.binary(max_size=8), max_size=12).filter(lambda fields: len(fields) % 2 == 0))
def test_foreign_entries_are_set_apart_and_never_raise(fields: list[bytes]) -> None:
    parsed = parse_entries([[b"1-1", fields], [b"1-2", None]], ORIGIN, EVERYTHING, 1)
    assert len(parsed.events) + len(parsed.filtered) + len(parsed.malformed) == 2
    assert parsed.malformed[-1] == "1-2"
    assert parsed.last_id == "1-2"


@given(st.lists(TOPICS, max_size=20), st.text(min_size=1, max_size=3))
def test_a_topic_filter_parts_the_entries_and_keeps_their_order(topics: list[str | None], wanted: str) -> None:
    entries = [[b"1-%d" % n, encoded(event_fields("n", b"", topic))] for n, topic in enumerate(topics)]
    parsed = parse_entries(entries, ORIGIN, Accept(TopicFilter(topic=wanted)), 1)
    assert [event.id for event in parsed.events] == [f"1-{n}" for n, topic in enumerate(topics) if topic == wanted]
    assert [event.topic for event in parsed.events] == [topic for topic in topics if topic == wanted]
    assert len(parsed.events) + len(parsed.filtered) == len(topics)


def test_a_pattern_is_found_anywhere_in_the_topic_as_in_pulse() -> None:
    only = TopicFilter(pattern="or")
    assert only.passes("orders")
    assert only.passes("floor")
    assert not only.passes("payments")
    assert not only.passes(None)
    assert TopicFilter(pattern="^$").passes(None)


@pytest.mark.parametrize("wrong", [{"topic": ""}, {"pattern": "("}, {"topic": "a", "pattern": "b"}])
def test_a_filter_that_means_nothing_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"topic|pattern"):
        TopicFilter(**wrong)


def test_a_redriven_event_is_for_one_sink() -> None:
    entry = [b"1-1", [b"n", b"x", b"p", b"", b"g", b"me"]]
    assert parse_entries([entry], ORIGIN, EVERYTHING, 1).events
    assert parse_entries([entry], ORIGIN, Accept(TopicFilter(), "other"), 1).filtered == ["1-1"]
    assert parse_entries([entry], ORIGIN, Accept(TopicFilter()), 1).filtered == ["1-1"]


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001
def test_a_start_time_includes_its_own_millisecond_and_nothing_before(moment: datetime) -> None:
    at = moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
    ms = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    bound = parse_id(start_id(at))
    assert bound < (ms, 0)
    assert bound == (ms - 1, 2**64 - 1)


def test_where_to_start() -> None:
    assert start_id("new") == "$"
    assert start_id("oldest") == "0-0"
    assert start_id("7-3") == "7-3"
    with pytest.raises(WireError):
        start_id("newest")
    with pytest.raises(ValueError, match="time zone"):
        start_id(datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("name", ["", "a b", "a*", "a?", "[a]", "a\0", "x" * 513])
def test_names_that_pulse_refuses(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name("stream", name)


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10), st.integers(0, 2**48 - 1))
def test_ulids_have_their_form_and_order_by_time(now_ms: int, chance: bytes, other_ms: int) -> None:
    name = ulid(now_ms, chance)
    assert len(name) == 26
    assert set(name) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    if now_ms != other_ms:
        assert (name < ulid(other_ms, chance)) == (now_ms < other_ms)


def test_a_known_ulid() -> None:
    assert ulid(0, bytes(10)) == "0" * 26
    assert ulid(2**48 - 1, b"\xff" * 10) == "7" + "Z" * 25


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_the_gap_is_what_was_trimmed_and_not_read(read: int, unread: int, trimmed: int) -> None:
    added = read + unread
    trimmed = min(trimmed, added)
    stored = added - trimmed
    first = [b"%d-0" % (trimmed + 1), []] if stored else None
    stream = {b"entries-added": added, b"length": stored, b"first-entry": first, b"max-deleted-entry-id": b"0-0"}
    assert count_gap(stream, {b"entries-read": read}) == max(0, trimmed - read)


def test_a_gap_that_cannot_be_told_is_none() -> None:
    stream = {b"entries-added": 9, b"length": 3, b"first-entry": [b"5-0", []], b"max-deleted-entry-id": b"6-0"}
    assert count_gap(stream, {b"entries-read": 1}) is None
    assert count_gap({b"length": 3, b"first-entry": None}, {b"entries-read": 1}) is None
    assert count_gap(stream | {b"max-deleted-entry-id": b"0-0"}, {b"entries-read": None}) is None


@given(st.integers(0, 10**6), st.none() | st.integers(0, 2**63), st.integers(0, 10**13))
def test_a_consumer_is_dead_only_if_both_signs_are_old(idle_ms: int, alive_ns: int | None, now_ms: int) -> None:
    keepalive = None if alive_ns is None else str(alive_ns).encode()
    old = now_ms - (alive_ns or 0) // 1_000_000 > 40_000
    assert is_dead(idle_ms, keepalive, now_ms, 20.0) == (idle_ms > 40_000 and old)
    assert is_dead(40_001, b"junk", 10**12, 20.0)
