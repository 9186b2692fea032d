"""Who is online, where, since when and in which state, over all instances: what users hold as ``sio.presence``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from flotta.errors import Closed, NotStarted, StateError
from flotta.realtime.presence.records import Online, PresenceChange
from flotta.realtime.presence.registry import Registry, RegistryStats
from flotta.realtime.presence.watching import Watcher

if TYPE_CHECKING:
    from flotta.realtime.people import People

__all__ = ["Online", "Presence", "PresenceChange"]

USERS_MAX: Final = 1_000
"""Users of one question."""
_KEEP: Final = object()

H = TypeVar("H", bound=Callable[..., Any])


@final
class Presence:
    """Who is online. Everything is answered by Redis (or, without one, by this process) and counts all instances.

    Each question raises LinkUnavailable while Redis is away, StateError where the server was made without
    ``presence=True``, NotStarted before its start, Closed when its `aclose` has ended. Cancelling stops the waiting
    only.
    """

    def __init__(self, people: People, *, on: bool) -> None:
        self._people = people
        self._on = on

    async def online(self, user: str) -> list[Online]:
        """The sockets of ``user``; empty if there are none."""
        return (await self._registry().online([user]))[0]

    async def is_online(self, user: str) -> bool:
        """Whether ``user`` has a socket on some instance."""
        return bool(await self.online(user))

    async def sockets(self, users: Iterable[str]) -> dict[str, list[Online]]:
        """The sockets of each of ``users``, at most 1,000, in one round trip.

        Raises:
            ValueError: more than 1,000.
        """
        names = list(dict.fromkeys(users))
        if len(names) > USERS_MAX:
            raise ValueError(f"ask for at most {USERS_MAX} users at a time, not {len(names)}")
        return dict(zip(names, await self._registry().online(names), strict=True))

    async def users(self, *, after: str = "", count: int = 100) -> list[str]:
        """A page of the users who are online, in the order of their names (by code point): the first ``count`` (at
        most 1,000) behind ``after``. An empty page is the end. Who comes and goes meanwhile may be in it or not.

        The users of an instance that died are in it until its lease has ended, where `online` leaves them out."""
        if not 0 < count <= USERS_MAX:
            raise ValueError(f"a page has 1 to {USERS_MAX} users")
        return await self._registry().users(after, count)

    async def users_count(self) -> int:
        """How many users are online, counted as `users` does."""
        return await self._registry().users_count()

    async def set_status(self, sid: str, status: str | None = None, state: Any = _KEEP) -> bool:
        """Say something else of a socket of this instance: ``status`` (text of at most 64 characters; it begins as
        ``"online"``) and ``state`` (JSON of at most 4,096 bytes). What is not given stays. False: the socket is gone or
        has no user. Does not wait for Redis.

        Raises:
            InvalidName: no status.
            RealtimeError: the state is too large or no JSON.
        """
        self._registry()
        kept = state is _KEEP
        return self._people.set_status(sid, status, None if kept else state, keep_state=kept)

    def on_change(self, handler: H) -> H:
        """Decorator: call ``handler(change)`` for every `PresenceChange` on any instance, one after the other. Sync or
        async; what it raises is logged. Every instance that registers one hears of each change once: to act once in
        the whole fleet, act on what the change says or let one instance do it. Register before the server starts.

        Raises:
            StateError: the server has started, or was made without ``presence=True``.
        """
        self._check_on()
        if self._people.registry is not None:
            raise StateError("presence", "register on_change before the server starts, or use changes()")
        self._people.watchers.add_handler(handler)
        return handler

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Watcher]:
        """``async with sio.presence.changes() as changes: async for change in changes: ...``: what happens after the
        ``with`` has begun. Whoever is 10,000 changes behind gets a gap instead of them."""
        registry = self._registry()
        watcher = self._people.watchers.open()
        try:
            await registry.watch()
            yield watcher
        finally:
            self._people.watchers.close(watcher)

    @property
    def stats(self) -> RegistryStats | None:
        """Counters; None before the start."""
        registry = self._people.registry
        return None if registry is None else registry.stats

    def _check_on(self) -> None:
        if not self._on:
            raise StateError("presence", "it is off: give the server presence=True")

    def _registry(self) -> Registry:
        self._check_on()
        if self._people.closed:
            raise Closed("the realtime server")
        if self._people.registry is None:
            raise NotStarted("the realtime server")
        return self._people.registry
