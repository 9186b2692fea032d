"""Harbor's fence: it returns when every instance has taken over what was published before, and not earlier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from flotta.redis import Redis
from flotta.rmap import TEXT, Map
from flotta.testing import FaultProxy
from harbor.fence import Fence
from harbor.problem import Problem

FAR_S = 0.05


@asynccontextmanager
async def instance(url: str, namespace: str) -> AsyncIterator[tuple[Fence, Map[str], Redis]]:
    """What one instance has: a connection of its own, a map, a fence."""
    redis = Redis.from_url(url, namespace=namespace)
    await redis.connect()
    values: Map[str] = await Map.join("values", redis, codec=TEXT)
    fence = Fence()
    await fence.start(redis)
    try:
        yield fence, values, redis
    finally:
        await fence.aclose()
        await values.aclose()
        await redis.aclose()


async def test_after_the_fence_a_distant_instance_reads_the_new_value(valkey_url: str, unique: str) -> None:
    async with FaultProxy(valkey_url) as proxy, AsyncExitStack() as stack:
        fence, near, _ = await stack.enter_async_context(instance(valkey_url, f"{unique}:"))
        _, far, _ = await stack.enter_async_context(instance(proxy.url, f"{unique}:"))
        proxy.latency_s = FAR_S
        for number in range(5):
            await near.set("key", str(number))
            await fence.wait()
            assert far.get("key") == str(number)


async def test_many_may_wait_at_once(valkey_url: str, unique: str) -> None:
    async with AsyncExitStack() as stack:
        instances = [await stack.enter_async_context(instance(valkey_url, f"{unique}:")) for _ in range(3)]
        await asyncio.gather(*(fence.wait() for fence, _, _ in instances for _ in range(20)))


async def test_an_instance_that_hangs_is_told_instead_of_being_passed_over(valkey_url: str, unique: str) -> None:
    class Hanging:
        def on_message(self, channel: bytes, payload: bytes) -> None: ...
        def on_lost(self) -> None: ...
        def on_restored(self) -> None: ...

    async with instance(valkey_url, f"{unique}:") as (fence, _, redis):
        subscription = await redis.hub.subscribe(redis.key("harbor:fence"), Hanging())
        other = Redis.from_url(valkey_url, namespace=f"{unique}:")
        await other.connect()
        hanging = await other.hub.subscribe(other.key("harbor:fence"), Hanging())
        with pytest.raises(Problem) as caught:
            await fence.wait()
        assert (caught.value.status, caught.value.code) == (503, "unconfirmed")
        await hanging.aclose()
        await other.aclose()
        await subscription.aclose()
        await fence.wait()
