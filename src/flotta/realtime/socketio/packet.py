"""Socket.IO 5 packets, text and binary.

``<type>[<attachments>-][<namespace>,][<ack id>][<JSON>]``; each bytes value of the data travels in a message of its own
after the text, which holds ``{"_placeholder":true,"num":n}`` in its place.

Junk raises `PacketError` and nothing else. What a packet may make this side hold is bounded before it is held: the
number of attachments is checked when their count is read, not when they have come.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias, final

from flotta.errors import PacketError
from flotta.realtime.socketio.json_text import FORM, dump_json, load_json, refuse_constant

__all__ = [
    "ACK_ID_MAX",
    "ATTACHMENTS_MAX",
    "NAMESPACE_LENGTH_MAX",
    "RESERVED_EVENTS",
    "Decoder",
    "Encoded",
    "Packet",
    "PacketType",
    "check_data",
    "encode",
    "iso_time",
]

ATTACHMENTS_MAX: Final = 16
ACK_ID_DIGITS_MAX: Final = 15  # below 2**53, the largest integer that every client keeps exact
ACK_ID_MAX: Final = 10**ACK_ID_DIGITS_MAX - 1
EXACT_MAX: Final = 2**53
ATTACHMENT_DIGITS_MAX: Final = 4
NAMESPACE_LENGTH_MAX: Final = 256

RESERVED_EVENTS: Final = frozenset(
    {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)
"""Names that belong to the library on both sides; a packet that carries one as an event is malformed."""


class PacketType(IntEnum):
    """The first character of a packet."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5
    BINARY_ACK = 6


class Packet(NamedTuple):
    """One packet. An EVENT or ACK whose data hold bytes is a binary one on the wire; here they are the same."""

    type: PacketType
    namespace: str = "/"
    data: Any = None
    id: int | None = None


class Encoded(NamedTuple):
    """A packet on the wire: the text (None: it is all binary), then its attachments in order."""

    text: str | None
    attachments: tuple[bytes, ...] = ()


_TYPES = {str(int(kind)): kind for kind in PacketType}
_BINARY = {PacketType.EVENT: PacketType.BINARY_EVENT, PacketType.ACK: PacketType.BINARY_ACK}
_PLAIN = {PacketType.BINARY_EVENT: PacketType.EVENT, PacketType.BINARY_ACK: PacketType.ACK}


def encode(packet: Packet) -> Encoded:
    """Put a packet on the wire.

    Raises:
        TypeError, ValueError: the data hold something that neither JSON nor bytes can carry (NaN included), or are
            nested too deeply.
    """
    try:
        return _encode(packet)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _encode(packet: Packet) -> Encoded:
    if packet.data is None:
        return Encoded(_head(packet, packet.type, 0))
    try:
        return Encoded(_head(packet, packet.type, 0) + dump_json(packet.data))
    except TypeError:
        if packet.type not in _BINARY:  # only events and their answers carry more than JSON
            raise
    attachments: list[bytes] = []

    def lift(value: object) -> Any:
        if isinstance(value, datetime):
            return iso_time(value)
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"{type(value).__name__} cannot travel: send what JSON and bytes can carry")
        attachments.append(bytes(value))
        return {"_placeholder": True, "num": len(attachments) - 1}

    body = json.JSONEncoder(**FORM, default=lift).encode(packet.data)
    kind = _BINARY[packet.type] if attachments else packet.type
    return Encoded(_head(packet, kind, len(attachments)) + body, tuple(attachments))


def iso_time(value: datetime) -> str:
    """A date as JavaScript writes it: UTC, milliseconds, ``Z``. A naive one is refused: it names no instant."""
    if value.tzinfo is None:
        raise TypeError("a datetime without a time zone cannot travel: give it one, as datetime.now(UTC) has")
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _head(packet: Packet, kind: PacketType, attachments: int) -> str:
    head = str(int(kind))
    if kind in _PLAIN:
        head += f"{attachments}-"
    if packet.namespace != "/":
        head += packet.namespace + ","
    return head if packet.id is None else f"{head}{packet.id}"


_Head: TypeAlias = tuple[PacketType, str, int | None, str]
"""A packet's text, read up to its JSON: type, namespace, acknowledgement's id, JSON."""


@final
class Decoder:
    """Turns the messages of one connection into packets; remembers at most one that waits for attachments.

    The JSON of a packet is read when its last attachment has come: then each goes to its place at once.
    """

    __slots__ = ("_attachments_max", "_missing", "_parts", "_waiting")

    def __init__(self, *, attachments_max: int = ATTACHMENTS_MAX) -> None:
        self._attachments_max = attachments_max
        self._waiting: _Head | None = None
        self._missing = 0
        self._parts: list[bytes] = []

    def add(self, data: str | bytes) -> Packet | None:
        """Take one message; give the packet that it completes, if any. Raises PacketError."""
        if isinstance(data, bytes):
            return self._add_attachment(data)
        if self._waiting is not None:
            raise _error("text where an attachment is due", data)
        if (packet := _read_event(data)) is not None:
            return packet
        head, attachments = _read_head(data, self._attachments_max)
        if attachments:
            self._waiting, self._missing = head, attachments
            return None
        return _read_body(head, [])

    def _add_attachment(self, data: bytes) -> Packet | None:
        head = self._waiting
        if head is None:
            raise _error("an attachment that no packet announced", data)
        self._parts.append(data)
        if len(self._parts) < self._missing:
            return None
        parts, self._parts, self._waiting = self._parts, [], None
        return _read_body(head, parts)


def _read_event(text: str) -> Packet | None:
    """The common packet, an event of the main namespace, in one step. None: another one, or a malformed one; whoever
    reads step by step says which."""
    at = text.find("[", 1, 2 + ACK_ID_DIGITS_MAX)
    digits = text[1:at]
    if at < 1 or text[0] != "2" or (digits and not (digits.isascii() and digits.isdigit())):
        return None
    try:
        data = load_json(text[at:])
    except (ValueError, RecursionError):
        return None
    if not data or type(data[0]) is not str or data[0] in RESERVED_EVENTS:
        return None
    return Packet(PacketType.EVENT, "/", data, int(digits) if digits else None)


def _read_head(text: str, attachments_max: int) -> tuple[_Head, int]:
    """The head, and how many attachments follow the text."""
    kind = _TYPES.get(text[:1])
    if kind is None:
        raise _error("unknown type", text)
    at, attachments = 1, 0
    if kind in _PLAIN:
        attachments, at = _read_count(text, attachments_max)
    namespace, at = _read_namespace(text, at)
    ack_id, at = _read_id(text, at)
    return (kind, namespace, ack_id, text[at:]), attachments


def _read_body(head: _Head, parts: list[bytes]) -> Packet:
    kind, namespace, ack_id, body = head
    plain = _PLAIN.get(kind)
    data = _load(body, None if plain is None else parts)
    check_data(kind, data, ack_id, body)
    return Packet(plain or kind, namespace, data, ack_id)


def _read_count(text: str, attachments_max: int) -> tuple[int, int]:
    end = text.find("-", 1, 2 + ATTACHMENT_DIGITS_MAX)
    digits = text[1 : max(end, 1)]
    if not (digits.isascii() and digits.isdigit()):
        raise _error("no count of attachments", text)
    count = int(digits)
    if count > attachments_max:
        raise _error(f"{count} attachments, at most {attachments_max} are taken", text)
    return count, end + 1


def _read_namespace(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] != "/":
        return "/", at
    end = text.find(",", at)
    stop = len(text) if end < 0 else end
    if stop - at > NAMESPACE_LENGTH_MAX:
        raise _error("the namespace is too long", text)
    # socket.io-client sends the namespace with its query string; only the path names it.
    return text[at:stop].partition("?")[0], stop if end < 0 else stop + 1


def _read_id(text: str, at: int) -> tuple[int | None, int]:
    end = at
    while end - at <= ACK_ID_DIGITS_MAX and "0" <= text[end : end + 1] <= "9":
        end += 1
    if end - at > ACK_ID_DIGITS_MAX:
        raise _error("the ack id is too long", text)
    return (int(text[at:end]), end) if end > at else (None, at)


def _load(body: str, parts: list[bytes] | None) -> Any:
    """The data; ``parts`` go where their placeholders stand. None: placeholders are data like any other."""
    if not body:
        return None
    try:
        if parts is None:
            return load_json(body)
        return json.JSONDecoder(parse_constant=refuse_constant, object_hook=_Filling(parts).fill).decode(body)
    except (ValueError, RecursionError) as error:
        if isinstance(error, PacketError):
            raise
        raise _error("bad JSON", body) from error


@final
class _Filling:
    """Puts the attachments of one packet where their placeholders stand, each once: a small packet that names one
    attachment a thousand times would be a thousand attachments for everybody whom its data are sent on to."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[bytes]) -> None:
        self._parts: list[bytes | None] = [*parts]

    def fill(self, value: dict[str, Any]) -> Any:
        """What stands for this object. Raises PacketError."""
        if value.get("_placeholder") is not True:
            return value
        number = value.get("num")
        if type(number) is not int or not 0 <= number < len(self._parts):
            raise _error("a placeholder without its attachment", "")
        part, self._parts[number] = self._parts[number], None
        if part is None:
            raise _error("an attachment that is to stand twice", "")
        return part


def check_data(kind: PacketType, data: Any, ack_id: int | None, raw: str | bytes) -> None:
    """The shape that each type asks of its data; ``raw`` is for the error. An event's name that is a number becomes its
    text. Raises PacketError."""
    if kind in {PacketType.EVENT, PacketType.BINARY_EVENT}:
        good = isinstance(data, list) and bool(data) and _has_name(data)
    elif kind in {PacketType.ACK, PacketType.BINARY_ACK}:
        good = isinstance(data, list) and ack_id is not None
    elif kind is PacketType.DISCONNECT:
        good = data is None and ack_id is None
    elif kind is PacketType.CONNECT:
        good = (data is None or isinstance(data, dict)) and ack_id is None
    else:
        good = isinstance(data, (str, dict)) and ack_id is None
    if not good:
        raise _error(f"bad data for {kind.name}", raw)


def _has_name(data: list[Any]) -> bool:
    """Whether an event has a name that clients may use. A number (``socket.emit(7)``) is written as JavaScript would:
    for its emitters, too, ``7`` and ``"7"`` are one name."""
    name = data[0]
    if isinstance(name, str):
        return name not in RESERVED_EVENTS
    if type(name) in {int, float} and abs(name) <= EXACT_MAX and name == int(name):
        data[0] = str(int(name))
        return True
    return False


def _error(reason: str, data: str | bytes) -> PacketError:
    return PacketError("Socket.IO packet", reason, data)
