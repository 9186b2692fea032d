"""The end of a whole pool, as one node drives and sees it.

Invariants: any node drives it on, so it outlives the one that began it; nothing is deleted before every job has ended
or was taken away; what is deleted is everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, final

from flotta.errors import PoolShutdown, RedisError
from flotta.pool.jobs.store import JobStore
from flotta.redis import Link

__all__ = ["LEAVE_S", "PoolEnding"]

_POLL_S: Final = 0.05
_POLL_S_MAX: Final = 0.5
_POLL_FACTOR: Final = 1.25  # every node asks, and each time the server looks at every worker
LEAVE_S: Final = 5.0
"""How long whoever stops a pool waits for the other nodes to go, once every job has ended."""


@final
class PoolEnding:
    """The end of the pool of ``store``."""

    def __init__(self, store: JobStore, link: Link) -> None:
        self._store = store
        self._link = link

    async def see_jobs_end(self) -> None:
        """Drop what is queued until no job is left anywhere, however long Redis is away. Cancelling is harmless."""
        pause_s = _POLL_S
        while True:
            with contextlib.suppress(RedisError):
                step = await self._store.shutdown_step()
                if step is None or step.done:
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(_POLL_FACTOR * pause_s, _POLL_S_MAX)

    async def wait_for_the_others(self) -> None:
        """Until this node is the last one, or ``LEAVE_S`` have passed."""
        with contextlib.suppress(TimeoutError, RedisError):
            async with asyncio.timeout(LEAVE_S):
                while await self.nodes_there() > 1:  # noqa: ASYNC110 - other processes
                    await asyncio.sleep(_POLL_S)

    async def nodes_there(self) -> int:
        """How many nodes are present. Raises what ``Link.call`` raises."""
        now = await self._link.call("TIME")
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        return int(await self._link.call("ZCOUNT", self._store.keys.nodes, now_ms, "+inf"))

    async def clear_away(self, *, must: bool) -> None:
        """Delete what the pool has in Redis, if this node ``must`` or is the last. Nothing is raised for Redis."""
        with contextlib.suppress(RedisError):
            if must or not await self.nodes_there():
                await self._store.clear_away(secrets.token_hex(8))

    async def join(self, start: Callable[[], Awaitable[None]]) -> None:
        """``start`` a membership, once nothing is left of a pool that was shut down; it raises ``PoolShutdown`` if it
        sees another shutdown. Raises ``PoolShutdown`` while nodes are there that end it, and what ``start`` raises."""
        while True:
            if await self.is_shut_down():
                if await self.nodes_there():
                    raise PoolShutdown(self._store.keys.name)
                await self.make_way()  # whoever stopped the pool has died over it, or is about it
            with contextlib.suppress(PoolShutdown):  # it began in this instant
                return await start()

    async def make_way(self) -> None:
        """Return when nothing is left of a pool whose shutdown nobody drives any more: whoever joins begins with an
        empty one. Of many that come together one deletes it, the others wait. Raises what ``Link.call`` raises."""
        while await self.is_shut_down():
            await self._store.clear_away(secrets.token_hex(8))
            await asyncio.sleep(_POLL_S)

    async def is_shut_down(self) -> bool:
        """Whether the pool is, or was, being stopped. Raises what ``Link.call`` raises."""
        return bool(await self._link.call("HEXISTS", self._store.keys.meta, "shutdown"))
