"""What is known of a connected user, and how it is written: the record of one socket, and a change of who is there.

The record is JSON with the names that Socket.IO applications use (``socketId``, ``serverId``, ``connectedAt`` in
milliseconds, ``status``), so that any other program may read it. Pure.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from flotta.errors import InvalidName, RealtimeError, WireError

__all__ = [
    "ONLINE",
    "STATE_BYTES_MAX",
    "Kick",
    "Online",
    "PresenceChange",
    "Revocation",
    "check_status",
    "check_user",
    "read_change",
    "read_control",
    "read_record",
    "write_gap",
    "write_kick",
    "write_record",
]

USER_CHARACTERS_MAX: Final = 256
STATUS_CHARACTERS_MAX: Final = 64
STATE_BYTES_MAX: Final = 4_096
"""The custom state of one socket as JSON: every instance that watches gets it with each change."""
ONLINE: Final = "online"
"""The status until `Presence.set_status` says otherwise."""

Kind: TypeAlias = Literal["join", "leave", "status", "move", "gap"]
_KINDS: Final = frozenset({"join", "leave", "status", "move"})


class Online(NamedTuple):
    """One connected socket of a user."""

    user: str
    socket_id: str
    server_id: str
    """The first 4 characters of every session id of the instance that holds it."""
    namespace: str
    connected_at: float
    """Unix seconds."""
    status: str = ONLINE
    state: Any = None
    """Whatever the application says of this socket."""


class PresenceChange(NamedTuple):
    """Who came, went, moved to another instance or says something else of itself.

    ``kind`` is ``"join"``, ``"leave"``, ``"status"``, ``"move"`` (the session goes on at another instance), or
    ``"gap"``: changes may have been missed (Redis was away, or lost its data), so look again; then there is no user and
    no socket.
    """

    kind: Kind
    user: str = ""
    socket: Online | None = None
    sockets: int = 0
    """How many sockets the user has now."""

    @property
    def came_online(self) -> bool:
        """It was the user's first socket."""
        return self.kind == "join" and self.sockets == 1

    @property
    def went_offline(self) -> bool:
        """It was the user's last socket."""
        return self.kind == "leave" and self.sockets == 0


class Revocation(NamedTuple):
    """Tokens of a user are worth nothing any more."""

    user: str
    until_s: float
    """Those that were issued up to then (Unix seconds)."""
    keep_s: float
    """For how many seconds more it is remembered."""


class Kick(NamedTuple):
    """A user is to be disconnected everywhere."""

    origin: str
    """The lease of the instance that says so, and has done its part."""
    user: str
    close: bool
    """The connections too."""
    told: list[str]
    """Namespaces whose servers have been told in another way."""


class _Record(msgspec.Struct, rename="camel"):
    user: str
    socket_id: str
    server_id: str
    namespace: str
    connected_at: int
    status: str = ONLINE
    state: Any = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Record).decode
_unpack_change = msgspec.msgpack.Decoder(tuple[str, str, str, str, int]).decode
_pack = msgspec.msgpack.Encoder().encode
_unpack_control = msgspec.msgpack.Decoder(list[Any]).decode


def check_user(user: object) -> str:
    """Raises InvalidName for what is no id of a user."""
    return _check_text("user", user, USER_CHARACTERS_MAX)


def _check_text(kind: str, value: object, characters_max: int) -> str:
    """JSON lets clients send halves of characters (lone surrogates), which Redis cannot be told."""
    if isinstance(value, str) and 0 < len(value) <= characters_max:
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return value
    raise InvalidName(kind, value, f"text of 1 to {characters_max} whole characters")


def check_status(status: object, state: Any) -> Any:
    """Gives the state as whoever asks will read it: what becomes of the given value later changes nothing. Raises
    InvalidName, or RealtimeError for a state that is too large or no JSON."""
    _check_text("status", status, STATUS_CHARACTERS_MAX)
    try:
        written = _encode(state)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise RealtimeError(f"the state of a presence must be JSON: {error}") from error
    if len(written) > STATE_BYTES_MAX:
        raise RealtimeError(f"the state of a presence may take {STATE_BYTES_MAX} bytes of JSON, not {len(written)}")
    return msgspec.json.decode(written)


def write_record(online: Online) -> bytes:
    """The record as it lies in Redis."""
    return _encode(_Record(**{**online._asdict(), "connected_at": round(online.connected_at * 1000)}))


def read_record(data: bytes | str) -> Online:
    """Raises WireError."""
    try:
        record = _decode(data)
    except (msgspec.MsgspecError, ValueError) as error:  # text that is no UTF-8 is a plain ValueError
        raise WireError("presence record", str(error), data) from error
    at_s = record.connected_at / 1000
    return Online(record.user, record.socket_id, record.server_id, record.namespace, at_s, record.status, record.state)


def read_change(data: bytes) -> PresenceChange:
    """A message of the channel of changes. Raises WireError."""
    try:
        kind, user, _, record, sockets = _unpack_change(data)
    except (msgspec.MsgspecError, ValueError) as error:  # text that is no UTF-8 is a plain ValueError
        raise WireError("presence change", str(error), data) from error
    if kind == "gap":
        return PresenceChange("gap")
    if kind not in _KINDS:
        raise WireError("presence change", "unknown kind", data)
    return PresenceChange(kind, user, read_record(record), sockets)  # type: ignore[arg-type]


def write_gap() -> bytes:
    """The same for a gap: whoever watches is to look again."""
    return _pack(("gap", "", "", "", 0))


def write_kick(kick: Kick) -> bytes:
    """A message of the channel of control."""
    return _pack(kick)


def read_control(data: bytes) -> Revocation | Kick:
    """A message of the channel of control. Raises WireError."""
    try:
        fields = _unpack_control(data)
        if len(fields) == len(Kick._fields):
            return Kick(*msgspec.convert(fields, tuple[str, str, bool, list[str]]))
        user, until_ms, keep_ms = msgspec.convert(fields, tuple[str, float, float])
    except (msgspec.MsgspecError, ValueError) as error:  # text that is no UTF-8 is a plain ValueError
        raise WireError("presence control", str(error), data) from error
    return Revocation(user, until_ms / 1000, keep_ms / 1000)
