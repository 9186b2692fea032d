"""Broadcasts over sharded Pub/Sub (Redis 7) in the format of Node's ``createShardedAdapter``.

Three channels per namespace: ``<prefix>#<namespace>#`` for all, ``...#<uid>#`` for answers to this server, and
``<prefix>-filtered#<namespace>#`` for broadcasts that not everybody may see, which Node does not subscribe to. In mode
``dynamic`` also one for each room that somebody here is in, so that a broadcast to one room reaches only the servers
that it concerns; the rooms of session ids have none (``dynamic-private``: they too), ``static``: no room has.

Nothing is stored: what is published while a server is not subscribed does not reach it (`AdapterStats.gaps`). A room's
channel is asked for when its first member comes; `room_heard` returns when Redis has confirmed it, and from then on
nothing that is sent to the room is missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial
from typing import Any, Final, final

from flotta.errors import CommandError, ConfigError, RedisError, ServerTooOld
from flotta.realtime.adapters import Node
from flotta.realtime.adapters.channels import ShardedChannels
from flotta.realtime.adapters.cluster import Census, ClusterAdapter
from flotta.realtime.adapters.cluster_wire import Message, own_openings, read_message, write_message
from flotta.realtime.adapters.seats import Seat
from flotta.realtime.adapters.traffic import Ear
from flotta.realtime.options import ShardedMode
from flotta.redis import Hub, Redis, Subscription

__all__ = ["ShardedAdapter"]

_NEEDED: Final = (7, 0, 0)
_CURE: Final = 'adapter="classic"'
ROOM_HEARD_S_MAX: Final = 1.0
"""The most that entering a room waits for Redis."""


@final
class _Open:
    """A namespace that is open here: its channels and the subscriptions."""

    __slots__ = ("channels", "rooms", "subscriptions")

    def __init__(self, channels: ShardedChannels) -> None:
        self.channels = channels
        self.subscriptions: list[tuple[Subscription, Ear]] = []
        self.rooms: dict[str, tuple[Subscription, Ear]] = {}


@final
class ShardedAdapter(ClusterAdapter):
    """The adapter of one server. ``prefix`` comes before every channel's name."""

    echoes = False

    def __init__(self, redis: Redis, *, prefix: str, mode: ShardedMode, in_flight_max: int, logger: Any) -> None:
        super().__init__(redis, in_flight_max=in_flight_max, logger=logger)
        self._prefix = prefix
        self._mode = mode
        self._seat = Seat(redis, prefix)
        self._own = own_openings(self.uid)
        self.own: Node | None = None
        """Gets what this server itself has said, as it comes back, while it is set."""
        self._open: dict[str, _Open] = {}
        self._changing = asyncio.Lock()  # namespaces open and close one at a time

    @property
    def hub(self) -> Hub:
        """The connection over which everything is heard."""
        return self._seat.hub

    @property
    def wants_own_rooms(self) -> bool:
        """`room_made` and `room_gone` are wanted for the rooms of single sockets too."""
        return self._mode == "dynamic-private"

    # --- life ---

    async def start(self, node: Node) -> None:
        """Subscribe for every namespace; returns when Redis has confirmed.

        Raises:
            ServerTooOld: the server has no sharded Pub/Sub.
            ConfigError: it is one of several nodes of a cluster.
            LinkUnavailable: it cannot be reached.
        """
        await self._redis.link.start()
        version = self._redis.link.server_version
        if version < _NEEDED:
            raise ServerTooOld(".".join(map(str, version)), "7.0", cure=_CURE)
        await self._check_nodes()
        self._node = node
        for namespace in node.namespaces():
            await self.open_namespace(namespace)

    async def _check_nodes(self) -> None:
        """One connection speaks with one node: a cluster that spreads the channels over several is no place for it."""
        try:
            slots = await self._redis.link.call("CLUSTER", "SLOTS")
        except CommandError:  # no cluster, or not allowed to ask
            return
        owners = {bytes(owner[2]) for _first, _last, owner, *_replicas in slots}
        if len(owners) > 1:
            allowed = f'"classic" on a Redis Cluster of several nodes (this one has {len(owners)})'
            raise ConfigError("adapter", "sharded", allowed, source="realtime.ServerOptions")

    async def open_namespace(self, namespace: str) -> None:
        """Subscribe for one namespace; returns when Redis has confirmed. Twice is once."""
        assert self._node is not None, "start comes first"
        async with self._changing:
            if namespace in self._open:
                return
            channels = self._channels(namespace)
            opened = _Open(channels)
            try:
                # The channel by which servers are counted comes last: whoever is counted hears and can be answered.
                for channel in (channels.of_server(self.uid), channels.filtered, channels.all):
                    await self._subscribe(opened, channel, namespace)
            except CommandError as error:
                self._close(opened)
                raise self._explained(error) from error
            except BaseException:
                self._close(opened)
                raise
            self._open[namespace] = opened
            for room in self._node.rooms(namespace):  # a client for whom it is opened may be in some
                self.room_made(namespace, room)
            for room in list(opened.rooms)[-1:]:  # they are confirmed in the order of their asking
                await self.room_heard(namespace, room)

    async def _subscribe(self, opened: _Open, channel: bytes, namespace: str) -> None:
        ear = Ear(self._traffic, partial(self._take, namespace))
        subscription = await self._seat.hub.subscribe(channel, ear, kind="shard")
        opened.subscriptions.append((subscription, ear))

    def _explained(self, error: CommandError) -> RedisError:
        if "unknown command" in error.text.lower():
            version = ".".join(map(str, self._redis.link.server_version))
            return ServerTooOld(f"{version} without SSUBSCRIBE", "7.0", cure=_CURE)
        return error

    async def close_namespace(self, namespace: str) -> None:
        """Listen no longer for a namespace that is gone. An unknown one is fine."""
        async with self._changing:
            opened = self._open.pop(namespace, None)
            if opened is not None:
                self._close(opened)

    def _close(self, opened: _Open) -> None:
        for subscription, ear in (*opened.subscriptions, *opened.rooms.values()):
            subscription.close()
            self._traffic.forget(ear)
        opened.subscriptions.clear()
        opened.rooms.clear()

    async def aclose(self) -> None:
        """Unsubscribe and let what is in flight end. Idempotent."""
        for namespace in list(self._open):
            await self.close_namespace(namespace)
        await self._seat.aclose()
        await self._end()

    def _channels(self, namespace: str) -> ShardedChannels:
        """Also of a namespace that nobody here is in: others may be."""
        opened = self._open.get(namespace)
        return ShardedChannels(self._prefix, namespace, self._mode) if opened is None else opened.channels

    # --- rooms ---

    def room_made(self, namespace: str, room: str) -> None:
        """Ask for the room's channel."""
        opened = self._open.get(namespace)
        if opened is not None and room not in opened.rooms and opened.channels.has_room(room):
            ear = Ear(self._traffic, partial(self._take, namespace))
            opened.rooms[room] = self._seat.hub.listen(opened.channels.of_room(room), ear, kind="shard"), ear

    def room_gone(self, namespace: str, room: str) -> None:
        """Give the room's channel up."""
        opened = self._open.get(namespace)
        found = None if opened is None else opened.rooms.pop(room, None)
        if found is not None:
            subscription, ear = found
            subscription.close()
            self._traffic.forget(ear)

    async def room_heard(self, namespace: str, room: str) -> None:
        """Return when what is sent to ``room`` from now on arrives here; at once while Redis is away, and at the latest
        after `ROOM_HEARD_S_MAX`."""
        opened = self._open.get(namespace)
        found = None if opened is None else opened.rooms.get(room)
        if found is None or found[0].live or not self._traffic.open:
            return
        try:
            async with asyncio.timeout(ROOM_HEARD_S_MAX):
                await found[0].wait_live()
        except (TimeoutError, RedisError) as error:
            self._log.warning("a room's channel is not subscribed yet", room=room[:128], reason=str(error))

    # --- carrying ---

    def _take(self, namespace: str, _channel: bytes, payload: bytes) -> None:
        own = payload.startswith(self._own)
        if own and self.own is None:
            return
        message = read_message(payload)
        if message.uid == self.uid and message.namespace == namespace and self.own is not None:
            self._hear_own(self.own, message)
        if message.namespace == namespace and message.uid != self.uid:
            self._hear(message)

    def _say(self, message: Message) -> bool:
        channel = self._channels(message.namespace).of(message)
        return self._traffic.send("SPUBLISH", channel, write_message(message))

    def _reply(self, uid: str, message: Message) -> None:
        channel = self._channels(message.namespace).of_server(uid)
        self._traffic.send("SPUBLISH", channel, write_message(message))

    async def _census(self, namespace: str, answered: Collection[str]) -> Census:
        channels = self._channels(namespace)
        names = [channels.all, *map(channels.of_server, answered)]
        reply = await self._traffic.ask("PUBSUB", "SHARDNUMSUB", *names)
        servers, *alive = reply[1::2]
        return Census(int(servers), sum(int(count) > 0 for count in alive))
