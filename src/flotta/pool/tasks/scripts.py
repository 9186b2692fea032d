"""The scripts of tasks; their contracts stand at the head of the files in ``pool/lua/``.

Owns which heads they stand behind (``TASKS_HEAD`` is also for a tick that enqueues), and which of them may be repeated.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from flotta.redis import Effect, Script

__all__ = [
    "AWAIT",
    "CANCEL",
    "ENQUEUE",
    "HELD",
    "IDLE",
    "PROGRESS",
    "REAP",
    "REDRIVE",
    "TASKS_HEAD",
    "TURN",
]

_FOLDER = files("flotta.pool") / "lua"
TASKS_HEAD: Final = "".join((_FOLDER / name).read_text(encoding="utf-8") for name in ("_common.lua", "_tasks.lua"))


def _load(name: str, effect: Effect) -> Script:
    source = TASKS_HEAD + (_FOLDER / f"task_{name}.lua").read_text(encoding="utf-8")
    return Script(source, name=f"pool task_{name}", effect=effect)


ENQUEUE: Final = _load("enqueue", Effect.NEVER)  # a second run must say so: check
TURN: Final = _load("turn", Effect.NEVER)  # what the first has handed out is found by HELD
HELD: Final = _load("held", Effect.CHECKED)
IDLE: Final = _load("idle", Effect.CHECKED)
REAP: Final = _load("reap", Effect.CHECKED)
CANCEL: Final = _load("cancel", Effect.CHECKED)
AWAIT: Final = _load("await", Effect.CHECKED)
PROGRESS: Final = _load("progress", Effect.CHECKED)
REDRIVE: Final = _load("redrive", Effect.CHECKED)
