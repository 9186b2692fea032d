"""How the instances of a fleet hear each other's broadcasts.

An adapter carries `Broadcast` from one instance to all others, and never delivers to sockets itself: it gives what it
hears to a `Node`, which sends to its own sockets only. Local delivery does not go through the adapter, so a lost Redis
costs the other instances' share and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = [
    "Adapter",
    "AdapterStats",
    "Answer",
    "Broadcast",
    "Command",
    "Node",
    "OnAck",
    "OnCount",
    "OnGone",
    "SocketFacts",
    "Target",
    "obey",
]


OnAck: TypeAlias = Callable[[list[Any]], None]
"""Gets the arguments of one client's acknowledgement."""
OnCount: TypeAlias = Callable[[int], None]
"""Gets the number of clients that one server has asked."""
OnGone: TypeAlias = Callable[[], None]
"""One client that was asked has left and will not answer."""
Answer: TypeAlias = Callable[[Any], None]
"""Answers another server's `Server.server_side_call`; a second call does nothing."""


class Command(StrEnum):
    """What servers tell each other to do with their sockets."""

    JOIN = "join"
    LEAVE = "leave"
    DISCONNECT = "disconnect"


class Target(NamedTuple):
    """Which sockets of a namespace: those in any of ``rooms`` (none: all) and in none of ``except_rooms``."""

    namespace: str = "/"
    rooms: tuple[str, ...] = ()
    except_rooms: tuple[str, ...] = ()


class Broadcast(NamedTuple):
    """One event for many sockets. ``args`` is the event's name and its data."""

    target: Target
    args: list[Any]
    volatile: bool = False
    may_see: str | None = None
    """Name of the filter that each recipient must pass on its own instance."""


class SocketFacts(NamedTuple):
    """One socket, as other instances may know it."""

    sid: str
    rooms: frozenset[str]
    handshake: dict[str, Any]
    data: Any
    """What `Server.save_session` stored; Node's ``socket.data``."""


class AdapterStats(NamedTuple):
    """Counters since the start."""

    connected: bool
    """What other instances send arrives here, and the reverse."""
    published: int
    """Broadcasts given to Redis."""
    publish_lost: int
    """Broadcasts that the other instances did not get: Redis was away, or refused them."""
    received: int
    """Broadcasts of other instances."""
    junk: int
    """Messages on the channels that were no broadcast."""
    gaps: int
    """Times that the subscription was lost; what others sent meanwhile is missed."""
    in_flight: int
    """Broadcasts on their way to Redis now."""
    position: str | None = None
    """Adapter ``"streams"``: the id of the newest entry that was delivered here."""
    lag_s: float = 0.0
    """Adapter ``"streams"``: how much older that is than the newest of the stream, looked at every few seconds."""


class Node(Protocol):
    """What an adapter may ask of its instance. Nothing here waits."""

    def namespaces(self) -> Iterable[str]:
        """The names of the namespaces that exist."""
        ...

    def deliver(self, broadcast: Broadcast, *, offset: str | None = None) -> int:
        """Send to the own sockets that the broadcast is for; how many they are. ``offset``: its place in the stream,
        which travels to the clients as the last argument."""
        ...

    def ask(
        self, target: Target, args: list[Any], on_ack: OnAck, timeout_s: float, on_gone: OnGone | None = None
    ) -> int:
        """Send an event to the own sockets of ``target``; ``on_ack`` gets each answer that comes in time, ``on_gone``
        is called for each of them that leaves without. How many."""
        ...

    def join(self, target: Target, rooms: Iterable[str]) -> None:
        """Put the own sockets of ``target`` into ``rooms``."""
        ...

    def leave(self, target: Target, rooms: Iterable[str]) -> None:
        """Take the own sockets of ``target`` out of ``rooms``."""
        ...

    def disconnect(self, target: Target, *, close: bool) -> None:
        """Disconnect the own sockets of ``target`` from the namespace; ``close``: from everything."""
        ...

    def sockets(self, target: Target) -> list[SocketFacts]:
        """The own sockets of ``target``."""
        ...

    def server_side(self, namespace: str, args: list[Any], answer: Answer | None) -> None:
        """Another server's event for this one, not for clients; ``answer`` if it waits for one."""
        ...

    def has_room(self, namespace: str, room: str) -> bool:
        """Whether some own socket is in ``room``."""
        ...

    def rooms(self, namespace: str) -> list[str]:
        """The rooms that own sockets are in, their own ids included."""
        ...


def obey(node: Node, command: Command, target: Target, rooms: Iterable[str], *, close: bool) -> None:
    """Let ``node`` do ``command`` with its own sockets of ``target``."""
    if command is Command.DISCONNECT:
        node.disconnect(target, close=close)
    else:
        (node.join if command is Command.JOIN else node.leave)(target, rooms)


class Adapter(Protocol):
    """Carries broadcasts and requests between instances. "The others" are all servers of the cluster but this one."""

    @property
    def alone(self) -> bool:
        """There are no other instances."""
        ...

    @property
    def echoes(self) -> bool:
        """Own broadcasts come back in their order among all others and are delivered then, to the own clients too.
        False: the server delivers its own broadcasts at once, and the adapter carries them to the others only."""
        ...

    async def start(self, node: Node) -> None:
        """Listen; returns when what others send from now on arrives."""
        ...

    async def open_namespace(self, namespace: str) -> None:
        """Listen for a namespace that came into being after the start. Twice is once."""
        ...

    async def close_namespace(self, namespace: str) -> None:
        """Listen no longer for a namespace that is gone. An unknown one is fine."""
        ...

    async def aclose(self) -> None:
        """Stop listening. Idempotent."""
        ...

    def publish(self, broadcast: Broadcast) -> bool:
        """Give the broadcast to the other instances, without waiting. Never raises for a Redis that is away: then
        False, it reaches nobody else (and with `echoes` the server delivers it to the own clients itself)."""
        ...

    def command(self, command: Command, target: Target, *, rooms: Iterable[str] = (), close: bool = False) -> None:
        """Tell the others to do ``command`` with their sockets of ``target``. Does not wait."""
        ...

    def room_made(self, namespace: str, room: str) -> None:
        """The first own socket is in ``room``."""
        ...

    def room_gone(self, namespace: str, room: str) -> None:
        """The last own socket has left ``room``."""
        ...

    @property
    def wants_own_rooms(self) -> bool:
        """`room_made` and `room_gone` are wanted for the rooms of the sockets' own ids too."""
        ...

    async def room_heard(self, namespace: str, room: str) -> None:
        """Return when what the others send to ``room`` from now on arrives here; at once while Redis is away, and soon
        in any case. For a room that has been `room_made`."""
        ...

    # Requests. Each raises LinkUnavailable while Redis is away and ClusterTimeout when not all others answer in time;
    # cancelling one stops the waiting.

    async def server_count(self, namespace: str) -> int:
        """How many servers there are, this one included."""
        ...

    async def fetch_sockets(self, target: Target, timeout_s: float) -> list[SocketFacts]:
        """The sockets of ``target`` that the others hold."""
        ...

    async def all_rooms(self, namespace: str, timeout_s: float) -> set[str]:
        """The rooms that sockets of the others are in, those of their own ids included."""
        ...

    async def ask(
        self, target: Target, args: list[Any], on_count: OnCount, on_ack: OnAck, on_gone: OnGone, *, timeout_s: float
    ) -> int:
        """Let the others send an event to their sockets of ``target``: how many servers that are. ``on_count`` is
        called once for each of them, ``on_ack`` for each client that answers within ``timeout_s``, ``on_gone`` for each
        that leaves before, as far as its server says so (Node's do not)."""
        ...

    def server_side_emit(self, namespace: str, args: list[Any]) -> None:
        """Give an event to the others' `Server.on_server_side` handlers. Does not wait."""
        ...

    async def server_side_call(self, namespace: str, args: list[Any], timeout_s: float) -> list[Any]:
        """The same, and one answer of each of them."""
        ...

    async def settled(self) -> None:
        """Return when the own clients have been sent all that this server has published before; what is done to them
        afterwards then happens after it. At once without `echoes`, and after a second in any case."""
        ...

    async def wait_for_room(self) -> None:
        """Return when fewer broadcasts are in flight than the limit."""
        ...

    @property
    def stats(self) -> AdapterStats:
        """Counters."""
        ...
