"""The Socket.IO server: what users hold. Its API reads like python-socketio's, its inside is `Core`.

All methods are for the event loop's thread, but for `emit_sync`, which is for any other.
"""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Any, NamedTuple, final

import structlog

from flotta.errors import Closed, CommandError
from flotta.realtime.adapters import Adapter, AdapterStats
from flotta.realtime.adapters.making import kind_of, make_adapter
from flotta.realtime.adapters.memory import MemoryAdapter
from flotta.realtime.api.cluster import Cluster
from flotta.realtime.api.familiar import Familiar
from flotta.realtime.api.people import PeopleApi
from flotta.realtime.api.registering import Registering
from flotta.realtime.api.sending import Sending
from flotta.realtime.api.sockets import Sockets
from flotta.realtime.client import Reason
from flotta.realtime.core import Core, State
from flotta.realtime.engine.sessions import FILES_KEPT, connections_allowed
from flotta.realtime.mount import Mount, engine_at
from flotta.realtime.option_names import check_option_names, options_of
from flotta.realtime.options import RECOVERY_S, AdapterName, ServerOptions
from flotta.realtime.people import PeopleStats
from flotta.realtime.presence import Presence
from flotta.realtime.presence.making import make_registry
from flotta.realtime.presence.registry import Registry
from flotta.realtime.relay.relay import Relay, RelayStats
from flotta.realtime.transports.asgi import ASGIApp
from flotta.redis import Redis

__all__ = ["Server", "ServerStats"]


class ServerStats(NamedTuple):
    """What the server does now and has done."""

    state: str
    instance: str
    """The first 4 characters of every session id of this process."""
    connections: int
    connections_max: int
    sockets: int
    """Clients times the namespaces they are in."""
    rooms: int
    opened: int
    refused: int
    refusals: dict[str, int]
    """The same by reason (``at_capacity``, ``crowded``, ``forbidden``, ``session_unknown``...)."""
    ended: dict[str, int]
    """Ended connections by reason."""
    broadcasts: int
    """Events sent to more than none of the own sockets, those of other instances included."""
    delivered: int
    """Packets written for broadcasts, one per recipient."""
    volatile_dropped: int
    filtered: int
    """Recipients that a ``may_see`` filter left out."""
    handlers_running: int
    handlers_failed: int
    people: PeopleStats
    adapter: AdapterStats | None
    relay: RelayStats | None
    """What this instance does for the sessions of others; None: it does not relay."""


@final
class Server(Registering, Sending, Sockets, Cluster, PeopleApi, Familiar):
    """A Socket.IO 5 server for this process's clients, joined with those of other processes through Redis.

    ::

        sio = Server()

        @sio.event
        async def connect(sid, environ, auth):
            await sio.enter_room(sid, "everybody")

        @sio.event
        async def chat(sid, text):
            await sio.emit("chat", text, room="everybody", skip_sid=sid)

        app = sio.app(other_asgi_app)      # uvicorn module:app

    You owe `start` and `aclose`, or let `app` do both with the web server's lifespan.

    Args:
        redis: where other instances are; `start` may give it too. A URL's client is owned and closed by the server.
        redis_url: the same by its own name, for a URL.
        adapter: the option of that name, or an `Adapter` of your own, which needs no ``redis``.
        options: all options; or give single ones by name (``Server(path="/ws", connections_max=100)``).
        logger: a structlog logger.

    Raises:
        ConfigError: an option is wrong.
        TypeError: an option that does not exist.
    """

    reason = Reason

    def __init__(
        self,
        redis: str | Redis | None = None,
        *,
        redis_url: str | None = None,
        options: ServerOptions | None = None,
        adapter: AdapterName | Adapter | None = None,
        logger: Any = None,
        **single_options: Any,
    ) -> None:
        if isinstance(adapter, str):
            single_options["adapter"] = adapter
        if redis is not None and redis_url is not None:
            raise TypeError("give either redis or redis_url=")
        redis = redis if redis_url is None else redis_url
        if redis is not None and not isinstance(redis, (str, Redis)):
            raise TypeError(f"redis is a URL or a Redis, not {redis!r}")
        if adapter is not None and not isinstance(adapter, str) and not hasattr(adapter, "publish"):
            raise TypeError(f"adapter is the name of one, or an object with the methods of Adapter, not {adapter!r}")
        if isinstance(logger, bool):
            raise TypeError("logger is a structlog logger; leave it out for the default one")
        check_option_names(single_options, (field.name for field in fields(ServerOptions)))
        self.options = options_of(ServerOptions, options, single_options)
        self._recovery_told = "recovery_s" in single_options or self.options.recovery_s != RECOVERY_S
        self._log = logger or structlog.get_logger("flotta.realtime")
        self._redis_given = redis
        self._redis_owned: Redis | None = None
        self._adapter = None if isinstance(adapter, str) else adapter
        self._relay: Relay | None = None
        allowed = connections_allowed(self.options.connections_max)
        self._core = Core(self.options, connections_max=allowed, logger=self._log)
        self.presence = Presence(self._core.people, on=self.options.presence)
        self._changing = asyncio.Lock()  # start and aclose, one at a time

    # --- life ---

    async def start(self, redis: str | Redis | None = None) -> None:
        """Begin to serve; with a Redis, subscribe to the other instances first. Calling it again does nothing.

        Cancelling it leaves the server not started.

        Raises:
            LinkUnavailable: Redis cannot be reached.
            Closed: after `aclose`.
        """
        async with self._changing:
            if self._core.state is State.CLOSED:
                raise Closed("the realtime server")
            if self._core.state is not State.NEW:
                return
            redis = redis or self._redis_given
            adapter = self._adapter or await self._make_adapter(redis)
            relay = self._make_relay(adapter, redis)
            try:
                if relay is not None and not await self._claim(relay):
                    await relay.aclose()
                    relay = None
                await self._core.start(adapter, self._make_registry(redis), relay)
            except BaseException:
                if relay is not None:
                    await relay.aclose()
                await self._core.people.aclose()
                await adapter.aclose()
                self._core.adapter = None
                await self._close_redis()
                raise
            self._adapter = adapter
            self._warn_of_options()

    def _warn_of_options(self) -> None:
        wanted, capped = self.options.connections_max, self._core.connections_max
        if capped < wanted:
            cure = f"ulimit -n {wanted + FILES_KEPT}, or a lower connections_max"
            told = "connections_max is capped by the open-file limit"
            self._log.warning(told, wanted=wanted, capped=capped, cure=cure)
        recovery_s, adapter = self.options.recovery_s, self.options.adapter
        if self._recovery_told and recovery_s is not None and self._core.keeper is None and adapter != "streams":
            told, cure = "only the streams adapter recovers clients", "adapter='streams', or leave recovery_s out"
            self._log.warning(told, recovery_s=recovery_s, adapter=adapter, cure=cure)

    async def _make_adapter(self, redis: str | Redis | None) -> Adapter:
        if redis is None:
            if self.options.adapter != "classic":
                cure = "give the server a Redis: Server('redis://...')"
                self._log.warning("no Redis: this process is alone", adapter=self.options.adapter, cure=cure)
            return MemoryAdapter()
        if isinstance(redis, str):
            self._redis_owned = redis = await Redis.from_url(redis).connect()
        return make_adapter(redis, self.options, self._log)

    async def _claim(self, relay: Relay) -> bool:
        """Claim a name in Redis. False: it is one of several nodes of a cluster, and the lease belongs to another."""
        try:
            await relay.claim()
        except CommandError as error:
            if not error.text.startswith("MOVED"):
                raise
            cure = "route by session id, or let clients begin with WebSocket; relay=False says that you know"
            self._log.warning("on one of several nodes of a Redis Cluster nothing is relayed", cure=cure)
            return False
        return True

    def _make_relay(self, adapter: Adapter, redis: str | Redis | None) -> Relay | None:
        redis = self._redis_owned or redis
        if not self.options.relay or not isinstance(redis, Redis):
            return None
        prefix = redis.key(self.options.channel_prefix)
        kind = kind_of(self.options) if self._adapter is None else type(adapter).__name__
        self._relay = Relay(self._core, redis, adapter, kind=kind, prefix=prefix, logger=self._log)
        return self._relay

    def _make_registry(self, redis: str | Redis | None) -> Registry:
        redis = self._redis_owned or redis
        assert not isinstance(redis, str), "a URL's client is made with the adapter"
        return make_registry(redis, self.options, instance=self._core.instance, logger=self._log)

    async def _close_redis(self) -> None:
        owned, self._redis_owned = self._redis_owned, None
        if owned is not None:
            await owned.aclose()

    async def drain(self, deadline_s: float | None = None) -> None:
        """Refuse new clients with 503 and send the others away in jittered batches, so that they come back elsewhere.

        Returns when all are gone and their handlers have ended, at the latest after ``deadline_s`` (None: the option
        ``drain_s``). Cancelling the caller does not stop the drain.
        """
        await self._core.drain(self.options.drain_s if deadline_s is None else deadline_s)

    async def aclose(self) -> None:
        """Close every connection and stop. Idempotent; before `start` it only marks the server as closed.

        While it runs everything can still be used, for the last handlers; afterwards what sends or changes something
        raises Closed.
        """
        async with self._changing:
            await self._core.aclose()
            await self._close_redis()

    async def shutdown(self) -> None:
        """`aclose`, as python-socketio calls it."""
        await self.aclose()

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def app(self, other: ASGIApp | None = None) -> ASGIApp:
        """An ASGI app that serves Socket.IO under the path and gives everything else to ``other`` (None: 404).

        If the server has not been started when the web server's lifespan has, the app starts it, and then also drains
        and closes it at the end.
        """
        path = self.options.path
        if engine_at(other, path) is not None:
            told = "two servers have one path: the outer one gets all clients"
            self._log.warning(told, path=path, cure="give each a path of its own, Server(path='/live')")
        return Mount(self, self._core, other)

    @property
    def unsent_bytes(self) -> int:
        """What waits here for all clients to read it. It asks each transport: for a scrape, not for every second."""
        return sum(client.transport.unsent_bytes for client in self._core.clients.values())

    @property
    def stats(self) -> ServerStats:
        """Counters and sizes, cheap enough for every second."""
        core, counters = self._core, self._core.counters
        return ServerStats(
            state=core.state.value,
            instance=core.instance,
            connections=len(core.clients),
            connections_max=core.connections_max,
            sockets=sum(len(space.rooms) for space in core.spaces.values()),
            rooms=sum(space.rooms.rooms_count for space in core.spaces.values()),
            opened=counters.opened,
            refused=counters.refused,
            refusals=dict(core.journal.refusals),
            ended=dict(counters.ended),
            broadcasts=counters.broadcasts,
            delivered=counters.delivered,
            volatile_dropped=counters.volatile_dropped,
            filtered=counters.filtered,
            handlers_running=core.dispatcher.running,
            handlers_failed=core.dispatcher.failed,
            people=core.people.stats,
            adapter=None if self._adapter is None else self._adapter.stats,
            relay=None if self._relay is None else self._relay.stats,
        )
