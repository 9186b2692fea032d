"""How much for clients and of them may be on its way to each other instance: bounded in bytes, one after the other.

Redis ends a subscriber that is too far behind (``client-output-buffer-limit pubsub``: by default 32 MB, or 8 MB for a
minute). That would cost an instance every broadcast, so neither a few clients with huge requests nor one large event
for thousands that poll must bring it about.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import final

__all__ = ["Budget"]


@final
class Budget:
    """``bytes_max`` per instance; what is larger by itself goes when nothing else is on its way."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._spent: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    @asynccontextmanager
    async def spend(self, instance: str, size_bytes: int) -> AsyncIterator[None]:
        """Inside, that much is on its way to ``instance``. Waits for its turn; cancelling gives it back."""
        if not size_bytes:
            yield
            return
        await self._take(instance, size_bytes)
        try:
            yield
        finally:
            self._give(instance, size_bytes)

    def _fits(self, instance: str, size_bytes: int) -> bool:
        spent = self._spent.get(instance, 0)
        return not spent or spent + size_bytes <= self._bytes_max

    async def _take(self, instance: str, size_bytes: int) -> None:
        line = self._waiting.get(instance)
        if not line and self._fits(instance, size_bytes):
            self._spent[instance] = self._spent.get(instance, 0) + size_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(instance, deque()).append((size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(instance, size_bytes)  # its turn had come
            else:
                self._call_next(instance)  # it may have stood in the way of a smaller one
            raise

    def _give(self, instance: str, size_bytes: int) -> None:
        left = self._spent.pop(instance) - size_bytes
        if left:
            self._spent[instance] = left
        self._call_next(instance)

    def _call_next(self, instance: str) -> None:
        line = self._waiting.get(instance)
        while line:
            size_bytes, turn = line[0]
            if not turn.done():
                if not self._fits(instance, size_bytes):
                    return
                self._spent[instance] = self._spent.get(instance, 0) + size_bytes
                turn.set_result(None)
            line.popleft()
        self._waiting.pop(instance, None)

    @property
    def spent_bytes(self) -> int:
        """On its way now."""
        return sum(self._spent.values())
