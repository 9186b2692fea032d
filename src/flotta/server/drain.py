"""How a worker's connections end.

The listener is closed first. Answers that begin from then on carry ``Connection: close``. An idle keep-alive connection
is not closed at once: a request may be on its way, so it gets `IDLE_GRACE_S` to bring one more, which is answered and
closed. Realtime clients are drained meanwhile by their own server; other WebSockets are closed with 1012 (service
restart) when that is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, final

import uvicorn

__all__ = ["Drain"]

IDLE_GRACE_S: Final = 1.0
POLL_S: Final = 0.02
CANCELLED_WAIT_S: Final = 1.0


@final
class Drain:
    """Ends the connections of ``server``."""

    def __init__(self, server: uvicorn.Server, http_class: type[asyncio.Protocol]) -> None:
        self._server = server
        self._state = server.server_state
        self._http_class = http_class

    async def close_listeners(self) -> None:
        """From here on nobody can connect. The loop closes a socket in its next turn, so this waits for that."""
        for listener in self._server.servers:
            listener.close()
        await asyncio.sleep(POLL_S)

    async def run(
        self, timeout_s: float, realtime: Sequence[Callable[[float], Awaitable[None]]], force: asyncio.Event
    ) -> int:
        """After `close_listeners`. Returns when every connection and request has ended, ``timeout_s`` is over or
        ``force`` is set: how many requests had to be cancelled. Cancelling it leaves them as they are."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        drains: list[asyncio.Future[None]] = [asyncio.ensure_future(drain(timeout_s)) for drain in realtime]
        idle_until = min(loop.time() + IDLE_GRACE_S, deadline)
        while loop.time() < deadline and not force.is_set():
            drained = all(drain.done() for drain in drains)
            self._release(idle=loop.time() >= idle_until, websockets=drained)
            if drained and not self._state.connections and not self._state.tasks:
                break
            await asyncio.sleep(POLL_S)
        return await self._force(drains)

    def _release(self, *, idle: bool, websockets: bool) -> None:
        for connection in list(self._state.connections):
            if isinstance(connection, self._http_class):
                if idle:
                    connection.shutdown()
            elif websockets:
                connection.shutdown()

    async def _force(self, drains: list[asyncio.Future[None]]) -> int:
        """Cancels what is left and closes its connections."""
        left: set[asyncio.Future[Any]] = {task for task in self._state.tasks if not task.done()}
        left |= {drain for drain in drains if not drain.done()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CANCELLED_WAIT_S)
        for connection in list(self._state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        return len(left)
