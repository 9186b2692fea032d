"""The task half of a pool without the rest: a node that enqueues and waits, and workers whose leases are simply there.

What a real worker has besides (heartbeat, inbox connection, jobs) is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any, Self

from flotta.pool.keys import PoolKeys
from flotta.pool.tasks import Results, TaskClient, TaskRegistry, TaskRunner, TaskStore
from flotta.redis import Redis

__all__ = ["TaskPool", "reading"]


@contextlib.asynccontextmanager
async def reading(redis: Redis, key: str, take: Any) -> AsyncIterator[None]:
    """Hand every entry of a stream (made here) to ``take(fields)``."""
    await redis.link.call("XGROUP", "CREATE", key, "g", "0", "MKSTREAM")
    await redis.link.call("XGROUP", "DESTROY", key, "g")
    link = redis.dedicated("inbox")
    ready = asyncio.Event()

    async def read() -> None:
        cursor = "0-0"
        while True:
            ready.set()
            reply = await link.call("XREAD", "COUNT", 1000, "BLOCK", 5000, "STREAMS", key, cursor, timeout_s=10)
            for entry_id, flat in (reply or {}).get(key.encode(), ()):
                cursor = entry_id
                take(dict(zip(flat[::2], flat[1::2], strict=True)))

    task = asyncio.create_task(read())
    await ready.wait()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        await link.aclose(drain_s=0)
        await redis.link.call("DEL", key)


class TaskPool:
    """One node and its workers on a pool of this test's own."""

    def __init__(
        self, redis: Redis, name: str, *, waiting_max: int = 1_000_000, payload_bytes_max: int = 1 << 20
    ) -> None:
        self.redis = redis
        self.keys = PoolKeys(name)
        self.registry = TaskRegistry(name)
        self.task = self.registry.task
        self.store = TaskStore(redis.link, self.keys, waiting_max=waiting_max, dead_max=1000)
        self.node = "n" + secrets.token_hex(4)
        self.client = TaskClient(self.store, Results(self.store, self.node), payload_bytes_max=payload_bytes_max)
        self.runners: list[TaskRunner] = []

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        await self._stack.enter_async_context(reading(self.redis, self.keys.replies(self.node), self._deliver))
        self.registry.bind(self.client)
        return self

    async def __aexit__(self, *_: object) -> None:
        for runner in self.runners:
            runner.fence()
        await self.client.aclose()
        await self._stack.aclose()

    def _deliver(self, fields: dict[bytes, bytes]) -> None:
        self.client.results.deliver(fields[b"i"].decode(), fields[b"s"].decode(), fields.get(b"p"))

    async def lease(self, worker: str, ms: int = 600_000) -> None:
        """A lease that ends in ``ms`` (negative: that has ended)."""
        seconds, micros = await self.redis.link.call("TIME")
        await self.redis.link.call("ZADD", self.keys.leases, int(seconds) * 1000 + int(micros) // 1000 + ms, worker)

    async def work(self, *, registry: TaskRegistry | None = None, **options: Any) -> TaskRunner:
        """One more worker."""
        worker = "w" + secrets.token_hex(4)
        await self.lease(worker)
        runner = TaskRunner(self.store, registry or self.registry, worker, **options)

        def take(fields: dict[bytes, bytes]) -> None:
            if fields[b"t"] == b"wake":
                runner.wake()
            elif fields[b"t"] == b"cancel":
                runner.cancel(fields[b"k"].decode(), int(fields[b"g"]))

        await self._stack.enter_async_context(reading(self.redis, self.keys.inbox(worker), take))
        runner.start()
        self.runners.append(runner)
        return runner

    async def waiting(self) -> int:
        """The counter."""
        return (await self.store.totals()).get("waiting", 0)
