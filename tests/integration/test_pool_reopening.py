"""A pool that was shut down comes to life again: what was left of it goes, and nothing of what is new."""

from __future__ import annotations

import asyncio

import pytest

from flotta.errors import PoolShutdown
from flotta.pool import Node
from flotta.pool.jobs.store import JobStore
from flotta.redis import Redis
from pool_jobs_harness import FAST, Recorder, joined


async def _die_in_a_shutdown(redis: Redis, pool: str) -> JobStore:
    """What is there when whoever shut the pool down has died over it."""
    store = JobStore(redis, pool, options=FAST)
    await store.shutdown_begin("dead")
    for n in range(20):
        await redis.link.call("HSET", store.keys.job(f"old{n}"), "s", "q")
    return store


async def test_nodes_that_start_together_clear_away_once_and_lose_nothing_new(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    store = await _die_in_a_shutdown(redis, unique)
    lock = f"{store.keys.prefix}clearing"
    await redis.link.call("SET", lock, "another", "PX", 60_000)
    joining = asyncio.create_task(Node.join(unique, valkey_url, options=FAST))
    joined_early, _ = await asyncio.wait({joining}, timeout=0.5)
    assert not joined_early  # the other one may be in the middle of it
    # The other one has cleared away, joined, and accepted a job.
    await redis.link.call("DEL", store.keys.meta, lock, *(store.keys.job(f"old{n}") for n in range(20)))
    await redis.link.call("HSET", store.keys.job("new"), "s", "q")
    node = await joining
    assert await redis.link.call("EXISTS", store.keys.job("new")) == 1
    await node.close()


async def test_many_nodes_reopen_a_pool_together(valkey_url: str, unique: str, redis: Redis) -> None:
    store = await _die_in_a_shutdown(redis, unique)
    nodes = await asyncio.gather(*(Node.join(unique, valkey_url, options=FAST) for _ in range(8)))
    recorder = Recorder()
    await nodes[0].add_worker(recorder)
    await nodes[1].dispatch("k")
    assert await redis.link.call("EXISTS", store.keys.job("old0")) == 0
    assert await redis.link.call("ZCARD", store.keys.nodes) == 8  # nobody's presence was cleared away
    await asyncio.gather(*(node.close() for node in nodes))


async def test_who_was_too_slow_to_clear_away_deletes_nothing_more(unique: str, redis: Redis) -> None:
    store = await _die_in_a_shutdown(redis, unique)
    await redis.link.call("SET", f"{store.keys.prefix}clearing", "another", "PX", 60_000)
    assert await store.clear_away("slow") is False
    assert await redis.link.call("EXISTS", store.keys.job("old0"), store.keys.meta) == 2
    await redis.link.call("SET", f"{store.keys.prefix}clearing", "slow", "PX", 60_000)
    assert await store.clear_away("slow") is True
    assert await redis.link.call("EXISTS", store.keys.job("old0"), store.keys.meta, f"{store.keys.prefix}clearing") == 0


async def test_a_node_that_goes_last_leaves_a_pool_that_lives_again_alone(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    async with joined(unique, valkey_url) as node:
        await redis.link.call("HSET", node.keys.job("new"), "s", "q")
        await node._ending.clear_away(must=True)  # the pool was opened anew between the two
        assert await redis.link.call("EXISTS", node.keys.job("new")) == 1
        await redis.link.call("DEL", node.keys.job("new"))


async def test_a_shutdown_that_begins_in_the_instant_of_a_join_is_seen(
    valkey_url: str, unique: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Node(unique, redis, options=FAST)
    look, looks = late._ending.is_shut_down, 0

    async def look_just_before() -> bool:
        nonlocal looks
        was, looks = await look(), looks + 1
        if looks == 1:
            await redis.link.call("HSET", late.keys.meta, "shutdown", "n0", "shutdown_until", 1)
        elif looks == 2:  # it has seen the mark when it joined; n0 is still about its shutdown
            await redis.link.call("ZADD", late.keys.nodes, 1e15, "n0")
        return was

    monkeypatch.setattr(late._ending, "is_shut_down", look_just_before)
    with pytest.raises(PoolShutdown):
        await late.start()
    await late.close()
    assert await redis.link.call("HGET", late.keys.meta, "shutdown") == b"n0"
    assert await redis.link.call("ZRANGE", late.keys.nodes, 0, -1) == [b"n0"]
