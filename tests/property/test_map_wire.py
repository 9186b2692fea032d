"""Laws of the map's wire format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotta.errors import InvalidName, WireError
from flotta.rmap.wire import (
    REVISION_MAX,
    Change,
    EventKind,
    Op,
    check_key,
    check_name,
    decode_key,
    encode,
    encode_key,
    encode_values,
    parse,
    parse_values,
    stored_state,
)

keys = st.binary(min_size=1).filter(lambda raw: b"=" not in raw).map(decode_key)
revisions = st.integers(0, REVISION_MAX)
changes = st.one_of(
    st.builds(Change, st.just(Op.SET), revisions, keys, st.binary()),
    st.builds(Change, st.just(Op.DEL), revisions, keys, st.none()),
    st.builds(Change, st.sampled_from([Op.RESET, Op.DESTROY]), revisions, st.just(""), st.none()),
)


@given(changes)
def test_a_message_comes_back_as_it_was(change: Change) -> None:
    assert parse(encode(change)) == change


@given(st.binary())
def test_junk_raises_only_wire_error(junk: bytes) -> None:
    for payload in (junk, b"set:" + junk, b"del:" + junk, b"reset:" + junk, b"destroy:" + junk):
        try:
            change = parse(payload)
        except WireError:
            continue
        assert encode(change)[:6] == payload[:6]


@given(changes, st.data())
def test_a_message_cut_or_lengthened_is_no_message_or_another_reset(change: Change, data: st.DataObject) -> None:
    payload = encode(change)
    cut = payload[: data.draw(st.integers(0, len(payload) - 1))]
    for broken in (cut, payload + b"x"):
        if change.op in (Op.RESET, Op.DESTROY) and broken.rpartition(b":")[2].isdigit():
            continue  # plain decimal text: a shorter number is a number, as it is for every reader of this format
        with pytest.raises(WireError):
            parse(broken)


@pytest.mark.parametrize(
    "payload",
    [
        b"reset:",
        b"reset:+1",
        b"reset: 1",
        b"reset:1_0",
        b"reset:-1",
        "reset:\u0661".encode(),
        b"reset:9223372036854775808",
    ],
)
def test_a_revision_is_plain_digits_of_63_bits(payload: bytes) -> None:
    with pytest.raises(WireError):
        parse(payload)


@pytest.mark.parametrize("key", [b"=rev", b"=kind", b"a=b", b""])
def test_a_message_about_the_maps_own_fields_is_refused(key: bytes) -> None:
    packed = len(key).to_bytes(4, "little") + key
    with pytest.raises(WireError):
        parse(b"del:" + packed + b"\x01\x00\x00\x001")


@given(st.binary(min_size=1))
def test_a_key_of_any_bytes_keeps_them(raw: bytes) -> None:
    assert encode_key(decode_key(raw)) == raw


@given(st.lists(st.text(), min_size=1))
def test_list_values_come_back(items: list[str]) -> None:
    encodable = [item.encode("utf-8", "ignore").decode() for item in items]
    assert parse_values(encode_values(encodable)) == encodable


@given(st.binary())
def test_any_value_can_be_read_as_a_list(raw: bytes) -> None:
    assert all(isinstance(item, str) for item in parse_values(raw))


@pytest.mark.parametrize(
    ("raw", "items"),
    [
        (b'["a","b"]', ["a", "b"]),
        (b' ["a"] ', ["a"]),
        (b"a,b", ["a", "b"]),
        (b"", [""]),
        (b"[1,2]", ["[1", "2]"]),
        (b'["a",null]', ["a", ""]),
        (b'["a"', ['["a"']),
        (b"[" * 100_000, ["[" * 100_000]),
        (b'["caf\xc3\xa9","\\/"]', ["café", "/"]),
    ],
)
def test_lists_are_read_as_go_reads_them(raw: bytes, items: list[str]) -> None:
    assert parse_values(raw) == items


@pytest.mark.parametrize("name", ["", " ", "a b", "a\0", "a*", "a?", "a[", "a]", "x" * 513, "\ud800", None, b"a"])
def test_a_bad_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert caught.value.kind == "map"


@pytest.mark.parametrize("name", ["a", "x" * 512, "stream:orders:sinks", "a=b", "ü", "a\nb", "{tag}"])
def test_a_good_name_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("key", ["", "=", "=rev", "a=b", 1, None, b"a", "\ud800"])
def test_a_bad_key_is_refused(key: object) -> None:
    with pytest.raises(InvalidName):
        check_key(key)


def test_the_stored_state_is_the_maps_own_two_fields() -> None:
    assert stored_state({}) == (0, EventKind.CHANGE)
    assert stored_state({b"=rev": b"7", b"=kind": b"destroy"}) == (7, EventKind.RESET)
    assert stored_state({b"=rev": b"7", b"=kind": b"of tomorrow"}) == (7, EventKind.CHANGE)
    with pytest.raises(WireError):
        stored_state({b"=rev": b"seven"})
