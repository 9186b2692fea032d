"""The scripts of membership and coordination; their contracts stand at the head of the files in ``lua/``.

Owns which of them may be repeated.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from flotta.pool.scripts import load_script
from flotta.redis import Effect

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

_load: Final = partial(load_script, "members", head="members")

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
