"""The atomic steps of a map: the files of ``lua/``, each behind the common head ``_commit.lua``.

Owns: how a file becomes a Script and what a second run of each would do. A step whose reply tells what was there before
is never repeated by itself: the second answer would be wrong.
"""

from __future__ import annotations

from importlib.resources import files

from flotta.redis import Effect, Script

__all__ = [
    "APPEND_UNIQUE_VALUES",
    "APPEND_VALUES",
    "DELETE",
    "INCR",
    "RATE_TAKE",
    "REMOVE_VALUES",
    "RESET",
    "SET_IF_ABSENT",
    "SET_MANY",
    "TEST_AND_DELETE",
    "TEST_AND_RESET",
    "TEST_AND_SET",
]

_FOLDER = files("flotta.rmap") / "lua"
_HEAD = (_FOLDER / "_commit.lua").read_text()


def _load(name: str, effect: Effect = Effect.NEVER) -> Script:
    return Script(_HEAD + (_FOLDER / f"{name}.lua").read_text(), name=f"map.{name}", effect=effect)


SET_MANY = _load("set_many")
SET_IF_ABSENT = _load("set_if_absent")
TEST_AND_SET = _load("test_and_set")
INCR = _load("incr")
APPEND_VALUES = _load("append_values")
APPEND_UNIQUE_VALUES = _load("append_unique_values", Effect.LAST_WRITE_WINS)
REMOVE_VALUES = _load("remove_values")
DELETE = _load("delete")
TEST_AND_DELETE = _load("test_and_delete")
RESET = _load("reset", Effect.LAST_WRITE_WINS)
TEST_AND_RESET = _load("test_and_reset")
RATE_TAKE = _load("rate_take")
