"""The largest message that a client may send, in the worst form that is known: time and memory stay bounded.

Each is a megabyte, the default limit, and the law is a generous two seconds of the processor: what is quadratic takes
minutes.
"""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from flotta.errors import PacketError
from flotta.realtime.engine.request import Request
from flotta.realtime.engineio.packet import read_payload
from flotta.realtime.socketio.packet import Decoder
from flotta.realtime.socketio.parser import JSON, MSGPACK
from flotta.realtime.transports.websocket import FrameReader, frame

SIZE = 1_000_000
LIMIT_S = 2.0  # of the processor
MEMORY_MAX = 150 * SIZE


def _json(text: str, *parts: bytes) -> Callable[[], Any]:
    return lambda: [Decoder().add(text)] if not parts else _feed(text, *parts)


def _feed(*messages: str | bytes) -> list[Any]:
    decoder = Decoder()
    return [decoder.add(message) for message in messages]


def _pack(data: bytes) -> Callable[[], Any]:
    return lambda: MSGPACK.decoder(0).add(data)


def _packs(messages: list[bytes]) -> Callable[[], Any]:
    def read() -> None:
        for message in messages:
            with contextlib.suppress(PacketError):
                MSGPACK.decoder(0).add(message)

    return read


def _payload(text: str) -> Callable[[], Any]:
    return lambda: sum(1 for _ in read_payload(text))


def _frames(data: bytes, step: int) -> Callable[[], Any]:
    def read() -> int:
        reader, count = FrameReader(SIZE), 0
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
            while reader.take() is not None:
                count += 1
        return count

    return read


def _masked(opcode: int, payload: bytes) -> bytes:
    plain = frame(opcode, payload)
    return plain[:1] + bytes((plain[1] | 0x80,)) + plain[2 : len(plain) - len(payload)] + b"\0\0\0\0" + payload


def _placeholders(number: int) -> str:
    return '51-["a"' + f',{{"_placeholder":true,"num":{number}}}' * (SIZE // 32) + "]"


ARRAY = b"\xc7\x08\x00"
HEAD = "GET /socket.io/?{} HTTP/1.1\r\nHost: x\r\n{}\r\n"

WORST: dict[str, Callable[[], Any]] = {
    "JSON: nested lists": _json("2" + "[" * SIZE),
    "JSON: nested objects": _json("2" + '{"":' * (SIZE // 4)),
    "JSON: closed nested lists": _json("2" + "[" * (SIZE // 2) + "]" * (SIZE // 2)),
    "JSON: one huge integer": _json('2["a",' + "9" * SIZE + "]"),
    "JSON: many large integers": _json('2["a"' + ("," + "9" * 4_000) * (SIZE // 4_001) + "]"),
    "JSON: one long fraction": _json('2["a",0.' + "9" * SIZE + "]"),
    "JSON: huge exponents": _json('2["a"' + ",1e308" * (SIZE // 6) + "]"),
    "JSON: many empty objects": _json('2["a"' + ",{}" * (SIZE // 3) + "]"),
    "JSON: many keys": _json('2["a",{' + ",".join(f'"{i}":0' for i in range(SIZE // 10)) + "}]"),
    "JSON: escapes": _json('2["a","' + "\\u0041" * (SIZE // 6) + '"]'),
    "JSON: a long ack id": _json("2" + "1" * SIZE),
    "JSON: a long count": _json("5" + "1" * SIZE),
    "JSON: a long namespace": _json("0/" + "n" * SIZE),
    "JSON: an attachment in many places": _json(_placeholders(0), b"x" * 1_000),
    "JSON: many unknown attachments": _json(_placeholders(7), b"x"),
    "JSON: binary with many empty objects": _json('51-["a"' + ",{}" * (SIZE // 3) + "]", b"x"),
    "JSON: binary with nested lists": _json("51-" + "[" * SIZE, b"x"),
    "MessagePack: nested lists": _pack(b"\x91" * SIZE),
    "MessagePack: nested maps": _pack(b"\x81\xa0" * (SIZE // 2)),
    "MessagePack: lists that promise too much": _pack((b"\xdd" + SIZE.to_bytes(4, "big")) * (SIZE // 5)),
    "MessagePack: deep promises, then data": _pack(
        (b"\xdd" + (SIZE // 2).to_bytes(4, "big")) * 900 + b"\x01" * (SIZE - 4_500)
    ),
    "MessagePack: small messages that promise too much": _packs(
        [(b"\xdd" + (10_000).to_bytes(4, "big")) * 900 + b"\x01" * 5_500] * (SIZE // 10_000)
    ),
    "MessagePack: a binary that promises too much": _pack(b"\xc6\xff\xff\xff\xff"),
    "MessagePack: many empty maps": _pack(b"\xdd" + (SIZE - 5).to_bytes(4, "big") + b"\x80" * (SIZE - 5)),
    "MessagePack: dates": _pack(
        msgpack.packb({"type": 2, "nsp": "/"})[:1].replace(b"\x82", b"\x83")
        + msgpack.packb({"type": 2, "nsp": "/"})[1:]
        + b"\xa4data\xdd"
        + (SIZE // 10).to_bytes(4, "big")
        + b"\xa1a"
        + b"".join(b"\xd7\x00" + i.to_bytes(8, "big") for i in range(SIZE // 10 - 1))
    ),
    "MessagePack: arrays that look like dates": _pack(
        b"\xdd" + (SIZE // 11).to_bytes(4, "big") + b"".join(ARRAY + i.to_bytes(8, "big") for i in range(SIZE // 11))
    ),
    "payload: empty packets": _payload("6\x1e" * (SIZE // 2)),
    "payload: separators": _payload("\x1e" * SIZE),
    "payload: base64": _payload("b" + "A" * SIZE),
    "frames: empty ones": _frames(_masked(1, b"") * (SIZE // 6), 65_536),
    "frames: byte by byte": _frames(_masked(2, b"x" * (SIZE // 4)), 1),
    "frames: fragments": _frames(
        _masked(1, b"a").replace(b"\x81\x81", b"\x01\x81", 1) + b"\x00\x81\0\0\0\0a" * 10_000, 1_000
    ),
    "head: many headers": lambda: Request(head=HEAD.format("EIO=4", "a: b\r\n" * (SIZE // 6)).encode()).facts(),
    "head: many parameters": lambda: Request(head=HEAD.format("a=b&" * (SIZE // 4), "").encode()).facts(),
    "head: a long origin": lambda: Request(head=HEAD.format("", f"Origin: http://{'[' * SIZE}\r\n").encode()).facts(),
}


@pytest.mark.parametrize("name", WORST)
def test_the_worst_megabyte_takes_bounded_time(name: str) -> None:
    began_s = time.thread_time()
    with contextlib.suppress(PacketError, ValueError):
        WORST[name]()
    assert time.thread_time() - began_s < LIMIT_S


@pytest.mark.parametrize(
    "name", ["JSON: many empty objects", "MessagePack: deep promises, then data", "payload: separators"]
)
def test_the_worst_megabyte_takes_bounded_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(PacketError, ValueError):
            WORST[name]()
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()


def test_an_attachment_may_stand_in_one_place_only() -> None:
    decoder = Decoder()
    decoder.add('51-["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]')
    with pytest.raises(PacketError, match="twice"):
        decoder.add(b"x")


def test_placeholders_without_attachments_are_data_in_a_plain_packet_and_refused_in_a_binary_one() -> None:
    plain = JSON.decoder(1).add('2["a",{"_placeholder":true,"num":0}]')
    assert plain is not None
    assert plain.data == ["a", {"_placeholder": True, "num": 0}]
    with pytest.raises(PacketError):
        JSON.decoder(1).add('50-["a",{"_placeholder":true,"num":0}]')
