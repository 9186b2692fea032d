"""What is kept of a socket in Redis, in the format of Node's streams adapter. Pure.

The value is MessagePack in base64: a map with Node's ``sid``, ``pid``, ``rooms`` and ``data``, which is all that a Node
server writes and reads, and before and after them what Flotta adds: ``own``, who may write the value, and ``flotta``.

Invariant: `mark` is how every value of one owner begins, so that a script can compare owners without decoding. That is
why ``own`` is the first of always six fields and has always 18 characters: 24 bytes, which are 32 of base64.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final, NamedTuple, TypeAlias

from flotta.errors import WireError
from flotta.realtime.adapters.wire import pack, read_rooms, unpack
from flotta.streaming.event import format_id, parse_id

__all__ = [
    "OWNER_LENGTH",
    "Position",
    "Session",
    "Stay",
    "User",
    "mark",
    "read_position",
    "read_session",
    "write_session",
]

Position: TypeAlias = tuple[int, int]
"""A place in the stream: the id of an entry. Tuples order as entries do."""
OWNER_LENGTH: Final = 18
_FIELDS = 6
_OPENING = bytes((0x80 + _FIELDS,)) + b"\xa3own" + bytes((0xA0 + OWNER_LENGTH,))
_MARK_LENGTH = 32


class Stay(NamedTuple):
    """A time in a room that does not cover everything since `Session.seen`."""

    room: str
    after: Position | None
    """It began after this. None: before `Session.seen`."""
    until: Position | None
    """It ended after this. None: it has not."""


class User(NamedTuple):
    """Whose the socket is (`Server.set_user`)."""

    name: str
    expires_at: float | None
    issued_at: float


class Session(NamedTuple):
    """A socket's session. What Node does not write is None or empty in a session that a Node server has saved."""

    sid: str
    pid: str
    """The private id: whoever knows it may claim the session."""
    rooms: tuple[str, ...]
    data: Any
    owner: str = ""
    namespace: str | None = None
    seen: Position | None = None
    """The client is known to have got everything up to here that was for it."""
    stays: tuple[Stay, ...] = ()
    live: bool = False
    """The owner held the connection when it saved this."""
    user: User | None = None


def mark(owner: str) -> bytes:
    """How every value begins that ``owner`` has written."""
    assert len(owner) == OWNER_LENGTH, "an owner's name has 18 characters"
    return base64.b64encode(_OPENING + owner.encode("ascii"))


def write_session(session: Session) -> bytes:
    """The value of the key. Raises TypeError or ValueError if ``data`` holds what MessagePack cannot carry."""
    stays = [[stay.room, _text(stay.after), _text(stay.until)] for stay in session.stays]
    ours: dict[str, Any] = {"nsp": session.namespace, "seen": _text(session.seen), "stays": stays, "live": session.live}
    if session.user is not None:
        ours["user"] = list(session.user)
    fields = {
        "own": session.owner,
        "sid": session.sid,
        "pid": session.pid,
        "rooms": list(session.rooms),
        "data": session.data,
        "flotta": ours,
    }
    assert len(fields) == _FIELDS
    return base64.b64encode(pack(fields))


def _text(position: Position | None) -> str | None:
    return None if position is None else format_id(position)


def read_session(value: bytes) -> Session:
    """Read what a Flotta or a Node server has saved. Raises WireError."""
    try:
        fields = unpack(base64.b64decode(value, validate=True))
    except binascii.Error as error:
        raise WireError("saved session", "no base64", value) from error
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in ("sid", "pid")):
        raise WireError("saved session", "no session", value)
    ours, owner = fields.get("flotta"), fields.get("own", "")
    if not isinstance(owner, str) or not isinstance(ours, (dict, type(None))):
        raise WireError("saved session", "wrong types", value)
    session = Session(fields["sid"], fields["pid"], read_rooms(fields.get("rooms") or []), fields.get("data"), owner)
    return session if ours is None else _with_ours(session, ours)


def _with_ours(session: Session, fields: dict[Any, Any]) -> Session:
    namespace, stays = fields.get("nsp"), fields.get("stays")
    if not isinstance(namespace, str) or not isinstance(stays, list):
        raise WireError("saved session", "wrong types of what Flotta adds")
    return session._replace(
        namespace=namespace,
        seen=_position(fields.get("seen")),
        stays=tuple(_stay(fields) for fields in stays),
        live=fields.get("live") is True,
        user=_user(fields.get("user")),
    )


def _user(fields: Any) -> User | None:
    if fields is None:
        return None
    if not isinstance(fields, list) or len(fields) != 3 or not isinstance(fields[0], str):
        raise WireError("saved session", "no user")
    name, expires_at, issued_at = fields
    if not (isinstance(expires_at, (int, float, type(None))) and isinstance(issued_at, (int, float))):
        raise WireError("saved session", "no times of a user")
    return User(name, expires_at, issued_at)


def _stay(fields: Any) -> Stay:
    if not isinstance(fields, list) or len(fields) != 3 or not isinstance(fields[0], str):
        raise WireError("saved session", "no stay in a room")
    return Stay(fields[0], _position(fields[1]), _position(fields[2]))


def _position(text: Any) -> Position | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise WireError("saved session", "no position")
    return parse_id(text)


def read_position(text: Any) -> Position | None:
    """The position that a client says; None if it is none."""
    if not isinstance(text, str):
        return None
    try:
        return parse_id(text)
    except WireError:
        return None
