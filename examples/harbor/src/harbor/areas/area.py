"""What somebody says about an area, checked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harbor.areas.shape import Shape, ShapeError, checked_shape

__all__ = ["COLOURS", "NAME_LENGTH_MAX", "Drawing", "checked_colour", "checked_drawing", "checked_name"]

COLOURS = ("teal", "blue", "violet", "magenta", "red", "amber", "green", "slate")
"""Names, because each theme of the page has its own shade of them."""
NAME_LENGTH_MAX = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """An area as its owner drew it."""

    name: str
    colour: str
    shape: Shape


def checked_drawing(said: dict[str, Any]) -> Drawing:
    """The area that a JSON object describes: name, points, colour. Raises `ShapeError`."""
    colour = checked_colour(said.get("colour", COLOURS[0]))
    return Drawing(name=checked_name(said.get("name")), colour=colour, shape=checked_shape(said.get("points")))


def checked_name(said: object) -> str:
    """A name on one line, trimmed. Raises `ShapeError`."""
    name = said.strip() if isinstance(said, str) else ""
    if not 1 <= len(name) <= NAME_LENGTH_MAX or not name.isprintable():
        raise ShapeError("name_wrong", f"name has 1 to {NAME_LENGTH_MAX} characters on one line.")
    return name


def checked_colour(said: object) -> str:
    """One of `COLOURS`. Raises `ShapeError`."""
    if said not in COLOURS:
        raise ShapeError("colour_wrong", f"colour is one of {', '.join(COLOURS)}.")
    return str(said)
