"""What Node's ``ClusterAdapter`` says to its like, read and written: the sharded and the streams adapter. Pure.

A message is a map ``{uid, nsp, type, data}``; ``uid`` names the server that says it (16 hexadecimal digits, or
``emitter``), ``data`` is a map too. It travels

- on Pub/Sub of the sharded adapter: as JSON, or as MessagePack if ``data`` holds bytes (`write_message`);
- on Pub/Sub of the streams adapter: always as MessagePack (`pack_message`);
- in a stream: as fields, ``data`` in JSON, or in MessagePack and base64 if it holds bytes (`write_entry`).

`read_message` and `read_entry` take all of these. Junk raises `WireError` and nothing else.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final, NamedTuple

from flotta.errors import WireError
from flotta.realtime.adapters import Broadcast, Command, SocketFacts, Target
from flotta.realtime.adapters.wire import (
    ASK_S_DEFAULT,
    TELL_GONE,
    UID_LENGTH_MAX,
    Binary,
    answer_fields,
    is_count,
    is_event,
    load_json,
    pack,
    read_answer,
    read_packet,
    read_rooms,
    read_socket,
    read_target,
    read_timeout_s,
    socket_fields,
    unpack,
    write_json,
    write_options,
    write_packet,
)

__all__ = [
    "EMITTER_UID",
    "Ack",
    "Count",
    "Event",
    "Found",
    "Message",
    "MessageType",
    "Order",
    "Question",
    "ack_data",
    "broadcast_message",
    "command_data",
    "count_data",
    "fetch_data",
    "found_data",
    "gone_data",
    "own_openings",
    "pack_message",
    "question_data",
    "read_ack",
    "read_broadcast",
    "read_command",
    "read_count",
    "read_entry",
    "read_event",
    "read_fetch",
    "read_found",
    "read_gone",
    "read_message",
    "read_question",
    "server_side_data",
    "write_entry",
    "write_message",
]

EMITTER_UID: Final = "emitter"
"""The ``uid`` of what a process says that is no server."""


class MessageType(IntEnum):
    """What a message is. 7, 9 and a 3 with a ``requestId`` are answered: by 8, by 10, by 11 and then 12."""

    INITIAL_HEARTBEAT = 1
    HEARTBEAT = 2
    BROADCAST = 3
    SOCKETS_JOIN = 4
    SOCKETS_LEAVE = 5
    DISCONNECT_SOCKETS = 6
    FETCH_SOCKETS = 7
    FETCH_SOCKETS_RESPONSE = 8
    SERVER_SIDE_EMIT = 9
    SERVER_SIDE_EMIT_RESPONSE = 10
    BROADCAST_CLIENT_COUNT = 11
    BROADCAST_ACK = 12
    ADAPTER_CLOSE = 13
    FILTERED = 103
    """Flotta's: a BROADCAST with ``may_see``. Node cannot apply the filter; it drops a type that it does not know."""
    BROADCAST_GONE = 105
    """Flotta's: a client that was asked has left without an answer. Said only to who has asked for it (`TELL_GONE`)."""


_TYPES: Final = {int(kind): kind for kind in MessageType}
_COMMANDS: Final = {
    Command.JOIN: MessageType.SOCKETS_JOIN,
    Command.LEAVE: MessageType.SOCKETS_LEAVE,
    Command.DISCONNECT: MessageType.DISCONNECT_SOCKETS,
}
_ORDERS: Final = {kind: command for command, kind in _COMMANDS.items()}


class Message(NamedTuple):
    """One message. ``data`` is empty for the types without."""

    uid: str
    namespace: str
    type: MessageType
    data: dict[str, Any]


# --- messages as bytes ---


def _fields(message: Message) -> dict[str, Any]:
    fields = {"uid": message.uid, "nsp": message.namespace, "type": int(message.type)}
    return {**fields, "data": message.data} if message.data else fields


def write_message(message: Message) -> bytes:
    """As JSON, or as MessagePack if it holds bytes. Raises TypeError or ValueError for what cannot travel."""
    fields = _fields(message)
    try:
        return write_json(fields)
    except Binary:
        return pack(fields)


def pack_message(message: Message) -> bytes:
    """As MessagePack. Raises TypeError or ValueError for what cannot travel."""
    return pack(_fields(message))


def own_openings(uid: str) -> tuple[bytes, bytes, bytes]:
    """How everything begins that `write_message` and `pack_message` write for ``uid``: who is subscribed to the channel
    that it speaks on knows its own words again without reading them."""
    packed = pack(uid)
    return b'{"uid":"%b",' % uid.encode(), b"\x84\xa3uid" + packed, b"\x83\xa3uid" + packed


def read_message(payload: bytes) -> Message:
    """Read either form. Raises WireError."""
    fields = load_json(payload) if payload[:1] == b"{" else unpack(payload)
    if not isinstance(fields, dict):
        raise WireError("cluster message", "no map", payload)
    return _checked(fields, payload)


def _checked(fields: dict[Any, Any], payload: bytes) -> Message:
    uid, namespace, data = fields.get("uid"), fields.get("nsp"), fields.get("data")
    number = fields.get("type")
    kind = _TYPES.get(number) if type(number) is int else None
    if kind is None:
        raise WireError("cluster message", "unknown type", payload)
    if data is None:
        data = {}
    if not (isinstance(uid, str) and isinstance(namespace, str) and isinstance(data, dict)):
        raise WireError("cluster message", "wrong types", payload)
    if not uid.isascii() or len(uid) > UID_LENGTH_MAX:  # it becomes part of a channel's name
        raise WireError("cluster message", "the uid is none", payload)
    return Message(uid, namespace, kind, data)


# --- messages as entries of a stream ---


def write_entry(message: Message) -> list[str | bytes]:
    """Field names and values for XADD. Raises TypeError or ValueError for what cannot travel."""
    entry: list[str | bytes] = ["uid", message.uid, "nsp", message.namespace, "type", str(int(message.type))]
    if message.data:
        try:
            data = write_json(message.data)
        except Binary:
            data = base64.b64encode(pack(message.data))
        entry += ["data", data]
    return entry


def read_entry(entry: Mapping[bytes, bytes]) -> Message:
    """Read an entry's fields. Raises WireError."""
    uid, namespace, number, data = (entry.get(name) for name in (b"uid", b"nsp", b"type", b"data"))
    if uid is None or namespace is None or number is None:
        raise WireError("stream entry", "no message of an adapter", repr(sorted(entry))[:64])
    try:
        fields = {"uid": uid.decode(), "nsp": namespace.decode(), "type": _number(number), "data": _read_data(data)}
    except UnicodeDecodeError as error:
        raise WireError("stream entry", "no UTF-8", number) from error
    return _checked(fields, data or b"")


def _number(text: bytes) -> int | None:
    return int(text) if len(text) <= 3 and text.isdigit() else None


def _read_data(data: bytes | None) -> Any:
    if not data:
        return None
    if data[:1] == b"{":
        return load_json(data)
    try:
        return unpack(base64.b64decode(data, validate=True))
    except binascii.Error as error:
        raise WireError("stream entry", "neither JSON nor base64", data) from error


# --- what the types carry: made ---


def broadcast_message(uid: str, broadcast: Broadcast) -> Message:
    """BROADCAST (FILTERED if not everybody may see it) that nobody acknowledges."""
    packet, options = write_packet(broadcast)
    kind = MessageType.BROADCAST if broadcast.may_see is None else MessageType.FILTERED
    return Message(uid, broadcast.target.namespace, kind, {"opts": options, "packet": packet})


def question_data(target: Target, args: list[Any], request_id: str, timeout_s: float) -> dict[str, Any]:
    """BROADCAST that each recipient acknowledges."""
    packet, _ = write_packet(Broadcast(target, args))
    options = write_options(target, timeout=round(timeout_s * 1000))
    return {"opts": options, "packet": packet, "requestId": request_id, TELL_GONE: True}


def command_data(command: Command, target: Target, rooms: list[str], *, close: bool) -> tuple[MessageType, Any]:
    """The type and the data of SOCKETS_JOIN, SOCKETS_LEAVE or DISCONNECT_SOCKETS."""
    options = write_options(target)
    if command is Command.DISCONNECT:
        return _COMMANDS[command], {"opts": options, "close": close}
    return _COMMANDS[command], {"opts": options, "rooms": rooms}


def fetch_data(target: Target, request_id: str) -> dict[str, Any]:
    """FETCH_SOCKETS."""
    return {"opts": write_options(target), "requestId": request_id}


def found_data(sockets: list[SocketFacts], request_id: str) -> dict[str, Any]:
    """FETCH_SOCKETS_RESPONSE."""
    return {"requestId": request_id, "sockets": [socket_fields(facts) for facts in sockets]}


def server_side_data(args: list[Any], request_id: str | None = None) -> dict[str, Any]:
    """SERVER_SIDE_EMIT; with ``request_id`` it wants an answer from each server."""
    return {"packet": args} if request_id is None else {"packet": args, "requestId": request_id}


def count_data(count: int, request_id: str) -> dict[str, Any]:
    """BROADCAST_CLIENT_COUNT."""
    return {"requestId": request_id, "clientCount": count}


def gone_data(request_id: str) -> dict[str, Any]:
    """BROADCAST_GONE."""
    return {"requestId": request_id}


def ack_data(args: list[Any], request_id: str) -> dict[str, Any]:
    """BROADCAST_ACK and SERVER_SIDE_EMIT_RESPONSE."""
    return {"requestId": request_id, **answer_fields(args)}


# --- what the types carry: read ---


class Question(NamedTuple):
    """A broadcast that wants acknowledgements."""

    target: Target
    args: list[Any]
    id: str
    timeout_s: float = ASK_S_DEFAULT
    tell_gone: bool = False
    """Whoever asks wants to hear of clients that leave."""


class Order(NamedTuple):
    """A command for the sockets of ``target``."""

    command: Command
    target: Target
    rooms: tuple[str, ...]
    close: bool


class Event(NamedTuple):
    """A server's event for servers. ``id`` if it wants an answer."""

    args: list[Any]
    id: str | None


class Found(NamedTuple):
    """One server's sockets."""

    id: str
    sockets: list[SocketFacts]


class Count(NamedTuple):
    """How many clients one server has asked."""

    id: str
    clients: int


class Ack(NamedTuple):
    """One client's acknowledgement, or one server's answer."""

    id: str
    args: list[Any]


def _junk(message: Message, reason: str) -> WireError:
    return WireError(f"cluster message {message.type.name}", reason)


def _map(message: Message, name: str) -> dict[Any, Any]:
    found = message.data.get(name)
    if not isinstance(found, dict):
        raise _junk(message, f"{name} is no map")
    return found


def _id(message: Message) -> str:
    found = message.data.get("requestId")
    if not isinstance(found, str):
        raise _junk(message, "no request id")
    return found


def read_broadcast(message: Message) -> Broadcast:
    """A BROADCAST or FILTERED. Raises WireError."""
    return read_packet(message.namespace, _map(message, "packet"), _map(message, "opts"))


def read_question(message: Message) -> Question:
    """A BROADCAST that wants acknowledgements. Raises WireError."""
    options = _map(message, "opts")
    broadcast = read_packet(message.namespace, _map(message, "packet"), options)
    tell_gone = message.data.get(TELL_GONE) is True
    return Question(broadcast.target, broadcast.args, _id(message), read_timeout_s(options), tell_gone)


def read_command(message: Message) -> Order:
    """SOCKETS_JOIN, SOCKETS_LEAVE or DISCONNECT_SOCKETS. Raises WireError."""
    command = _ORDERS.get(message.type)
    if command is None:
        raise _junk(message, "no command")
    target = read_target(message.namespace, _map(message, "opts"))
    rooms = () if command is Command.DISCONNECT else read_rooms(message.data.get("rooms"))
    return Order(command, target, rooms, close=bool(message.data.get("close")))


def read_fetch(message: Message) -> tuple[Target, str]:
    """FETCH_SOCKETS: whose sockets, and the request's id. Raises WireError."""
    return read_target(message.namespace, _map(message, "opts")), _id(message)


def read_event(message: Message) -> Event:
    """SERVER_SIDE_EMIT. Raises WireError."""
    args = message.data.get("packet")
    if not is_event(args):
        raise _junk(message, "no event")
    return Event(args, None if message.data.get("requestId") is None else _id(message))


def read_found(message: Message) -> Found:
    """FETCH_SOCKETS_RESPONSE. Raises WireError."""
    sockets = message.data.get("sockets")
    if not isinstance(sockets, list):
        raise _junk(message, "no list of sockets")
    return Found(_id(message), [read_socket(socket) for socket in sockets])


def read_count(message: Message) -> Count:
    """BROADCAST_CLIENT_COUNT. Raises WireError."""
    count = message.data.get("clientCount")
    if not is_count(count):
        raise _junk(message, "no count")
    return Count(_id(message), count)


def read_gone(message: Message) -> str:
    """BROADCAST_GONE: the request. Raises WireError."""
    return _id(message)


def read_ack(message: Message) -> Ack:
    """BROADCAST_ACK or SERVER_SIDE_EMIT_RESPONSE. Raises WireError."""
    return Ack(_id(message), read_answer(message.data))
