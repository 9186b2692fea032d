"""Engine.IO 4 packets: one character of type, then the payload; and the handshake's answer.

Over WebSocket a text frame holds one packet, and a binary frame is the payload of a message as it is. Over HTTP
polling a body holds packets joined by the record separator, a binary one as ``b`` + base64, a form that clients may
choose for their text frames too.
Junk raises `PacketError` and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple, TypeAlias

from flotta.errors import PacketError

__all__ = [
    "MESSAGE",
    "PING",
    "PONG",
    "PROTOCOL_VERSION",
    "SEPARATOR",
    "Packet",
    "PacketType",
    "decode",
    "encode_payload",
    "open_packet",
    "read_payload",
]

PROTOCOL_VERSION = "4"
SEPARATOR = "\x1e"
MESSAGE = "4"
PING = "2"
PONG = "3"


class PacketType(Enum):
    """The first character of a packet."""

    OPEN = "0"
    CLOSE = "1"
    PING = "2"
    PONG = "3"
    MESSAGE = "4"
    UPGRADE = "5"
    NOOP = "6"


Data: TypeAlias = str | bytes


class Packet(NamedTuple):
    """One packet; only a message may carry bytes."""

    type: PacketType
    data: Data = ""


_TYPES = {kind.value: kind for kind in PacketType}


def decode(frame: Data) -> Packet:
    """Read the packet of one WebSocket frame, or one of a polling body. Raises PacketError."""
    if isinstance(frame, bytes):
        return Packet(PacketType.MESSAGE, frame)
    if frame[:1] == "b":  # over WebSocket too: from clients with `forceBase64`
        return _decode_base64(frame)
    kind = _TYPES.get(frame[:1])
    if kind is None:
        raise PacketError("Engine.IO packet", "unknown type", frame)
    return Packet(kind, frame[1:])


def encode_payload(packets: list[Data]) -> str:
    """Join packets for a polling body; bytes are the payload of a binary message."""
    return SEPARATOR.join(
        packet if isinstance(packet, str) else "b" + base64.b64encode(packet).decode("ascii") for packet in packets
    )


def read_payload(body: str) -> Iterator[Packet]:
    """The packets of a polling body, one at a time: a small body can hold very many. Raises PacketError when it comes
    to one that is malformed."""
    start = 0
    while (end := body.find(SEPARATOR, start)) >= 0:
        yield decode(body[start:end])
        start = end + 1
    yield decode(body[start:])


def _decode_base64(part: str) -> Packet:
    try:
        return Packet(PacketType.MESSAGE, base64.b64decode(part[1:], validate=True))
    except (binascii.Error, ValueError) as error:
        raise PacketError("Engine.IO packet", "bad base64", part) from error


def open_packet(
    sid: str,
    *,
    upgrades: tuple[str, ...],
    ping_interval_s: float,
    ping_timeout_s: float,
    payload_bytes_max: int,
) -> str:
    """The first packet of a session: it tells the client its id and the server's times, in milliseconds."""
    facts = {
        "sid": sid,
        "upgrades": list(upgrades),
        "pingInterval": round(ping_interval_s * 1000),
        "pingTimeout": round(ping_timeout_s * 1000),
        "maxPayload": payload_bytes_max,
    }
    return PacketType.OPEN.value + json.dumps(facts, separators=(",", ":"))
