"""What is fuzzed: every parser that a client or another server can reach, as a function of some bytes.

A target raises nothing for junk: it knows the one typed error that its parser may raise, and lets everything else out.
Where a parser has a law beyond that (what it read can be written and read again, pieces mean what the whole means), the
target asserts it. ``seeds`` are well-formed inputs to start from.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgpack

from flotta.errors import PacketError, WireError
from flotta.realtime.adapters import classic_wire, cluster_wire
from flotta.realtime.engine.request import Request
from flotta.realtime.engineio import session as engine
from flotta.realtime.engineio.handshake import origin_allowed
from flotta.realtime.engineio.packet import read_payload
from flotta.realtime.engineio.session import Session
from flotta.realtime.presence import records
from flotta.realtime.recovery.session import read_session
from flotta.realtime.relay import wire as relay
from flotta.realtime.socketio import connection as sio
from flotta.realtime.socketio.connection import Connection
from flotta.realtime.socketio.packet import Packet
from flotta.realtime.socketio.parser import JSON, MSGPACK, Parser
from flotta.realtime.transports.websocket import FrameReader, WebSocketError, frame, read_close

__all__ = ["TARGETS", "Target"]

CUT = b"\xff\x00"
"""Between the messages of one input."""
ATTACHMENTS_MAX = 4
FRAME_BYTES_MAX = 512


class Target(NamedTuple):
    """One parser."""

    run: Callable[[bytes], None]
    seeds: list[bytes]


def _messages(data: bytes) -> list[str | bytes]:
    """Text where it is UTF-8 and does not begin with B, else bytes."""
    parts: list[str | bytes] = []
    for part in data.split(CUT):
        try:
            parts.append(part[1:] if part.startswith(b"B") else part.decode())
        except UnicodeDecodeError:
            parts.append(part)
    return parts


# --- Engine.IO ---


def engineio_payload(data: bytes) -> None:
    try:
        packets = list(read_payload(data.decode("utf-8", "ignore")))
    except PacketError:
        return
    assert packets


def engineio_session(data: bytes) -> None:
    session, now_s = Session(0.0, ping_interval_s=25, ping_timeout_s=20), 0.0
    ends = 0
    for message in _messages(data):
        now_s += 10.0
        for event in (engine.Received(message), engine.Tick()):
            ends += sum(type(action) is engine.End for action in session.on_event(event, now_s))
    assert ends <= 1


# --- Socket.IO ---


def _socketio(parser: Parser, data: bytes) -> None:
    decoder = parser.decoder(ATTACHMENTS_MAX)
    for message in _messages(data):
        try:
            packet = decoder.add(message)
        except PacketError:
            return
        if packet is not None:
            _check_comes_back(parser, packet)


def _check_comes_back(parser: Parser, packet: Packet) -> None:
    """What was read can be written and read again: a server sends on what clients sent."""
    try:
        wire = parser.encode(packet)
    except (TypeError, ValueError):
        return  # more than the form can carry: 1e999 is infinity
    decoder = parser.decoder(len(wire.attachments))
    again = None if wire.text is None else decoder.add(wire.text.encode("utf-8", "backslashreplace").decode())
    for part in wire.attachments:
        again = decoder.add(part)
    assert again is not None
    assert parser.encode(again) == wire


def socketio_json(data: bytes) -> None:
    _socketio(JSON, data)


def socketio_msgpack(data: bytes) -> None:
    _socketio(MSGPACK, data)


def socketio_connection(data: bytes) -> None:
    for parser in (JSON, MSGPACK):
        connection = Connection(0.0, attachments_max=ATTACHMENTS_MAX, parser=parser)
        aborts = 0
        for message in _messages(data):
            for action in connection.on_event(sio.Message(message), 0.0):
                aborts += type(action) is sio.Abort
                if type(action) is sio.AskConnect:
                    connection.on_event(sio.Accept(action.namespace, "sid"), 0.0)
        assert aborts <= 1


# --- transports ---


def _read_frames(pieces: list[bytes]) -> list[Any]:
    reader, found = FrameReader(FRAME_BYTES_MAX), []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (message := reader.take()) is not None:
                found.append(message)
                if message[0] == 8 and isinstance(message[1], bytes):
                    read_close(message[1])
    except WebSocketError as error:
        found.append(error.code)
    return found


def websocket_frames(data: bytes) -> None:
    at = data[0] if data else 0
    whole = _read_frames([data])
    assert _read_frames([data[:at], data[at:]]) == whole
    assert _read_frames([data[i : i + 1] for i in range(min(len(data), 300))]) == _read_frames([data[:300]])


def http_head(data: bytes) -> None:
    request = Request(head=data, client=("127.0.0.1", 1))
    try:
        facts = request.facts()
        origin_allowed(facts, ("https://app.example.com",))
        request.environ()
    except ValueError:
        return


# --- other servers ---


def _junk_is_wire_error(*readers: Callable[[], Any]) -> None:
    for read in readers:
        try:
            read()
        except WireError:
            continue


def adapter_classic(data: bytes) -> None:
    _junk_is_wire_error(
        lambda: classic_wire.read_broadcast(data),
        lambda: classic_wire.read_question(classic_wire.read_request(data, "/")),
        lambda: classic_wire.read_event(classic_wire.read_request(data, "/")),
        lambda: classic_wire.read_count(classic_wire.read_response(data)),
        lambda: classic_wire.read_sockets(classic_wire.read_response(data).fields),
        lambda: classic_wire.read_names(classic_wire.read_response(data).fields),
    )


_CLUSTER_READERS = (
    cluster_wire.read_broadcast,
    cluster_wire.read_question,
    cluster_wire.read_gone,
    cluster_wire.read_command,
    cluster_wire.read_fetch,
    cluster_wire.read_event,
    cluster_wire.read_found,
    cluster_wire.read_count,
    cluster_wire.read_ack,
)


def adapter_cluster(data: bytes) -> None:
    parts = [*data.split(CUT, 3), b"", b"", b""]
    entry = {b"uid": parts[0], b"nsp": parts[1], b"type": parts[2], b"data": parts[3]}
    for read in (lambda: cluster_wire.read_message(data), lambda: cluster_wire.read_entry(entry)):
        try:
            message = read()
        except WireError:
            continue
        _junk_is_wire_error(*(partial(reader, message) for reader in _CLUSTER_READERS))


def relay_message(data: bytes) -> None:
    _junk_is_wire_error(lambda: relay.decode(data))


def saved_session(data: bytes) -> None:
    _junk_is_wire_error(lambda: read_session(data), lambda: read_session(base64.b64encode(data)))


def presence_record(data: bytes) -> None:
    _junk_is_wire_error(
        lambda: records.read_record(data), lambda: records.read_change(data), lambda: records.read_control(data)
    )


# --- where to start ---


def _masked(opcode: int, payload: bytes) -> bytes:
    plain = frame(opcode, payload)
    return plain[:1] + bytes((plain[1] | 0x80,)) + plain[2 : len(plain) - len(payload)] + b"\0\0\0\0" + payload


_PAYLOADS = [b"4hello", b"4test1\x1e4test2", b"4hello\x1ebAQIDBA==", b"2", b"3", b"1", b"6", b"2probe", b"5"]
_JSON = [
    b"0",
    b'0{"token":"123"}',
    b"0/custom,",
    b'0/custom?a=b,{"token":"abc"}',
    b'2["message",1,"2",{"3":[true,null,1.5e3]}]',
    b'2456["a"]',
    b'3456["a"]',
    b"1",
    b"1/custom,",
    b'51-["a",{"_placeholder":true,"num":0}]' + CUT + b"B\x01\x02",
    b'62-/n,7[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]' + CUT + b"B\x01" + CUT + b"B\x02",
    b"0" + CUT + b'2["a"]' + CUT + b"1",
]
_MSGPACK = [
    b"B" + msgpack.packb(fields, datetime=False)
    for fields in (
        {"type": 0, "nsp": "/", "data": {"token": "x"}},
        {"type": 1, "nsp": "/"},
        {"type": 2, "nsp": "/n", "data": ["a", b"\1\2", 1.5, None, [True] * 20, {"k": -1}], "id": 3},
        {"type": 2, "nsp": "/", "data": ["d", msgpack.ExtType(0, b"\0"), msgpack.ExtType(0, b"\0" * 8)]},
        {"type": 3, "nsp": "/", "data": [msgpack.Timestamp(1, 5)], "id": 0},
    )
]
_HEAD = (
    b"GET /socket.io/?EIO=4&transport=websocket&sid=abc HTTP/1.1\r\nHost: example.com:80\r\n"
    b"Origin: https://app.example.com\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n"
)
_OPTIONS = {"rooms": ["r"], "except": [], "flags": {"volatile": True, "timeout": 5}}
_SOCKET = {"id": "s", "rooms": ["r"], "handshake": {"headers": {}}, "data": {}}
_PACKET = {"type": 2, "nsp": "/", "data": ["a", 1]}
_CLASSIC: list[Any] = [
    ["uid", _PACKET, _OPTIONS],
    {"uid": "u", "type": 7, "requestId": "1", "packet": _PACKET, "opts": _OPTIONS},
    {"uid": "u", "type": 6, "data": ["a", 1]},
    {"requestId": "1", "sockets": [_SOCKET]},
    {"requestId": "1", "clientCount": 3},
    {"requestId": "1", "rooms": ["r"]},
]
_CLUSTER: list[Any] = [
    {"uid": "0123456789abcdef", "nsp": "/", "type": kind, "data": data}
    for kind, data in (
        (1, None),
        (3, {"opts": _OPTIONS, "packet": _PACKET, "requestId": "1"}),
        (4, {"opts": _OPTIONS, "rooms": ["r"]}),
        (6, {"opts": _OPTIONS, "close": True}),
        (7, {"opts": _OPTIONS, "requestId": "1"}),
        (8, {"requestId": "1", "sockets": [_SOCKET]}),
        (9, {"requestId": "1", "packet": ["a"]}),
        (11, {"requestId": "1", "clientCount": 1}),
        (12, {"requestId": "1", "packet": [1]}),
    )
]
_SESSION = {"sid": "s", "pid": "p", "rooms": ["r"], "data": {}, "own": "abcd"}
_SESSION_OURS = {"nsp": "/", "seen": "1-2", "stays": [["r", "1-1", None]], "live": True, "user": ["u", None, 1.0]}
_RECORD = records.write_record(records.Online("ada", "sid", "abcd", "/", 1.0, "online", {"a": 1}))


def _both(values: list[Any]) -> list[bytes]:
    return [form for value in values for form in (msgpack.packb(value), json.dumps(value).encode())]


_EACH: dict[str, Target] = {
    "engineio-payload": Target(engineio_payload, _PAYLOADS),
    "engineio-session": Target(engineio_session, [*_PAYLOADS, b"3" + CUT + b"3" + CUT + b"4a"]),
    "socketio-json": Target(socketio_json, _JSON),
    "socketio-msgpack": Target(socketio_msgpack, _MSGPACK),
    "socketio-connection": Target(socketio_connection, [*_JSON, *_MSGPACK]),
    "websocket-frames": Target(
        websocket_frames,
        [
            _masked(1, b"4hello"),
            _masked(2, b"\xff" * 300),
            _masked(9, b"ping") + _masked(8, b"\x03\xe8bye"),
            b"\x01" + _masked(1, b"ab")[1:] + b"\x80" + _masked(0, b"cd")[1:],
        ],
    ),
    "http-head": Target(http_head, [_HEAD]),
    "adapter-classic": Target(adapter_classic, _both(_CLASSIC)),
    "adapter-cluster": Target(
        adapter_cluster,
        [*_both(_CLUSTER), CUT.join([b"u", b"/", b"3", json.dumps(_CLUSTER[1]["data"]).encode()])],
    ),
    "relay-message": Target(relay_message, [relay.encode(relay.Deaf("abcd")), relay.encode(relay.Cut("tunnel"))]),
    "saved-session": Target(
        saved_session, [msgpack.packb(_SESSION), msgpack.packb({**_SESSION, "flotta": _SESSION_OURS})]
    ),
    "presence-record": Target(presence_record, [_RECORD]),
}


def everything(data: bytes) -> None:
    """The first byte says which target gets the rest: for a short look at all of them in one process."""
    if data:
        list(_EACH.values())[data[0] % len(_EACH)].run(data[1:])


TARGETS: dict[str, Target] = {
    **_EACH,
    "everything": Target(
        everything, [bytes((number,)) + seed for number, target in enumerate(_EACH.values()) for seed in target.seeds]
    ),
}
