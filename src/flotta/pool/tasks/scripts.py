"""The scripts of tasks; their contracts stand at the head of the files in ``lua/``.

Owns which of them may be repeated.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from flotta.pool.scripts import load_script
from flotta.redis import Effect

__all__ = [
    "AWAIT",
    "CANCEL",
    "ENQUEUE",
    "HELD",
    "IDLE",
    "PROGRESS",
    "REAP",
    "REDRIVE",
    "TURN",
]

_load: Final = partial(load_script, "tasks", head="tasks")

ENQUEUE: Final = _load("enqueue", Effect.NEVER)  # a second run must say so: check
TURN: Final = _load("turn", Effect.NEVER)  # what the first has handed out is found by HELD
HELD: Final = _load("held", Effect.CHECKED)
IDLE: Final = _load("idle", Effect.CHECKED)
REAP: Final = _load("reap", Effect.CHECKED)
CANCEL: Final = _load("cancel", Effect.CHECKED)
AWAIT: Final = _load("await", Effect.CHECKED)
PROGRESS: Final = _load("progress", Effect.CHECKED)
REDRIVE: Final = _load("redrive", Effect.CHECKED)
