"""A map on a server in cluster mode: every script declares its one key, and the names stay Pulse's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.rmap import Map
from flotta.rmap.recipes import RateLimit
from free_ports import free_port


@pytest.fixture
async def cluster() -> AsyncIterator[Redis]:
    """One node that holds all slots: it refuses a script that touches a key of another slot, as any cluster does."""
    # The port of the cluster's bus would else be 10,000 above the other: often past the last one.
    arguments = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    async with EmbeddedRedis(arguments=arguments) as server:
        client = await Redis.from_url(server.url).connect()
        await client.link.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        async with asyncio.timeout(10):
            while b"cluster_state:ok" not in _raw(await client.link.call("CLUSTER", "INFO")):
                await asyncio.sleep(0.01)
        yield client
        await client.aclose()


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


async def test_every_operation_works_on_a_cluster(cluster: Redis, unique: str) -> None:
    async with await Map.join(unique, cluster, ttl_s=60, sliding=True) as one, await Map.join(unique, cluster) as two:
        await one.set_and_wait("a", "1")
        assert not await one.set_if_absent("a", "2")
        assert await one.test_and_set("a", "1", "2")
        assert await one.incr("a") == 3
        assert await one.append_values("l", "x") == ["x"]
        assert await one.append_unique_values("l", "x", "y") == ["x", "y"]
        assert (await one.remove_values("l", "x")).values == ["y"]
        assert await one.delete("l") == '["y"]'
        assert await one.test_and_delete("a", "3")
        await one.reset()
        await one.destroy()
        await one.set("b", "1")
        assert await one.test_and_reset({"b": "1"})
        await one.set_and_wait("last", "1")
        await two.refresh()
        assert two.snapshot() == one.snapshot() == {"last": "1"}
        assert two.stats.gaps == 0


async def test_the_rate_limit_works_on_a_cluster(cluster: Redis, unique: str) -> None:
    async with await RateLimit.join(unique, cluster, limit=1, window_s=60) as limiter:
        assert await limiter.take("k")
        assert not await limiter.take("k")
