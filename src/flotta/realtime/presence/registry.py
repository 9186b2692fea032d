"""What the people of one instance need to have written down: the protocol of both registries, in Redis and alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

from flotta.realtime.presence.records import Online, PresenceChange

__all__ = ["Entered", "Entry", "Registry", "RegistryStats", "Told", "batched"]

T = TypeVar("T")


def batched(items: Sequence[T], count: int) -> Iterable[Sequence[T]]:
    """``items`` in their order, ``count`` at a time."""
    return (items[at : at + count] for at in range(0, len(items), count))


class Entry(NamedTuple):
    """One socket of a user, and the connection that it belongs to."""

    online: Online
    connection: str


class Entered(Enum):
    """What a registry says to a new entry."""

    ENTERED = "entered"
    REVOKED = "revoked"
    FULL = "full"
    UNSURE = "unsure"
    """Redis is away: only this instance's own knowledge counts; the entry is written when Redis is back."""


class RegistryStats(NamedTuple):
    """Counters since the start."""

    entries: int
    """Sockets of this instance that are written down."""
    waiting: int
    """Changes that Redis has not got yet."""
    reaped: int
    """Instances that died and were cleared away by this one."""
    renewed: int
    """Times that everything was written anew: Redis had lost it, or had taken this instance for dead."""
    lost: int
    """Times that Redis was away when something was to be written."""


class Told(Protocol):
    """Who hears what happens elsewhere. Nothing here waits."""

    def on_change(self, change: PresenceChange) -> None:
        """Somebody came, went or changed, on any instance; only while `Registry.watch` has been called."""
        ...

    def on_revoked(self, user: str, until_s: float) -> None:
        """Tokens of the user that were issued up to then (Unix seconds) are worth nothing any more."""
        ...

    def on_kicked(self, user: str, *, close: bool, told: Collection[str]) -> None:
        """Disconnect the user's sockets here, but for those of the namespaces in ``told``."""
        ...

    def users(self) -> Collection[str]:
        """The users who have a socket here."""
        ...


class Registry(Protocol):
    """Keeps entries, revocations and the changes of both. All times are Unix seconds unless they are spans."""

    async def start(self, told: Told) -> None:
        """Begin. Raises LinkUnavailable if Redis cannot be reached."""
        ...

    async def aclose(self) -> None:
        """Delete every own entry and stop. Idempotent; bounded in time."""
        ...

    async def enter(self, entry: Entry, *, issued_at: float, connections_max: int | None) -> Entered:
        """Write a socket down unless its user may not. Cancelled: it may be written; then `leave` is owed too."""
        ...

    def restore(self, entry: Entry) -> None:
        """Write a socket down that was here or elsewhere before. Does not wait."""
        ...

    def leave(self, sid: str) -> None:
        """The socket is gone. Unknown ones are fine. Does not wait."""
        ...

    def release(self, sid: str) -> None:
        """The socket goes on at another instance, which takes it over (`restore`); it is gone if that one does not.
        Unknown ones are fine. Does not wait."""
        ...

    def update(self, entry: Entry) -> None:
        """Status or state have changed. Does not wait."""
        ...

    async def revoke(self, user: str, until_s: float, keep_s: float) -> None:
        """Remember it for ``keep_s`` and tell every instance. Raises LinkUnavailable."""
        ...

    async def kick(self, user: str, *, close: bool, told: Collection[str]) -> None:
        """Tell the other instances to disconnect the user, but for the namespaces in ``told``. While Redis is away
        nobody is told."""
        ...

    async def is_revoked(self, user: str, issued_at: float) -> bool:
        """Whether a token of then is worth nothing. Raises LinkUnavailable."""
        ...

    async def watch(self) -> None:
        """From now on hear of changes. Twice is once. Raises LinkUnavailable."""
        ...

    async def online(self, users: Sequence[str]) -> list[list[Online]]:
        """The sockets of each of ``users``. Raises LinkUnavailable."""
        ...

    async def users(self, after: str, count: int) -> list[str]:
        """The next ``count`` users in the order of their names. Raises LinkUnavailable."""
        ...

    async def users_count(self) -> int:
        """How many users are online. Raises LinkUnavailable."""
        ...

    @property
    def stats(self) -> RegistryStats:
        """Counters."""
        ...
