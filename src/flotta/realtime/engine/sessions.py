"""The sessions of this process, from their handshake to their end: what transports talk to.

`Core` makes a Socket.IO server of it, `EngineServer` one that speaks Engine.IO and nothing above. Everything here runs
in the event loop's thread and nothing but `drain` and `_stop` waits.

Invariant: while the state is not RUNNING, no session is opened.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from flotta.realtime.drain import CLOSE_RESTART, Drain, Work
from flotta.realtime.engine.client import EngineClient, Reason
from flotta.realtime.engine.options import EngineOptions
from flotta.realtime.engine.request import Request
from flotta.realtime.engineio import handshake
from flotta.realtime.engineio.handshake import INSTANCE_LENGTH, Facts, Refusal
from flotta.realtime.engineio.packet import open_packet
from flotta.realtime.engineio.session import Session
from flotta.realtime.heartbeat import Heartbeat
from flotta.realtime.journal import Journal
from flotta.realtime.limits import Addresses
from flotta.realtime.transports import Receiver, Transport
from flotta.realtime.upgrade import Upgrade

__all__ = ["FILES_KEPT", "AnyEngine", "Engine", "EngineCounters", "State", "connections_allowed"]

PARTED_S = 0.25
SENT_AWAY_S = 5.0
"""How long a polling client that was sent away has for the GET that tells it, and for what it still had to say."""
PARTED_MAX = 10_000
FILES_KEPT = 128
"""Open files that a process needs besides its clients: Redis, PostgreSQL, logs, listening sockets."""


C = TypeVar("C", bound=EngineClient)


class State(Enum):
    """Where a server is in its life."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    CLOSED = "closed"


class Elsewhere(Protocol):
    """Sessions that other instances hold: what this one does with requests for them."""

    def admit(self, facts: Facts) -> Refusal | None:
        """None if the session may be another instance's, and that one can be asked."""
        ...

    async def serve(self, facts: Facts, request: Request, receive: Any, answer: Any) -> None:
        """Serve an admitted polling request."""
        ...

    def accept(self, transport: Transport, request: Request, facts: Facts) -> Receiver:
        """The receiver of an admitted WebSocket."""
        ...

    def begin_drain(self) -> None:
        """Send away who is here and held elsewhere."""
        ...


@dataclass(slots=True)
class EngineCounters:
    """What has happened since the start."""

    opened: int = 0
    refused: int = 0
    ended: dict[str, int] = field(default_factory=dict)


class Engine(ABC, Generic[C]):
    """See the module. It is the `EngineOwner` of its clients.

    Args:
        work: the handlers that a drain waits for.
        connect_timeout_s: how long a client may stay without having `EngineClient.joined`. None: for ever.
        idle_s: how long without a call of `Heartbeat.active`. None: for ever.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        connections_max: int,
        counters: EngineCounters,
        work: Work,
        connect_timeout_s: float | None,
        idle_s: float | None = None,
        logger: Any,
    ) -> None:
        self.options = options
        self.state = State.NEW
        self.connections_max = connections_max
        self.transports = options.transports or ("polling", "websocket")
        self.instance = options.instance or secrets.token_urlsafe(3)
        self.clients: dict[str, C] = {}
        self.addresses = Addresses(options.connections_per_ip_max)
        self.journal = Journal(logger)
        self.elsewhere: Elsewhere | None = None
        self.counters = counters
        self._work = work
        self._log = logger
        self._heartbeat = Heartbeat(
            ping_interval_s=options.ping_interval_s,
            ping_timeout_s=options.ping_timeout_s,
            connect_timeout_s=connect_timeout_s,
            idle_s=idle_s,
            logger=logger,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._explained: set[str] = set()
        self._parted: dict[str, tuple[Transport, asyncio.TimerHandle]] = {}

    @abstractmethod
    def _make_client(self, sid: str, transport: Transport, request: Request, session: Session, now_s: float) -> C:
        """The client of a new session. It is in `clients` right after."""

    # --- life ---

    def _run(self) -> None:
        """Begin to serve."""
        self._loop = asyncio.get_running_loop()
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
        if self.elsewhere is not None:
            self.elsewhere.begin_drain()
        drain = Drain(
            self.clients,
            self._work,
            clients_per_s=self.options.drain_clients_per_s,
            farewell=self._farewell,
            logger=self._log,
        )
        self._draining = self._loop.create_task(drain.run(deadline_s), name="realtime drain")

    def _farewell(self, client: C, reconnect_in_ms: int) -> None:
        """Tell a client, in words of its own, that it is about to be sent away."""

    def _close_all(self) -> None:
        """Close every connection at once and open no other."""
        self.state = State.CLOSED
        for client in list(self.clients.values()):
            client.close(Reason.DRAINING, CLOSE_RESTART)

    async def _stop(self) -> None:
        """Stop the tasks. Idempotent."""
        await self._heartbeat.aclose()
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.gather(self._draining, return_exceptions=True)

    # --- handshake ---

    def admit(self, facts: Facts) -> Refusal | None:
        """None if the request may open a session now, or go on with the one whose id it brings."""
        options = self.options
        if facts.sid:
            refusal = self._admit_session(facts)
        else:
            refusal = handshake.check(
                facts,
                transports=self.transports,
                origins=options.origins,
                started=self.state is not State.NEW,
                draining=self.state is not State.RUNNING,
                full=len(self.clients) >= self.connections_max,
                crowded=self.addresses.is_full(facts.address),
            )
        if refusal is not None:
            self.counters.refused += 1
            self.journal.refused(facts, refusal)
            self._explain(facts, refusal)
        return refusal

    def _admit_session(self, facts: Facts) -> Refusal | None:
        client, elsewhere = self._unexpired(facts.sid), self.elsewhere
        current = None if client is None else client.transport.name
        if client is None and elsewhere is not None and facts.sid[:INSTANCE_LENGTH] != self.instance:
            refusal = elsewhere.admit(facts)
            if refusal is not None:
                return refusal
            current = "polling"  # as far as is known here
        return handshake.check_session(facts, transports=self.transports, origins=self.options.origins, current=current)

    def _explain(self, facts: Facts, refusal: Refusal) -> None:
        """Say once what official clients, which begin with polling, would have needed."""
        foreign = facts.sid != "" and facts.sid[:INSTANCE_LENGTH] != self.instance
        if refusal.reason is handshake.Refused.TRANSPORT_UNKNOWN and facts.transport == "polling":
            told = "a client wants to poll, which is off here"
            cure = 'relay=True, or the client with transports: ["websocket"], or sticky routing and transports='
        elif refusal.reason is handshake.Refused.SESSION_UNKNOWN and foreign and self.elsewhere is None:
            told = "a client's session was opened by another process, or before a restart: it must begin anew"
            cure = (
                "several processes behind one address need one Redis, Server('redis://...'), or routing by session id"
            )
        else:
            return
        if told not in self._explained:
            self._explained.add(told)
            self._log.warning(told, cure=cure)

    def _unexpired(self, sid: str) -> C | None:
        """The client of a session whose deadline has not passed, whether the sweep has noticed or not."""
        client = self.clients.get(sid)
        now_s = self.now()
        while client is not None and client.due_s <= now_s:
            client.tick()
            client = self.clients.get(sid)
        return client

    def part(self, sid: str, transport: Transport, for_s: float = PARTED_S) -> None:
        """A polling session has ended, and requests of its client may still be on their way here: from now on they find
        its ``transport`` for a while, and on it the end."""
        assert self._loop is not None
        self._forget_parted(sid)
        if len(self._parted) >= PARTED_MAX:
            self._forget_parted(next(iter(self._parted)))
        self._parted[sid] = transport, self._loop.call_later(for_s, self._parted.pop, sid, None)

    def _forget_parted(self, sid: str) -> None:
        if (parted := self._parted.pop(sid, None)) is not None:
            parted[1].cancel()

    def parted(self, sid: str) -> Transport | None:
        """What `part` was given."""
        parted = self._parted.get(sid)
        return None if parted is None else parted[0]

    def awaits(self, facts: Facts) -> bool:
        """The request is of a session of this instance, or of one that has just ended."""
        return facts.sid in self.clients or facts.sid in self._parted

    def accept_websocket(self, transport: Transport, request: Request, facts: Facts) -> tuple[Receiver, str | None]:
        """The receiver of an admitted WebSocket, and the packet to send first: a new session, or an upgrade."""
        if not facts.sid:
            return self.open(transport, request, facts)
        client = self.clients.get(facts.sid)
        if client is None:
            assert self.elsewhere is not None
            return self.elsewhere.accept(transport, request, facts), None
        assert self._loop is not None
        return Upgrade(client, transport, self._loop), None

    def open(self, transport: Transport, request: Request, facts: Facts) -> tuple[C, str]:
        """Open a session for an admitted request: the client, and the packet that tells it so."""
        options, now_s = self.options, self.now()
        session = Session(now_s, ping_interval_s=options.ping_interval_s, ping_timeout_s=options.ping_timeout_s)
        client = self._make_client(self._new_sid(), transport, request, session, now_s)
        self.clients[client.sid] = client
        self.counters.opened += 1
        self.addresses.enter(client.sid, facts.address)
        self._heartbeat.watch(client, now_s)
        self.journal.opened(client.sid, transport.name, facts.address)
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

    # --- sessions that move between instances ---

    def _enter(self, client: C) -> None:
        """A session goes on here."""
        self.clients[client.sid] = client
        self.addresses.enter(client.sid, client.request.address)
        self._heartbeat.watch(client, self.now())
        if client.joined:
            self._heartbeat.joined(client)

    def _leave(self, client: C) -> None:
        """A session goes on elsewhere."""
        self.clients.pop(client.sid, None)
        self.addresses.leave(client.sid)
        self._heartbeat.forget(client)

    # --- what clients report (EngineOwner) ---

    def now(self) -> float:
        """The loop's clock."""
        assert self._loop is not None, "used before start"
        return self._loop.time()

    def reschedule(self, client: EngineClient) -> None:
        """Put the client where its new deadline belongs."""
        self._heartbeat.reschedule(client, self.now())

    def ended(self, client: EngineClient, reason: str) -> None:
        """A client is gone."""
        self.clients.pop(client.sid, None)
        self.addresses.leave(client.sid)
        self._heartbeat.forget(client)
        self.journal.ended(client.sid, reason)
        counted = self.counters.ended
        counted[reason] = counted.get(reason, 0) + 1


def connections_allowed(wanted: int) -> int:
    """``wanted``, or what the open-file limit leaves if that is less."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or wanted + FILES_KEPT <= files:
        return wanted
    return max(1, files - FILES_KEPT)


AnyEngine: TypeAlias = Engine[Any]
