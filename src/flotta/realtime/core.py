"""The server's inside: the clients of this process, the namespaces with their rooms, the heartbeat, the drain.

One `Core` per `Server`. Everything here runs in the event loop's thread and nothing but `start`, `drain` and `aclose`
waits. The heartbeat of all clients is one task over two queues (see `Wheel`), not a timer per client.

Invariants:

- a socket is in ``Space.rooms`` from the moment its ``connect`` handler is asked until it has left;
- a broadcast is encoded once, whatever the number of its recipients, and written to all of them in one go;
- while the state is not RUNNING, no session is opened.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, final

from flotta.realtime.adapters import Adapter, Broadcast, OnAck, SocketFacts, Target
from flotta.realtime.client import Client, Reason, Socket
from flotta.realtime.dispatch import Dispatcher
from flotta.realtime.engineio import handshake
from flotta.realtime.engineio.handshake import Facts, Refusal
from flotta.realtime.engineio.packet import open_packet
from flotta.realtime.engineio.session import Session
from flotta.realtime.engineio.wheel import Wheel
from flotta.realtime.handlers import Handlers, MaySee
from flotta.realtime.options import ServerOptions
from flotta.realtime.request import Request
from flotta.realtime.rooms import Rooms
from flotta.realtime.socketio.connection import Connection
from flotta.realtime.socketio.packet import Packet, PacketType, encode
from flotta.realtime.transports import Outgoing, Receiver, Transport
from flotta.realtime.upgrade import Upgrade

__all__ = ["Core", "Space", "State", "encode_event"]

SWEEP_S_MAX = 1.0
STALL_S = 0.5
LATE_MAX = 3
"""Late sweeps in a row that judge nobody."""
DRAIN_BATCHES_PER_S = 10
DRAIN_SHARE = 0.6
"""Part of the deadline that the closing may take; the rest is for handlers to end."""
CLOSE_RESTART = 1012  # "service restart": clients come back by themselves


class State(Enum):
    """Where a server is in its life."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    CLOSED = "closed"


@final
class Space:
    """One namespace: its handlers and who is in which room."""

    __slots__ = ("handlers", "name", "rooms")

    def __init__(self, name: str) -> None:
        self.name = name
        self.handlers = Handlers()
        self.rooms: Rooms[Socket] = Rooms()


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    opened: int = 0
    refused: int = 0
    delivered: int = 0
    broadcasts: int = 0
    volatile_dropped: int = 0
    filtered: int = 0
    ended: dict[str, int] = field(default_factory=dict)


@final
class Core:
    """See the module. It is the `Owner` of its clients and the `Node` of its adapter."""

    def __init__(self, options: ServerOptions, *, connections_max: int, logger: Any) -> None:
        self.options = options
        self.state = State.NEW
        self.connections_max = connections_max
        self.transports = options.transports or ("polling", "websocket")
        self.counters = Counters()
        self.instance = options.instance or secrets.token_urlsafe(3)
        self.spaces: dict[str, Space] = {"/": Space("/")}
        self.clients: dict[str, Client] = {}
        self.adapter: Adapter | None = None
        self.dispatcher = Dispatcher(
            handlers_max=options.handlers_max,
            backlog_max=options.backlog_max,
            connect_timeout_s=options.connect_timeout_s,
            logger=logger,
        )
        self._log = logger
        self._resting: Wheel[Client] = Wheel(options.ping_interval_s)
        self._pinged: Wheel[Client] = Wheel(options.ping_timeout_s)
        self._joining: Wheel[Client] = Wheel(options.connect_timeout_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._told = False
        self._full_told = False

    # --- life ---

    async def start(self, adapter: Adapter) -> None:
        """Listen to the other instances and begin to serve."""
        self._loop = asyncio.get_running_loop()
        self.adapter = adapter
        if self.options.transports is None and not adapter.alone:
            self.transports = ("websocket",)
        await adapter.start(self)
        self.state = State.RUNNING
        self._sweeper = self._loop.create_task(self._sweep(), name="realtime heartbeat")

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
        if self._drain is not None:
            await asyncio.wait({self._drain})  # not awaited itself: neither's cancelling is the other's

    def begin_drain(self, deadline_s: float) -> None:
        """Start a drain if none has begun."""
        if self.state is not State.RUNNING or self._loop is None:
            return
        self.state = State.DRAINING
        self._drain = self._loop.create_task(self._run_drain(deadline_s), name="realtime drain")

    async def _run_drain(self, deadline_s: float) -> None:
        end_s = self.now() + deadline_s
        clients = list(self.clients.values())
        random.shuffle(clients)
        spread_s = min(deadline_s * DRAIN_SHARE, len(clients) / self.options.drain_clients_per_s)
        batches = max(1, math.ceil(spread_s * DRAIN_BATCHES_PER_S))
        size = max(1, math.ceil(len(clients) / batches))
        self._log.info("draining", clients=len(clients), deadline_s=deadline_s)
        for at in range(0, len(clients), size):
            for client in clients[at : at + size]:
                client.close(Reason.DRAINING, CLOSE_RESTART)
            if at + size < len(clients):
                # Jitter keeps instances that drain together from sending their clients back in step.
                await asyncio.sleep(spread_s / batches * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        if not await self.dispatcher.wait_idle(max(0.0, end_s - self.now())):
            self._log.warning("handlers still run at the end of the drain", handlers=self.dispatcher.running)

    async def aclose(self) -> None:
        """Close every connection at once and stop. Idempotent, and if it was cancelled the next call ends the work."""
        self.state = State.CLOSED
        for client in list(self.clients.values()):
            client.close(Reason.DRAINING, CLOSE_RESTART)
        await self.dispatcher.wait_idle(1.0)
        await self.dispatcher.cancel_all()
        for task in (self._sweeper, self._drain):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
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
        self._resting.put(client, now_s)
        self._joining.put(client, now_s)
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

    # --- heartbeat ---

    async def _sweep(self) -> None:
        wheels = (self._resting, self._pinged, self._joining)
        shortest_s = min(wheel.delay_s for wheel in wheels)
        least_s, most_s = shortest_s / 1_000, min(SWEEP_S_MAX, shortest_s)
        late = 0
        while True:
            before_s = self.now()
            due_in_s = min(wheel.next_due_s() for wheel in wheels) - before_s
            pause_s = min(max(due_in_s, least_s), most_s)
            await asyncio.sleep(pause_s)
            # If the loop stood still, pongs may lie unread in the sockets: nobody is judged before they are. A loop
            # that is late every time judges all the same, or the dead would stay.
            late = late + 1 if self.now() - before_s > pause_s + STALL_S else 0
            if late in {0, LATE_MAX}:
                self._sweep_once()
                late = 0

    def _sweep_once(self) -> None:
        now_s = self.now()
        for client in self._pinged.take_due(now_s) + self._resting.take_due(now_s):
            try:
                client.tick()
            except Exception:  # noqa: BLE001 - our bug, but the heartbeat of all others must go on
                self._log.exception("the heartbeat of a client failed", sid=client.sid)
        for client in self._joining.take_due(now_s):
            if not client.sockets:
                client.close(Reason.CONNECT_TIMEOUT, 1008)

    # --- what clients report (Owner) ---

    def now(self) -> float:
        """The loop's clock."""
        assert self._loop is not None, "used before start"
        return self._loop.time()

    def reschedule(self, client: Client) -> None:
        """Put the client where its new deadline belongs."""
        self._resting.drop(client)
        self._pinged.drop(client)
        (self._pinged if client.pinged else self._resting).put(client, self.now())

    def connect_asked(self, client: Client, namespace: str, auth: Any) -> None:
        """A client wants to join."""
        space = self.spaces.get(namespace)
        if space is None:
            client.refuse(namespace, "Invalid namespace")
            return
        socket = Socket(self._new_sid(), namespace, client)
        client.sockets[namespace] = socket
        space.rooms.add(socket.sid, socket)
        self._joining.drop(client)
        self.dispatcher.connect(client, socket, space.handlers, auth)

    def event_came(self, socket: Socket, args: list[Any], ack_id: int | None) -> None:
        """A client sent an event."""
        self.dispatcher.event(socket, self.spaces[socket.namespace].handlers, args, ack_id)

    def left(self, socket: Socket, reason: str) -> None:
        """A socket is gone."""
        space = self.spaces[socket.namespace]
        space.rooms.remove(socket.sid)
        if not socket.client.sockets and not socket.client.over:
            self._joining.put(socket.client, self.now())  # in no namespace, it may not stay for ever
        if not socket.connecting:
            self.dispatcher.disconnected(socket, space.handlers, reason)

    def ended(self, client: Client, reason: str) -> None:
        """A client is gone."""
        self.clients.pop(client.sid, None)
        for wheel in (self._resting, self._pinged, self._joining):
            wheel.drop(client)
        self.counters.ended[reason] = self.counters.ended.get(reason, 0) + 1

    # --- sending (Node) ---

    def namespaces(self) -> list[str]:
        """The namespaces that exist."""
        return list(self.spaces)

    def deliver(self, broadcast: Broadcast, packet: Outgoing | None = None) -> int:
        """Send to the own sockets that the broadcast is for; how many got it. ``packet``: encoded already."""
        space = self.spaces.get(broadcast.target.namespace)
        if space is None:
            return 0
        recipients = space.rooms.recipients(broadcast.target.rooms, broadcast.target.except_rooms)
        if broadcast.may_see is not None:
            recipients = self._visible(space, recipients, broadcast.may_see, broadcast.args)
        if not recipients:
            return 0
        packet = packet or encode_event(broadcast)
        self.counters.broadcasts += 1
        self.counters.delivered += len(recipients)
        if broadcast.volatile:
            dropped = sum(not socket.write_volatile(packet) for socket in recipients)
            self.counters.volatile_dropped += dropped
            self.counters.delivered -= dropped
            return len(recipients) - dropped
        for socket in recipients:
            socket.write(packet)
        return len(recipients)

    def ask(self, target: Target, args: list[Any], on_ack: OnAck, timeout_s: float) -> int:
        """Send an event to the own sockets of ``target``; ``on_ack`` gets each answer that comes in time. How many."""
        asked = [(socket, socket.emit(args, on_ack)) for socket in self._targeted(target)]

        def forget() -> None:
            for socket, ack_id in asked:
                assert ack_id is not None
                socket.forget_ack(ack_id)

        assert self._loop is not None
        self._loop.call_later(timeout_s, forget)
        return len(asked)

    def _visible(self, space: Space, sockets: list[Socket], name: str, args: list[Any]) -> list[Socket]:
        """Those that pass the filter. Unknown filter, or one that raises: nobody sees the event."""
        may_see = space.handlers.filter(name)
        if may_see is None:
            self._log.error("unknown filter: nobody here gets the event", may_see=name, namespace=space.name)
            passed: list[Socket] = []
        else:
            passed = [socket for socket in sockets if self._passes(may_see, name, socket, args)]
        self.counters.filtered += len(sockets) - len(passed)
        return passed

    def _passes(self, may_see: MaySee, name: str, socket: Socket, args: list[Any]) -> bool:
        try:
            return may_see(socket.sid, socket.session or {}, *args[1:]) is True
        except Exception:  # noqa: BLE001 - a user's filter may raise anything; logged, and it fails closed
            self._log.exception("filter failed: the socket does not get the event", may_see=name, sid=socket.sid)
            return False

    def _targeted(self, target: Target) -> list[Socket]:
        space = self.spaces.get(target.namespace)
        return [] if space is None else space.rooms.recipients(target.rooms, target.except_rooms)

    def join(self, target: Target, rooms: Iterable[str]) -> None:
        """Put the own sockets of ``target`` into ``rooms``, as far as their limit allows."""
        names = list(rooms)
        for socket in self._targeted(target):
            for room in names:
                self.enter(socket, room)

    def enter(self, socket: Socket, room: str) -> bool:
        """Put one socket into a room. False: it is gone, or in too many."""
        held = self.spaces[socket.namespace].rooms
        limit = self.options.rooms_max
        if limit is not None and held.rooms_count_of(socket.sid) >= limit and room not in held.rooms_of(socket.sid):
            if not self._full_told:  # once: a client may ask as often as it likes
                self._full_told = True
                self._log.warning("a socket may be in no more rooms", sid=socket.sid, rooms_max=limit)
            return False
        return held.join(socket.sid, room)

    def leave(self, target: Target, rooms: Iterable[str]) -> None:
        """Take the own sockets of ``target`` out of ``rooms``."""
        names = list(rooms)
        for socket in self._targeted(target):
            for room in names:
                self.spaces[socket.namespace].rooms.leave(socket.sid, room)

    def disconnect(self, target: Target, *, close: bool) -> None:
        """Disconnect the own sockets of ``target``; ``close``: end their connections."""
        for socket in self._targeted(target):
            if close:
                socket.client.close(Reason.SERVER_DISCONNECT)
            else:
                socket.client.leave(socket)

    def sockets(self, target: Target) -> list[SocketFacts]:
        """The own sockets of ``target``, for other instances."""
        return [
            SocketFacts(socket.sid, self.spaces[target.namespace].rooms.rooms_of(socket.sid), _handshake(socket))
            for socket in self._targeted(target)
        ]

    def has_room(self, namespace: str, room: str) -> bool:
        """Whether some own socket is in ``room``."""
        return namespace in self.spaces and room in self.spaces[namespace].rooms

    def rooms(self, namespace: str) -> list[str]:
        """The rooms that own sockets are in, their own ids included."""
        rooms = self.spaces[namespace].rooms
        return [*rooms, *rooms.names()]


def encode_event(broadcast: Broadcast) -> Outgoing:
    """The packet for every recipient. Raises TypeError or ValueError for what cannot travel."""
    return Outgoing(encode(Packet(PacketType.EVENT, broadcast.target.namespace, broadcast.args)))


def _handshake(socket: Socket) -> dict[str, Any]:
    """What other instances may know of a request: no headers, they may hold credentials."""
    environ = socket.client.environ()
    return {"address": environ["REMOTE_ADDR"], "url": environ["PATH_INFO"], "headers": {}, "query": {}}
