"""Which socket is in which room, in one namespace of one process.

Invariants:

- a member of a room is a socket that was added and not removed; an empty room does not exist;
- every socket is alone in the room of its own session id, without an entry for it (an idle socket costs one dict slot);
- `remove` is O(rooms of that socket), never O(rooms): a mass disconnect stays linear;
- `on_made` and `on_gone` are called in turns for each room: when its first member has come, when its last has gone.

Pure: it decides nothing about sending. Sockets are opaque, compared by identity or by their own hash.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, TypeVar, final

__all__ = ["Rooms", "user_room"]

S = TypeVar("S", bound=Hashable)

_NOTHING: frozenset[str] = frozenset()


def user_room(user: str) -> str:
    """The room that holds every socket of ``user`` (`Server.set_user`): a plain room, so that Node and emitters reach
    it too."""
    return f"user:{user}"


def _ignore(_room: str) -> None:
    """Nobody wants to know."""


@final
class Rooms(Generic[S]):
    """Sockets by session id, and the rooms they are in."""

    __slots__ = ("_members", "_rooms", "_sockets", "on_changed", "on_gone", "on_made", "tells_own")

    def __init__(self) -> None:
        self.on_made: Callable[[str], None] = _ignore
        """Told of every room that gets its first member; not of those of the sockets' own ids, but if `tells_own`."""
        self.on_gone: Callable[[str], None] = _ignore
        """Told of every room that has lost its last member."""
        self.tells_own = False
        self.on_changed: Callable[[S, str, bool], None] | None = None
        """Told of every socket that joins (True) or leaves a room, but not of the leaving that is `remove`."""
        self._sockets: dict[str, S] = {}
        self._members: dict[str, set[S]] = {}
        self._rooms: dict[str, set[str]] = {}

    def add(self, sid: str, socket: S) -> None:
        """Register ``socket`` under ``sid``, which must be new."""
        assert sid not in self._sockets, f"{sid} is registered already"
        self._sockets[sid] = socket
        if self.tells_own:
            self.on_made(sid)

    def remove(self, sid: str) -> S | None:
        """Take the socket out of everything. Gives it, or None if there was none."""
        socket = self._sockets.pop(sid, None)
        if socket is None:
            return None
        for room in self._rooms.pop(sid, _NOTHING):
            self._drop(room, socket)
        if self.tells_own:
            self.on_gone(sid)
        return socket

    def join(self, sid: str, room: str) -> bool:
        """Put the socket into ``room``. False if there is no such socket. Joining twice is joining once."""
        socket = self._sockets.get(sid)
        if socket is None:
            return False
        if room != sid and room not in self._rooms.get(sid, _NOTHING):
            members = self._members.get(room)
            if members is None:
                self._members[room] = {socket}
            else:
                members.add(socket)
            self._rooms.setdefault(sid, set()).add(room)
            if members is None:
                self.on_made(room)
            if self.on_changed is not None:
                self.on_changed(socket, room, True)  # noqa: FBT003 - a callback has no keywords
        return True

    def leave(self, sid: str, room: str) -> bool:
        """Take the socket out of ``room``. False if it was not in it. Nobody leaves the room of the own id."""
        rooms = self._rooms.get(sid)
        if rooms is None or room not in rooms:
            return False
        rooms.discard(room)
        if not rooms:
            del self._rooms[sid]
        socket = self._sockets[sid]
        self._drop(room, socket)
        if self.on_changed is not None:
            self.on_changed(socket, room, False)  # noqa: FBT003 - a callback has no keywords
        return True

    def _drop(self, room: str, socket: S) -> None:
        members = self._members[room]
        members.discard(socket)
        if not members:
            del self._members[room]
            self.on_gone(room)

    def get(self, sid: str) -> S | None:
        """The socket of this session id."""
        return self._sockets.get(sid)

    def rooms_of(self, sid: str) -> frozenset[str]:
        """The rooms of a socket, that of its own id included; empty if there is no such socket."""
        if sid not in self._sockets:
            return _NOTHING
        return frozenset((sid, *self._rooms.get(sid, ())))

    def rooms_count_of(self, sid: str) -> int:
        """How many rooms the socket has joined, its own not counted."""
        return len(self._rooms.get(sid, ()))

    def members(self, room: str) -> list[S]:
        """The sockets in ``room`` (or the one whose id it is), as a copy that later changes do not touch."""
        found = list(self._members.get(room, ()))
        own = self._sockets.get(room)
        if own is not None:
            found.append(own)
        return found

    def recipients(self, rooms: Collection[str], except_rooms: Collection[str] = ()) -> list[S]:
        """The sockets in any of ``rooms`` (none given: all) and in none of ``except_rooms``, each once."""
        if not rooms:
            found = list(self._sockets.values())
        elif len(rooms) == 1:
            found = self.members(next(iter(rooms)))
        else:
            found = list({socket for room in rooms for socket in self.members(room)})
        if not except_rooms:
            return found
        skipped = {socket for room in except_rooms for socket in self.members(room)}
        return [socket for socket in found if socket not in skipped]

    def names(self) -> list[str]:
        """Every room that some socket has joined, without those of the sockets' own ids."""
        return list(self._members)

    @property
    def rooms_count(self) -> int:
        """How many rooms have a member."""
        return len(self._members)

    def __contains__(self, room: str) -> bool:
        return room in self._members or room in self._sockets

    def __len__(self) -> int:
        return len(self._sockets)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sockets)
