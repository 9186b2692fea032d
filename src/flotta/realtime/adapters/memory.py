"""The adapter of a process that is alone: there are no others to tell, and nothing to ask them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from flotta.realtime.adapters import AdapterStats, Broadcast, Command, Node, OnAck, OnCount, OnGone, SocketFacts, Target

__all__ = ["MemoryAdapter"]


@final
class MemoryAdapter:
    """Carries nothing."""

    alone = True
    echoes = False
    wants_own_rooms = False

    async def start(self, node: Node) -> None:
        """Nothing to listen to."""

    async def open_namespace(self, namespace: str) -> None:
        """Nothing to listen to."""

    async def close_namespace(self, namespace: str) -> None:
        """Nothing to stop."""

    async def aclose(self) -> None:
        """Nothing to stop."""

    def publish(self, broadcast: Broadcast) -> bool:  # noqa: ARG002 - the protocol's signature, as all below
        """Nobody else is there to miss it."""
        return True

    def command(self, command: Command, target: Target, *, rooms: Iterable[str] = (), close: bool = False) -> None:
        """Nobody else is there."""

    def room_made(self, namespace: str, room: str) -> None:
        """Nobody wants to know."""

    def room_gone(self, namespace: str, room: str) -> None:
        """Nobody wants to know."""

    async def room_heard(self, namespace: str, room: str) -> None:
        """There is nobody to hear."""

    async def server_count(self, namespace: str) -> int:  # noqa: ARG002
        """This one."""
        return 1

    async def fetch_sockets(self, target: Target, timeout_s: float) -> list[SocketFacts]:  # noqa: ARG002
        """None."""
        return []

    async def all_rooms(self, namespace: str, timeout_s: float) -> set[str]:  # noqa: ARG002
        """None."""
        return set()

    async def ask(
        self,
        target: Target,  # noqa: ARG002
        args: list[Any],  # noqa: ARG002
        on_count: OnCount,  # noqa: ARG002
        on_ack: OnAck,  # noqa: ARG002
        on_gone: OnGone,  # noqa: ARG002
        *,
        timeout_s: float,  # noqa: ARG002
    ) -> int:
        """No other servers."""
        return 0

    def server_side_emit(self, namespace: str, args: list[Any]) -> None:
        """Nobody else is there."""

    async def server_side_call(self, namespace: str, args: list[Any], timeout_s: float) -> list[Any]:  # noqa: ARG002
        """Nobody answers."""
        return []

    async def settled(self) -> None:
        """It always is."""

    async def wait_for_room(self) -> None:
        """There is always room."""

    @property
    def stats(self) -> AdapterStats:
        """All zero; connected, since nobody is missing."""
        return AdapterStats(connected=True, published=0, publish_lost=0, received=0, junk=0, gaps=0, in_flight=0)
