"""The registry of a server that shares no Redis: everything is in this process."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import final

from flotta.realtime.presence.records import Online, PresenceChange
from flotta.realtime.presence.registry import Entered, Entry, RegistryStats, Told
from flotta.realtime.presence.revocations import Revocations

__all__ = ["LocalRegistry"]


@final
class LocalRegistry:
    """See `Registry`. Nothing waits, nothing is unsure."""

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._entries: dict[str, Entry] = {}
        self._users: dict[str, dict[str, Entry]] = {}
        self._revoked = Revocations()
        self._told: Told | None = None

    async def start(self, told: Told) -> None:
        """Nobody else is to be heard."""
        self._told = told

    async def aclose(self) -> None:
        """Forget everybody."""
        self._entries.clear()
        self._users.clear()

    async def enter(self, entry: Entry, *, issued_at: float, connections_max: int | None) -> Entered:
        """Write a socket down unless its user may not."""
        user = entry.online.user
        if await self.is_revoked(user, issued_at):
            return Entered.REVOKED
        others = {held.connection for held in self._users.get(user, {}).values()} - {entry.connection}
        if connections_max is not None and len(others) >= connections_max:
            return Entered.FULL
        self.restore(entry)
        return Entered.ENTERED

    def restore(self, entry: Entry) -> None:
        """Write a socket down."""
        if self._keeps and entry.online.socket_id not in self._entries:
            self._put(entry, "join")

    def _put(self, entry: Entry, kind: str) -> None:
        online = entry.online
        self._entries[online.socket_id] = entry
        sockets = self._users.setdefault(online.user, {})
        sockets[online.socket_id] = entry
        self._tell(PresenceChange(kind, online.user, online, len(sockets)))  # type: ignore[arg-type]

    def leave(self, sid: str) -> None:
        """The socket is gone."""
        entry = self._entries.pop(sid, None)
        if entry is None:
            return
        user = entry.online.user
        sockets = self._users[user]
        del sockets[sid]
        if not sockets:
            del self._users[user]
        self._tell(PresenceChange("leave", user, entry.online, len(sockets)))

    def release(self, sid: str) -> None:
        """There is no other instance."""
        self.leave(sid)

    def update(self, entry: Entry) -> None:
        """Status or state have changed."""
        if entry.online.socket_id in self._entries:
            self._put(entry, "status")

    def _tell(self, change: PresenceChange) -> None:
        assert self._told is not None, "used before start"
        self._told.on_change(change)

    async def revoke(self, user: str, until_s: float, keep_s: float) -> None:
        """Remember it."""
        assert self._told is not None, "used before start"
        self._revoked.add(user, until_s, time.time() + keep_s)
        self._told.on_revoked(user, until_s)

    async def kick(self, user: str, *, close: bool, told: Collection[str]) -> None:
        """There are no others."""

    async def is_revoked(self, user: str, issued_at: float) -> bool:
        """Whether a token of then is worth nothing."""
        return self._revoked.covers(user, issued_at, time.time())

    async def watch(self) -> None:
        """Changes are always told."""

    async def online(self, users: Sequence[str]) -> list[list[Online]]:
        """The sockets of each of ``users``."""
        return [[entry.online for entry in self._users.get(user, {}).values()] for user in users]

    async def users(self, after: str, count: int) -> list[str]:
        """The next users in the order of their names."""
        names = sorted(self._users, key=str.encode)  # Redis' order: that of the bytes
        at = bisect_right(names, after.encode(), key=str.encode) if after else 0
        return names[at : at + count]

    async def users_count(self) -> int:
        """How many users are online."""
        return len(self._users)

    @property
    def stats(self) -> RegistryStats:
        """How many sockets are written down; nothing can be lost."""
        return RegistryStats(entries=len(self._entries), waiting=0, reaped=0, renewed=0, lost=0)
