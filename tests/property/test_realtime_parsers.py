"""Laws of the parsers: MessagePack comes back as it was sent; a decoder fed anything in any order stays bounded."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flotta.errors import PacketError
from flotta.realtime.engine.request import Request
from flotta.realtime.socketio.msgpack import MsgpackDecoder, encode_msgpack
from flotta.realtime.socketio.packet import RESERVED_EVENTS, Decoder, Packet, PacketType

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | text
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(text, inner, max_size=4),
    max_leaves=30,
)
events = text.filter(lambda name: name not in RESERVED_EVENTS)
namespaces = st.just("/") | text.filter(lambda name: "?" not in name).map(lambda name: "/" + name)
ack_ids = st.none() | st.integers(0, 10**15 - 1)


@given(namespaces, events, st.lists(values, max_size=20), ack_ids)
def test_msgpack_event_comes_back_as_it_was_sent(
    namespace: str, name: str, data: list[Any], ack_id: int | None
) -> None:
    packet = Packet(PacketType.EVENT, namespace, [name, *data], ack_id)
    wire = encode_msgpack(packet)
    assert wire.text is None
    assert [MsgpackDecoder().add(part) for part in wire.attachments] == [packet]


@given(st.binary(max_size=80) | st.text(max_size=10))
def test_junk_for_msgpack_raises_only_packet_error(junk: str | bytes) -> None:
    with contextlib.suppress(PacketError):
        MsgpackDecoder().add(junk)


@given(
    st.dictionaries(
        st.sampled_from(["type", "nsp", "data", "id", "options"]), values | st.sampled_from([0, 1, 2, 3, 4, "/"])
    )
)
def test_near_packets_of_msgpack_raise_only_packet_error(fields: dict[str, Any]) -> None:
    with contextlib.suppress(PacketError):
        packet = MsgpackDecoder().add(msgpack.packb(fields))
        assert packet.namespace.startswith("/")
        assert packet.type <= PacketType.CONNECT_ERROR


EXTENSIONS = st.lists(
    st.sampled_from(["undefined", "date", "array"]).flatmap(
        lambda kind: st.tuples(st.just(kind), st.binary(min_size=8, max_size=8) | st.binary(min_size=1, max_size=1))
    ),
    max_size=12,
)


@given(EXTENSIONS, st.binary(max_size=12))
def test_extension_0_is_told_apart_by_its_form(found: list[tuple[str, bytes]], between: bytes) -> None:
    """Dates of the years that a datetime knows; bytes that look like an extension stand between them."""
    items, expected = [], []
    for kind, data in found:
        millis = int.from_bytes(data, "big") % 4_000_000_000_000
        if kind == "undefined":
            items.append(b"\xd4\x00\x00")
            expected.append(None)
        elif kind == "date":
            items.append(b"\xd7\x00" + millis.to_bytes(8, "big"))
            expected.append(datetime.fromtimestamp(millis // 1000, UTC).replace(microsecond=millis % 1000 * 1000))
        else:
            items.append(b"\xc7" + bytes((len(data),)) + b"\x00" + data)
            expected.append(data)
        items.append(msgpack.packb(between))
        expected.append(between)
    body = (
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\xdc" + (len(items) + 1).to_bytes(2, "big") + b"\xa1a" + b"".join(items)
    )
    if any(mark in between for mark in (b"\xd4\x00", b"\xd7\x00", b"\xc7\x01\x00", b"\xc7\x08\x00")):
        return  # a binary value that holds the very same extension may be taken for it: never sent, and harmless
    assert MsgpackDecoder().add(body).data[1:] == expected


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {},
        {"type": True, "nsp": "/", "data": {}},
        {"type": 5, "nsp": "/", "data": ["a"]},
        {"type": -1, "nsp": "/"},
        {"type": 2.0, "nsp": "/", "data": ["a"]},
        {"type": 2, "nsp": "", "data": ["a"]},
        {"type": 2, "nsp": b"/", "data": ["a"]},
        {"type": 2, "nsp": "/" + "n" * 300, "data": ["a"]},
        {"type": 2, "nsp": "/", "data": []},
        {"type": 2, "nsp": "/", "data": ["connect"]},
        {"type": 2, "nsp": "/", "data": ["a"], "id": -1},
        {"type": 2, "nsp": "/", "data": ["a"], "id": 2**60},
        {"type": 2, "nsp": "/", "data": ["a"], "id": True},
        {"type": 2, "nsp": "/", "data": ["a", {1: 2}]},
        {"type": 3, "nsp": "/", "data": ["a"]},
        {"type": 1, "nsp": "/", "data": {}},
        {"type": 0, "nsp": "/", "data": "text"},
        {"type": 2, "nsp": "/", "data": ["a", msgpack.ExtType(7, b"x")]},
    ],
)
def test_malformed_msgpack_packet_is_refused(fields: Any) -> None:
    with pytest.raises(PacketError):
        MsgpackDecoder().add(msgpack.packb(fields))


class DecoderMachine(RuleBasedStateMachine):
    """A client that sends text, attachments and junk in any order, until it is told that it broke the protocol."""

    MAX = 3

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder(attachments_max=self.MAX)
        self.due = 0
        self.over = False

    def _add(self, data: str | bytes, *, bad: bool) -> Packet | None:
        if self.over:
            return None
        try:
            packet = self.decoder.add(data)
        except PacketError:
            assert bad
            self.over = True
            return None
        assert not bad
        return packet

    @rule(count=st.integers(0, 5))
    def binary_packet(self, count: int) -> None:
        places = [{"_placeholder": True, "num": number} for number in range(count)]
        bad = self.due > 0 or count > self.MAX
        packet = self._add(f"5{count}-" + json.dumps(["a", *places]), bad=bad)
        if not self.over:
            assert (packet is None) == (count > 0)
            self.due = count

    @rule(part=st.binary(max_size=5))
    def attachment(self, part: bytes) -> None:
        packet = self._add(part, bad=self.due == 0)
        if not self.over:
            self.due -= 1
            assert (packet is not None) == (self.due == 0)

    @rule()
    def plain_packet(self) -> None:
        packet = self._add('2["a"]', bad=self.due > 0)
        assert self.over or packet == Packet(PacketType.EVENT, "/", ["a"])

    @rule(junk=st.sampled_from(["", "9", "2", "2{}", "5", '5a-["a"]']))
    def junk(self, junk: str) -> None:
        self._add(junk, bad=True)

    @invariant()
    def holds_no_more_than_was_announced(self) -> None:
        assert len(self.decoder._parts) <= self.MAX


TestDecoder = DecoderMachine.TestCase


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"GET /?EIO=4 HTTP/1.1\r\nOrigin: http://["])
)
def test_junk_in_a_head_raises_only_value_error(junk: bytes, before: bytes) -> None:
    request = Request(head=before + junk, client=("::1", 1))
    with contextlib.suppress(ValueError):
        request.facts()
        request.environ()
