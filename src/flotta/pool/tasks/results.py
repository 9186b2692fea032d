"""Waiting for tasks that run elsewhere.

Owns who waits for what. A task that is waited for tells this node when it ends: who reads the node's replies calls
``deliver``. Invariants: a doorbell that was lost costs at most ``RECHECK_S``; the questions of one turn of the loop
leave together; a task remembers a node once, however many wait there.
"""

from __future__ import annotations

import asyncio
from typing import Final, final

from flotta.errors import Closed
from flotta.pool.tasks.records import TaskState
from flotta.pool.tasks.store import TaskStore
from flotta.pool.turns import Turns

__all__ = ["RECHECK_S", "Ended", "Results"]

RECHECK_S: Final = 5.0
_ASKED_MAX: Final = 500
Ended = tuple[TaskState | None, bytes]
"""State (None: unknown) and value."""


@final
class Results:
    """What the node ``node`` waits for. ``aclose`` ends every wait."""

    def __init__(self, store: TaskStore, node: str) -> None:
        self._node = node
        self._store = store
        self._waiters: dict[str, set[asyncio.Future[Ended]]] = {}
        self._asking: Turns[str, Ended] = Turns(self._ask, name=f"pool {store.pool} results", items_max=_ASKED_MAX)
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def ended(self, id: str) -> Ended:  # noqa: A002 - it is its id
        """State and value of a task once it has ended; at once if nothing is known of it.

        Waits as long as it takes. Raises ``Closed``, and what ``Link.call`` raises for the first question. Cancelling
        is harmless.
        """
        if self._closed:
            raise Closed(f"pool {self._store.pool!r}")
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(id, set())  # before asking: the doorbell may be quicker than the answer
        waiters.add(future)
        try:
            state, value = await self._asking.add(id)
            if state is None or state.ended:
                return state, value
            self._recheck_later()
            return await future
        finally:
            waiters.discard(future)
            if not waiters and self._waiters.get(id) is waiters:
                del self._waiters[id]

    def deliver(self, id: str, state: str, value: bytes | None) -> None:  # noqa: A002
        """What an entry ``result`` of this node's replies says. ``value`` None: it did not fit."""
        if id not in self._waiters:
            return
        if value is None:
            self._ask_again(id)
        else:
            self._resolve(id, (TaskState(state), value))

    def recheck(self) -> None:
        """Ask for everything that is waited for, because doorbells may have been lost."""
        for id in tuple(self._waiters):  # noqa: A001
            self._ask_again(id)

    async def aclose(self) -> None:
        """End every wait: it raises ``Closed``. Again: harmless."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for waiters in self._waiters.values():
            for future in waiters:
                if not future.done():
                    future.set_exception(Closed(f"pool {self._store.pool!r}"))
                    future.exception()  # a caller who has gone must not make the loop complain
        await self._asking.settle()

    def _ask_again(self, id: str) -> None:  # noqa: A002
        self._asking.add(id).add_done_callback(lambda done: self._take(id, done))

    def _take(self, id: str, done: asyncio.Future[Ended]) -> None:  # noqa: A002
        if done.cancelled() or done.exception() is not None:
            return  # the next recheck asks again
        state, value = done.result()
        if state is None or state.ended:
            self._resolve(id, (state, value))

    def _resolve(self, id: str, ended: Ended) -> None:  # noqa: A002
        for future in self._waiters.get(id, ()):
            if not future.done():
                future.set_result(ended)

    def _recheck_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECHECK_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiters:
            self.recheck()
            self._recheck_later()

    async def _ask(self, ids: list[str]) -> list[Ended]:
        return await self._store.await_ended(self._node, ids)
