"""Which connection a command may use. Pure: decides from its name and arguments.

Owns: the list of commands that would hold up or spoil a shared connection. Invariant: on the shared link every command
is answered at once, once, and leaves the connection as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Final

__all__ = ["Route", "block_limit_s", "is_special", "route_of"]


class Route(Enum):
    """Where a command travels."""

    LINK = "link"
    """The shared connection."""
    BLOCKING = "blocking"
    """A connection of its own for as long as the server makes it wait."""
    SESSION = "session"
    """It changes the state of its connection: one of redis-py's own, as in redis-py."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Command -> (where its time limit stands among the arguments after the name, seconds per unit).
_LIMIT_PLACE: Final[dict[str, tuple[int, float]]] = {
    "BLPOP": (-1, 1.0),
    "BRPOP": (-1, 1.0),
    "BRPOPLPUSH": (-1, 1.0),
    "BLMOVE": (-1, 1.0),
    "BZPOPMIN": (-1, 1.0),
    "BZPOPMAX": (-1, 1.0),
    "BLMPOP": (0, 1.0),
    "BZMPOP": (0, 1.0),
    "WAIT": (1, 0.001),
    "WAITAOF": (2, 0.001),
}
_READS_THAT_MAY_BLOCK: Final = frozenset(("XREAD", "XREADGROUP"))
_SESSION: Final = _words(
    """
    ASKING AUTH DISCARD EXEC FAILOVER HELLO MONITOR MULTI PSUBSCRIBE PSYNC PUNSUBSCRIBE QUIT READONLY READWRITE
    RESET SELECT SHUTDOWN SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE SYNC UNSUBSCRIBE UNWATCH WATCH HIMPORT
    """
)
_SESSION_CLIENT: Final = frozenset(("CACHING", "NO-EVICT", "NO-TOUCH", "REPLY", "TRACKING", "SETNAME", "CAPA"))
_SPECIAL: Final = frozenset((*_LIMIT_PLACE, *_READS_THAT_MAY_BLOCK, *_SESSION, "CLIENT"))


def is_special(name: str) -> bool:
    """Whether the command (its first word, upper case) needs ``route_of``; all others travel over the link."""
    return name in _SPECIAL


def route_of(args: Sequence[object]) -> Route:
    """The route of the command ``args``, its name split into words."""
    name = _text(args[0])
    if name in _SESSION:
        return Route.SESSION
    if name == "CLIENT" and len(args) > 1 and _text(args[1]) in _SESSION_CLIENT:
        return Route.SESSION
    return Route.LINK if block_limit_s(args) is None else Route.BLOCKING


def block_limit_s(args: Sequence[object]) -> float | None:
    """How long the server may let ``args`` wait, in seconds: ``inf`` for ever, None if it never waits.

    A limit that is no number counts as for ever: the server will refuse it at once.
    """
    name = _text(args[0])
    if name in _LIMIT_PLACE:
        place, unit_s = _LIMIT_PLACE[name]
        operands = args[1:]
        return _limit(operands[place] if -len(operands) <= place < len(operands) else 0, unit_s)
    if name in _READS_THAT_MAY_BLOCK:
        return _stream_limit_s(args)
    return None


def _stream_limit_s(args: Sequence[object]) -> float | None:
    # XREADGROUP GROUP <group> <consumer>: those two names may read BLOCK as well.
    first = 4 if len(args) > 1 and _text(args[1]) == "GROUP" else 1
    for place, argument in enumerate(args[first:-1], start=first):
        word = _text(argument)
        if word == "STREAMS":
            return None
        if word == "BLOCK":
            return _limit(args[place + 1], 0.001)
    return None


def _limit(value: object, unit_s: float) -> float:
    try:
        limit_s = float(_text(value)) * unit_s
    except ValueError:
        return math.inf
    return limit_s if 0 < limit_s < math.inf else math.inf


def _text(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace").upper()
    return str(value).upper()
