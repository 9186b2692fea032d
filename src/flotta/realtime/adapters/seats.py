"""The connection that an adapter subscribes on.

Servers count each other by the subscribers of a channel. A `Redis` subscribes to a channel once, however many listen in
its process; so of several servers with one `Redis` and one prefix, the first uses its hub and each other one gets a
connection of its own. Otherwise they would be counted as one.
"""

from __future__ import annotations

from typing import final
from weakref import WeakKeyDictionary

from flotta.redis import Hub, Redis

__all__ = ["Seat"]

_taken: WeakKeyDictionary[Hub, set[str]] = WeakKeyDictionary()


@final
class Seat:
    """A hub on which nobody else in this process subscribes under ``prefix``."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._prefix = prefix
        prefixes = _taken.setdefault(redis.hub, set())
        self._shared = self._has = prefix not in prefixes
        if self._shared:
            prefixes.add(prefix)
            self.hub = redis.hub
        else:
            self.hub = Hub(redis.link.endpoint, options=redis.options)

    async def aclose(self) -> None:
        """Give it back; the subscriptions must be closed. Idempotent."""
        if not self._shared:
            await self.hub.aclose()
        elif self._has:
            self._has = False  # what is given back may be another's by the next call
            _taken[self.hub].discard(self._prefix)
