"""What a link says about itself: its state, its counts, and what it tells an observer.

Owns: the forms only; the link fills them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, final

__all__ = ["LinkObserver", "LinkState", "LinkStats"]


class LinkState(Enum):
    """Where a link is in its life."""

    IDLE = "idle"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"


class LinkObserver(Protocol):
    """Told by the reading loop, in order. Be quick and never raise."""

    def on_link_up(self) -> None:
        """A connection is greeted; what waits is written right after this returns."""

    def on_link_down(self, reason: str) -> None:
        """The connection is gone; everything that was in flight has failed."""

    def on_link_push(self, push: list[Any]) -> None:
        """A message that is no reply: pub/sub, invalidation."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class LinkStats:
    """Counts since the link was made. A command of a batch counts like any other."""

    connected: bool
    commands: int
    in_flight: int
    waiting: int
    connections: int
    failed_attempts: int
    bytes_sent: int
    bytes_received: int
