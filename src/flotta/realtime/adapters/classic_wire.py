"""What ``@socket.io/redis-adapter`` and the official emitters put on Redis channels, read and written. Pure.

- broadcasts: ``<prefix>#<namespace>#`` or, for exactly one room, ``<prefix>#<namespace>#<room>#``; MessagePack
  ``[uid, {type, data, nsp}, {rooms, except, flags}]`` with binary values inline;
- requests: ``<prefix>-request#<namespace>#``, JSON (MessagePack where it carries a packet) with ``type``, ``uid``,
  ``requestId``; answers: ``<prefix>-response#<namespace>#``, or with the asking server's ``<uid>#`` behind it, which
  Node's adapter has listened to since its version 7.1.

A broadcast with a filter (``may_see``) travels on ``<prefix>-filtered#<namespace>#``, which Node servers do not
subscribe to: they could not apply the filter, and would send to everybody in the room.

Junk raises `WireError` and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, Final, NamedTuple, final

from flotta.errors import WireError
from flotta.realtime.adapters import Broadcast, Command, SocketFacts, Target
from flotta.realtime.adapters.wire import (
    TELL_GONE,
    UID_LENGTH_MAX,
    answer_fields,
    is_count,
    is_event,
    load_json,
    pack,
    read_packet,
    read_rooms,
    read_socket,
    read_target,
    read_timeout_s,
    unpack,
    write_json,
    write_options,
    write_packet,
)

__all__ = [
    "COMMANDS",
    "Channels",
    "Heard",
    "Request",
    "RequestType",
    "Response",
    "read_broadcast",
    "read_count",
    "read_event",
    "read_names",
    "read_question",
    "read_request",
    "read_response",
    "read_sockets",
    "write_ack",
    "write_broadcast",
    "write_command",
    "write_question",
    "write_request",
    "write_response",
]


class RequestType(IntEnum):
    """What one server may ask of all."""

    SOCKETS = 0
    ALL_ROOMS = 1
    REMOTE_JOIN = 2
    REMOTE_LEAVE = 3
    REMOTE_DISCONNECT = 4
    REMOTE_FETCH = 5
    SERVER_SIDE_EMIT = 6
    BROADCAST = 7
    BROADCAST_CLIENT_COUNT = 8
    BROADCAST_ACK = 9
    BROADCAST_GONE = 105
    """Flotta's: a client that was asked has left without an answer. Said only to who has asked for it (`TELL_GONE`)."""


COMMANDS: Final = {
    RequestType.REMOTE_JOIN: Command.JOIN,
    RequestType.REMOTE_LEAVE: Command.LEAVE,
    RequestType.REMOTE_DISCONNECT: Command.DISCONNECT,
}
_REQUESTS: Final = {command: kind for kind, command in COMMANDS.items()}


@final
class Channels:
    """The channel names of one namespace."""

    __slots__ = ("broadcasts", "filtered", "pattern", "requests", "responses")

    def __init__(self, prefix: str, namespace: str) -> None:
        self.broadcasts = f"{prefix}#{namespace}#"
        self.filtered = f"{prefix}-filtered#{namespace}#"
        self.requests = f"{prefix}-request#{namespace}#"
        self.responses = f"{prefix}-response#{namespace}#"
        escaped = "".join("\\" + letter if letter in "*?[]\\" else letter for letter in self.broadcasts)
        self.pattern = escaped + "*"

    def answers_to(self, uid: str) -> str:
        """Where answers are published that only ``uid`` needs to hear."""
        return f"{self.responses}{uid}#" if uid else self.responses

    def of(self, broadcast: Broadcast) -> str:
        """Where a broadcast is published."""
        if broadcast.may_see is not None:
            return self.filtered
        rooms = broadcast.target.rooms
        return f"{self.broadcasts}{rooms[0]}#" if len(rooms) == 1 else self.broadcasts

    def room(self, channel: str) -> str:
        """The room that a channel of `pattern` is for; empty: all."""
        return channel[len(self.broadcasts) : -1]


class Heard(NamedTuple):
    """A broadcast and who sent it."""

    uid: str
    broadcast: Broadcast


class Request(NamedTuple):
    """A request of another server. ``fields`` holds what its type adds."""

    type: RequestType
    uid: str
    id: str | None
    target: Target
    fields: dict[str, Any]


class Response(NamedTuple):
    """An answer of another server. ``type`` is there if it belongs to an event: a count, an acknowledgement."""

    id: str
    type: Any
    fields: dict[Any, Any]


def write_broadcast(uid: str, broadcast: Broadcast) -> bytes:
    """One broadcast as Node's adapter writes it."""
    return pack([uid, *write_packet(broadcast)])


def read_broadcast(payload: bytes) -> Heard:
    """Read what a Flotta instance, a Node server or an emitter published. Raises WireError."""
    message = unpack(payload)
    if not isinstance(message, list) or len(message) < 3:
        raise WireError("adapter broadcast", "no list of three", payload)
    uid, packet, options = message[:3]
    if not (isinstance(uid, str) and isinstance(packet, dict) and isinstance(options, dict)):
        raise WireError("adapter broadcast", "wrong types", payload)
    return Heard(uid, read_packet(packet.get("nsp", "/"), packet, options, payload))


def write_request(uid: str, kind: RequestType, target: Target | None = None, **fields: Any) -> bytes:
    """A request for all servers: JSON, or MessagePack if it holds what JSON cannot. Raises TypeError or ValueError."""
    request: dict[str, Any] = {"uid": uid, "type": int(kind)}
    if target is not None:
        request["opts"] = {"rooms": list(target.rooms), "except": list(target.except_rooms)}
    return _write({**request, **fields})


def write_command(uid: str, command: Command, target: Target, rooms: Iterable[str], *, close: bool) -> bytes:
    """The request that all servers do ``command`` with their sockets of ``target``. Raises as `write_request`."""
    fields: dict[str, Any] = {"close": close} if command is Command.DISCONNECT else {"rooms": list(rooms)}
    return write_request(uid, _REQUESTS[command], target, **fields)


def _write(fields: dict[str, Any]) -> bytes:
    try:
        return write_json(fields)
    except (TypeError, ValueError):  # bytes, NaN: readers take both forms
        return pack(fields)


def write_question(uid: str, request_id: str, target: Target, args: list[Any], timeout_s: float) -> bytes:
    """A broadcast that each recipient acknowledges. Raises TypeError or ValueError for what cannot travel."""
    packet, _ = write_packet(Broadcast(target, args))
    options = write_options(target, timeout=round(timeout_s * 1000))
    request = {"uid": uid, "requestId": request_id, "type": int(RequestType.BROADCAST), TELL_GONE: True}
    return pack({**request, "packet": packet, "opts": options})


def read_request(payload: bytes, namespace: str) -> Request:
    """Read a request. Raises WireError, also for a type that is none."""
    fields = _read(payload)
    try:
        kind = RequestType(fields["type"])
    except (ValueError, KeyError, TypeError) as error:
        raise WireError("adapter request", "unknown type", payload) from error
    options = fields.get("opts") or {"rooms": fields.get("rooms") if kind is RequestType.SOCKETS else []}
    request_id, uid = fields.get("requestId"), fields.get("uid", "")
    if not (isinstance(options, dict) and isinstance(request_id, (str, type(None))) and isinstance(uid, str)):
        raise WireError("adapter request", "wrong types", payload)
    if len(uid) > UID_LENGTH_MAX:  # it becomes part of a channel's name
        raise WireError("adapter request", "the uid is none", payload)
    return Request(kind, uid, request_id, read_target(namespace, options, payload), fields)


def _read(payload: bytes) -> dict[Any, Any]:
    fields = load_json(payload) if payload[:1] == b"{" else unpack(payload)
    if not isinstance(fields, dict):
        raise WireError("adapter message", "no map", payload)
    return fields


def read_question(request: Request) -> tuple[list[Any], float, bool]:
    """The event of a broadcast with acknowledgements, how long they are waited for, and whether who asks wants to hear
    of clients that leave. Raises WireError."""
    packet, options = request.fields.get("packet"), request.fields.get("opts") or {}
    args = packet.get("data") if isinstance(packet, dict) else None
    if not is_event(args):
        raise WireError("adapter request", "no event to acknowledge")
    return args, read_timeout_s(options), request.fields.get(TELL_GONE) is True


def read_event(request: Request) -> list[Any]:
    """The event of a server for servers. Raises WireError."""
    args = request.fields.get("data")
    if not is_event(args):
        raise WireError("adapter request", "no server-side event")
    return args


# --- answers ---


def write_response(request_id: str, **fields: Any) -> bytes:
    """An answer: JSON, or MessagePack if it holds what JSON cannot. Raises TypeError or ValueError."""
    return _write({"requestId": request_id, **fields})


def write_ack(request_id: str, args: list[Any]) -> bytes:
    """One client's acknowledgement of a broadcast, for the server that asked."""
    fields: dict[str, Any] = {"type": int(RequestType.BROADCAST_ACK), "requestId": request_id}
    try:
        return pack({**fields, **answer_fields(args)})
    except (TypeError, ValueError):  # a client may nest deeper or count higher than MessagePack
        return pack({**fields, "packet": None})


def read_response(payload: bytes) -> Response:
    """Read an answer. Raises WireError."""
    fields = _read(payload)
    request_id = fields.get("requestId")
    if not isinstance(request_id, str):
        raise WireError("adapter response", "no request id", payload)
    return Response(request_id, fields.get("type"), fields)


def read_count(response: Response) -> int:
    """How many clients a server has asked. Raises WireError."""
    count = response.fields.get("clientCount")
    if not is_count(count):
        raise WireError("adapter response", "no count")
    return count


def read_sockets(fields: dict[Any, Any]) -> list[SocketFacts]:
    """The sockets of an answer to a fetch. Raises WireError."""
    return [read_socket(socket) for socket in _list(fields, "sockets")]


def read_names(fields: dict[Any, Any]) -> list[str]:
    """The rooms of an answer. Raises WireError."""
    return list(read_rooms(_list(fields, "rooms")))


def _list(fields: dict[Any, Any], name: str) -> list[Any]:
    found = fields.get(name)
    if not isinstance(found, list):
        raise WireError("adapter response", f"no {name}")
    return found
