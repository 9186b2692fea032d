"""The server's inside: the clients of this process, from their handshake to their end.

One `Core` per `Server`. It wires what has a file of its own: who is sent what (`Delivery`), the `Heartbeat`, the user's
handlers (`Dispatcher`), the end (`Drain`). Everything here runs in the event loop's thread and nothing but `start`,
`drain` and `aclose` waits.

Invariants:

- a socket is in ``Space.rooms`` from the moment its ``connect`` handler is asked until it has left;
- while the state is not RUNNING, no session is opened.
"""

from __future__ import annotations

import asyncio
import secrets
from enum import Enum
from typing import Any, final

from flotta.realtime.adapters import Adapter
from flotta.realtime.client import Client, Reason, Socket
from flotta.realtime.delivery import Delivery
from flotta.realtime.dispatch import Dispatcher
from flotta.realtime.drain import CLOSE_RESTART, Drain
from flotta.realtime.engineio import handshake
from flotta.realtime.engineio.handshake import Facts, Refusal
from flotta.realtime.engineio.packet import open_packet
from flotta.realtime.engineio.session import Session
from flotta.realtime.heartbeat import Heartbeat
from flotta.realtime.options import ServerOptions
from flotta.realtime.request import Request
from flotta.realtime.socketio.connection import Connection
from flotta.realtime.transports import Receiver, Transport
from flotta.realtime.upgrade import Upgrade

__all__ = ["Core", "State"]


class State(Enum):
    """Where a server is in its life."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    CLOSED = "closed"


@final
class Core:
    """See the module. It is the `Owner` of its clients."""

    def __init__(self, options: ServerOptions, *, connections_max: int, logger: Any) -> None:
        self.options = options
        self.state = State.NEW
        self.connections_max = connections_max
        self.transports = options.transports or ("polling", "websocket")
        self.instance = options.instance or secrets.token_urlsafe(3)
        self.clients: dict[str, Client] = {}
        self.adapter: Adapter | None = None
        self.dispatcher = Dispatcher(
            handlers_max=options.handlers_max,
            backlog_max=options.backlog_max,
            connect_timeout_s=options.connect_timeout_s,
            logger=logger,
        )
        self.delivery = Delivery(rooms_max=options.rooms_max, run=self.dispatcher.run, logger=logger)
        self.spaces = self.delivery.spaces
        self.counters = self.delivery.counters
        self._log = logger
        self._heartbeat = Heartbeat(
            ping_interval_s=options.ping_interval_s,
            ping_timeout_s=options.ping_timeout_s,
            connect_timeout_s=options.connect_timeout_s,
            logger=logger,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._told = False

    # --- life ---

    async def start(self, adapter: Adapter) -> None:
        """Listen to the other instances and begin to serve."""
        self._loop = asyncio.get_running_loop()
        self.adapter = adapter
        if self.options.transports is None and not adapter.alone:
            self.transports = ("websocket",)
        self.delivery.join_cluster(adapter)
        await adapter.start(self.delivery)
        self.state = State.RUNNING
        self._heartbeat.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop it runs in, once started."""
        return self._loop

    async def drain(self, deadline_s: float) -> None:
        """Open no session any more, close the others in batches; returns when all are gone or the time is over.

        A second call waits for the first. Cancelling the caller lets the drain go on.
        """
        if self.state is State.RUNNING:
            self.begin_drain(deadline_s)
        if self._draining is not None:
            await asyncio.wait({self._draining})  # not awaited itself: neither's cancelling is the other's

    def begin_drain(self, deadline_s: float) -> None:
        """Start a drain if none has begun."""
        if self.state is not State.RUNNING or self._loop is None:
            return
        self.state = State.DRAINING
        drain = Drain(self.clients, self.dispatcher, clients_per_s=self.options.drain_clients_per_s, logger=self._log)
        self._draining = self._loop.create_task(drain.run(deadline_s), name="realtime drain")

    async def aclose(self) -> None:
        """Close every connection at once and stop. Idempotent, and if it was cancelled the next call ends the work."""
        self.state = State.CLOSED
        for client in list(self.clients.values()):
            client.close(Reason.DRAINING, CLOSE_RESTART)
        await self.dispatcher.wait_idle(1.0)
        await self.dispatcher.cancel_all()
        await self._heartbeat.aclose()
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.gather(self._draining, return_exceptions=True)
        if self.adapter is not None:
            await self.adapter.aclose()

    # --- handshake ---

    def admit(self, facts: Facts) -> Refusal | None:
        """None if the request may open a session now, or go on with the one whose id it brings."""
        options = self.options
        if facts.sid:
            client = self._unexpired(facts.sid)
            refusal = handshake.check_session(
                facts,
                transports=self.transports,
                origins=options.origins,
                current=None if client is None else client.transport.name,
            )
        else:
            refusal = handshake.check(
                facts,
                transports=self.transports,
                origins=options.origins,
                draining=self.state is not State.RUNNING,
                full=len(self.clients) >= self.connections_max,
            )
        if refusal is not None:
            self.counters.refused += 1
            self._explain(facts, refusal)
        return refusal

    def _explain(self, facts: Facts, refusal: Refusal) -> None:
        """Say once what an official client that begins with polling would have needed."""
        if refusal.reason is handshake.Refused.TRANSPORT_UNKNOWN and facts.transport == "polling" and not self._told:
            self._told = True
            cure = (
                'the client with transports: ["websocket"], or transports=("polling", "websocket") and sticky routing'
            )
            self._log.warning("a client wants to poll, which is off for servers that share a Redis", cure=cure)

    def _unexpired(self, sid: str) -> Client | None:
        """The client of a session whose deadline has not passed, whether the sweep has noticed or not."""
        client = self.clients.get(sid)
        if client is not None and client.due_s <= self.now():
            client.tick()
        return self.clients.get(sid)

    def accept_websocket(self, transport: Transport, request: Request, facts: Facts) -> tuple[Receiver, str | None]:
        """The receiver of an admitted WebSocket, and the packet to send first: a new session, or an upgrade."""
        if not facts.sid:
            return self.open(transport, request, facts)
        assert self._loop is not None
        return Upgrade(self.clients[facts.sid], transport, self._loop), None

    def open(self, transport: Transport, request: Request, facts: Facts) -> tuple[Client, str]:
        """Open a session for an admitted request: the client, and the packet that tells it so."""
        options, now_s = self.options, self.now()
        client = Client(
            self._new_sid(),
            self,
            transport=transport,
            request=request,
            session=Session(now_s, ping_interval_s=options.ping_interval_s, ping_timeout_s=options.ping_timeout_s),
            connection=Connection(now_s, attachments_max=options.attachments_max, rate_max=options.messages_per_s_max),
        )
        self.clients[client.sid] = client
        self.counters.opened += 1
        self._heartbeat.watch(client, now_s)
        packet = open_packet(
            client.sid,
            upgrades=("websocket",) if facts.transport == "polling" and "websocket" in self.transports else (),
            ping_interval_s=options.ping_interval_s,
            ping_timeout_s=options.ping_timeout_s,
            payload_bytes_max=options.payload_bytes_max,
        )
        return client, packet

    def _new_sid(self) -> str:
        return handshake.session_id(self.instance, secrets.token_bytes(handshake.ENTROPY_BYTES))

    @property
    def cookie(self) -> str | None:
        """The affinity cookie's header, if one is wanted."""
        name = self.options.cookie
        return None if name is None else f"{name}={self.instance}; Path=/; HttpOnly; SameSite=Lax"

    # --- what clients report (Owner) ---

    def now(self) -> float:
        """The loop's clock."""
        assert self._loop is not None, "used before start"
        return self._loop.time()

    def reschedule(self, client: Client) -> None:
        """Put the client where its new deadline belongs."""
        self._heartbeat.reschedule(client, self.now())

    def connect_asked(self, client: Client, namespace: str, auth: Any) -> None:
        """A client wants to join."""
        space = self.spaces.get(namespace)
        if space is None:
            client.refuse(namespace, "Invalid namespace")
            return
        socket = Socket(self._new_sid(), namespace, client)
        client.sockets[namespace] = socket
        space.rooms.add(socket.sid, socket)
        self._heartbeat.joined(client)
        self.dispatcher.connect(client, socket, space.handlers, auth)

    def event_came(self, socket: Socket, args: list[Any], ack_id: int | None) -> None:
        """A client sent an event."""
        self.dispatcher.event(socket, self.spaces[socket.namespace].handlers, args, ack_id)

    def left(self, socket: Socket, reason: str) -> None:
        """A socket is gone."""
        space = self.spaces[socket.namespace]
        space.rooms.remove(socket.sid)
        if not socket.client.sockets and not socket.client.over:
            self._heartbeat.left_all(socket.client, self.now())
        if not socket.connecting:
            self.dispatcher.disconnected(socket, space.handlers, reason)

    def ended(self, client: Client, reason: str) -> None:
        """A client is gone."""
        self.clients.pop(client.sid, None)
        self._heartbeat.forget(client)
        self.counters.ended[reason] = self.counters.ended.get(reason, 0) + 1
