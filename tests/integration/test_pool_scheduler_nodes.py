"""Tickers and schedules of real nodes, with a worker that runs what they plan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from flotta.errors import StateError
from flotta.pool.jobs.job import Job
from flotta.pool.node import Node
from flotta.pool.schedules.scheduler import Plan
from flotta.redis import Redis
from flotta.testing import FakeClock


class Running:
    """A handler that knows which of its jobs run."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.changed = asyncio.Event()

    async def start(self, job: Job[Any]) -> None:
        self.keys.add(job.key)
        self.changed.set()

    async def stop(self, job: Job[Any]) -> None:
        self.keys.discard(job.key)
        self.changed.set()

    async def until(self, keys: set[str]) -> None:
        async with asyncio.timeout(10):
            while self.keys != keys:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def join(redis: Redis, unique: str) -> AsyncIterator[Callable[..., Any]]:
    """Joins nodes of one pool."""
    async with AsyncExitStack() as stack:

        async def one(**options: Any) -> Node:
            node = await Node.join(unique, redis, worker_ttl_s=2.0, **options)
            stack.push_async_callback(node.close, 5)
            return node

        yield one


async def test_plan_becomes_running_jobs_and_their_end(join):
    clock, desired, running = FakeClock(), {"a": b"1", "b": b"2"}, Running()
    node = await join(clock=clock)
    await node.add_worker(running)
    node.schedule("fleet", lambda: Plan(desired=desired), every_s=60)
    await running.until({"a", "b"})
    assert await node.payload("b") == b"2"
    await clock.armed()
    del desired["a"]
    desired["c"] = b"3"
    await clock.advance(60)
    await running.until({"b", "c"})


async def test_schedule_goes_on_at_another_node(join):
    running, calls = Running(), []
    nodes = [await join(), await join()]
    await nodes[1].add_worker(running)

    def producer(name: str) -> Callable[[], Plan]:
        def produce() -> Plan:
            calls.append(name)
            return Plan(desired={f"{name}{len(calls)}": b""})

        return produce

    for node, name in zip(nodes, "ab", strict=True):
        node.schedule("fleet", producer(name), every_s=0.2)
    while not calls:
        await asyncio.sleep(0.01)
    await nodes[0].close()
    before = len(calls)
    async with asyncio.timeout(10):
        while len(calls) < before + 3:
            await asyncio.sleep(0.01)
    assert set(calls[before + 1 :]) == {"b"}


async def test_closing_a_node_ends_its_tickers(join):
    node = await join()
    ticker = await node.ticker("t", every_s=60)
    waiting = asyncio.ensure_future(anext(ticker, None))
    await asyncio.sleep(0)
    await node.close()
    assert await asyncio.wait_for(waiting, 10) is None


async def test_name_is_on_a_node_once(join):
    node = await join()
    ticker = await node.ticker("t", every_s=60)
    with pytest.raises(StateError, match="already"):
        await node.ticker("t", every_s=60)
    await ticker.close()
    await node.ticker("t", every_s=60)
    node.schedule("s", Plan, every_s=60)
    with pytest.raises(StateError, match="already"):
        node.schedule("s", Plan, every_s=60)


async def test_client_only_node_has_neither(join):
    node = await join(client_only=True)
    with pytest.raises(StateError, match="client-only"):
        await node.ticker("t", every_s=1)
    with pytest.raises(StateError, match="client-only"):
        node.schedule("s", Plan, every_s=1)
