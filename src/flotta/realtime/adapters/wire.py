"""What the formats of all adapters share: MessagePack and JSON as Node's packages write them, targets, events. Pure.

JavaScript holds more than JSON and MessagePack agree on: strings with lone surrogates, integers that are doubles,
dates, ``undefined``. What Node can say is said as it does; anything else raises TypeError or ValueError when it is
written. Junk that is read raises `WireError` and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, TypeGuard

import msgpack  # type: ignore[import-untyped]  # it has no types

from flotta.errors import WireError
from flotta.realtime.adapters import Broadcast, SocketFacts, Target
from flotta.realtime.socketio import json_text
from flotta.realtime.socketio.msgpack import pack
from flotta.realtime.socketio.packet import PacketType, iso_time

__all__ = [
    "ASK_S_DEFAULT",
    "ASK_S_MAX",
    "COUNT_MAX",
    "TELL_GONE",
    "UID_LENGTH_MAX",
    "Binary",
    "answer_fields",
    "channel_bytes",
    "is_count",
    "is_event",
    "load_json",
    "pack",
    "read_answer",
    "read_packet",
    "read_rooms",
    "read_socket",
    "read_target",
    "read_timeout_s",
    "socket_fields",
    "unpack",
    "unsendable_is_junk",
    "write_json",
    "write_options",
    "write_packet",
]

ASK_S_DEFAULT = 5.0
"""How long another server's question is kept for answers if it does not say."""
ASK_S_MAX = 600.0
"""How long it is kept at most."""
UID_LENGTH_MAX: Final = 64
COUNT_MAX: Final = 10_000_000
"""More clients than this no server has asked."""
TELL_GONE: Final = "gone"
"""What a question has that wants to hear of clients that leave. Who does not know it passes over it, as Node does."""


class Binary(TypeError):
    """The value holds bytes, which JSON cannot carry."""


# --- MessagePack and JSON ---


def _extension(code: int, data: bytes) -> None:
    """Node's packer writes ``undefined`` as extension 0; it has no others but dates, which the reader knows."""
    if code != 0:
        raise ValueError(f"unknown extension {code} of {len(data)} bytes")


def unpack(payload: bytes) -> Any:
    """Read MessagePack. Raises WireError."""
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


def _json_value(value: object) -> str:
    if isinstance(value, datetime):
        return iso_time(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise Binary("bytes in JSON")
    raise TypeError(f"a {type(value).__name__} cannot travel: neither JSON nor bytes")


_dump = json.JSONEncoder(**json_text.FORM, default=_json_value).encode
_dump_ascii = json.JSONEncoder(**{**json_text.FORM, "ensure_ascii": True}, default=_json_value).encode


def write_json(value: Any) -> bytes:
    """``value`` in JSON. Raises `Binary` for bytes, TypeError or ValueError for what cannot travel."""
    written = json_text.dump_quickly(value)
    return _write_json_carefully(value) if written is None else written


def _write_json_carefully(value: Any) -> bytes:
    try:
        return _dump(value).encode()
    except UnicodeEncodeError:  # a lone surrogate: escaped, as JSON.stringify does it
        return _dump_ascii(value).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def load_json(payload: bytes | str) -> Any:
    """Read JSON. Raises WireError."""
    try:
        return json_text.load_json(payload if isinstance(payload, str) else payload.decode())
    except (ValueError, RecursionError) as error:
        raise WireError("adapter message", "no JSON", payload) from error


def channel_bytes(name: str) -> bytes:
    """A channel's name in UTF-8; a lone surrogate in a room's becomes U+FFFD, as in Node."""
    try:
        return name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


@contextmanager
def unsendable_is_junk() -> Iterator[None]:
    """For giving clients what was read: MessagePack carries more than Socket.IO's JSON does, NaN for one."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise WireError("adapter message", f"cannot be sent to clients: {error}") from error


# --- targets and events ---


def write_options(target: Target, **flags: Any) -> dict[str, Any]:
    """A target as Node's ``opts``."""
    return {"rooms": list(target.rooms), "except": list(target.except_rooms), "flags": flags}


def read_rooms(rooms: Any) -> tuple[str, ...]:
    """Rooms of a message. Node's may be numbers; here they are their text. Raises WireError."""
    if not isinstance(rooms, list) or not all(isinstance(room, (str, int, float)) for room in rooms):
        raise WireError("adapter message", "wrong rooms")
    return tuple(map(str, rooms))


def read_target(namespace: Any, options: dict[Any, Any], payload: bytes = b"") -> Target:
    """The target that ``opts`` name. Raises WireError."""
    if not isinstance(namespace, str):
        raise WireError("adapter message", "the namespace is no name", payload)
    return Target(namespace, read_rooms(options.get("rooms") or []), read_rooms(options.get("except") or []))


def is_event(args: Any) -> TypeGuard[list[Any]]:
    """An event's name, then its data."""
    return isinstance(args, list) and bool(args) and isinstance(args[0], str)


def is_count(value: Any) -> TypeGuard[int]:
    """How many clients a server says that it has asked."""
    return type(value) is int and 0 <= value <= COUNT_MAX


def write_packet(broadcast: Broadcast) -> tuple[dict[str, Any], dict[str, Any]]:
    """A broadcast as Node's ``packet`` and ``opts``."""
    target = broadcast.target
    flags: dict[str, Any] = {}
    if broadcast.volatile:
        flags["volatile"] = True
    if broadcast.may_see is not None:
        flags["maySee"] = broadcast.may_see
    packet = {"type": int(PacketType.EVENT), "data": broadcast.args, "nsp": target.namespace}
    return packet, write_options(target, **flags)


def read_packet(namespace: Any, packet: dict[Any, Any], options: dict[Any, Any], payload: bytes = b"") -> Broadcast:
    """The broadcast that Node's ``packet`` and ``opts`` are. Raises WireError."""
    args, flags = packet.get("data"), options.get("flags") or {}
    if packet.get("type") not in (PacketType.EVENT, PacketType.BINARY_EVENT) or not is_event(args):
        raise WireError("adapter broadcast", "no event", payload)
    if not isinstance(flags, dict):
        raise WireError("adapter broadcast", "flags are no map", payload)
    may_see = flags.get("maySee")
    if may_see is not None and not isinstance(may_see, str):
        raise WireError("adapter broadcast", "the filter is no name", payload)
    target = read_target(namespace, options, payload)
    return Broadcast(target, args, volatile=bool(flags.get("volatile")), may_see=may_see)


def read_timeout_s(options: dict[Any, Any]) -> float:
    """How long answers to a broadcast are waited for; what makes no sense is `ASK_S_DEFAULT`."""
    flags = options.get("flags")
    timeout_ms = flags.get("timeout") if isinstance(flags, dict) else None
    if not isinstance(timeout_ms, (int, float)) or not 0 <= timeout_ms < ASK_S_MAX * 1000:  # NaN is neither
        return ASK_S_DEFAULT
    return timeout_ms / 1000


def socket_fields(facts: SocketFacts) -> dict[str, Any]:
    """One socket in the answer to a fetch."""
    return {"id": facts.sid, "handshake": facts.handshake, "rooms": sorted(facts.rooms), "data": facts.data}


def read_socket(fields: Any) -> SocketFacts:
    """One socket of such an answer. Raises WireError."""
    if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
        raise WireError("adapter message", "a socket without an id")
    handshake = fields.get("handshake")
    return SocketFacts(
        sid=fields["id"],
        rooms=frozenset(read_rooms(fields.get("rooms"))),
        handshake=handshake if isinstance(handshake, dict) else {},
        data=fields.get("data"),
    )


def answer_fields(args: list[Any]) -> dict[str, Any]:
    """A client's acknowledgement: ``packet`` is its first argument, all that Node hands on; ours has them all."""
    fields = {"packet": args[0] if args else None}
    return fields if len(args) == 1 else {**fields, "args": args}


def read_answer(fields: dict[Any, Any]) -> list[Any]:
    """The arguments of such an acknowledgement."""
    args = fields.get("args")
    return args if isinstance(args, list) else [fields.get("packet")]
