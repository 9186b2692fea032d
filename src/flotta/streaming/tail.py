"""One blocking connection per process that wakes every reader when its streams have something new.

Owns the one XREAD BLOCK that may be under way. It carries at most one event per stream and serves as a signal: a reader
fetches for itself, over the link that everything shares. So readers with different cursors, counts and filters need one
connection together, and a reader that replays a million events does not hold up one that waits at the end.

Invariants: a waiter is woken whenever its streams may hold an entry above its cursors, and at the latest when a
blocking read has ended (a spurious wake costs one empty XREAD); nobody is woken by an event at or below its cursor
while the connection lasts. A waiter whose streams the blocked command does not cover ends that command with CLIENT
UNBLOCK.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final
from weakref import WeakKeyDictionary

from flotta.errors import FlottaError, RedisError
from flotta.redis import Link, Redis
from flotta.streaming.event import parse_id

__all__ = ["Tail", "tail_of", "unblock"]

_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0
_UNBLOCK_TRIES: Final = 40

Cursors = Mapping[str, tuple[int, int]]


@final
@dataclass(slots=True, eq=False)
class _Waiter:
    cursors: Cursors
    block_s: float
    woken: asyncio.Future[None]


async def unblock(commands: Link, client_id: asyncio.Future[Any], blocked: asyncio.Future[Any]) -> None:
    """End the blocking command whose future is ``blocked``, sent on the connection with ``client_id``.

    It may not have reached the server yet: repeated, with pauses of a few ms, until it has ended. Bounded; never raises
    for Redis.
    """
    with contextlib.suppress(FlottaError):
        number = await asyncio.shield(client_id)
        for attempt in range(_UNBLOCK_TRIES):
            if blocked.done():
                return
            await commands.call("CLIENT", "UNBLOCK", number)
            if blocked.done():
                return
            await asyncio.wait({blocked}, timeout=0.001 * (attempt + 1))


@final
class Tail:
    """Shared by all readers on one ``Redis``; opened by the first, closed after the last."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._users = 0
        self._waiters: list[_Waiter] = []
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._watched: dict[str, tuple[int, int]] = {}
        self._blocked: asyncio.Future[Any] | None = None
        self._client_id: asyncio.Future[Any] | None = None
        self._interrupting: asyncio.Task[None] | None = None

    def acquire(self) -> None:
        """One more reader uses it; that reader then owes one ``release``."""
        self._users += 1
        if self._task is None or self._task.done():
            self._link = self._redis.dedicated("readers")
            self._task = asyncio.get_running_loop().create_task(self._run(self._link), name="stream tail")

    async def release(self) -> None:
        """One reader less; the last one closes the connection."""
        self._users -= 1
        if self._users > 0:
            return
        task, self._task = self._task, None
        link, self._link = self._link, None
        for ending in (task, self._interrupting):
            if ending is not None:
                ending.cancel()
                await asyncio.wait({ending})
        if link is not None:
            await link.aclose(drain_s=0)

    async def wait(self, cursors: Cursors, block_s: float) -> None:
        """Return when a stream may have an entry above its cursor, or after about ``block_s``.

        Keys to ids in ``cursors``. Cancelling is harmless. Never raises for a lost connection: it returns, and the
        reader's own XREAD meets the fault.
        """
        if not cursors:
            await asyncio.sleep(block_s)
            return
        waiter = _Waiter(cursors, block_s, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._wanted.set()
        if self._blocked is not None and not self._covers(cursors):
            self._interrupt()
        try:
            await waiter.woken
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def _covers(self, cursors: Cursors) -> bool:
        watched = self._watched
        return all(key in watched and watched[key] <= cursor for key, cursor in cursors.items())

    def _interrupt(self) -> None:
        if self._interrupting is None and self._blocked is not None and self._client_id is not None:
            blocked, client_id = self._blocked, self._client_id
            ending = unblock(self._redis.link, client_id, blocked)
            self._interrupting = asyncio.get_running_loop().create_task(ending, name="stream tail unblock")
            self._interrupting.add_done_callback(self._interrupted)

    def _interrupted(self, _: asyncio.Task[None]) -> None:
        self._interrupting = None

    async def _run(self, link: Link) -> None:
        try:
            await self._serve(link)
        except Exception as error:
            for waiter in self._waiters:
                if not waiter.woken.done():
                    waiter.woken.set_exception(error)
            raise

    async def _serve(self, link: Link) -> None:
        pause_s = _RETRY_MIN_S
        while True:
            if not self._waiters:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                reply = await self._block(link)
                pause_s = _RETRY_MIN_S
            except RedisError:
                self.wake_all()
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause_s = min(2 * pause_s, _RETRY_MAX_S)
            else:
                self._wake(reply)

    async def _block(self, link: Link) -> Any:
        watched: dict[str, tuple[int, int]] = {}
        for waiter in self._waiters:
            for key, cursor in waiter.cursors.items():
                if key not in watched or cursor < watched[key]:
                    watched[key] = cursor
        block_s = min(waiter.block_s for waiter in self._waiters)
        ids = [f"{ms}-{sequence}" for ms, sequence in watched.values()]
        timeout_s = block_s + link.options.command_timeout_s
        self._watched = watched
        self._client_id = asyncio.ensure_future(link.call("CLIENT", "ID"))
        self._client_id.add_done_callback(_retrieve)
        self._blocked = asyncio.ensure_future(
            link.call(
                "XREAD",
                "COUNT",
                1,
                "BLOCK",
                max(1, int(block_s * 1000)),
                "STREAMS",
                *watched,
                *ids,
                timeout_s=timeout_s,
            )
        )
        try:
            return await self._blocked
        finally:
            self._blocked = None
            self._watched = {}

    def _wake(self, reply: Any) -> None:
        if not reply:
            self.wake_all()
            return
        newest = {key.decode(): parse_id(entries[-1][0]) for key, entries in reply.items() if entries}
        for waiter in self._waiters:
            if any(newest.get(key, cursor) > cursor for key, cursor in waiter.cursors.items()):
                _finish(waiter)

    def wake_all(self) -> None:
        """Let every waiter look at its streams now."""
        for waiter in self._waiters:
            _finish(waiter)


def _finish(waiter: _Waiter) -> None:
    if not waiter.woken.done():
        waiter.woken.set_result(None)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


_tails: WeakKeyDictionary[Redis, Tail] = WeakKeyDictionary()


def tail_of(redis: Redis) -> Tail:
    """The one tail of this ``redis``."""
    try:
        return _tails[redis]
    except KeyError:
        tail = _tails[redis] = Tail(redis)
        return tail
