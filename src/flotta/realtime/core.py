"""The inside of a Socket.IO server: what an `Engine` becomes when its clients speak Socket.IO.

One `Core` per `Server`. It wires what has a file of its own: who is sent what (`Delivery`), the user's handlers
(`Dispatcher`), the other instances (`Adapter`). Everything here runs in the event loop's thread and nothing but
`start`, `drain` and `aclose` waits.

Invariant: a socket is in ``Space.rooms`` from the moment its ``connect`` handler is asked until it has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol, final

from flotta.errors import Closed, NotStarted, StateError
from flotta.realtime.adapters import Adapter, Node
from flotta.realtime.client import Client, Socket
from flotta.realtime.delivery import Counters, Delivery, Leaving
from flotta.realtime.dispatch import Dispatcher
from flotta.realtime.engine.client import EngineClient
from flotta.realtime.engine.request import Request
from flotta.realtime.engine.sessions import Elsewhere, Engine, State
from flotta.realtime.engineio.handshake import INSTANCE_LENGTH, SID_LENGTH
from flotta.realtime.engineio.session import Session
from flotta.realtime.namespaces import Namespaces
from flotta.realtime.options import ServerOptions
from flotta.realtime.people import People
from flotta.realtime.presence.registry import Registry
from flotta.realtime.recovery.keeper import Keeper
from flotta.realtime.recovery.making import make_keeper
from flotta.realtime.socketio.connection import Connection
from flotta.realtime.socketio.parser import PARSERS
from flotta.realtime.transports import Transport

__all__ = ["Core", "Relaying", "State"]

STRANGERS_MAX = 10_000
"""Session ids of other instances' making whose clients have been here and gone."""


class Relaying(Elsewhere, Protocol):
    """What holds the sessions of other instances, and moves them (`relay`)."""

    async def start(self) -> None:
        """Listen to the others."""
        ...

    async def aclose(self) -> None:
        """Give the name back. Idempotent."""
        ...

    @property
    def node(self) -> Node:
        """What the adapter tells of others' broadcasts, on its way to `Delivery`."""
        ...


@final
class Core(Engine[Client]):
    """See the module. It is the `Owner` of its clients."""

    options: ServerOptions
    counters: Counters

    def __init__(self, options: ServerOptions, *, connections_max: int, logger: Any) -> None:
        self._parser = PARSERS[options.parser]
        self.dispatcher = Dispatcher(
            handlers_max=options.handlers_max,
            backlog_max=options.backlog_max,
            connect_timeout_s=options.connect_timeout_s,
            logger=logger,
        )
        self.delivery = Delivery(
            rooms_max=options.rooms_max, run=self.dispatcher.run, logger=logger, parser=self._parser
        )
        self.spaces = self.delivery.spaces
        self.namespaces = Namespaces(
            self.delivery, accepted=options.namespaces, dynamic_max=options.namespaces_max, logger=logger
        )
        super().__init__(
            options,
            connections_max=connections_max,
            counters=self.delivery.counters,
            work=self.dispatcher,
            connect_timeout_s=options.connect_timeout_s,
            idle_s=options.idle_s,
            logger=logger,
        )
        self._names = {self.instance}
        self._strangers: dict[str, None] = {}
        self.adapter: Adapter | None = None
        """There from the start until all has ended: the last handlers still send."""
        self.relay: Relaying | None = None
        self.keeper: Keeper | None = None
        self.people = People(
            self.delivery,
            instance=self.instance,
            connections_max=options.connections_per_user_max,
            run=self.dispatcher.run,
            logger=logger,
        )

    # --- life ---

    async def start(self, adapter: Adapter, registry: Registry, relay: Relaying | None = None) -> None:
        """Listen to the other instances and begin to serve."""
        self._loop = asyncio.get_running_loop()
        if relay is not None:
            self.elsewhere = self.relay = relay
            await relay.start()
        await self.people.start(registry)
        self.adapter = adapter
        if self.options.transports is None and not adapter.alone and relay is None:
            self.transports = ("websocket",)
        self.delivery.join_cluster(adapter)
        await adapter.start(self.delivery if relay is None else relay.node)
        self.keeper = self.dispatcher.recovery = make_keeper(
            adapter, self.options, self.delivery, self.people, self._log
        )
        if self.keeper is not None:
            await self.keeper.start()
        self.namespaces.start(adapter)
        self._run()

    async def aclose(self) -> None:
        """Close every connection at once and stop. Idempotent, and if it was cancelled the next call ends the work."""
        self._close_all()
        await self.dispatcher.wait_idle(1.0)
        await self.dispatcher.cancel_all()
        await self._stop()
        await self.people.aclose()
        await self.namespaces.aclose()
        if self.keeper is not None:
            await self.keeper.aclose()
        if self.relay is not None:
            await self.relay.aclose()
        if self.adapter is not None:
            await self.adapter.aclose()
            self.adapter = None

    def unusable(self) -> StateError:
        """Why there is no adapter: the error for who uses the server before its start or after its end."""
        if self.state is State.CLOSED:
            return Closed("the realtime server")
        return NotStarted("the realtime server", "await start(), or let the web server's lifespan start its app")

    def _make_client(self, sid: str, transport: Transport, request: Request, session: Session, now_s: float) -> Client:
        options = self.options
        connection = Connection(
            now_s,
            attachments_max=options.attachments_max,
            rate_max=options.messages_per_s_max,
            parser=self._parser,
        )
        return Client(sid, self, transport=transport, request=request, session=session, connection=connection)

    # --- clients that have been here ---

    def _remember(self, sid: str) -> None:
        """A client goes. That an id of this instance's making was here is seen by looking at it; others are kept."""
        if sid[:INSTANCE_LENGTH] not in self._names:
            self._strangers.pop(sid, None)
            self._strangers[sid] = None
            if len(self._strangers) > STRANGERS_MAX:
                del self._strangers[next(iter(self._strangers))]

    def was_here(self, sid: object) -> bool:
        """Whether a session id that is nobody's here now has been a client's here, as far as can be told."""
        if not isinstance(sid, str):
            return False
        return sid in self._strangers or (len(sid) == SID_LENGTH and sid[:INSTANCE_LENGTH] in self._names)

    # --- sessions that move between instances (`relay`) ---

    def take_name(self, instance: str) -> None:
        """Begin session ids with these characters from now on."""
        self.instance = instance
        self._names.add(instance)
        self.people.take_name(instance)

    def make_moved(self, sid: str, transport: Transport, request: Request, states: dict[str, str]) -> Client:
        """The client of a session that another instance has held; not served yet. Raises ValueError."""
        options, now_s = self.options, self.now()
        session = Session(now_s, ping_interval_s=options.ping_interval_s, ping_timeout_s=options.ping_timeout_s)
        client = self._make_client(sid, transport, request, session, now_s)
        client.take_over(states)
        return client

    def adopt(self, client: Client, rooms: Mapping[Socket, Collection[str]]) -> None:
        """Serve a client that comes from another instance: its sockets, in these rooms."""
        self._enter(client)
        for socket, names in rooms.items():
            held = self.spaces[socket.namespace].rooms
            held.add(socket.sid, socket)
            on_changed, held.on_changed = held.on_changed, None  # it has been in them all the time
            for name in names:
                held.join(socket.sid, name)
            held.on_changed = on_changed

    def detach(self, client: Client) -> dict[Socket, frozenset[str]]:
        """Serve a client no more, without a word to it or to handlers. Gives its sockets' rooms; the adapter listens to
        them, and their namespaces stay, until `release_rooms`."""
        rooms = {}
        for socket in client.sockets.values():
            space = self.spaces[socket.namespace]
            rooms[socket] = space.rooms.rooms_of(socket.sid)
            if space.gate is not None:
                space.gate.come()
            for name in rooms[socket]:
                self.delivery.hold_room(space.name, name)
            space.rooms.remove(socket.sid)
            self._remember(socket.sid)
        self._leave(client)
        return rooms

    def release_rooms(self, rooms: Mapping[Socket, Iterable[str]]) -> None:
        """Undo what `detach` has done for those of its sockets' rooms that nobody here is in. Once."""
        for socket, names in rooms.items():
            for name in names:
                self.delivery.release_room(socket.namespace, name)
            gate = self.spaces[socket.namespace].gate
            if gate is not None:
                gate.go()

    def _farewell(self, client: Client, reconnect_in_ms: int) -> None:
        """The hint of `ServerOptions.drain_event`."""
        if self.options.drain_event is not None:
            for socket in client.sockets.values():
                socket.emit([self.options.drain_event, {"reconnectInMs": reconnect_in_ms}])

    # --- what clients report (Owner) ---

    def connect_asked(self, client: Client, namespace: str, auth: Any) -> None:
        """A client wants to join."""
        space = self.namespaces.asked_for(namespace)
        if space is None:
            client.refuse(namespace, "Invalid namespace")
            return
        socket = Socket(self._new_sid(), namespace, client)
        client.sockets[namespace] = socket
        space.rooms.add(socket.sid, socket)
        if self.keeper is not None:
            self.keeper.begin(socket)
        self._heartbeat.joined(client)
        self.dispatcher.connect(client, socket, space, auth)

    def reschedule(self, client: EngineClient) -> None:
        """Put the client where its new deadline belongs."""
        super().reschedule(client)
        if self.keeper is not None and isinstance(client, Client):
            self.keeper.beat(client)

    def event_came(self, socket: Socket, args: list[Any], ack_id: int | None) -> None:
        """A client sent an event."""
        if self.options.idle_s is not None:
            self._heartbeat.active(socket.client, self.now())
        self.dispatcher.event(socket, self.spaces[socket.namespace].handlers, args, ack_id)

    def left(self, socket: Socket, reason: str) -> None:
        """A socket is gone."""
        space = self.spaces[socket.namespace]
        self._remember(socket.sid)
        if self.keeper is not None:
            self.keeper.leaving(socket, reason)
        leaving = Leaving(socket, space.rooms.rooms_of(socket.sid), reason)
        if space.rooms.get(socket.sid) is socket:  # its client may have come back under the same id
            space.rooms.remove(socket.sid)
        self.people.left(socket)
        if not socket.client.sockets and not socket.client.over:
            self._heartbeat.left_all(socket.client, self.now())
        self.dispatcher.left(leaving, space)
        if space.gate is not None:
            self.namespaces.check_empty(space)
