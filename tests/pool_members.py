"""A node's membership and coordinator without jobs on it, with what its owner would hear, for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from flotta.pool.coordinator import Coordinator
from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import PoolKeys
from flotta.pool.members.heartbeat import BeatNews, Lease
from flotta.pool.members.lease import Loss
from flotta.pool.members.membership import Membership, WorkerInfo
from flotta.pool.options import PoolOptions
from flotta.redis import Redis

TTL_S = 1.5
OPTIONS = PoolOptions(worker_ttl_s=TTL_S, rebalance_debounce_s=0.05)
PATIENCE_S = 15.0


class Member:
    """A node with what its owner would hear."""

    def __init__(self, redis: Redis, pool: str, name: str, options: PoolOptions) -> None:
        self.redis = redis
        self.keys = PoolKeys(pool, namespace=redis.namespace)
        self.losses: asyncio.Queue[tuple[Lease, Loss]] = asyncio.Queue()
        self.news: asyncio.Queue[BeatNews] = asyncio.Queue()
        self.membership = Membership(
            redis,
            self.keys,
            name,
            options=options,
            on_lost=lambda lease, loss: self.losses.put_nowait((lease, loss)),
            on_news=self.news.put_nowait,
        )
        self.store = JobStore(redis, pool, options=options)
        self.coordinator = Coordinator(self.store, self.membership)

    async def work(self, *, worker: str | None = None) -> Lease:
        """Join a worker and ring the coordinator, as a node does."""
        since_ms = time.time_ns()  # no two have the same facts
        info = WorkerInfo(node=self.membership.node, name="w", host="h", pid=1, service="s", since_ms=since_ms)
        lease = await self.membership.join_worker(info, worker=worker)
        self.coordinator.poke()
        return lease

    async def lease_left_ms(self, lease: Lease) -> float:
        """What is left of a lease by the server; negative: it has ended."""
        seconds, micros = await self.redis.link.call("TIME")
        until_ms = await self.redis.link.call("ZSCORE", self.keys.leases, lease.worker)
        return float(until_ms) - (int(seconds) * 1000 + int(micros) / 1000)

    async def lost(self) -> tuple[Lease, Loss]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.losses.get()

    async def beaten(self) -> BeatNews:
        """The news of a beat that began after this call: the second one from now."""
        while not self.news.empty():
            self.news.get_nowait()
        async with asyncio.timeout(PATIENCE_S):
            await self.news.get()
            return await self.news.get()


@asynccontextmanager
async def member(
    url: str, pool: str, name: str, *, options: PoolOptions = OPTIONS, coordinates: bool = True
) -> AsyncIterator[Member]:
    async with AsyncExitStack() as stack:
        redis = await Redis.from_url(url).connect()
        stack.push_async_callback(redis.aclose)
        one = Member(redis, pool, name, options)
        stack.push_async_callback(one.membership.close)
        await one.membership.start()
        if coordinates:
            stack.push_async_callback(one.coordinator.stop)
            one.coordinator.start()
        yield one
