"""The scripts of membership and coordination; their contracts stand at the head of the files in ``lua/``.

Owns which head they share: the common one, then ``_members.lua``.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from flotta.redis import Effect, Script

__all__ = [
    "ASSIGN",
    "BEAT",
    "BURY_NODES",
    "COORDINATE",
    "JOIN_NODE",
    "JOIN_WORKER",
    "LEAVING",
    "LEFT",
    "PLACED",
    "RESIGN",
    "TABLE",
    "VIEW",
]

_FOLDER = files("flotta.pool") / "lua"
_HEAD = "".join((_FOLDER / name).read_text(encoding="utf-8") for name in ("_common.lua", "_members.lua"))


def _load(name: str, effect: Effect) -> Script:
    return Script(_HEAD + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8"), name=f"pool {name}", effect=effect)


ASSIGN: Final = _load("assign", Effect.NEVER)  # a second run would be told STALE
BEAT: Final = _load("beat", Effect.CHECKED)
BURY_NODES: Final = _load("bury_nodes", Effect.CHECKED)
COORDINATE: Final = _load("coordinate", Effect.CHECKED)
JOIN_NODE: Final = _load("join_node", Effect.CHECKED)
JOIN_WORKER: Final = _load("join_worker", Effect.CHECKED)
LEAVING: Final = _load("leaving", Effect.CHECKED)
LEFT: Final = _load("left", Effect.CHECKED)
PLACED: Final = _load("placed", Effect.READ)
RESIGN: Final = _load("resign", Effect.CHECKED)
TABLE: Final = _load("table", Effect.READ)
VIEW: Final = _load("view", Effect.READ)
