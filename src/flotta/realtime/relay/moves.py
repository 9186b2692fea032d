"""The moves of sessions between instances: departures and arrivals of one server, and whether there can be any.

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
from flotta.realtime.client import Client
from flotta.realtime.core import Core
from flotta.realtime.relay.arrivals import Arrivals
from flotta.realtime.relay.departures import Departures
from flotta.realtime.relay.post import Post
from flotta.realtime.relay.taps import OwnTap, Tap
from flotta.realtime.relay.travel import Traveller, Travelling
from flotta.realtime.relay.tunnels import Far, Near
from flotta.realtime.relay.wire import Acked, Cut, Ended, Flush, Moved
from flotta.redis import Hub, Redis

__all__ = ["Moves", "Ordered"]


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

    def cut(self, tunnel: str) -> bool:
        """Put the cut into the order, for all servers. False: Redis is away."""
        ...


@final
class Moves:
    """All of one server."""

    def __init__(self, core: Core, post: Post, adapter: Adapter, redis: Redis, *, logger: Any) -> None:
        self.tap = Tap(core.delivery)
        self.possible = False
        self.travelling = Travelling()
        self._core = core
        self._post = post
        self._adapter = adapter
        self._redis = redis
        self._log = logger
        self._own = OwnTap(self.tap)
        self._departures = Departures(core, self.tap, self.travelling, self, logger=logger)
        self._arrivals = Arrivals(core, post, self.tap, self.travelling, self, logger=logger)

    async def start(self) -> None:
        """Find out whether sessions can move. Raises LinkUnavailable."""
        if not isinstance(self._adapter, Ordered):
            return
        if isinstance(self._adapter, Cutting):
            self._adapter.on_cut = self._on_cut
        try:
            info = await self._redis.link.call("INFO", "cluster")
        except RedisError as error:
            self._log.warning("sessions do not move: INFO was refused", reason=str(error))
            return
        self.possible = b"cluster_enabled:1" not in bytes(info)

    def take_along(self, traveller: Traveller) -> None:
        """A feature keeps something per socket that goes along."""
        self.travelling.add(traveller)

    def close(self) -> None:
        """No more moves."""
        self.possible = False
        self._departures.close()
        self._arrivals.close()

    @property
    def moved_here(self) -> int:
        """Sessions that came, since the start."""
        return self._arrivals.count

    @property
    def moved_away(self) -> int:
        """Sessions that went, since the start."""
        return self._departures.count

    # --- Ground, and what departures need ---

    def cut(self, near: str, tunnel: str, on_unheard: Callable[[], None]) -> None:
        """Let this instance and ``near`` hear the cut at one place in the order of broadcasts."""
        if not isinstance(self._adapter, Cutting):
            self._post.cut(near, self._core.instance, tunnel, on_unheard)
        elif not self._adapter.cut(tunnel):
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

    # --- told by tunnels and other instances ---

    def switched(self, far: Far, client: Client) -> None:
        """A session's WebSocket is on another instance."""
        self._departures.switched(far, client)

    def frozen(self, far: Far, *, ready: bool) -> None:
        """The other instance is ready for it, or not."""
        self._departures.frozen(far, ready=ready)

    def far_over(self, far: Far) -> None:
        """A tunnel has ended."""
        self._departures.far_over(far)

    def freeze_asked(self, near: Near, rooms: dict[str, list[str]]) -> None:
        """A session may come."""
        self._arrivals.freeze_asked(near, rooms)

    def thawed(self, near: Near) -> None:
        """It does not come now."""
        self._arrivals.thawed(near)

    def moved(self, near: Near, moved: Moved) -> None:
        """It has come."""
        self._arrivals.moved(near, moved)

    def stranded(self, moved: Moved) -> None:
        """A session has come whose tunnel has ended."""
        self._arrivals.stranded(moved)

    def near_over(self, near: Near) -> None:
        """A tunnel has ended."""
        self._arrivals.near_over(near)

    def on_cut(self, message: Cut) -> None:
        """The cut of a move, on the channel."""
        self._on_cut(message.tunnel)

    def _on_cut(self, tunnel: str) -> None:
        if not self._departures.on_cut(tunnel):
            self._arrivals.on_cut(tunnel)

    def on_flush(self, message: Flush) -> None:
        """All that was sent here before has come back."""
        self._arrivals.on_flush(message.tunnel)

    def on_acked(self, message: Acked) -> None:
        """A client that has moved answered."""
        self._departures.on_acked(message)

    def on_ended(self, message: Ended) -> None:
        """A socket that has moved is gone."""
        self._departures.on_ended(message)

    def on_gone(self, instance: str) -> None:
        """An instance is gone, or has missed messages."""
        self._departures.on_gone(instance)

    def owners(self) -> Iterator[str]:
        """The instances that something is expected of."""
        return self._departures.owners()


def _each(rooms: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    return ((namespace, name) for namespace, names in rooms.items() for name in names)
