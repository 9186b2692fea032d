"""What clients say, over HTTP or Socket.IO, as checked values. Whatever does not fit is a `Problem` that says where."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, TypeVar

import msgspec

from quay.problem import Problem

__all__ = [
    "BODY_BYTES_MAX",
    "Credentials",
    "Demo",
    "Direct",
    "NewMessage",
    "NewRoom",
    "NewUser",
    "Read",
    "RoomOnly",
    "Said",
    "checked",
    "read_body",
]

BODY_BYTES_MAX = 32_768
_ID_MAX = 2**53 - 1
"""JavaScript's largest exact number."""

Id = Annotated[int, msgspec.Meta(ge=1, le=_ID_MAX)]
Name = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_.-]{1,29}$")]
Line = Annotated[str, msgspec.Meta(min_length=1, max_length=60)]
Password = Annotated[str, msgspec.Meta(min_length=10, max_length=200)]

T = TypeVar("T")


class NewUser(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Register."""

    name: Name
    password: Password
    display: Line | None = None


class Credentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sign in."""

    name: Annotated[str, msgspec.Meta(max_length=60)]
    password: Annotated[str, msgspec.Meta(max_length=200)]


class Demo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Come in as a seeded user."""

    name: Name


class NewRoom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Open a room."""

    name: Line
    topic: Annotated[str, msgspec.Meta(max_length=200)] = ""


class Direct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Talk to one user."""

    user: Id


class NewMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say something. ``client_id`` is made once for each message and kept when it is sent again."""

    client_id: uuid.UUID
    body: Annotated[str, msgspec.Meta(min_length=1, max_length=4_000)]


class Said(NewMessage, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same over Socket.IO."""

    room: Id


class RoomOnly(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event about a room."""

    room: Id


class Read(RoomOnly, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything up to message ``id`` was read."""

    id: Annotated[int, msgspec.Meta(ge=0, le=_ID_MAX)]


def read_body(body: bytes, kind: type[T]) -> T:
    """The JSON of a request's body. Raises `Problem`: 400 if it is none, 413 if too large, 422 if it does not fit."""
    if len(body) > BODY_BYTES_MAX:
        raise Problem(413, "too_large", f"A body has at most {BODY_BYTES_MAX} bytes.")
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "not_json", "The body is no JSON.") from error
    return checked(said, kind)


def checked(said: Any, kind: type[T]) -> T:
    """``said`` as a ``kind``; texts are trimmed first. Raises `Problem` 422."""
    if isinstance(said, dict):
        said = {name: _text(name, value) if isinstance(value, str) else value for name, value in said.items()}
    try:
        return msgspec.convert(said, kind)
    except msgspec.ValidationError as error:
        raise Problem(422, "does_not_fit", f"{error}.") from error


def _text(name: str, text: str) -> str:
    """Without what PostgreSQL cannot store: NUL, and halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Problem(422, "does_not_fit", f"{name} is no Unicode text.") from error
    if "\0" in text:
        raise Problem(422, "does_not_fit", f"{name} holds a NUL character.")
    return text if name == "password" else text.strip()
