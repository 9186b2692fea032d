"""Pools of a fleet: they join, work from ready until the drain, hand on what they run, and serve threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from flotta.errors import ConfigError, JobExists, NotRunning, NotStarted, StateError
from flotta.fleet import Fleet
from flotta.pool import Job, Plan, PoolOptions, WorkerPool
from flotta.settings import Settings

TTL_S = 2.0


@pytest.fixture
def settings(valkey_url: str, unique: str) -> Settings:
    return Settings(redis_url=valkey_url, namespace=f"{unique}:", drain_s=5, stop_s=8, start_timeout_s=10)


class Service:
    """One instance of a service with a pool, as its code declares it."""

    def __init__(self, settings: Settings, name: str = "api.1", **options: Any) -> None:
        self.fleet = Fleet(replace(settings, instance=name))
        self.name = name
        self.pool = self.fleet.pool("orders", worker_ttl_s=TTL_S, **options)
        self.running: set[str] = set()
        self.ran: list[int] = []
        self.changed = asyncio.Event()

        @self.pool.job(key="vessel:{mmsi}")
        async def watch(job: Job[int], mmsi: int) -> None:
            self.running.add(job.key)
            self.changed.set()
            try:
                async for note in job.notifications():
                    assert note is not None
                    self.ran.append(int(note.payload))
                    self.changed.set()
            finally:
                self.running.discard(job.key)
                self.changed.set()

        @self.pool.task()
        async def double(n: int) -> int:
            return 2 * n

        self.watch, self.double = watch, double

    async def until(self, **wanted: Any) -> None:
        async with asyncio.timeout(10):
            while any(getattr(self, name) != value for name, value in wanted.items()):
                self.changed.clear()
                await self.changed.wait()


async def test_pool_works_while_the_fleet_runs(settings):
    service = Service(settings)
    with pytest.raises(NotStarted):
        await service.watch.dispatch(1)
    async with service.fleet:
        assert service.fleet.pools == (service.pool,)
        handle = await service.watch.dispatch(1)
        assert handle.worker.startswith("api.1."), "workers are named after their instance"
        await handle.notify(b"7")
        await service.until(ran=[7])
        assert await (await service.double.enqueue(21)).result(timeout_s=5) == 42
        with pytest.raises(JobExists):
            await service.watch.dispatch(1)
        [worker] = await service.pool.workers()
        assert worker.info.service == service.fleet.instance.service
    assert service.running == set()


async def test_start_hooks_dispatch_before_the_pool_works_and_stop_hooks_after(settings):
    first, second = Service(settings), Service(settings, "api.2")
    seen: list[str] = []

    @second.fleet.on_start
    async def begin() -> None:
        seen.append(f"{len(await second.pool.workers())} works")
        await second.watch.dispatch(1)

    @second.fleet.on_stop
    async def end() -> None:
        seen.append(f"runs here: {len(second.running)}")
        await second.watch.dispatch(2)

    async with first.fleet:
        async with second.fleet:
            assert seen == ["1 works"]
        assert seen == ["1 works", "runs here: 0"]
        await first.until(running={"vessel:1", "vessel:2"})


async def test_drain_hands_the_jobs_to_another_instance(settings):
    leaving, staying = Service(settings, "api.1"), Service(settings, "api.2")
    keys = {f"vessel:{mmsi}" for mmsi in range(20)}
    async with AsyncExitStack() as stack:
        async with leaving.fleet:
            for mmsi in range(20):
                await leaving.watch.dispatch(mmsi)
            await leaving.until(running=keys)
            await stack.enter_async_context(staying.fleet)
            await leaving.fleet.drain()
            assert leaving.running == set()
            await staying.until(running=keys)
            await leaving.watch.dispatch(20)
        await staying.until(running=keys | {"vessel:20"})
        [worker] = await staying.pool.workers()
        assert worker.id.startswith("api.2.")


async def test_client_only_pool_dispatches_and_never_works(settings):
    web, worker = Service(settings, "web.1", client_only=True), Service(settings, "worker.1")
    async with worker.fleet, web.fleet:
        await web.watch.dispatch(1)
        await worker.until(running={"vessel:1"})
        assert web.running == set()
        assert len(await web.pool.workers()) == 1


async def test_schedules_end_with_the_drain(settings):
    service = Service(settings)
    planned = asyncio.Event()

    @service.pool.schedule(every_s=60)
    def plan() -> Plan:
        planned.set()
        return Plan(desired=[service.watch.call(1), service.watch.call(2)])

    async with service.fleet:
        await asyncio.wait_for(planned.wait(), 5)
        await service.until(running={"vessel:1", "vessel:2"})
    assert service.running == set()


async def test_task_that_comes_round_runs(settings):
    service = Service(settings)
    ran = asyncio.Event()

    @service.pool.every(0.2)
    @service.pool.task()
    async def beat() -> None:
        ran.set()

    async with service.fleet:
        await asyncio.wait_for(ran.wait(), 5)


async def test_threads_dispatch_enqueue_notify_and_stop(settings):
    """As a WSGI application under `flotta run` does: the fleet runs in the worker's loop, requests in threads."""
    service = Service(settings)

    def request() -> int:
        sync = service.fleet.sync
        handle = sync.of(service.watch).dispatch(1)
        handle.notify(b"5")
        sync.pool("orders", worker_ttl_s=TTL_S).notify("vessel:1", b"6")
        result = sync.of(service.double).options(priority=9).enqueue(4).result(timeout_s=5)
        sync.pool("orders", worker_ttl_s=TTL_S).stop("vessel:1")
        with pytest.raises(NotRunning):
            handle.stop()
        return int(result)

    async with service.fleet:
        with ThreadPoolExecutor(1) as threads:
            assert await asyncio.wrap_future(threads.submit(request)) == 8
    assert service.ran == [5, 6]


async def test_same_name_is_the_same_pool_with_the_same_options(settings):
    fleet = Fleet(settings)
    pool = fleet.pool("orders", options=PoolOptions(worker_ttl_s=TTL_S))
    assert isinstance(pool, WorkerPool)
    assert fleet.pool("orders", worker_ttl_s=TTL_S) is pool
    assert fleet.pool("orders") is pool
    with pytest.raises(ConfigError, match=r"is \{'worker_ttl_s': 9\}; allowed: .* \{'worker_ttl_s': 2.0\}$"):
        fleet.pool("orders", worker_ttl_s=9)
    async with fleet:
        assert fleet.pool("orders", worker_ttl_s=TTL_S) is pool
        with pytest.raises(StateError, match="pool 'late'"):
            fleet.pool("late")
    with pytest.raises(StateError, match="new Fleet"):
        await fleet.start()
