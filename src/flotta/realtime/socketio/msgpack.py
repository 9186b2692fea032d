"""Socket.IO 5 packets in MessagePack, as ``socket.io-msgpack-parser`` writes them: one binary message for each packet,
a map of ``type``, ``nsp``, ``data`` and ``id``, with bytes where they stand.

Junk raises `PacketError` and nothing else. Nothing waits for attachments, so what a client can make this side hold is
what its message holds. Two faults of hostile messages are looked for before anything is built: lengths that promise
more than the message holds, for which memory would be set aside level by level; and keys that are no text, which could
be chosen to collide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, final

import msgpack  # type: ignore[import-untyped]  # it has no types

from flotta.errors import PacketError
from flotta.realtime.socketio.packet import (
    ACK_ID_MAX,
    NAMESPACE_LENGTH_MAX,
    Encoded,
    Packet,
    PacketType,
    check_data,
    iso_time,
)

__all__ = ["MsgpackDecoder", "encode_msgpack", "pack"]

_TYPES = {int(kind): kind for kind in PacketType if kind <= PacketType.CONNECT_ERROR}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Only a long array makes the reader set memory aside before it has seen what is in it.
_LONG_ARRAYS = (b"\xdc", b"\xdd")


def encode_msgpack(packet: Packet) -> Encoded:
    """Put a packet on the wire. A datetime travels as text, as it does in JSON.

    Raises:
        TypeError, ValueError: the data hold something that MessagePack cannot carry, or are nested too deeply.
    """
    fields: dict[str, Any] = {"type": int(packet.type), "nsp": packet.namespace}
    if packet.data is not None:
        fields["data"] = packet.data
    if packet.id is not None:
        fields["id"] = packet.id
    return Encoded(None, (pack(fields),))


def pack(value: Any) -> bytes:
    """``value`` in MessagePack. Raises TypeError or ValueError. Lone surrogates are written as Node's packer does."""
    packed: bytes = msgpack.packb(value, use_bin_type=True, default=_plain, unicode_errors="surrogatepass")
    return packed


def _plain(value: object) -> str | float:
    if isinstance(value, datetime):
        return iso_time(value)
    if isinstance(value, int):  # more than 64 bits: the number that JavaScript makes of it
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError("an integer that no client can hold") from error
    raise TypeError(f"{type(value).__name__} cannot travel: send what JSON and bytes can carry")


@final
class MsgpackDecoder:
    """Turns messages into packets. It remembers nothing."""

    __slots__ = ()

    def add(self, data: str | bytes) -> Packet:
        """The packet of one message. Raises PacketError."""
        if isinstance(data, str):
            raise _error("text where MessagePack is spoken", data)
        fields = _unpack(data)
        if not isinstance(fields, dict):
            raise _error("no map", data)
        kind = _TYPES.get(fields["type"]) if type(fields.get("type")) is int else None
        if kind is None:
            raise _error("unknown type", data)
        namespace, ack_id = _read_namespace(fields, data), _read_id(fields, data)
        body = fields.get("data")
        check_data(kind, body, ack_id, data)
        return Packet(kind, namespace, body, ack_id)


def _unpack(data: bytes) -> Any:
    try:
        if any(mark in data for mark in _LONG_ARRAYS):
            _check_lengths(data)
        return msgpack.unpackb(data, raw=False, strict_map_key=True, timestamp=3, ext_hook=_Extensions(data).read)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise _error("no MessagePack", data) from error


def _check_lengths(data: bytes) -> None:
    """Go through the whole message without building anything."""
    walker = msgpack.Unpacker(None, max_buffer_size=len(data))
    walker.feed(data)
    walker.skip()


@final
class _Extensions:
    """Reads extension 0, which is three things to the parser's packer: ``undefined`` (fixext 1), a Date (fixext 8, in
    milliseconds) and an ArrayBuffer (ext). The reader tells neither which form it saw nor where, but it comes to them
    in their order: so each is looked for behind the one before, and the whole message is gone through once at most."""

    __slots__ = ("_forms", "_message")

    _FORM = re.compile(rb"\xd4\x00|\xd7\x00|\xc7\x01\x00|\xc7\x08\x00")

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._forms: Iterator[re.Match[bytes]] | None = None

    def read(self, code: int, data: bytes) -> datetime | bytes | None:
        """The value. Raises ValueError or OverflowError."""
        if code != 0:
            raise ValueError(f"unknown extension {code}")
        if len(data) not in {1, 8} or self._is_array(data):
            return data
        if len(data) == 1:
            return None
        return _EPOCH + timedelta(milliseconds=int.from_bytes(data, "big", signed=True))

    def _is_array(self, data: bytes) -> bool:
        if self._forms is None:
            self._forms = self._FORM.finditer(self._message)
        for form in self._forms:
            if self._message.startswith(data, form.end()):
                return form[0].startswith(b"\xc7")
        return True


def _read_namespace(fields: dict[Any, Any], data: bytes) -> str:
    namespace = fields.get("nsp")
    if not isinstance(namespace, str) or not namespace.startswith("/") or len(namespace) > NAMESPACE_LENGTH_MAX:
        raise _error("no namespace", data)
    return namespace.partition("?")[0]


def _read_id(fields: dict[Any, Any], data: bytes) -> int | None:
    ack_id = fields.get("id")
    if ack_id is None or (type(ack_id) is int and 0 <= ack_id <= ACK_ID_MAX):
        return ack_id
    raise _error("no ack id", data)


def _error(reason: str, data: str | bytes) -> PacketError:
    return PacketError("Socket.IO packet", reason, data)
