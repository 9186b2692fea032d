"""The Lua scripts of streams, one atomic step each; their contracts stand at the head of the files in ``lua/``."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from flotta.redis import Script

__all__ = [
    "BURY",
    "COUNT",
    "DESTROY",
    "EXPIRE_ONCE",
    "FORGET",
    "LEASE",
    "LEAVE",
    "REDRIVE",
    "TAKEOVER",
    "TOUCH",
    "TRIM",
]


def _load(name: str) -> Script:
    source = files("flotta.streaming").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return Script(source, name=f"stream {name}")


BURY: Final = _load("bury")
COUNT: Final = _load("count")
DESTROY: Final = _load("destroy")
EXPIRE_ONCE: Final = _load("expire_once")
FORGET: Final = _load("forget")
LEASE: Final = _load("lease")
LEAVE: Final = _load("leave")
REDRIVE: Final = _load("redrive")
TAKEOVER: Final = _load("takeover")
TOUCH: Final = _load("touch")
TRIM: Final = _load("trim")
