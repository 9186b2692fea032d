"""Laws of the cluster adapters' wire: what is written is read back, junk ends in WireError and nothing else."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flotta.errors import WireError
from flotta.realtime.adapters import Broadcast, Command, SocketFacts, Target, classic_wire
from flotta.realtime.adapters import cluster_wire as wire
from flotta.realtime.adapters.channels import ShardedChannels, channel
from flotta.realtime.adapters.cluster_wire import Message, MessageType
from flotta.realtime.adapters.streams_wire import is_ephemeral
from flotta.realtime.adapters.wire import (
    COUNT_MAX,
    Binary,
    _write_json_carefully,
    channel_bytes,
    load_json,
    write_json,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
surrogates = st.text(max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | surrogates
)
plain_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
values = st.recursive(
    scalars | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
uids = st.text("0123456789abcdef", min_size=16, max_size=16)
namespaces = st.just("/") | text.map(lambda name: "/" + name)
rooms = st.lists(text, max_size=3).map(tuple)
targets = st.builds(Target, namespaces, rooms, rooms)
events = st.tuples(text, st.lists(values, max_size=3)).map(lambda pair: [pair[0], *pair[1]])
ids = st.text("0123456789abcdef", min_size=16, max_size=16)


def _every_way(message: Message) -> list[Message]:
    """The message after each way that it can travel."""
    fields = wire.write_entry(message)
    entry = {_raw(name): _raw(value) for name, value in zip(fields[::2], fields[1::2], strict=True)}
    return [
        wire.read_message(wire.write_message(message)),
        wire.read_message(wire.pack_message(message)),
        wire.read_entry(entry),
    ]


def _raw(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


@given(uids, namespaces, st.sampled_from(MessageType), st.dictionaries(text, values, max_size=3))
def test_a_message_comes_back_from_every_way_it_travels(
    uid: str, namespace: str, kind: MessageType, data: dict[str, Any]
) -> None:
    message = Message(uid, namespace, kind, data)
    assert _every_way(message) == [message] * 3


@given(uids, targets, events, st.booleans(), st.none() | text)
def test_a_broadcast_comes_back(uid: str, target: Target, args: list[Any], volatile: bool, may_see: str | None) -> None:
    broadcast = Broadcast(target, args, volatile=volatile, may_see=may_see)
    for message in _every_way(wire.broadcast_message(uid, broadcast)):
        assert message.type is (MessageType.BROADCAST if may_see is None else MessageType.FILTERED)
        assert wire.read_broadcast(message) == broadcast
        with pytest.raises(WireError):
            wire.read_question(message)


@given(uids, targets, events, ids, st.integers(0, 599_999))
def test_a_question_comes_back(uid: str, target: Target, args: list[Any], request_id: str, ms: int) -> None:
    data = wire.question_data(target, args, request_id, ms / 1000)
    for message in _every_way(Message(uid, target.namespace, MessageType.BROADCAST, data)):
        assert wire.read_question(message) == (target, args, request_id, ms / 1000, True)


@given(uids, targets, st.sampled_from(Command), rooms, st.booleans())
def test_a_command_comes_back(uid: str, target: Target, command: Command, names: tuple[str, ...], close: bool) -> None:
    kind, data = wire.command_data(command, target, list(names), close=close)
    given_rooms = () if command is Command.DISCONNECT else names
    given_close = close and command is Command.DISCONNECT
    for message in _every_way(Message(uid, target.namespace, kind, data)):
        assert wire.read_command(message) == (command, target, given_rooms, given_close)


@given(
    uids,
    targets,
    ids,
    st.lists(
        st.builds(
            SocketFacts, text, st.frozensets(text, max_size=3), st.dictionaries(text, plain_values, max_size=2), values
        ),
        max_size=3,
    ),
)
def test_a_fetch_and_its_answer_come_back(uid: str, target: Target, request_id: str, sockets: list[Any]) -> None:
    asked = Message(uid, target.namespace, MessageType.FETCH_SOCKETS, wire.fetch_data(target, request_id))
    for message in _every_way(asked):
        assert wire.read_fetch(message) == (target, request_id)
    kind, data = MessageType.FETCH_SOCKETS_RESPONSE, wire.found_data(sockets, request_id)
    for message in _every_way(Message(uid, target.namespace, kind, data)):
        assert wire.read_found(message) == (request_id, sockets)


@given(uids, events, st.none() | ids, st.lists(values, max_size=3), st.integers(0, COUNT_MAX))
def test_events_between_servers_counts_and_answers_come_back(
    uid: str, args: list[Any], request_id: str | None, answers: list[Any], count: int
) -> None:
    asked = Message(uid, "/", MessageType.SERVER_SIDE_EMIT, wire.server_side_data(args, request_id))
    assert all(wire.read_event(message) == (args, request_id) for message in _every_way(asked))
    counted = Message(uid, "/", MessageType.BROADCAST_CLIENT_COUNT, wire.count_data(count, "q"))
    assert all(wire.read_count(message) == ("q", count) for message in _every_way(counted))
    for kind in (MessageType.BROADCAST_ACK, MessageType.SERVER_SIDE_EMIT_RESPONSE):
        answered = Message(uid, "/", kind, wire.ack_data(answers, "q"))
        assert all(wire.read_ack(message) == ("q", answers) for message in _every_way(answered))


@given(uids, uids, st.sampled_from(MessageType), st.dictionaries(text, values, max_size=2))
def test_the_opening_tells_own_messages_from_all_others(
    uid: str, other: str, kind: MessageType, data: dict[str, Any]
) -> None:
    openings = wire.own_openings(uid)
    for write in (wire.write_message, wire.pack_message):
        assert write(Message(uid, "/", kind, data)).startswith(openings)
        assert write(Message(other, "/", kind, data)).startswith(openings) is (uid == other)


def test_bytes_decide_between_json_and_messagepack() -> None:
    plain = Message("ab", "/", MessageType.SERVER_SIDE_EMIT, {"packet": ["e", "é"]})
    binary = Message("ab", "/", MessageType.SERVER_SIDE_EMIT, {"packet": ["e", {"deep": [b"\x00"]}]})
    assert json.loads(wire.write_message(plain)) == {"uid": "ab", "nsp": "/", "type": 9, "data": plain.data}
    assert msgpack.unpackb(wire.write_message(binary)) == {"uid": "ab", "nsp": "/", "type": 9, "data": binary.data}
    assert wire.write_entry(plain)[:7] == ["uid", "ab", "nsp", "/", "type", "9", "data"]
    assert wire.write_entry(plain)[7] == '{"packet":["e","é"]}'.encode()
    assert wire.write_entry(binary)[7] == b"gaZwYWNrZXSSoWWBpGRlZXCRxAEA"


_FORGED = st.fixed_dictionaries(
    {},
    optional={
        "uid": st.just("u") | values,
        "nsp": st.just("/") | values,
        "type": st.integers(-1, 14) | values,
        "data": values
        | st.fixed_dictionaries(
            {},
            optional={
                "opts": values
                | st.fixed_dictionaries({}, optional={"rooms": values, "except": values, "flags": values}),
                "packet": values | st.fixed_dictionaries({}, optional={"type": st.just(2) | values, "data": values}),
                "requestId": values,
                "rooms": values,
                "close": values,
                "sockets": values | st.lists(st.fixed_dictionaries({}, optional={"id": values, "rooms": values})),
                "clientCount": values,
            },
        ),
    },
)
_READERS = [
    wire.read_broadcast,
    wire.read_question,
    wire.read_gone,
    wire.read_command,
    wire.read_fetch,
    wire.read_event,
    wire.read_found,
    wire.read_count,
    wire.read_ack,
]


def _read_all(message: Message) -> None:
    for reader in _READERS:
        with contextlib.suppress(WireError):
            reader(message)
        assert message.uid.isascii(), "the uid is part of a channel"  # empty where a history keeps what it read


@given(_FORGED)
@example({"uid": ""})
def test_a_forged_message_raises_only_wire_error(fields: dict[str, Any]) -> None:
    fields = {"uid": "u", "nsp": "/", "type": 3, **fields} if fields.get("type") is None else fields
    with contextlib.suppress(WireError):
        _read_all(wire.read_message(msgpack.packb(fields, unicode_errors="surrogatepass")))


@given(st.binary(max_size=60))
def test_junk_raises_only_wire_error(junk: bytes) -> None:
    for payload in (junk, b"{" + junk):
        with contextlib.suppress(WireError):
            _read_all(wire.read_message(payload))
    for entry in ({b"uid": junk}, {b"uid": b"u", b"nsp": b"/", b"type": junk[:2], b"data": junk}):
        with contextlib.suppress(WireError):
            _read_all(wire.read_entry(entry))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"{}",
        b"[" * 100_000,
        b'{"uid":"u","nsp":"/","type":3,"data":' + b"[" * 50_000,
        b'{"uid":"u","nsp":"/","type":3,"data":{"n":NaN}}',
        b'{"uid":"u","nsp":"/","type":' + b"9" * 5_000 + b"}",
        b'{"uid":"u","nsp":"/","type":true}',
        b'{"uid":"u","nsp":"/","type":14}',
        b'{"uid":"u","nsp":"/","type":"3"}',
        b'{"uid":"' + b"u" * 65 + b'","nsp":"/","type":2}',
        b"\x91" * 2_000 + b"\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_known_junk_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        wire.read_message(payload)


@given(surrogates)
def test_every_room_has_a_channel_and_a_well_formed_one_its_own(name: str) -> None:
    found = channel_bytes(name)
    assert found.decode() or not name
    with contextlib.suppress(UnicodeEncodeError):
        assert found == name.encode()


_odd = st.just(2**80) | st.just(-(2**70)) | st.datetimes(timezones=st.just(UTC)) | st.text(max_size=3)
_odd_values = st.recursive(
    scalars | _odd,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(text | st.integers() | st.booleans() | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_odd_values)
def test_the_quick_json_says_what_the_careful_one_says(value: Any) -> None:
    quick, careful = write_json(value), _write_json_carefully(value)
    assert json.loads(quick) == json.loads(careful)
    assert load_json(careful) == json.loads(careful)
    assert load_json(quick) == json.loads(quick)


@pytest.mark.parametrize("value", [b"", [bytearray(b"x")], {"a": (memoryview(b"x"),)}])
def test_bytes_are_refused_as_such(value: Any) -> None:
    with pytest.raises(Binary):
        write_json(value)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], object(), {(1, 2): 3}, datetime(2026, 1, 1)])  # noqa: DTZ001
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        write_json(value)


@pytest.mark.parametrize("count", [None, True, -1, 1.0, "1", COUNT_MAX + 1])
def test_a_number_of_clients_that_cannot_be_is_junk_on_either_wire(count: Any) -> None:
    with pytest.raises(WireError):
        wire.read_count(Message("u", "/", MessageType.BROADCAST_CLIENT_COUNT, {"requestId": "q", "clientCount": count}))
    with pytest.raises(WireError):
        classic_wire.read_count(classic_wire.Response("q", 8, {"clientCount": count}))


# --- where messages go ---

MESSAGES = {
    "all": wire.broadcast_message("u", Broadcast(Target("/n"), ["e"])),
    "room": wire.broadcast_message("u", Broadcast(Target("/n", ("r",)), ["e"])),
    "rooms": wire.broadcast_message("u", Broadcast(Target("/n", ("r", "s")), ["e"])),
    "client": wire.broadcast_message("u", Broadcast(Target("/n", ("A" * 20,)), ["e"])),
    "filtered": wire.broadcast_message("u", Broadcast(Target("/n", ("r",)), ["e"], may_see="f")),
    "question": Message("u", "/n", MessageType.BROADCAST, wire.question_data(Target("/n", ("r",)), ["e"], "u-1", 1.0)),
    "command": Message("u", "/n", *wire.command_data(Command.JOIN, Target("/n", ("r",)), ["s"], close=False)),
    "fetch": Message("u", "/n", MessageType.FETCH_SOCKETS, wire.fetch_data(Target("/n", ("r",)), "u-1")),
    "server side": Message("u", "/n", MessageType.SERVER_SIDE_EMIT, wire.server_side_data(["e"])),
}


@pytest.mark.parametrize(
    ("mode", "own"),
    [
        ("static", {}),
        ("dynamic", {"room": b"r"}),
        ("dynamic-private", {"room": b"r", "client": b"A" * 20}),
    ],
)
def test_only_broadcasts_to_one_room_leave_the_channel_of_all_servers(mode: Any, own: dict[str, bytes]) -> None:
    channels = ShardedChannels("p", "/n", mode)
    expected = dict.fromkeys(MESSAGES, b"p#/n#") | {"filtered": b"p-filtered#/n#"}
    expected |= {name: b"p#/n#%b#" % room for name, room in own.items()}
    assert {name: channels.of(message) for name, message in MESSAGES.items()} == expected
    assert channels.of_server("u") == channel("p", "/n", "u") == b"p#/n#u#"


def test_what_nobody_wants_later_is_not_for_the_stream() -> None:
    assert {name for name, message in MESSAGES.items() if is_ephemeral(message)} == {
        "question",
        "fetch",
        "server side",
    }
