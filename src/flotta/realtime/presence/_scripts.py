"""The Lua scripts of people and presence, one atomic step each; their contracts stand at the head of their files."""

from __future__ import annotations

from importlib.resources import files

from flotta.redis import Effect, Link, Script

__all__ = ["BEAT", "ENTER", "LEAVE", "ONLINE", "REAP", "REVOKE", "SYNC", "UPDATE", "load_all"]

_FOLDER = files("flotta.realtime") / "presence" / "lua"
_COMMON = (_FOLDER / "_common.lua").read_text(encoding="utf-8")


def _load(name: str, effect: Effect) -> Script:
    source = _COMMON + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    return Script(source, name=f"presence {name}", effect=effect)


# A second run of any of them finds what the first has done: nobody is told twice, nothing counts twice. Only `beat`
# answers something else the second time ("the lease was there"), so it is not repeated: the next one comes soon.
BEAT = _load("beat", Effect.NEVER)
ENTER = _load("enter", Effect.CHECKED)
LEAVE = _load("leave", Effect.CHECKED)
ONLINE = _load("online", Effect.READ)
REAP = _load("reap", Effect.CHECKED)
REVOKE = _load("revoke", Effect.LAST_WRITE_WINS)
SYNC = _load("sync", Effect.CHECKED)
UPDATE = _load("update", Effect.CHECKED)


async def load_all(link: Link) -> None:
    """Let the server know the scripts before a storm of clients asks for them all at once."""
    await link.call_many([("SCRIPT", "LOAD", script.source) for script in (BEAT, ENTER, LEAVE, ONLINE, SYNC, UPDATE)])
