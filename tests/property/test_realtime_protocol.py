"""Laws of the pure rooms: what goes on the wire comes back, and junk ends in PacketError and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotta.errors import PacketError, WireError
from flotta.realtime.adapters import Broadcast, Command, Target
from flotta.realtime.adapters.classic_wire import (
    Channels,
    read_broadcast,
    read_request,
    write_broadcast,
    write_command,
)
from flotta.realtime.engineio import packet as engine_packet
from flotta.realtime.engineio import session as engine
from flotta.realtime.engineio.packet import encode_payload, read_payload
from flotta.realtime.engineio.session import Session
from flotta.realtime.engineio.wheel import Wheel
from flotta.realtime.rooms import Rooms
from flotta.realtime.socketio import connection as sio
from flotta.realtime.socketio.connection import Connection
from flotta.realtime.socketio.packet import RESERVED_EVENTS, Decoder, Packet, PacketType, encode
from flotta.realtime.transports.websocket import OP_BINARY, OP_TEXT, FrameReader, WebSocketError, _unmask_slowly, frame

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text
)
keys = text.filter(lambda key: key != "_placeholder")
values = st.recursive(
    scalars | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
events = text.filter(lambda name: name not in RESERVED_EVENTS)
namespaces = st.just("/") | st.text("abc/_-.é", max_size=20).map(lambda name: "/x" + name)
ack_ids = st.none() | st.integers(0, 10**15 - 1)


def _decode(decoder: Decoder, text_part: str, attachments: tuple[bytes, ...]) -> Packet | None:
    packet = decoder.add(text_part)
    for part in attachments:
        assert packet is None
        packet = decoder.add(part)
    return packet


@given(namespaces, events, st.lists(values, max_size=4), ack_ids)
def test_event_comes_back_as_it_was_sent(namespace: str, name: str, data: list[Any], ack_id: int | None) -> None:
    packet = Packet(PacketType.EVENT, namespace, [name, *data], ack_id)
    wire = encode(packet)
    assert _decode(Decoder(attachments_max=1_000), wire.text, wire.attachments) == packet


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_junk_for_the_decoder_raises_only_packet_error(junk: str | bytes) -> None:
    with contextlib.suppress(PacketError):
        Decoder().add(junk)


@given(st.text('0123456-[]{}",:/abnul\\_eplachodr?', max_size=60))
def test_near_packets_raise_only_packet_error(junk: str) -> None:
    decoder = Decoder()
    with contextlib.suppress(PacketError):
        if decoder.add(junk) is None:
            decoder.add(b"attachment")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "7",
        "9x",
        "2",
        "2[]",
        "2{}",
        "2[1.5]",
        "2[true]",
        "2[1e400]",
        '2["connect"]',
        '2["disconnect"]',
        '2["a"',
        '2["a",NaN]',
        "2" + "1" * 17 + '["a"]',
        "3[]",
        "3x[]",
        '0"text"',
        "0[]",
        "1{}",
        '5["a"]',
        '5x-["a"]',
        '517-["a"]',
        '599999-["a"]',
        '5-["a"]',
        "2" + "[" * 100_000,
        "0/" + "n" * 300 + ",",
    ],
)
def test_malformed_packet_is_refused(bad: str) -> None:
    with pytest.raises(PacketError):
        Decoder().add(bad)


def test_number_as_the_name_of_an_event_is_its_text_as_javascript_writes_it() -> None:
    for wire, name in (("2[7,1]", "7"), ("2/x,3[-1.0,1]", "-1"), ("2[1e3,1]", "1000")):
        packet = Decoder().add(wire)
        assert packet is not None
        assert packet.data == [name, 1]


def test_placeholder_without_its_attachment_is_refused() -> None:
    for number in (1, -1, True, "0", None, 0.0):
        decoder = Decoder()
        assert decoder.add("51-" + json.dumps(["a", {"_placeholder": True, "num": number}])) is None
        with pytest.raises(PacketError):
            decoder.add(b"x")


def test_text_between_attachments_is_refused_and_so_is_an_attachment_of_nothing() -> None:
    decoder = Decoder()
    decoder.add('51-["a",{"_placeholder":true,"num":0}]')
    with pytest.raises(PacketError):
        decoder.add('2["b"]')
    with pytest.raises(PacketError):
        Decoder().add(b"x")


@given(st.binary(max_size=30))
def test_binary_message_may_come_as_base64_over_websocket_too(data: bytes) -> None:
    assert engine_packet.decode(encode_payload([data])) == (engine_packet.PacketType.MESSAGE, data)
    with pytest.raises(PacketError):
        engine_packet.decode("b!")


@given(st.lists(text.map(lambda t: "4" + t.replace("\x1e", "")) | st.binary(max_size=30), min_size=1, max_size=8))
def test_polling_payload_comes_back(packets: list[str | bytes]) -> None:
    decoded = list(read_payload(encode_payload(packets)))
    assert [packet.data if isinstance(packet.data, bytes) else "4" + packet.data for packet in decoded] == packets


@given(st.text(max_size=60))
def test_junk_payload_raises_only_packet_error(junk: str) -> None:
    with contextlib.suppress(PacketError):
        list(read_payload(junk))


# --- machines ---


@given(
    st.lists(
        st.tuples(st.sampled_from(["tick", "pong", "message", "ping", "close", "lost", "junk"]), st.floats(0, 30)),
        max_size=30,
    )
)
def test_session_ends_once_and_never_waits_longer_than_interval_and_timeout(steps: list[tuple[str, float]]) -> None:
    inputs: dict[str, engine.Event] = {
        "tick": engine.Tick(),
        "pong": engine.Received("3"),
        "message": engine.Received('42["a"]'),
        "ping": engine.Received("2"),
        "close": engine.Received("1"),
        "lost": engine.Lost(),
        "junk": engine.Received("x"),
    }
    session = Session(0.0, ping_interval_s=25.0, ping_timeout_s=20.0)
    now_s, ends = 0.0, 0
    for name, wait_s in steps:
        now_s += wait_s
        was_over = session.state is engine.State.ENDED
        actions = session.on_event(inputs[name], now_s)
        ends += sum(isinstance(action, engine.End) for action in actions)
        assert not (was_over and actions)
        assert session.due_s <= now_s + 25.0 or session.state is engine.State.ENDED
    assert ends == (session.state is engine.State.ENDED)


def test_silent_client_is_pinged_then_ended() -> None:
    session = Session(0.0, ping_interval_s=25.0, ping_timeout_s=20.0)
    assert session.on_event(engine.Tick(), 24.9) == ()
    assert session.on_event(engine.Tick(), 25.0) == (engine.Send("2"),)
    assert session.on_event(engine.Tick(), 44.9) == ()
    assert session.on_event(engine.Tick(), 45.0) == (engine.End("ping timeout", 1001),)


@given(
    st.lists(
        st.sampled_from(
            [
                "0",
                '0{"a":1}',
                "1",
                '2["e"]',
                '20["e"]',
                '30["r"]',
                "accept",
                "refuse",
                "leave",
                "2x",
                "0/b,",
                '2/b,["e"]',
            ]
        ),
        max_size=20,
    )
)
def test_connection_hands_events_up_from_its_connect_on_and_answers_only_while_connected(steps: list[str]) -> None:
    connection = Connection(0.0, attachments_max=16)
    aborted = False
    for step in steps:
        before = {name: connection.state(name) for name in ("/", "/b")}
        event: sio.Event = sio.Message(step)
        if step == "accept":
            event = sio.Accept("/", "sid")
        elif step == "refuse":
            event = sio.Refuse("/", "no")
        elif step == "leave":
            event = sio.Leave("/")
        actions = connection.on_event(event, 0.0)
        assert not (aborted and actions)
        for action in actions:
            if isinstance(action, sio.HandleEvent):
                assert before[action.namespace] in {sio.State.CONNECTING, sio.State.CONNECTED}
            elif isinstance(action, sio.Acked):
                assert before[action.namespace] is sio.State.CONNECTED
            aborted = aborted or isinstance(action, sio.Abort)


def test_event_that_crossed_our_disconnect_is_dropped_but_one_before_connect_ends_the_connection() -> None:
    connection = Connection(0.0, attachments_max=16)
    connection.on_event(sio.Message("0"), 0.0)
    connection.on_event(sio.Accept("/", "sid"), 0.0)
    connection.on_event(sio.Leave("/"), 0.0)
    assert connection.on_event(sio.Message('2["late"]'), 0.0) == ()
    fresh = Connection(0.0, attachments_max=16)
    assert isinstance(fresh.on_event(sio.Message('2["early"]'), 0.0)[0], sio.Abort)


def test_event_that_does_not_wait_for_the_answer_to_its_connect_is_handed_up_until_a_refusal_is_sent() -> None:
    connection = Connection(0.0, attachments_max=16)
    connection.on_event(sio.Message("0"), 0.0)
    assert connection.on_event(sio.Message('27["early"]'), 0.0) == (sio.HandleEvent("/", ["early"], 7),)
    assert connection.on_event(sio.Message('30["of an earlier connection"]'), 0.0) == ()
    connection.on_event(sio.Refuse("/", "no"), 0.0)
    assert connection.on_event(sio.Message('2["late"]'), 0.0) == (sio.Abort(sio.PARSE_ERROR),)


def test_who_is_let_go_without_a_word_while_the_connect_handler_decides_has_left() -> None:
    connection = Connection(0.0, attachments_max=16)
    connection.on_event(sio.Message("0"), 0.0)
    assert connection.on_event(sio.Leave("/"), 0.0) == ()
    assert connection.on_event(sio.Message('2["late"]'), 0.0) == ()
    assert connection.on_event(sio.Accept("/", "sid"), 0.0) == ()
    assert connection.on_event(sio.Message("0"), 0.0) == (sio.AskConnect("/", None),)


def test_message_rate_allows_a_burst_of_one_second_and_no_more() -> None:
    connection = Connection(0.0, attachments_max=16, rate_max=10.0)
    connection.on_event(sio.Message("0"), 0.0)
    connection.on_event(sio.Accept("/", "sid"), 0.0)
    for _ in range(9):
        assert connection.on_event(sio.Message('2["e"]'), 0.0)
    assert connection.on_event(sio.Message('2["e"]'), 0.1) != (sio.Abort(sio.RATE_LIMIT),)
    assert connection.on_event(sio.Message('2["e"]'), 0.1) == (sio.Abort(sio.RATE_LIMIT),)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 4), st.booleans()), max_size=40))
def test_wheel_gives_every_key_when_it_is_due_and_only_then(steps: list[tuple[int, float, bool]]) -> None:
    wheel: Wheel[int] = Wheel(5.0)
    due: dict[int, float] = {}
    now_s = 0.0
    for key, wait_s, drop in steps:
        now_s += wait_s
        taken = wheel.take_due(now_s)
        assert set(taken) == {other for other, at_s in due.items() if at_s <= now_s}
        for other in taken:
            del due[other]
        if drop:
            wheel.drop(key)
            due.pop(key, None)
        else:
            wheel.put(key, now_s)
            due[key] = now_s + 5.0
        assert len(wheel) == len(due)


# --- rooms ---

_steps = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "join", "leave"]), st.integers(0, 5), st.sampled_from("abc")),
    max_size=60,
)


_targets = st.lists(st.sampled_from("abc"), max_size=3)
_excluded = st.lists(st.sampled_from(["a", "b", "s0", "s1"]), max_size=2)


@given(_steps, _targets, _excluded)
def test_rooms_agree_with_a_dumb_model(
    steps: list[tuple[str, int, str]], targets: list[str], excluded: list[str]
) -> None:
    rooms: Rooms[str] = Rooms()
    model: dict[str, set[str]] = {}
    for what, number, room in steps:
        sid = f"s{number}"
        if what == "add" and sid not in model:
            rooms.add(sid, sid.upper())
            model[sid] = {sid}
        elif what == "remove":
            assert rooms.remove(sid) == (sid.upper() if model.pop(sid, None) else None)
        elif what == "join":
            assert rooms.join(sid, room) is (sid in model)
            if sid in model:
                model[sid].add(room)
        elif what == "leave":
            assert rooms.leave(sid, room) is (room in model.get(sid, set()))
            model.get(sid, set()).discard(room)
    expected = sorted(
        sid.upper()
        for sid, entered in model.items()
        if (not targets or entered & set(targets)) and not entered & set(excluded)
    )
    assert sorted(rooms.recipients(targets, excluded)) == expected
    assert set(rooms.names()) == {room for entered in model.values() for room in entered if not room.startswith("s")}
    for sid, entered in model.items():
        assert rooms.rooms_of(sid) == entered


# --- WebSocket frames ---


def _read(reader: FrameReader, data: bytes, most: int | None = None) -> list[Any]:
    """Feed the reader and take at most so many messages."""
    reader.feed(data)
    return list(itertools.islice(iter(reader.take, None), most))


def _masked(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    size = len(payload)
    first = (0x80 if fin else 0) | opcode
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + mask + _unmask_slowly(payload, mask)


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.binary(max_size=300) | st.sampled_from([b"x" * 65_535, b"y" * 65_536]), st.integers(1, 3)
        ),
        max_size=5,
    ),
    st.data(),
)
def test_frames_survive_any_cut_and_any_fragmentation(
    messages: list[tuple[bool, bytes, int]], data: st.DataObject
) -> None:
    stream, expected = b"", []
    for is_text, payload, pieces in messages:
        if is_text:
            payload = payload.hex().encode()  # noqa: PLW2901
        step = len(payload) // pieces + 1
        parts = [payload[at : at + step] for at in range(0, len(payload), step)] or [b""]
        for number, part in enumerate(parts):
            opcode = 0 if number else (OP_TEXT if is_text else OP_BINARY)
            stream += _masked(opcode, part, fin=number == len(parts) - 1)
            if number < len(parts) - 1:
                stream += _masked(0x9, b"ping between fragments")
                expected.append((0x9, b"ping between fragments"))
        expected.append((OP_TEXT, payload.decode()) if is_text else (OP_BINARY, payload))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader, got = FrameReader(1_000_000), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        # Who has enough to do takes less than there is, and the rest later.
        got += _read(reader, stream[begin:end], data.draw(st.integers(0, 3) | st.none()))
    assert got + _read(reader, b"") == expected


def test_what_came_before_a_broken_frame_is_still_given() -> None:
    reader = FrameReader(1_000)
    reader.feed(_masked(OP_TEXT, b"good") + _masked(0x3, b"bad"))
    assert reader.take() == (OP_TEXT, "good")
    with pytest.raises(WebSocketError):
        reader.take()


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_junk_frames_raise_only_websocket_error(chunks: list[bytes]) -> None:
    reader = FrameReader(1_000)
    with contextlib.suppress(WebSocketError):
        for chunk in chunks:
            _read(reader, chunk)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(OP_TEXT, b"unmasked"), 1002),
        (_masked(0x3, b""), 1002),
        (b"\xc1\x80\x00\x00\x00\x00", 1002),
        (_masked(0x9, b"x" * 126), 1002),
        (_masked(0x9, b"", fin=False), 1002),
        (_masked(0x0, b"continues nothing"), 1002),
        (_masked(0x1, b"a", fin=False) + _masked(0x1, b"b"), 1002),
        (_masked(0x1, b"\xff"), 1007),
        (struct.pack("!BBQ", 0x82, 0xFF, 2**40), 1009),
        (_masked(0x2, b"x" * 600, fin=False) + _masked(0x0, b"x" * 600), 1009),
        (_masked(0x2, b"", fin=False) + _masked(0x0, b"", fin=False) * 50, 1009),
    ],
)
def test_frame_that_breaks_the_protocol_names_its_close_code(data: bytes, code: int) -> None:
    with pytest.raises(WebSocketError) as caught:
        _read(FrameReader(1_000), data + b"\x00" * 14)
    assert caught.value.code == code


@given(st.binary(max_size=200), st.binary(min_size=4, max_size=4))
def test_unmasking_twice_changes_nothing_and_agrees_with_the_definition(data: bytes, mask: bytes) -> None:
    masked = _unmask_slowly(data, mask)
    assert masked == bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    assert _unmask_slowly(masked, mask) == data


# --- the classic adapter's messages ---


@given(
    namespaces,
    st.lists(text, max_size=3),
    st.lists(text, max_size=3),
    events,
    st.lists(values, max_size=3),
    st.booleans(),
    st.none() | text,
)
def test_broadcast_comes_back_as_it_was_published(
    namespace: str,
    rooms: list[str],
    excluded: list[str],
    name: str,
    data: list[Any],
    volatile: bool,
    may_see: str | None,
) -> None:
    broadcast = Broadcast(
        Target(namespace, tuple(rooms), tuple(excluded)), [name, *data], volatile=volatile, may_see=may_see
    )
    assert read_broadcast(write_broadcast("abc123", broadcast)) == ("abc123", broadcast)


@given(st.binary(max_size=80))
def test_junk_on_the_channels_raises_only_wire_error(junk: bytes) -> None:
    for read in (read_broadcast, lambda payload: read_request(payload, "/")):
        with contextlib.suppress(WireError):
            read(junk)


def test_channels_are_nodes() -> None:
    channels = Channels("socket.io", "/")
    assert channels.pattern == "socket.io#/#*"
    assert channels.requests == "socket.io-request#/#"
    assert channels.of(Broadcast(Target("/"), ["a"])) == "socket.io#/#"
    assert channels.of(Broadcast(Target("/", ("r",)), ["a"])) == "socket.io#/#r#"
    assert channels.of(Broadcast(Target("/", ("r", "s")), ["a"])) == "socket.io#/#"
    assert channels.room("socket.io#/#a#b#") == "a#b"


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (Command.JOIN, {"type": 2, "rooms": ["a"]}),
        (Command.LEAVE, {"type": 3, "rooms": ["a"]}),
        (Command.DISCONNECT, {"type": 4, "close": True}),
    ],
)
def test_commands_are_nodes_requests(command: Command, fields: dict[str, Any]) -> None:
    target = Target("/n", ("r",), ("x",))
    payload = write_command("u", command, target, iter(["a"]), close=True)
    assert json.loads(payload) == {"uid": "u", "opts": {"rooms": ["r"], "except": ["x"]}, **fields}
    assert read_request(payload, "/n").target == target


def test_dates_travel_as_javascript_writes_them() -> None:
    moment = datetime(2026, 11, 21, 22, 0, 0, 5_000, tzinfo=timezone(timedelta(hours=1)))
    assert encode(Packet(PacketType.EVENT, "/", ["at", moment])).text == '2["at","2026-11-21T21:00:00.005Z"]'
    heard = read_broadcast(write_broadcast("u", Broadcast(Target(), ["at", moment])))
    assert heard.broadcast.args == ["at", "2026-11-21T21:00:00.005Z"]
    with pytest.raises(TypeError, match="time zone"):
        encode(Packet(PacketType.EVENT, "/", ["at", moment.replace(tzinfo=None)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_json_cannot_say_is_refused_before_anything_is_sent(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode(Packet(PacketType.EVENT, "/", ["e", value]))


@pytest.mark.parametrize(("pinged_s", "due_s"), [(25.0, 45.0), (27.0, 45.0), (30.0, 45.0), (40.0, 55.0)])
def test_late_ping_counts_from_when_it_was_due_but_leaves_the_client_most_of_its_time(
    pinged_s: float, due_s: float
) -> None:
    session = Session(0.0, ping_interval_s=25.0, ping_timeout_s=20.0)
    assert session.on_event(engine.Tick(), pinged_s) == (engine.Send("2"),)
    assert session.due_s == due_s
    assert session.on_event(engine.Tick(), due_s - 0.001) == ()
    assert session.on_event(engine.Tick(), due_s) == (engine.End("ping timeout", 1001),)
