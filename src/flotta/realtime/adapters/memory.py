"""The adapter of a process that is alone: there are no others to tell."""

from __future__ import annotations

from typing import Any, final

from flotta.realtime.adapters import AdapterStats, Broadcast, Node, Target

__all__ = ["MemoryAdapter"]


@final
class MemoryAdapter:
    """Carries nothing."""

    alone = True

    async def start(self, node: Node) -> None:
        """Nothing to listen to."""

    async def aclose(self) -> None:
        """Nothing to stop."""

    def publish(self, broadcast: Broadcast) -> None:
        """Nobody else is there."""

    def publish_request(self, request: str, target: Target, **facts: Any) -> None:
        """Nobody else is there."""

    async def wait_for_room(self) -> None:
        """There is always room."""

    @property
    def stats(self) -> AdapterStats:
        """All zero; connected, since nobody is missing."""
        return AdapterStats(connected=True, published=0, publish_lost=0, received=0, junk=0, gaps=0, in_flight=0)
