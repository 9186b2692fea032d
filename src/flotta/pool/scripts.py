"""The Lua scripts of a pool, one atomic step each; their contracts stand at the head of their files.

Owns how a file becomes a ``Script``: behind the common head ``lua/_common.lua`` and, where a room has one, its own.
``effect`` says what a second run would do: ``CHECKED`` scripts see that the first has happened and change nothing that
matters, so they are repeated after a lost reply; ``NEVER`` is for those whose second answer would be wrong.
"""

from __future__ import annotations

from importlib.resources import files

from flotta.redis import Effect, Script

__all__ = ["load_script"]

_FOLDER = files("flotta.pool")
_COMMON = (_FOLDER / "lua" / "_common.lua").read_text(encoding="utf-8")


def load_script(room: str, name: str, effect: Effect = Effect.NEVER, *, head: str = "") -> Script:
    """The script ``<room>/lua/<name>.lua`` behind the common head and ``head``, a room whose own head it needs. Its
    ``KEYS[1]`` must be ``PoolKeys.meta``."""
    own_head = _read(head, f"_{head}") if head else ""
    return Script(_COMMON + own_head + _read(room, name), name=f"pool {room} {name}", effect=effect)


def _read(room: str, name: str) -> str:
    return (_FOLDER / room / "lua" / f"{name}.lua").read_text(encoding="utf-8")
