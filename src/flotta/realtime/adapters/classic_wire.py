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
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple, TypeGuard, final

import msgpack  # type: ignore[import-untyped]  # it has no types

from flotta.errors import WireError
from flotta.realtime.adapters import Broadcast, SocketFacts, Target
from flotta.realtime.socketio.packet import PacketType, iso_time

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


ASK_MS_MAX = 600_000
"""How long another server's question is kept for answers, at most."""


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
    target = broadcast.target
    flags: dict[str, Any] = {}
    if broadcast.volatile:
        flags["volatile"] = True
    if broadcast.may_see is not None:
        flags["maySee"] = broadcast.may_see
    packet = {"type": int(PacketType.EVENT), "data": broadcast.args, "nsp": target.namespace}
    options = {"rooms": list(target.rooms), "except": list(target.except_rooms), "flags": flags}
    return _pack([uid, packet, options])


def _pack(value: Any) -> bytes:
    """Raises TypeError or ValueError. JavaScript's strings may hold lone surrogates; Node's packer writes them too."""
    packed: bytes = msgpack.packb(value, use_bin_type=True, default=_plain, unicode_errors="surrogatepass")
    return packed


def _double(value: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("an integer that no client can hold") from error


def _plain(value: object) -> str | float:
    if isinstance(value, datetime):
        return iso_time(value)
    if isinstance(value, int):  # more than 64 bits: the number that JavaScript makes of it
        return _double(value)
    raise TypeError(f"a {type(value).__name__} cannot travel: neither JSON nor bytes")


def _extension(code: int, data: bytes) -> None:
    """Node's packer writes ``undefined`` as extension 0; it has no others but dates, which the reader knows."""
    if code != 0:
        raise ValueError(f"unknown extension {code} of {len(data)} bytes")


def _unpack(payload: bytes) -> Any:
    try:
        return msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=False,
            timestamp=3,
            ext_hook=_extension,
            unicode_errors="surrogatepass",
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError("adapter message", "no MessagePack", payload) from error


def read_broadcast(payload: bytes) -> Heard:
    """Read what a Flotta instance, a Node server or an emitter published. Raises WireError."""
    message = _unpack(payload)
    if not isinstance(message, list) or len(message) < 3:
        raise WireError("adapter broadcast", "no list of three", payload)
    uid, packet, options = message[:3]
    if not (isinstance(uid, str) and isinstance(packet, dict) and isinstance(options, dict)):
        raise WireError("adapter broadcast", "wrong types", payload)
    return Heard(uid, _read_packet(packet, options, payload))


def _read_packet(packet: dict[Any, Any], options: dict[Any, Any], payload: bytes) -> Broadcast:
    args, flags = packet.get("data"), options.get("flags") or {}
    if packet.get("type") not in {PacketType.EVENT, PacketType.BINARY_EVENT} or not _is_event(args):
        raise WireError("adapter broadcast", "no event", payload)
    if not isinstance(flags, dict):
        raise WireError("adapter broadcast", "flags are no map", payload)
    may_see = flags.get("maySee")
    if may_see is not None and not isinstance(may_see, str):
        raise WireError("adapter broadcast", "the filter is no name", payload)
    target = _target(packet.get("nsp", "/"), options, payload)
    return Broadcast(target, args, volatile=bool(flags.get("volatile")), may_see=may_see)


def _is_event(args: Any) -> TypeGuard[list[Any]]:
    return isinstance(args, list) and bool(args) and isinstance(args[0], str)


def _target(namespace: Any, options: dict[Any, Any], payload: bytes) -> Target:
    rooms, excluded = options.get("rooms") or [], options.get("except") or []
    if not isinstance(namespace, str):
        raise WireError("adapter message", "the namespace is no name", payload)
    return Target(namespace, read_rooms(rooms), read_rooms(excluded))


def read_rooms(rooms: Any) -> tuple[str, ...]:
    """Rooms of a request. Node's may be numbers; here they are their text. Raises WireError."""
    if not isinstance(rooms, list) or not all(isinstance(room, (str, int, float)) for room in rooms):
        raise WireError("adapter message", "wrong rooms")
    return tuple(map(str, rooms))


def write_request(uid: str, kind: RequestType, target: Target, **fields: Any) -> bytes:
    """A request for all servers that asks for no answer."""
    options = {"rooms": list(target.rooms), "except": list(target.except_rooms)}
    return json.dumps({"uid": uid, "type": int(kind), "opts": options, **fields}).encode()


def read_request(payload: bytes, namespace: str) -> Request:
    """Read a request. Raises WireError, also for a type that is none."""
    try:
        fields = json.loads(payload) if payload[:1] == b"{" else _unpack(payload)
        kind = RequestType(fields["type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError("adapter request", "unreadable", payload) from error
    options = fields.get("opts") or {"rooms": fields.get("rooms") if kind is RequestType.SOCKETS else []}
    request_id, uid = fields.get("requestId"), fields.get("uid", "")
    if not (isinstance(options, dict) and isinstance(request_id, (str, type(None))) and isinstance(uid, str)):
        raise WireError("adapter request", "wrong types", payload)
    return Request(kind, uid, request_id, _target(namespace, options, payload), fields)


def write_response(request_id: str, **fields: Any) -> bytes:
    """An answer in JSON."""
    return json.dumps({"requestId": request_id, **fields}, default=str).encode()


def read_question(request: Request) -> tuple[list[Any], float]:
    """The event of a broadcast with acknowledgements, and how long they are waited for. Raises WireError."""
    packet, options = request.fields.get("packet"), request.fields.get("opts") or {}
    args = packet.get("data") if isinstance(packet, dict) else None
    flags = options.get("flags") or {}
    timeout_ms = flags.get("timeout") if isinstance(flags, dict) else None
    if not _is_event(args):
        raise WireError("adapter request", "no event to acknowledge")
    if not isinstance(timeout_ms, (int, float)) or not 0 <= timeout_ms < ASK_MS_MAX:  # NaN is neither
        return args, 5.0
    return args, timeout_ms / 1000


def write_ack(request_id: str, args: list[Any]) -> bytes:
    """One client's acknowledgement of a broadcast, for the server that asked: its first argument, as Node has it."""
    answer = args[0] if args else None
    fields = {"type": int(RequestType.BROADCAST_ACK), "requestId": request_id, "packet": answer}
    try:
        return _pack(fields)
    except (TypeError, ValueError):  # a client may nest deeper or count higher than MessagePack
        return _pack({**fields, "packet": None})


def socket_fields(facts: SocketFacts) -> dict[str, Any]:
    """One socket in the answer to a fetch."""
    return {"id": facts.sid, "handshake": facts.handshake, "rooms": sorted(facts.rooms), "data": {}}
