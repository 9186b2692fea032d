"""One event that clients on all instances acknowledge: who was asked, what came, and when nothing more can come.

Invariant: `wait` returns as soon as every server has said how many clients it asked, and each of these has answered or
is known to have left; with ``first`` also after one answer.
"""

from __future__ import annotations

import asyncio
from typing import Any, final

__all__ = ["Question"]


@final
class Question:
    """What has come so far. Its ``on_`` methods are what adapters and `Delivery.ask` call."""

    def __init__(self, *, first: bool = False) -> None:
        self.answers: list[list[Any]] = []
        """The arguments of each acknowledgement, in the order of their coming."""
        self.clients = 0
        """How many were asked."""
        self._first = first
        self._gone = 0
        self._servers: int | None = None
        self._heard = 0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def complete(self) -> bool:
        """Everybody who was asked has answered."""
        return self._heard == self._servers and len(self.answers) == self.clients

    def on_count(self, clients: int) -> None:
        """One server has asked so many clients."""
        self._heard += 1
        self.clients += clients
        self._look()

    def on_ack(self, args: list[Any]) -> None:
        """One client has answered."""
        self.answers.append(args)
        self._look()

    def on_gone(self) -> None:
        """One client has left and will not answer."""
        self._gone += 1
        self._look()

    def sent(self, servers: int) -> None:
        """So many servers were asked, this one included."""
        self._servers = servers
        self._look()

    def _look(self) -> None:
        over = self._heard == self._servers and len(self.answers) + self._gone >= self.clients
        if (over or (self._first and self.answers)) and not self._over.done():
            self._over.set_result(None)

    async def wait(self) -> None:
        """Return when nothing more can come."""
        await self._over
