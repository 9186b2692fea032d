"""Laws of the entries of inboxes and replies: what is written comes back, and junk raises only ``WireError``."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flotta.errors import WireError
from flotta.pool.keys import SLOTS, check_key, slot_of
from flotta.pool.wire import Bell, Ring, parse_bell, parse_reply

keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
fences = st.integers(1, 2**53)
names = st.from_regex(r"[A-Za-z0-9._-]{1,10}", fullmatch=True)
junk = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.sampled_from([b"t", b"k", b"g", b"n", b"d", b"w", b"p", b"e", b"i"]),
        st.sampled_from([b"start", b"stop", b"note", b"started", b"failed", b"gone", b"stopped", b"result", b"wake"]),
        st.sampled_from([b"1", b"-1", b"1e3", "²".encode(), b"9" * 30]),
    ),
    max_size=12,
)


@given(st.lists(st.tuples(keys, fences, names), min_size=1, max_size=5))
def test_one_start_carries_several_jobs_in_order(jobs: list[tuple[str, int, str]]) -> None:
    fields = [b"t", b"start"]
    for key, fence, kind in jobs:
        fields += [b"k", key.encode(), b"g", str(fence).encode(), b"n", kind.encode()]
    assert parse_bell(fields) == [Bell("start", key, fence, kind) for key, fence, kind in jobs]


@given(names, st.lists(st.tuples(names, keys, fences), min_size=1, max_size=5))
def test_one_started_answers_several_dispatches_in_order(worker: str, jobs: list[tuple[str, str, int]]) -> None:
    fields = [b"t", b"started", b"w", worker.encode()]
    for did, key, fence in jobs:
        fields += [b"d", did.encode(), b"k", key.encode(), b"g", str(fence).encode()]
    assert parse_reply(fields) == [Ring("started", key, did, fence, worker) for did, key, fence in jobs]


@given(keys, st.binary(max_size=20), fences)
def test_other_entries_come_back_as_they_were_written(key: str, payload: bytes, fence: int) -> None:
    raw, token = key.encode(), str(fence).encode()
    assert parse_bell([b"t", b"note", b"k", raw, b"p", payload]) == [Bell("note", key, payload=payload)]
    for kind in ("stop", "cancel"):
        assert parse_bell([b"t", kind.encode(), b"k", raw, b"g", token]) == [Bell(kind, key, fence)]
    for kind in ("table", "wake", "shutdown", "nudge"):
        assert parse_bell([b"t", kind.encode(), b"e", b"1"]) == [Bell(kind)]
    for kind in ("failed", "gone"):
        fields = [b"t", kind.encode(), b"d", b"d1", b"k", raw, b"e", b"why"]
        assert parse_reply(fields) == [Ring(kind, key, "d1", error="why")]
    assert parse_reply([b"t", b"stopped", b"k", raw]) == [Ring("stopped", key)]
    done = [b"t", b"result", b"i", raw, b"s", b"done"]
    assert parse_reply(done) == [Ring("result", key, state="done")]
    assert parse_reply([*done, b"p", payload]) == [Ring("result", key, state="done", payload=payload)]


@given(junk)
@example([b"t", b"start", b"g", b"1"])
@example([b"t", b"started"])
def test_junk_raises_only_wire_errors(fields: list[bytes]) -> None:
    for parse in (parse_bell, parse_reply):
        with contextlib.suppress(WireError):
            parse(fields)


@pytest.mark.parametrize("field", [b"k", b"g", b"n"])
def test_a_start_without_one_of_its_fields_is_refused(field: bytes) -> None:
    entry = {b"k": b"key", b"g": b"1", b"n": b"kind"}
    del entry[field]
    with pytest.raises(WireError):
        parse_bell([b"t", b"start", *[part for pair in entry.items() for part in pair]])


@given(keys)
def test_every_key_has_one_slot(key: str) -> None:
    assert 0 <= slot_of(check_key(key)) < SLOTS
    assert slot_of(key) == slot_of(key)


def test_slots_are_those_of_crc32_for_ever() -> None:
    # Nodes of different versions must agree. 3421780262 is CRC-32's check value for "123456789".
    assert slot_of("123456789") == 3_421_780_262 % 4_096
