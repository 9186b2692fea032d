"""The pure part of recovery against models that are too dumb to be wrong."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotta.errors import WireError
from flotta.realtime.adapters import Target
from flotta.realtime.adapters.wire import pack
from flotta.realtime.recovery.history import History, Past
from flotta.realtime.recovery.kept import Kept
from flotta.realtime.recovery.plan import Membership, StreamFacts, asked, begins, is_complete, revoked
from flotta.realtime.recovery.session import Session, Stay, User, mark, read_session, write_session

positions = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
few = st.tuples(st.integers(0, 6), st.integers(0, 2))
rooms = st.sampled_from(["a", "b", "c", "d"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
owners = st.text("ABCxyz019-_", min_size=18, max_size=18)
stays = st.builds(Stay, rooms, st.none() | positions, st.none() | positions)
sessions = st.builds(
    Session,
    sid=st.text(min_size=1, max_size=20),
    pid=st.text(min_size=1, max_size=20),
    rooms=st.lists(rooms).map(tuple),
    data=values,
    owner=owners,
    namespace=st.text(min_size=1, max_size=5),
    seen=st.none() | positions,
    stays=st.lists(stays, max_size=3).map(tuple),
    live=st.booleans(),
    user=st.none() | st.builds(User, st.text(), st.none() | st.floats(0, 1e12), st.floats(0, 1e12)),
)


@given(sessions)
def test_a_session_reads_as_it_was_written_and_begins_with_its_owners_mark(session: Session) -> None:
    value = write_session(session)
    assert read_session(value) == session
    assert value.startswith(mark(session.owner))


@given(sessions, owners)
def test_no_owner_has_the_mark_of_another(session: Session, other: str) -> None:
    if other != session.owner:
        assert not write_session(session).startswith(mark(other))


@given(st.text(min_size=1), st.text(min_size=1), st.lists(rooms), values)
def test_a_session_of_node_is_read(sid: str, pid: str, names: list[str], data: Any) -> None:
    value = base64.b64encode(pack({"sid": sid, "pid": pid, "rooms": names, "data": data}))
    assert read_session(value) == Session(sid, pid, tuple(names), data)


@given(st.binary(max_size=60) | values.map(pack).map(base64.b64encode))
def test_junk_for_a_session_raises_a_wire_error_only(value: bytes) -> None:
    with contextlib.suppress(WireError):
        read_session(value)


@given(sessions, st.integers(0, 400), st.binary(max_size=4))
def test_a_broken_session_raises_a_wire_error_only(session: Session, at: int, instead: bytes) -> None:
    value = write_session(session)
    at %= len(value)
    with contextlib.suppress(WireError):
        read_session(value[:at] + instead + value[at + len(instead) :])


@given(values)
def test_what_clients_say_of_their_session_is_checked(auth: Any) -> None:
    wanted = asked(auth)
    assert wanted is None or (auth["pid"] == wanted.pid and len(wanted.pid) <= 64)


@pytest.mark.parametrize("offset", ["tick", "", "1", "1-", "-1-2", "1-2-3", "99999999999999999999999-0", 5, [], "١-٢"])
def test_an_offset_that_is_none_recovers_nothing(offset: Any) -> None:
    assert asked({"pid": "p", "offset": offset}) is None


def _trimmed(entries: list[tuple[int, int]], cut: int) -> StreamFacts:
    ids = sorted(set(entries)) or [(0, 0)]
    left = ids[min(cut, len(ids)) :]
    return StreamFacts(left[0] if left else None, ids[-1])


@given(st.lists(few, min_size=1), st.integers(0, 8), few)
def test_a_stream_is_called_complete_only_if_nothing_behind_the_beginning_is_gone(
    entries: list[tuple[int, int]], cut: int, begin: tuple[int, int]
) -> None:
    ids = sorted(set(entries))
    facts = _trimmed(entries, cut)
    gone = ids[: min(cut, len(ids))]
    if is_complete(begin, facts):
        assert begin <= ids[-1]
        assert all(position <= begin for position in gone)
    elif begin in ids and begin not in gone:
        raise AssertionError("the client's last event is still there, so everything behind it is")


@given(sessions, st.none() | positions)
def test_the_replay_begins_at_the_later_of_what_both_sides_know(session: Session, offset: Any) -> None:
    known = {session.seen, offset} - {None}
    assert begins(session, offset) == (max(known) if known else None)


@given(
    st.lists(st.tuples(st.sampled_from(["join", "leave", "event", "settle"]), rooms), max_size=40),
    st.lists(rooms, max_size=2).map(tuple),
    st.lists(rooms, max_size=1).map(tuple),
)
def test_the_session_knows_of_every_event_since_the_last_pong_whether_it_was_for_the_socket(
    steps: list[tuple[str, str]], target_rooms: tuple[str, ...], except_rooms: tuple[str, ...]
) -> None:
    kept, now, inside = Kept("pid", "o" * 18, (0, 0)), 0, {"sid"}
    events: list[tuple[tuple[int, int], bool]] = []
    target = Target("/", target_rooms, except_rooms)
    seen = (0, 0)
    for what, room in steps:
        if what == "join" and room not in inside:
            inside.add(room)
            kept.joined(room, (now, 0))
        elif what == "leave" and room in inside:
            inside.discard(room)
            kept.quit(room, (now, 0))
        elif what == "event":
            now += 1
            wanted = not target_rooms or bool(inside & set(target_rooms))
            events.append(((now, 0), wanted and not inside & set(except_rooms)))
        elif what == "settle":
            seen = (now, 0)
            kept.settle(seen)
    session = read_session(write_session(kept.session("sid", "/", inside, {}, live=True)))
    membership = Membership(session)
    assert session.seen == seen
    for position, was_for_it in events:
        if position > seen:
            assert membership.gets(target, position) == was_for_it
    again = Kept.of(session, "p" * 18, seen)
    assert {*again.session("sid", "/", inside, {}, live=True).stays} == {*session.stays}


@given(st.lists(rooms, max_size=3).map(tuple), st.sets(rooms), st.booleans())
def test_an_event_is_revoked_if_only_rooms_that_were_taken_away_led_to_it(
    names: tuple[str, ...], gone: set[str], direct: bool
) -> None:
    target = Target("/", (*names, "sid") if direct else names)
    expected = bool(target.rooms) and set(target.rooms) <= gone
    assert revoked(target, gone, "sid") == expected


def _past(number: int, size: int = 1) -> Past:
    return Past((number, 0), "/", b"x" * size)


@given(
    st.integers(1, 20),
    st.integers(1, 30),
    st.lists(st.tuples(st.sampled_from(["append", "move", "back", "restart"]), st.integers(1, 9)), max_size=60),
)
def test_the_history_has_no_hole_and_stays_small(count_max: int, bytes_max: int, steps: list[tuple[str, int]]) -> None:
    """The model keeps every event for ever; the history must agree with it on everything behind its floor."""
    start = 1_000
    history = History((start, 0), count_max=count_max, bytes_max=bytes_max)
    model: list[int] = []
    older = list(range(500, start + 1))
    now = start
    for what, size in steps:
        now += 1
        if what == "append":
            history.append(_past(now, size))
            model.append(now)
        elif what == "move":
            history.move((now, 0))
        elif what == "restart":
            history.restart((now, 0))
        elif history.floor[0] > 500 + size:
            every = sorted({*older, *model})
            floor = history.floor[0]
            found = [number for number in every if floor - size < number <= floor]
            taken = history.extend_back([_past(number) for number in found], (floor - size, 0))
            assert taken <= len(found)
        every = [number for number in [*older, *model] if history.floor[0] < number <= now]
        assert [past.position[0] for past in history.after(history.floor)] == every
        assert len(history) <= count_max
        assert sum(past.size_bytes for past in history.after(history.floor)) <= bytes_max
