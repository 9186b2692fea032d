"""What a map gives back: states, results of writes, values out of bytes. Owns how an unreadable value is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar, final

from flotta.errors import WireError
from flotta.rmap.codec import Codec
from flotta.rmap.wire import encode_key, parse_values

__all__ = ["MISSING", "Attempt", "MapState", "Removal", "Values", "encode_item", "list_of"]

V = TypeVar("V")

MISSING = object()
"""Stands for no value where None is one."""


class MapState(Enum):
    """Where a map is in its life."""

    NEW = "new"
    RUNNING = "running"
    CLOSED = "closed"


@final
@dataclass(frozen=True, slots=True)
class Attempt(Generic[V]):
    """What a tested write found. True in a condition if it was done. ``previous``: the value before, None if none."""

    done: bool
    previous: V | None

    def __bool__(self) -> bool:
        return self.done


@final
@dataclass(frozen=True, slots=True)
class Removal:
    """What ``remove_values`` left. True in a condition if anything was removed. ``values`` are the remaining items."""

    removed: bool
    values: list[str]

    def __bool__(self) -> bool:
        return self.removed


@final
class Values(Generic[V]):
    """Bytes of one map into values."""

    __slots__ = ("_codec", "_name")

    def __init__(self, codec: Codec[V], name: str) -> None:
        self._codec = codec
        self._name = name

    def decode(self, raw: bytes, key: str) -> V:
        """The value at ``key``. Raises WireError that names key and map."""
        try:
            return self._codec.decode(raw)
        except WireError as error:
            raise WireError(f"key {key!r} of map {self._name!r}: {error.what}", error.reason, raw) from error

    def previous(self, raw: bytes | None, key: str, *, done: bool = True) -> V | None:
        """The value before a write; if it cannot be read, the error says what became of the write."""
        if raw is None:
            return None
        try:
            return self.decode(raw, key)
        except WireError as error:
            outcome = "the write is done" if done else "nothing was written"
            raise WireError(f"previous value of {error.what}", f"{error.reason} ({outcome})", raw) from error


def encode_item(item: object) -> bytes:
    """An item of a list value. Raises TypeError: a whole list given as one item is a common slip."""
    if not isinstance(item, str):
        raise TypeError(f"a list item is a str, not {type(item).__name__}: append_values(key, *items)")
    return encode_key(item)


def list_of(stored: bytes | None) -> list[str]:
    """A stored list value; none is an empty one."""
    return [] if stored is None else parse_values(stored)
