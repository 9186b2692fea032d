"""What a client that comes back must be sent, and whether all of it is still there. Pure.

Two positions say what a client has: the last event that it names, and ``seen``, up to which this side knows that
everything has arrived (a pong has come for a ping that was sent after it). It has got all that was for it up to the
later of the two; after that, nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple, final

from flotta.realtime.adapters import Target
from flotta.realtime.recovery.session import Position, Session, Stay, read_position

__all__ = [
    "Asked",
    "Membership",
    "StreamFacts",
    "asked",
    "begins",
    "is_complete",
    "keep_s_of",
    "refresh_s_of",
    "revoked",
]

_PID: Final = re.compile("[A-Za-z0-9_-]{1,64}")
"""Private ids as servers give them, Node's too."""
REFRESH_S_MAX = 30.0


def refresh_s_of(window_s: float) -> float:
    """How old the saved session of a connected client may be."""
    return min(REFRESH_S_MAX, window_s / 2)


def keep_s_of(window_s: float, *, ping_interval_s: float, ping_timeout_s: float) -> float:
    """How long an event must stay in the stream: a client may have died right after a ping that was answered late,
    before the last refresh of its session, whose time to live is `window_s` and two refreshes."""
    return window_s + 3 * refresh_s_of(window_s) + ping_interval_s + 2 * ping_timeout_s


class Asked(NamedTuple):
    """What a client says in its CONNECT packet that wants its session back."""

    pid: str
    offset: Position | None
    """The last event that it got; None: none yet."""


class StreamFacts(NamedTuple):
    """What Redis says of the stream."""

    first: Position | None
    """The oldest entry; None: there is none."""
    last: Position
    """The newest entry that ever was."""
    whole: bool = False
    """Surely none was ever taken out of it."""
    told: Position | None = None
    """The oldest entry says that Redis has lost what was before it: how far the one had read who says it."""


def asked(auth: Any) -> Asked | None:
    """What the client wants back. None: nothing, or what no client could have been told."""
    if not isinstance(auth, dict):
        return None
    pid, offset = auth.get("pid"), auth.get("offset")
    if not isinstance(pid, str) or _PID.fullmatch(pid) is None:
        return None
    if offset is None:
        return Asked(pid, None)
    position = read_position(offset)
    return None if position is None else Asked(pid, position)


def begins(session: Session, offset: Position | None) -> Position | None:
    """After which entry the client must be sent what was for it. None: nobody knows."""
    known = [position for position in (offset, session.seen) if position is not None]
    return max(known, default=None)


def is_complete(begin: Position, facts: StreamFacts) -> bool:
    """Whether every entry after ``begin`` is still there.

    Streams are trimmed from the front, so all is there if the oldest entry is not behind ``begin``. An entry that is
    said to have been got and that the stream never had means that Redis has lost some.
    """
    if begin > facts.last:
        return False
    return begin == facts.last or (facts.first is not None and facts.first <= begin)


@final
class Membership:
    """In which rooms the socket was, when."""

    __slots__ = ("_rooms", "_stays")

    def __init__(self, session: Session) -> None:
        self._rooms = {session.sid, *session.rooms}
        self._stays: dict[str, list[Stay]] = {}
        for stay in session.stays:
            self._stays.setdefault(stay.room, []).append(stay)

    def was_in(self, room: str, position: Position) -> bool:
        """Whether the socket was in ``room`` when the entry at ``position`` was delivered."""
        stays = self._stays.get(room)
        if stays is None:
            return room in self._rooms
        return any(
            (stay.after is None or stay.after < position) and (stay.until is None or position <= stay.until)
            for stay in stays
        )

    def gets(self, target: Target, position: Position) -> bool:
        """Whether a broadcast at ``position`` was for the socket."""
        if target.rooms and not any(self.was_in(room, position) for room in target.rooms):
            return False
        return not any(self.was_in(room, position) for room in target.except_rooms)


def revoked(target: Target, gone: Collection[str], sid: str) -> bool:
    """Whether a missed broadcast reached the socket only through rooms that it may no longer be in."""
    return bool(target.rooms) and all(room in gone for room in target.rooms if room != sid) and sid not in target.rooms
