"""Laws of the quick codec: it says and reads what the standard library's does, and refuses what that refuses."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flotta.errors import PacketError
from flotta.realtime.adapters.wire import write_json
from flotta.realtime.socketio import packet as packets
from flotta.realtime.socketio.json_text import FORM, dump_json, load_json, refuse_constant
from flotta.realtime.socketio.packet import Decoder

anything = st.text(st.characters(), max_size=20)  # lone surrogates too
leaves = st.none() | st.booleans() | st.integers() | st.floats() | anything | st.binary(max_size=4)
keys = anything | st.integers() | st.floats() | st.none() | st.booleans()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(leaves)
    ),
    max_leaves=12,
)

careful_dump = json.JSONEncoder(**FORM).encode
careful_load = json.JSONDecoder(parse_constant=refuse_constant).decode


def _outcome(call: Any, value: Any) -> Any:
    try:
        return call(value)
    except (TypeError, ValueError, RecursionError) as error:
        return type(error) if not isinstance(error, ValueError) else ValueError


def _same(one: Any, two: Any) -> bool:
    return repr(one) == repr(two)  # tells 1 from 1.0 and True, and -0.0 from 0.0


@given(values)
def test_what_is_written_means_what_the_standard_library_writes(value: Any) -> None:
    expected, found = _outcome(careful_dump, value), _outcome(dump_json, value)
    if isinstance(expected, str):
        assert _same(json.loads(found), json.loads(expected))
    else:
        assert found is expected


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: int = 1


class Struct(msgspec.Struct):
    x: int = 1


REFUSED = [
    Colour.RED,
    Point(),
    Struct(),
    {1},
    frozenset(),
    b"x",
    bytearray(b"x"),
    decimal.Decimal("1.5"),
    uuid.UUID(int=1),
    datetime(2026, 1, 1, tzinfo=UTC),
    timedelta(seconds=1),
    float("nan"),
    [float("-inf")],
    msgspec.Raw(b"1"),
    {"x": msgspec.UNSET},
    {Colour.RED: 1},
    object(),
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_what_the_quick_one_takes_beyond_json_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        dump_json(value)


@pytest.mark.parametrize("value", [Word.A, Number.ONE, (1, (2,)), {1: 2, None: 3, False: 4}, 2**70, "\ud800"], ids=repr)
def test_what_only_the_careful_one_takes_is_taken(value: Any) -> None:
    assert dump_json(value) == careful_dump(value)
    assert json.loads(write_json([value])) == json.loads(json.dumps([value]))


def test_a_circle_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises((ValueError, RecursionError)):
        dump_json(circle)


JUNK = """[ ] { } , : " 1 -0 1e400 1E5 NaN Infinity null true "\\ud800" 0.1 18446744073709551616 "a" \\ \ufeff \x00 é
+1 01 .5 "\\u00e9" /**/ ' """
fragments = st.sampled_from([*JUNK.split(), " ", "\t"])
texts = st.lists(fragments, max_size=9).map("".join) | values.map(lambda value: str(_outcome(careful_dump, value)))


@given(texts)
@example('"\\ud83d\\ude00"')
@example("[" * 100_000)
def test_what_is_read_is_what_the_standard_library_reads(text: str) -> None:
    assert _same(_outcome(load_json, text), _outcome(careful_load, text))


heads = st.tuples(
    st.sampled_from(["2", "2", "2", "0", "3", "5", "x", ""]),
    st.sampled_from(["", "", "/", "/a,", "/[,", "1-"]),
    st.sampled_from(["", "7", "007", "999999999999999", "9999999999999999", "-1", "٣", "²", "1 "]),
).map("".join)
bodies = (
    st.sampled_from(['["a"]', '["a",1]', "[]", "[1]", '["connect"]', '["disconnecting",1]', "{}", "", '["a"', '["a"]x'])
    | texts
)


@given(heads, bodies)
def test_event_that_is_read_at_once_is_the_one_that_is_read_step_by_step(head: str, body: str) -> None:
    def in_steps(text: str) -> Any:
        found, attachments = packets._read_head(text, 16)
        return packets._read_body(found, []) if not attachments else None

    text = head + body
    try:
        expected: Any = in_steps(text)
    except PacketError as error:
        with pytest.raises(PacketError, match=error.reason.split(" ")[0]):
            Decoder().add(text)
    else:
        assert _same(Decoder().add(text), expected)
