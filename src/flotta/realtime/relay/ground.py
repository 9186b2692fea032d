"""What moves of sessions need of this instance: whether there can be any, the cut, and rooms that are listened to.

A move needs an adapter that hears everything over one connection in the order in which Redis took it (`Ordered`), and a
server of Redis that has one such order: a cluster has none. Where that is missing, sessions stay where they are and
their WebSockets are relayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Protocol, final, runtime_checkable

from flotta.errors import RedisError
from flotta.realtime.adapters import Adapter, Node
from flotta.realtime.core import Core
from flotta.realtime.relay.post import Post
from flotta.realtime.relay.taps import OwnTap, Tap
from flotta.redis import Hub, Redis

__all__ = ["Ground", "Ordered"]


@runtime_checkable
class Ordered(Protocol):
    """An adapter that hears everything, what it sent itself included, over one connection in one order."""

    @property
    def hub(self) -> Hub:
        """The connection."""
        ...

    own: Node | None
    """Gets what this server sent, while it is set."""


@runtime_checkable
class Cutting(Protocol):
    """An adapter with an order of its own: it carries the cut in it, and tells of it when it is there."""

    on_cut: Callable[[str], None] | None

    def cut(self, tunnel: str, on_refused: Callable[[], None]) -> bool:
        """Put the cut into the order, for all servers. False: Redis is away; ``on_refused`` is told if Redis does not
        take it: then nobody hears it."""
        ...


@final
class Ground:
    """One server's. A session comes in three steps: `prepare`, `listen_to_own` from its being expected, `release`."""

    def __init__(self, core: Core, post: Post, tap: Tap, adapter: Adapter, redis: Redis, *, logger: Any) -> None:
        self.possible = False
        """Sessions can move between these instances."""
        self._core = core
        self._post = post
        self._own = OwnTap(tap)
        self._adapter = adapter
        self._redis = redis
        self._log = logger

    async def start(self, on_cut: Callable[[str], None]) -> None:
        """Find out whether sessions can move; ``on_cut`` is told of the cuts that the adapter hears. Raises
        LinkUnavailable."""
        if not isinstance(self._adapter, Ordered):
            return
        if isinstance(self._adapter, Cutting):
            self._adapter.on_cut = on_cut
        try:
            info = await self._redis.link.call("INFO", "cluster")
        except RedisError as error:
            self._log.warning("sessions do not move: INFO was refused", reason=str(error))
            return
        self.possible = b"cluster_enabled:1" not in bytes(info)

    def close(self) -> None:
        """No more moves."""
        self.possible = False

    def cut(self, near: str, tunnel: str, *, on_refused: Callable[[], None], on_unheard: Callable[[], None]) -> None:
        """Let this instance and ``near`` hear the cut at one place in the order of broadcasts. If that fails one of
        the two is told: ``on_refused`` if nobody can have heard it."""
        if not isinstance(self._adapter, Cutting):
            self._post.cut(near, self._core.instance, tunnel, on_unheard)
        elif not self._adapter.cut(tunnel, on_refused):
            asyncio.get_running_loop().call_soon(on_unheard)

    async def prepare(self, rooms: dict[str, list[str]]) -> bool:
        """Make the namespaces, listen for the rooms until `release`. False: a namespace is not one of this server's;
        then nothing is to be released."""
        for namespace in rooms:
            if not await self._core.namespaces.make_ready(namespace):
                return False
        for namespace, name in _each(rooms):
            self._core.delivery.hold_room(namespace, name)
        try:
            for namespace, name in _each(rooms):
                await self._adapter.room_heard(namespace, name)
        except BaseException:
            self.release(rooms)
            raise
        return True

    def release(self, rooms: dict[str, list[str]]) -> None:
        """Listen no longer for those of these rooms that nobody here is in."""
        for namespace, name in _each(rooms):
            self._core.delivery.release_room(namespace, name)

    def listen_to_own(self, *, on: bool) -> None:
        """What this server sends comes back to it, or no longer."""
        adapter = self._adapter
        assert isinstance(adapter, Ordered)
        adapter.own = self._own if on else None


def _each(rooms: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    return ((namespace, name) for namespace, names in rooms.items() for name in names)
