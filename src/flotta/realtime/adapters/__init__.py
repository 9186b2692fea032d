"""How the instances of a fleet hear each other's broadcasts.

An adapter carries `Broadcast` from one instance to all others, and never delivers to sockets itself: it gives what it
hears to a `Node`, which sends to its own sockets only. Local delivery does not go through the adapter, so a lost Redis
costs the other instances' share and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = ["Adapter", "AdapterStats", "Broadcast", "Node", "OnAck", "SocketFacts", "Target"]


OnAck: TypeAlias = Callable[[list[Any]], None]


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


class Node(Protocol):
    """What an adapter may ask of its instance. Nothing here waits."""

    def namespaces(self) -> Iterable[str]:
        """The names of the namespaces that exist."""
        ...

    def deliver(self, broadcast: Broadcast) -> int:
        """Send to the own sockets that the broadcast is for; how many they are."""
        ...

    def ask(self, target: Target, args: list[Any], on_ack: OnAck, timeout_s: float) -> int:
        """Send an event to the own sockets of ``target``; ``on_ack`` gets each answer that comes in time. How many."""
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

    def has_room(self, namespace: str, room: str) -> bool:
        """Whether some own socket is in ``room``."""
        ...

    def rooms(self, namespace: str) -> list[str]:
        """The rooms that own sockets are in, their own ids included."""
        ...


class Adapter(Protocol):
    """Carries broadcasts between instances."""

    @property
    def alone(self) -> bool:
        """There are no other instances."""
        ...

    async def start(self, node: Node) -> None:
        """Listen; returns when what others send from now on arrives."""
        ...

    async def aclose(self) -> None:
        """Stop listening. Idempotent."""
        ...

    def publish(self, broadcast: Broadcast) -> None:
        """Give the broadcast to the other instances, without waiting. Never raises for a Redis that is away."""
        ...

    def publish_request(self, request: str, target: Target, **facts: Any) -> None:
        """Ask the other instances to ``join``, ``leave`` or ``disconnect`` their sockets of ``target``."""
        ...

    async def wait_for_room(self) -> None:
        """Return when fewer broadcasts are in flight than the limit."""
        ...

    @property
    def stats(self) -> AdapterStats:
        """Counters."""
        ...
