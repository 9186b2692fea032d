"""The Socket.IO server: what users hold. Its API reads like python-socketio's, its inside is `Core`.

All methods are for the event loop's thread, but for `emit_sync`, which is for any other.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar, final

import structlog

from flotta.errors import AckTimeout, Closed, NotStarted, RealtimeError, StateError
from flotta.realtime.adapters import Adapter, AdapterStats, Broadcast, Target
from flotta.realtime.adapters.classic import ClassicAdapter
from flotta.realtime.adapters.memory import MemoryAdapter
from flotta.realtime.client import Reason, Socket
from flotta.realtime.core import Core, Space, State, encode_event
from flotta.realtime.handlers import Handler, MaySee, Namespace, finish
from flotta.realtime.mount import Mount
from flotta.realtime.options import ServerOptions
from flotta.realtime.transports import registry
from flotta.realtime.transports.asgi import ASGIApp
from flotta.redis import Redis

__all__ = ["Server", "ServerStats"]

H = TypeVar("H", bound=Callable[..., Any])

FILES_KEPT = 128
"""Open files that a process needs besides its clients: Redis, PostgreSQL, logs, listening sockets."""


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
    adapter: AdapterStats | None


@final
class Server:
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
        options: ServerOptions | None = None,
        adapter: Adapter | None = None,
        logger: Any = None,
        **single_options: Any,
    ) -> None:
        if options is not None and single_options:
            raise TypeError("give either options= or single options")
        self.options = options or ServerOptions(**single_options)
        self._log = logger or structlog.get_logger("flotta.realtime")
        self._redis_given = redis
        self._redis_owned: Redis | None = None
        self._adapter = adapter
        self._core = Core(self.options, connections_max=self._cap_connections(), logger=self._log)
        self._changing = asyncio.Lock()  # start and aclose, one at a time

    def _cap_connections(self) -> int:
        wanted = self.options.connections_max
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY or wanted + FILES_KEPT <= files:
            return wanted
        return max(1, files - FILES_KEPT)

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
            adapter = self._adapter or await self._make_adapter(redis or self._redis_given)
            try:
                await self._core.start(adapter)
            except BaseException:
                await adapter.aclose()
                await self._close_redis()
                raise
            self._adapter = adapter
            registry.add(self._core)
            wanted, capped = self.options.connections_max, self._core.connections_max
            if capped < wanted:
                self._log.warning("connections_max is capped by the open-file limit", wanted=wanted, capped=capped)

    async def _make_adapter(self, redis: str | Redis | None) -> Adapter:
        if redis is None:
            return MemoryAdapter()
        if isinstance(redis, str):
            self._redis_owned = redis = await Redis.from_url(redis).connect()
        options = self.options
        prefix = redis.key(options.channel_prefix)
        return ClassicAdapter(redis, prefix=prefix, in_flight_max=options.publish_in_flight_max, logger=self._log)

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
        """Close every connection and stop. Idempotent; before `start` it only marks the server as closed."""
        async with self._changing:
            registry.remove(self._core)
            await self._core.aclose()
            await self._close_redis()

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
        return Mount(self, self._core, other)

    @property
    def running(self) -> bool:
        """Sessions can be opened."""
        return self._core.state is State.RUNNING

    @property
    def started(self) -> bool:
        """`start` has been called."""
        return self._core.state is not State.NEW

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
            ended=dict(counters.ended),
            broadcasts=counters.broadcasts,
            delivered=counters.delivered,
            volatile_dropped=counters.volatile_dropped,
            filtered=counters.filtered,
            handlers_running=core.dispatcher.running,
            handlers_failed=core.dispatcher.failed,
            adapter=None if core.adapter is None else core.adapter.stats,
        )

    # --- handlers ---

    def on(self, event: str, handler: Handler | None = None, *, namespace: str = "/") -> Any:
        """Register the handler of ``event``; without ``handler`` a decorator. ``"*"`` takes what no other does.

        ``connect(sid, environ, auth)`` may refuse by raising `ConnectRefused` or returning False;
        ``disconnect(sid, reason)``; any other event ``(sid, *data)``, the result is the acknowledgement;
        ``"*"`` gets ``(event, sid, *data)``. Sync handlers run in the event loop and must be quick.

        Raises:
            StateError: a namespace that is new after `start`.
        """
        if handler is not None:
            self._space_for_handlers(namespace).handlers.add(event, handler)
            return handler

        def decorate(function: H) -> H:
            self._space_for_handlers(namespace).handlers.add(event, function)
            return function

        return decorate

    def event(self, handler: H | None = None, *, namespace: str = "/") -> Any:
        """Decorator: register a handler under its function's name; ``@sio.event(namespace="/admin")`` also works."""
        if handler is not None:
            return self.on(handler.__name__, handler, namespace=namespace)
        return lambda function: self.on(function.__name__, function, namespace=namespace)

    def register_namespace(self, namespace: Namespace) -> None:
        """Register every ``on_<event>`` method of a class-based namespace."""
        namespace.server = self
        for event, handler in namespace.handlers().items():
            self.on(event, handler, namespace=namespace.namespace)

    def may_see(self, name: str, *, namespace: str = "/") -> Callable[[MaySee], MaySee]:
        """Decorator: register a filter for ``emit(..., may_see=name)``; every instance must register it.

        ``filter(sid, session, *data) -> bool`` is called for each recipient on the instance that holds it, when the
        event is sent; ``session`` is what `save_session` stored. It must be sync and quick (look into a replicated map,
        not into a database). Only True lets the event through: an instance that does not know the filter, or whose
        filter raises, sends to nobody.
        """

        def decorate(function: MaySee) -> MaySee:
            self._space_for_handlers(namespace).handlers.add_filter(name, function)
            return function

        return decorate

    def _space_for_handlers(self, namespace: str) -> Space:
        space = self._core.spaces.get(namespace)
        if space is None:
            if not namespace.startswith("/") or "," in namespace or "?" in namespace:
                raise RealtimeError(f"{namespace!r} is no namespace: it begins with / and holds neither , nor ?")
            if self.started:
                raise StateError("the realtime server", f"register namespace {namespace} before the server starts")
            space = self._core.spaces[namespace] = Space(namespace)
        return space

    # --- emit ---

    async def emit(
        self,
        event: str,
        data: Any = None,
        *,
        to: str | Iterable[str] | None = None,
        room: str | Iterable[str] | None = None,
        skip_sid: str | Iterable[str] | None = None,
        namespace: str = "/",
        callback: Callable[..., Any] | None = None,
        volatile: bool = False,
        may_see: str | None = None,
        local: bool = False,
    ) -> None:
        """Send an event to one session id, a room, several of them, or (no target) to everybody, on every instance.
        An empty list of targets is nobody.

        The own clients get it before this returns; it waits only while too many broadcasts are on their way to Redis.
        While Redis is away the own clients still get it, the others do not (`ServerStats.adapter` counts them).
        Cancelling is harmless: what is sent is sent.

        Args:
            data: anything that JSON and bytes can carry; a tuple is several arguments, None is none.
            skip_sid: session ids or rooms that do not get it.
            callback: called with the acknowledgement's arguments; needs a session id of this instance as target.
            volatile: may be dropped for a client that does not keep up.
            may_see: name of a filter that each recipient must pass (see `may_see`).
            local: only this instance's clients.

        Raises:
            NotStarted: before `start`.
            TypeError, ValueError: ``data`` cannot be encoded.
        """
        if callback is not None:
            self._emit_with_callback(event, data, _names(to, room), namespace, callback)
            return
        names = _names(to, room)
        if not names and (to is not None or room is not None):
            return  # an empty list of targets is nobody, not everybody
        target = Target(namespace, names, _names(skip_sid))
        self._broadcast(Broadcast(target, [event, *_args(data)], volatile=volatile, may_see=may_see), local=local)
        if self._core.adapter is not None and not local:
            await self._core.adapter.wait_for_room()

    async def send(self, data: Any, **targets: Any) -> None:
        """`emit` of the event ``message``."""
        await self.emit("message", data, **targets)

    def emit_sync(self, event: str, data: Any = None, *, timeout_s: float = 5.0, **targets: Any) -> None:
        """`emit` from another thread (WSGI code, a worker thread): returns when it is done.

        Raises:
            TimeoutError: the event loop did not come to it in time; it may still.
            StateError: called in the event loop's own thread, where it would wait for itself.
            Closed: the event loop has ended.
        """
        loop = self._core.loop
        if loop is None:
            raise NotStarted("the realtime server")
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            raise StateError("the realtime server", "emit_sync is for other threads: await emit here")
        if loop.is_closed():
            raise Closed("the realtime server")
        asyncio.run_coroutine_threadsafe(self.emit(event, data, **targets), loop).result(timeout_s)

    def _broadcast(self, broadcast: Broadcast, *, local: bool) -> None:
        core = self._core
        if core.adapter is None:
            raise NotStarted("the realtime server")
        self._space(broadcast.target.namespace)
        packet = encode_event(broadcast)  # first: what cannot travel is sent to nobody
        rooms = broadcast.target.rooms
        # A single session id of this instance: nobody elsewhere can be meant.
        only_here = len(rooms) == 1 and self._socket(rooms[0], broadcast.target.namespace) is not None
        if not local and not only_here:
            core.adapter.publish(broadcast)
        core.deliver(broadcast, packet)

    def _emit_with_callback(
        self, event: str, data: Any, targets: tuple[str, ...], namespace: str, callback: Callable[..., Any]
    ) -> None:
        socket = self._socket(targets[0], namespace) if len(targets) == 1 else None
        if socket is None:
            raise RealtimeError("a callback needs one session id of this instance as its target")

        def on_ack(args: list[Any]) -> None:
            self._core.dispatcher.run(_call(callback, args), f"ack of {event}")

        socket.emit([event, *_args(data)], on_ack)

    async def call(
        self, event: str, data: Any = None, *, to: str, namespace: str = "/", timeout_s: float = 60.0
    ) -> Any:
        """Send an event to one client of this instance and wait for its acknowledgement.

        Gives its argument, a tuple if there are several, None if there is none. Cancelling stops the waiting only.

        Raises:
            AckTimeout: none came within ``timeout_s``, or the client left (then at once).
            RealtimeError: ``to`` is no session id of this instance.
        """
        socket = self._socket(to, namespace)
        if socket is None:
            raise RealtimeError(f"{to!r} is not connected to {namespace} on this instance")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any] | None] = loop.create_future()
        began_s, ack_id = loop.time(), socket.ask([event, *_args(data)], answer)
        try:
            async with asyncio.timeout(timeout_s):
                args = await answer
        except TimeoutError:
            raise AckTimeout(event, timeout_s) from None
        finally:
            socket.forget_ack(ack_id)
        if args is None:
            raise AckTimeout(event, loop.time() - began_s)
        return args[0] if len(args) == 1 else (tuple(args) or None)

    # --- rooms, sessions, single sockets ---

    async def enter_room(self, sid: str, room: str, *, namespace: str = "/") -> bool:
        """Put a client of this instance into a room. False: it is gone, or in ``rooms_max`` rooms already."""
        socket = self._socket(sid, namespace)
        return socket is not None and self._core.enter(socket, room)

    async def leave_room(self, sid: str, room: str, *, namespace: str = "/") -> None:
        """Take a client of this instance out of a room, if it is in it."""
        self._space(namespace).rooms.leave(sid, room)

    async def close_room(self, room: str, *, namespace: str = "/") -> None:
        """Take everybody out of a room, on every instance."""
        target = Target(namespace, (room,))
        self._core.leave(target, (room,))
        if self._core.adapter is not None:
            self._core.adapter.publish_request("leave", target, rooms=[room])

    def rooms(self, sid: str, *, namespace: str = "/") -> list[str]:
        """The rooms of a client of this instance, that of its own id included."""
        return sorted(self._space(namespace).rooms.rooms_of(sid))

    async def disconnect(self, sid: str, *, namespace: str = "/") -> None:
        """Disconnect a client from the namespace, wherever it is connected. Its ``disconnect`` handler runs there."""
        socket = self._socket(sid, namespace)
        if socket is not None:
            socket.client.leave(socket)
        elif self._core.adapter is not None:
            self._core.adapter.publish_request("disconnect", Target(namespace, (sid,)), close=False)

    async def get_session(self, sid: str, *, namespace: str = "/") -> dict[str, Any]:
        """The user's data of a client of this instance; empty if none was saved or the client is gone."""
        socket = self._socket(sid, namespace)
        return {} if socket is None else dict(socket.session or {})

    async def save_session(self, sid: str, session: dict[str, Any], *, namespace: str = "/") -> None:
        """Store the user's data with the connection; it ends with it."""
        socket = self._socket(sid, namespace)
        if socket is not None:
            socket.session = dict(session)

    @asynccontextmanager
    async def session(self, sid: str, *, namespace: str = "/") -> AsyncIterator[dict[str, Any]]:
        """``async with sio.session(sid) as session:`` what is changed inside is saved at the end."""
        session = await self.get_session(sid, namespace=namespace)
        yield session
        await self.save_session(sid, session, namespace=namespace)

    def get_environ(self, sid: str, *, namespace: str = "/") -> dict[str, Any] | None:
        """The request that opened the client's connection; None if it is gone."""
        socket = self._socket(sid, namespace)
        return None if socket is None else socket.client.environ()

    def is_connected(self, sid: str, *, namespace: str = "/") -> bool:
        """Whether the client is connected to this instance."""
        return self._socket(sid, namespace) is not None

    def _space(self, namespace: str) -> Space:
        space = self._core.spaces.get(namespace)
        if space is None:
            raise RealtimeError(f"there is no namespace {namespace!r}: no handler was registered for it")
        return space

    def _socket(self, sid: str, namespace: str) -> Socket | None:
        return self._space(namespace).rooms.get(sid)


async def _call(callback: Callable[..., Any], args: list[Any]) -> None:
    await finish(callback(*args))


def _names(*given: str | Iterable[str] | None) -> tuple[str, ...]:
    names: list[str] = []
    for one in given:
        if isinstance(one, str):
            names.append(one)
        elif one is not None:
            names.extend(one)
    return tuple(names)


def _args(data: Any) -> list[Any]:
    if data is None:
        return []
    return list(data) if isinstance(data, tuple) else [data]
