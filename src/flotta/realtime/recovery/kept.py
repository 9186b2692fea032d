"""What a server remembers of one socket so that it can be recovered. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from flotta.realtime.recovery.history import Past
from flotta.realtime.recovery.session import Position, Session, Stay, User

__all__ = ["Kept"]

LEFT_MAX = 1_000
"""Rooms left since the last pong that are remembered."""


@final
class Kept:
    """One socket's recovery. ``base``: the client has got all that was for it up to there, because it was not there
    before, or says so."""

    __slots__ = (
        "after",
        "base",
        "elder",
        "left",
        "missed",
        "owner",
        "pid",
        "recovered",
        "revoked",
        "unsavable",
        "user",
    )

    def __init__(self, pid: str, owner: str, base: Position) -> None:
        self.pid = pid
        self.owner = owner
        self.elder: str | None = None
        """The owner before, if the socket came with its connection: what it has saved may be written over."""
        self.base = base
        self.recovered = False
        self.missed: list[Past] = []
        """What the client must be sent before anything else."""
        self.after: dict[str, Position] = {}
        """Where the stay in a room began, of those that began after `base`."""
        self.left: list[Stay] = []
        self.revoked: set[str] = set()
        """Rooms that the ``connect`` handler of a recovered socket took it out of."""
        self.user: User | None = None
        """Whom the session belonged to before."""
        self.unsavable = False
        """Its data cannot be stored; it has been said."""

    @classmethod
    def of(cls, session: Session, owner: str, begin: Position) -> Kept:
        """Of a session that is claimed; the client has got everything up to ``begin``."""
        kept = cls(session.pid, owner, begin)
        kept.recovered = True
        kept.user = session.user
        kept.after = {stay.room: stay.after for stay in session.stays if stay.until is None and stay.after is not None}
        kept.left = [stay for stay in session.stays if stay.until is not None]
        return kept

    def joined(self, room: str, position: Position) -> None:
        """The socket came into ``room`` when everything up to ``position`` had been delivered."""
        self.after[room] = position
        self.revoked.discard(room)

    def quit(self, room: str, position: Position) -> None:
        """The socket left ``room`` when everything up to ``position`` had been delivered."""
        self.left.append(Stay(room, self.after.pop(room, None), position))
        if len(self.left) > LEFT_MAX:
            del self.left[0]

    def revoke(self, room: str) -> None:
        """The socket may not be in ``room``, and gets nothing of it any more, whenever it was sent."""
        self.revoked.add(room)
        self.after.pop(room, None)
        self.left = [stay for stay in self.left if stay.room != room]

    def settle(self, seen: Position | None) -> None:
        """The client has got everything up to ``seen``: what only mattered before is forgotten."""
        if seen is not None and seen > self.base:
            self.base = seen
        if self.after:
            self.after = {room: after for room, after in self.after.items() if after > self.base}
        if self.left:
            self.left = [stay for stay in self.left if stay.until is not None and stay.until > self.base]

    def session(
        self, sid: str, namespace: str, rooms: Iterable[str], data: Any, *, live: bool, user: User | None = None
    ) -> Session:
        """What is to be saved."""
        stays = [Stay(room, after, None) for room, after in self.after.items()]
        return Session(
            sid=sid,
            pid=self.pid,
            rooms=tuple(rooms),
            data=data,
            owner=self.owner,
            namespace=namespace,
            seen=self.base,
            stays=(*stays, *self.left),
            live=live,
            user=user,
        )
