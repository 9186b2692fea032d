"""The Lua scripts of a pool, one atomic step each; their contracts stand at the head of the files in ``lua/``.

Owns how a file becomes a ``Script``: behind the common head ``_common.lua``. ``effect`` says what a second run would
do: ``CHECKED`` scripts see that the first has happened and change nothing that matters, so they are repeated after a
lost reply; ``NEVER`` is for those whose second answer would be wrong.
"""

from __future__ import annotations

from importlib.resources import files

from flotta.redis import Effect, Script

__all__ = ["load_script"]

_FOLDER = files("flotta.pool") / "lua"
_HEAD = (_FOLDER / "_common.lua").read_text(encoding="utf-8")


def load_script(name: str, effect: Effect = Effect.NEVER) -> Script:
    """The script ``lua/<name>.lua`` behind the common head. Its ``KEYS[1]`` must be ``PoolKeys.meta``."""
    source = _HEAD + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    return Script(source, name=f"pool {name}", effect=effect)
