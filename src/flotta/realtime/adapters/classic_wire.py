"""What ``@socket.io/redis-adapter`` and the official emitters put on Redis channels, read and written. Pure.

- broadcasts: ``<prefix>#<namespace>#`` or, for exactly one room, ``<prefix>#<namespace>#<room>#``; MessagePack
  ``[uid, {type, data, nsp}, {rooms, except, flags}]`` with binary values inline;
- requests: ``<prefix>-request#<namespace>#``, JSON (MessagePack where it carries a packet) with ``type``, ``uid``,
  ``requestId``; answers: ``<prefix>-response#<namespace>#``, or with ``<uid>#`` behind it.

A broadcast with a filter (``may_see``) travels on ``<prefix>-filtered#<namespace>#``, which Node servers do not
subscribe to: they could not apply the filter, and would send to everybody in the room.

Junk raises `WireError` and nothing else.
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Any, NamedTuple, final

from flotta.errors import WireError
from flotta.realtime.adapters import Broadcast, Target
from flotta.realtime.adapters.wire import (
    is_event,
    pack,
    read_packet,
    read_rooms,
    read_target,
    read_timeout_s,
    socket_fields,
    unpack,
    write_packet,
)

__all__ = [
    "Channels",
    "Heard",
    "Request",
    "RequestType",
    "read_broadcast",
    "read_question",
    "read_request",
    "read_rooms",
    "socket_fields",
    "write_ack",
    "write_broadcast",
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


def write_request(uid: str, kind: RequestType, target: Target, **fields: Any) -> bytes:
    """A request for all servers that asks for no answer."""
    options = {"rooms": list(target.rooms), "except": list(target.except_rooms)}
    return json.dumps({"uid": uid, "type": int(kind), "opts": options, **fields}).encode()


def read_request(payload: bytes, namespace: str) -> Request:
    """Read a request. Raises WireError, also for a type that is none."""
    try:
        fields = json.loads(payload) if payload[:1] == b"{" else unpack(payload)
        kind = RequestType(fields["type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError("adapter request", "unreadable", payload) from error
    options = fields.get("opts") or {"rooms": fields.get("rooms") if kind is RequestType.SOCKETS else []}
    request_id, uid = fields.get("requestId"), fields.get("uid", "")
    if not (isinstance(options, dict) and isinstance(request_id, (str, type(None))) and isinstance(uid, str)):
        raise WireError("adapter request", "wrong types", payload)
    return Request(kind, uid, request_id, read_target(namespace, options, payload), fields)


def write_response(request_id: str, **fields: Any) -> bytes:
    """An answer in JSON."""
    return json.dumps({"requestId": request_id, **fields}, default=str).encode()


def read_question(request: Request) -> tuple[list[Any], float]:
    """The event of a broadcast with acknowledgements, and how long they are waited for. Raises WireError."""
    packet, options = request.fields.get("packet"), request.fields.get("opts") or {}
    args = packet.get("data") if isinstance(packet, dict) else None
    if not is_event(args):
        raise WireError("adapter request", "no event to acknowledge")
    return args, read_timeout_s(options)


def write_ack(request_id: str, args: list[Any]) -> bytes:
    """One client's acknowledgement of a broadcast, for the server that asked: its first argument, as Node has it."""
    answer = args[0] if args else None
    fields = {"type": int(RequestType.BROADCAST_ACK), "requestId": request_id, "packet": answer}
    try:
        return pack(fields)
    except (TypeError, ValueError):  # a client may nest deeper or count higher than MessagePack
        return pack({**fields, "packet": None})
