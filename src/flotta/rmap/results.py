"""What writes of a map give back, and the lists among its values. Owns no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, final

from flotta.rmap.wire import encode_key, parse_values

__all__ = ["Attempt", "Removal", "encode_item", "list_of"]

V = TypeVar("V")


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


def encode_item(item: object) -> bytes:
    """An item of a list value. Raises TypeError: a whole list given as one item is a common slip."""
    if not isinstance(item, str):
        raise TypeError(f"a list item is a str, not {type(item).__name__}: append_values(key, *items)")
    return encode_key(item)


def list_of(stored: bytes | None) -> list[str]:
    """A stored list value; none is an empty one."""
    return [] if stored is None else parse_values(stored)
