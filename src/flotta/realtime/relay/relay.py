"""Everything of one server that has to do with sessions of other instances. See the package.

Invariants:

- a session id begins with the characters of the instance that opened it, and no two living instances share them; a
  session that has moved keeps its id, so whose characters they are says nothing about a session on a WebSocket;
- nothing waits for an instance that is gone: who deals with it is told (`leases`, `post`);
- what other instances send is checked (`wire`), what they may start here is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, final

from flotta.realtime.adapters import Adapter, Node
from flotta.realtime.core import Core
from flotta.realtime.drain import CLOSE_RESTART
from flotta.realtime.engine.client import Reason
from flotta.realtime.engine.request import Request
from flotta.realtime.engine.sessions import State
from flotta.realtime.engineio.handshake import INSTANCE_LENGTH, SID_LENGTH, Facts, Refusal, Refused
from flotta.realtime.relay.arrivals import Arrivals
from flotta.realtime.relay.asks import HEADERS_ASKED, Asks, HttpAnswer, Receive, seen
from flotta.realtime.relay.departures import Departures
from flotta.realtime.relay.ground import Ground
from flotta.realtime.relay.leases import Leases
from flotta.realtime.relay.post import Post
from flotta.realtime.relay.taps import Tap
from flotta.realtime.relay.travel import Travelling, TravellingPeople, TravellingRecovery
from flotta.realtime.relay.tunnels import Far, Near, request_of
from flotta.realtime.relay.wire import (
    Acked,
    Along,
    Answer,
    Ask,
    Broken,
    Cut,
    Deaf,
    Echo,
    Echoed,
    Ended,
    Flush,
    Left,
    Message,
    Moved,
    Open,
    Release,
)
from flotta.realtime.transports import Receiver, Transport
from flotta.realtime.upgrade import Upgrade
from flotta.redis import Redis

__all__ = ["Relay", "RelayStats"]

TUNNELS_MAX: Final = 50_000
"""WebSockets here whose session is elsewhere, and sessions here whose WebSocket is elsewhere."""
_SID_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


class RelayStats(NamedTuple):
    """What this instance does for the sessions of others, and they for its own. Counters since the start."""

    asked: int
    """Polling requests that other instances answered."""
    served: int
    """Polling requests of own sessions that came in elsewhere."""
    waiting: int
    """Polling requests that wait for another instance now."""
    tunnels: int
    """WebSockets now whose session is on another instance than they are."""
    moved_here: int
    """Sessions that came with their WebSocket."""
    moved_away: int
    """Sessions that went to where their WebSocket is."""
    junk: int
    """Messages on the relay channels that were none."""


@final
class Relay:
    """The `Elsewhere` of a core."""

    def __init__(self, core: Core, redis: Redis, adapter: Adapter, *, kind: str, prefix: str, logger: Any) -> None:
        """``kind``: what must be the same at all instances, in words."""
        self._core = core
        self._post = Post(redis.link, getattr(adapter, "hub", redis.hub), prefix=prefix, logger=logger)
        self._leases = Leases(
            redis,
            prefix=prefix,
            channel=self._post.channel,
            watched=self._watched,
            on_gone=lambda instance: self._on_gone(instance, Refused.SESSION_UNKNOWN),
            on_lost=self._rename,
            adapter=kind,
            logger=logger,
        )
        self._asks = Asks(core, self._post)
        self._tap = tap = Tap(core.delivery)
        self._ground = ground = Ground(core, self._post, tap, adapter, redis, logger=logger)
        travelling = Travelling(TravellingPeople(core.people), TravellingRecovery(lambda: core.keeper))
        self._departures = Departures(core, tap, travelling, ground, logger=logger)
        self._arrivals = Arrivals(core, self._post, tap, travelling, ground, logger=logger)
        self._near: dict[str, Near] = {}
        self._far: dict[str, Far] = {}
        self._takers: dict[type[Any], Callable[[Any], None]] = {
            Ask: self._asks.on_ask,
            Left: self._asks.on_left,
            Release: self._asks.on_release,
            Answer: self._asks.on_answer,
            Open: self._on_open,
            Broken: self._on_broken,
            Cut: lambda message: self._on_cut(message.tunnel),
            Flush: self._arrivals.on_flush,
            Acked: self._departures.on_acked,
            Ended: self._departures.on_ended,
            Echo: self._on_echo,
            Echoed: lambda message: self._post.pace.on_echoed(message.id),
            Deaf: self._on_other_deaf,
        }

    # --- life ---

    async def claim(self) -> None:
        """Take this instance's name. Cancelled or failed: `aclose` gives it back.

        Raises:
            ConfigError: the name that was asked for is another living instance's.
            LinkUnavailable: Redis cannot be reached.
        """
        self._core.take_name(await self._leases.claim(self._core.options.instance))

    async def start(self) -> None:
        """Listen to the others. Raises LinkUnavailable."""
        await self._post.start(self._core.instance, self)
        await self._ground.start(self._on_cut)
        self._leases.start()

    async def _rename(self) -> None:
        """Another instance has this one's name, because this one was suspended for longer than its lease: it goes on
        under a new one. Sessions that poll are reached here only; what is between it and others ends.

        Raises:
            RedisError: not now; nothing has changed.
        """
        old = self._leases.instance
        new = await self._leases.claim(None)
        try:
            await self._post.rename(new)
        except BaseException:
            self._leases.instance = old
            raise
        self._core.take_name(new)
        self.on_deaf()

    @property
    def node(self) -> Node:
        """What the adapter tells of others' broadcasts."""
        return self._tap

    async def aclose(self) -> None:
        """End everything that depends on others, and give the name back. Idempotent."""
        for near in list(self._near.values()):
            near.close(Reason.DRAINING, CLOSE_RESTART)
        self._ground.close()
        self._departures.close()
        self._arrivals.close()
        await self._asks.aclose()
        await self._leases.aclose()
        await self._post.aclose()

    def begin_drain(self) -> None:
        """Send away who is here and held elsewhere."""
        self._asks.release_all()
        for near in list(self._near.values()):
            near.close(Reason.DRAINING, CLOSE_RESTART)

    @property
    def stats(self) -> RelayStats:
        """Counters."""
        asks = self._asks.stats
        return RelayStats(
            asked=asks.sent,
            served=asks.served,
            waiting=asks.pending,
            tunnels=len(self._near) + len(self._far),
            moved_here=self._arrivals.count,
            moved_away=self._departures.count,
            junk=self._post.junk.count,
        )

    # --- Elsewhere: requests that came in here ---

    def admit(self, facts: Facts) -> Refusal | None:
        """None if the session may be another instance's, and that one can be asked."""
        if len(facts.sid) != SID_LENGTH or not _SID_LETTERS.issuperset(facts.sid):
            return Refusal(Refused.SESSION_UNKNOWN)
        if not self._post.connected:
            return Refusal(Refused.OUT_OF_REACH)
        if not facts.upgrade:
            return None
        # A WebSocket will be a client of this instance.
        core = self._core
        if core.state is not State.RUNNING:
            return Refusal(Refused.DRAINING)
        if core.addresses.is_full(facts.address):
            return Refusal(Refused.CROWDED)
        full = len(core.clients) + len(self._near) >= core.connections_max or len(self._near) >= TUNNELS_MAX
        return Refusal(Refused.AT_CAPACITY) if full else None

    async def serve(self, facts: Facts, request: Request, receive: Receive, answer: HttpAnswer) -> None:
        """Serve an admitted polling request."""
        await self._asks.serve(facts, request, receive, answer)

    def accept(self, transport: Transport, request: Request, facts: Facts) -> Receiver:
        """The receiver of an admitted WebSocket: the near end of a tunnel to the session."""
        holder = facts.sid[:INSTANCE_LENGTH]
        near = Near(self, self._arrivals, transport, self._core.options, self._post, holder=holder)
        self._near[near.tunnel] = near
        self._core.addresses.enter(near.tunnel, facts.address)
        asked = seen(request, HEADERS_ASKED)
        self._post.send(holder, Open(near.tunnel, self._core.instance, asked), near.broken)
        return near

    # --- told by the post ---

    def on_message(self, message: Message) -> None:
        """Another instance says something."""
        if isinstance(message, Along):
            end = self._near.get(message.tunnel) or self._far.get(message.tunnel)
            if end is not None:
                end.take(message)
            elif isinstance(message, Moved):
                self._arrivals.stranded(message)
            return
        self._takers[type(message)](message)

    def on_deaf(self) -> None:
        """What others answer may be lost from now on."""
        self._asks.on_gone(None, Refused.OUT_OF_REACH)
        self._break(lambda _: True)

    def _on_echo(self, message: Echo) -> None:
        """Everything that was sent before it has been taken."""
        self._post.send(message.asker, Echoed(message.id), lambda: None)

    def _on_other_deaf(self, message: Deaf) -> None:
        if message.instance != self._core.instance:
            self._on_gone(message.instance, Refused.OUT_OF_REACH)

    def _on_gone(self, instance: str, why: Refused) -> None:
        """An instance is gone, or has missed what it was asked."""
        self._asks.on_gone(instance, why)
        self._break(lambda other: other == instance)
        self._departures.on_gone(instance)

    def _break(self, concerns: Callable[[str], bool]) -> None:
        for near in [near for near in self._near.values() if concerns(near.holder)]:
            near.broken()
        for far in [far for far in self._far.values() if concerns(far.near)]:
            far.broken()

    def _watched(self) -> Iterator[str]:
        yield from self._asks.owners()
        yield from (near.holder for near in self._near.values())
        yield from (far.near for far in self._far.values())
        yield from self._departures.owners()

    def _on_cut(self, tunnel: str) -> None:
        if not self._departures.on_cut(tunnel):
            self._arrivals.on_cut(tunnel)

    # --- tunnels ---

    def _on_open(self, message: Open) -> None:
        """Another instance has a WebSocket for a session that should be here."""
        core = self._core
        try:
            request = request_of(message.request)
            facts = request.facts()
        except ValueError:
            return self._say_broken(message)
        client = core.clients.get(facts.sid)
        if message.tunnel in self._far or len(self._far) >= TUNNELS_MAX or not facts.upgrade:
            return self._say_broken(message)
        if client is None or core.admit(facts) is not None:
            return self._say_broken(message)
        assert core.loop is not None
        far = self._far[message.tunnel] = Far(
            self, self._departures, core.options, self._post, tunnel=message.tunnel, near=message.asker
        )
        far.receiver = Upgrade(client, far, core.loop, on_switch=lambda: self._departures.switched(far, client))
        return None

    def _say_broken(self, message: Open) -> None:
        self._post.send(message.asker, Broken(message.tunnel), lambda: None)

    def _on_broken(self, message: Broken) -> None:
        end = self._near.get(message.tunnel) or self._far.get(message.tunnel)
        if end is not None:
            end.broken()

    def near_over(self, near: Near) -> None:
        """A tunnel has ended."""
        self._near.pop(near.tunnel, None)
        self._core.addresses.leave(near.tunnel)
        self._arrivals.near_over(near)

    def far_over(self, far: Far) -> None:
        """A tunnel has ended."""
        self._far.pop(far.tunnel, None)
        self._departures.far_over(far)
