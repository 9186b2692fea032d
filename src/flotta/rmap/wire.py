"""The replicated map as bytes: names, keys, the stored hash, and the messages that announce writes.

Owns the format that is shared with Go Pulse, byte for byte, and nothing else:

- hash ``map:<name>:content``; beside the user's keys it holds ``=rev`` (revision of the last write, decimal) and
  ``=kind`` (``set``, ``del``, ``reset``, ``destroy``: what the last write was)
- channel ``map:<name>:updates``; a message is ``set:`` + key, value, revision; ``del:`` + key, revision; each string as
  its length (4 bytes, little-endian) and its bytes, the revision in decimal; or ``reset:<revision>``,
  ``destroy:<revision>`` in plain text

Invariants: ``parse`` raises WireError for anything that ``encode`` cannot have written, and never anything else. Keys
are ``str`` here; bytes of a key that are no UTF-8 (Go allows them) travel as surrogate escapes and come back unchanged.
Pure: no clock, no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import NamedTuple

from flotta.errors import InvalidName, WireError

__all__ = [
    "KIND_FIELD",
    "REVISION_FIELD",
    "REVISION_MAX",
    "Change",
    "EventKind",
    "Op",
    "announces_set",
    "check_key",
    "check_name",
    "content_key",
    "decode_key",
    "encode",
    "encode_key",
    "encode_values",
    "parse",
    "parse_values",
    "stored_state",
    "updates_channel",
]

REVISION_FIELD = b"=rev"
KIND_FIELD = b"=kind"
REVISION_MAX = 2**63 - 1
"""HINCRBY counts in signed 64 bits."""

NAME_RULE = "1 to 512 characters, no space, NUL, '*', '?', '[' or ']'"
KEY_RULE = "not empty, no '='"
_NAME = re.compile(r"[^ \0*?\[\]]{1,512}", re.DOTALL)
_LENGTH_BYTES = 4
_LENGTHS = [length.to_bytes(_LENGTH_BYTES, "little") for length in range(20)]


class EventKind(IntEnum):
    """What a subscriber hears; of several that fold into one, the highest stands."""

    CHANGE = 1
    """A key was added or got another value."""
    DELETE = 2
    """A key is gone."""
    RESET = 3
    """Everything that was in the map before is gone."""


class Op(Enum):
    """What a write did, as the wire names it."""

    SET = b"set"
    DEL = b"del"
    RESET = b"reset"
    DESTROY = b"destroy"


EVENT_OF = {
    Op.SET: EventKind.CHANGE,
    Op.DEL: EventKind.DELETE,
    Op.RESET: EventKind.RESET,
    Op.DESTROY: EventKind.RESET,
}


class Change(NamedTuple):
    """One write as its message tells it. ``key`` is "" for reset and destroy, ``value`` is None for all but set."""

    op: Op
    revision: int
    key: str = ""
    value: bytes | None = None


def check_name(name: object) -> str:
    """``name``, if a map may be called so. Raises InvalidName."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not _encodable(name):
        raise InvalidName("map", name, NAME_RULE)
    return name


def check_key(key: object) -> bytes:
    """``key`` as it is stored. Raises InvalidName: fields with '=' are the map's own."""
    if not isinstance(key, str) or not key or "=" in key:
        raise InvalidName("map key", key, KEY_RULE)
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidName("map key", key, "text that UTF-8 can hold") from error


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def content_key(name: str) -> str:
    """The hash that holds map ``name``."""
    return f"map:{name}:content"


def updates_channel(name: str) -> str:
    """The channel that announces the writes of map ``name``."""
    return f"map:{name}:updates"


def encode_key(key: str) -> bytes:
    """A key as bytes."""
    return key.encode("utf-8", "surrogateescape")


def decode_key(raw: bytes) -> str:
    """A key as text; its bytes come back by encode_key whatever they are."""
    return raw.decode("utf-8", "surrogateescape")


def encode(change: Change) -> bytes:
    """The message that announces ``change``. The scripts write the same in Lua; this one serves tests and tools."""
    revision = str(change.revision).encode()
    head = change.op.value + b":"
    if change.op is Op.SET:
        assert change.value is not None, "a set has a value"
        return head + _pack(encode_key(change.key)) + _pack(change.value) + _pack(revision)
    if change.op is Op.DEL:
        return head + _pack(encode_key(change.key)) + _pack(revision)
    return head + revision


def parse(payload: bytes) -> Change:
    """The write that ``payload`` announces. Raises WireError."""
    from_bytes = int.from_bytes
    head = payload[:4]
    if head == b"set:":
        # Written out: this branch runs for every write of every instance.
        value_at = 8 + from_bytes(payload[4:8], "little")
        revision_at = value_at + 4 + from_bytes(payload[value_at : value_at + 4], "little")
        end = revision_at + 4 + from_bytes(payload[revision_at : revision_at + 4], "little")
        if end != len(payload):
            raise WireError("map message", "its lengths do not add up", payload)
        name = _user_key(payload[8:value_at], payload)
        return Change(Op.SET, _revision(payload[revision_at + 4 :], payload), name, payload[value_at + 4 : revision_at])
    if head == b"del:":
        key, at = _string(payload, 4)
        revision, at = _string(payload, at)
        _expect_end(payload, at)
        return Change(Op.DEL, _revision(revision, payload), _user_key(key, payload))
    if payload.startswith(b"reset:"):
        return Change(Op.RESET, _revision(payload[6:], payload))
    if payload.startswith(b"destroy:"):
        return Change(Op.DESTROY, _revision(payload[8:], payload))
    raise WireError("map message", "neither set, del, reset nor destroy", payload)


def announces_set(payload: bytes, revision: int) -> bool:
    """Whether ``payload`` looks like the message of the set that made ``revision``, by its first and last bytes."""
    digits = b"%d" % revision
    return (
        payload.endswith(digits)
        and payload[-4 - len(digits) : -len(digits)] == _LENGTHS[len(digits)]
        and (payload[:4] == b"set:")
    )


def _pack(raw: bytes) -> bytes:
    return len(raw).to_bytes(_LENGTH_BYTES, "little") + raw


def _string(payload: bytes, at: int) -> tuple[bytes, int]:
    start = at + _LENGTH_BYTES
    if start > len(payload):
        raise WireError("map message", "ends inside a length", payload)
    end = start + int.from_bytes(payload[at:start], "little")
    if end > len(payload):
        raise WireError("map message", "a string is longer than the message", payload)
    return payload[start:end], end


def _expect_end(payload: bytes, at: int) -> None:
    if at != len(payload):
        raise WireError("map message", "bytes after the revision", payload)


def _user_key(raw: bytes, payload: bytes) -> str:
    if not raw or b"=" in raw:
        raise WireError("map message", f"its key is {raw[:32]!r}: {KEY_RULE}", payload)
    return raw.decode("utf-8", "surrogateescape")


def _revision(raw: bytes, source: bytes) -> int:
    # bytes.isdigit() is ASCII only; int() alone would take spaces, signs and underscores.
    if raw.isdigit() and len(raw) <= 19 and (revision := int(raw)) <= REVISION_MAX:
        return revision
    raise WireError("map revision", f"{raw[:32]!r} is no revision", source)


def stored_state(fields: Mapping[bytes, bytes]) -> tuple[int, EventKind]:
    """Revision and kind of the last write from a stored hash. A hash without them has revision 0.

    Raises WireError if ``=rev`` is no revision. A kind that is unknown or missing is taken as a change.
    """
    raw = fields.get(REVISION_FIELD, b"")
    revision = _revision(raw, REVISION_FIELD + raw) if raw else 0
    try:
        kind = EVENT_OF[Op(fields.get(KIND_FIELD, b"set"))]
    except ValueError:
        kind = EventKind.CHANGE
    return revision, kind


def parse_values(raw: bytes) -> list[str]:
    """A list value: a JSON array of strings; anything else is read as items between commas. Never raises."""
    text = decode_key(raw)
    stripped = text.strip()
    if stripped.startswith("["):
        try:
            items = json.loads(stripped)
        except (ValueError, RecursionError):
            return text.split(",")
        # Go reads a null among strings as an empty string.
        if isinstance(items, list) and all(item is None or isinstance(item, str) for item in items):
            return [item or "" for item in items]
    return text.split(",")


def encode_values(items: list[str]) -> bytes:
    """A list value as the scripts store it: a JSON array of strings."""
    return encode_key(json.dumps(items, ensure_ascii=False, separators=(",", ":")))
