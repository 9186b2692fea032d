"""What a scrape says of the pools of a fleet, held to what they did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flotta.errors import JobExists, StartFailed
from flotta.fleet import Fleet
from flotta.pool import Backoff, Job
from flotta.redis.embedded import EmbeddedRedis
from flotta.server.fleet_metrics import FleetCollector
from flotta.settings import Settings

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def fleet(valkey_url: str, unique: str) -> Fleet:
    return Fleet(Settings(redis_url=valkey_url, namespace=f"{unique}:", drain_s=3, stop_s=5, start_timeout_s=10))


async def scrape() -> Samples:
    collector = FleetCollector()
    await collector.prepare()
    registry = CollectorRegistry()
    registry.register(collector)  # type: ignore[arg-type]
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"flotta_pool_{name}", tuple(sorted({"pool": "orders", **labels}.items()))]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_figures_are_what_the_pool_did(fleet):
    pool = fleet.pool("orders", worker_ttl_s=2.0)
    blocked = asyncio.Event()

    @pool.job(key="k{n}")
    async def watch(job: Job[None], n: int) -> None:
        await asyncio.Event().wait()

    @pool.job(key="bad", ready="explicit")
    async def bad(job: Job[None]) -> None:
        raise ValueError("never ready")

    @pool.task(queue="slow")
    async def wait(n: int) -> None:
        await blocked.wait()

    @pool.task()
    async def fail() -> None:
        raise ZeroDivisionError

    async with fleet:
        for n in range(5):
            await watch.dispatch(n)
        await pool.stop("k0")
        with pytest.raises(JobExists):
            await watch.dispatch(1)
        for _ in range(4):
            with pytest.raises(StartFailed):
                await bad.dispatch()
        handles = [await wait.enqueue(n) for n in range(3)]
        await wait.options(delay_s=60).enqueue(9)
        failed = await fail.enqueue()
        await until(lambda: pool.worker is not None and pool.worker.state)
        while (await failed.status()).state.value != "failed" or (await handles[2].status()).state.value != "running":
            await asyncio.sleep(0.01)
        found = await scrape()
        blocked.set()

    assert of(found, "running") == 4
    assert of(found, "workers") == 1
    assert of(found, "dispatched_total") == 5
    assert of(found, "refused_total") == 5
    assert of(found, "failed_total") == 4
    assert of(found, "stopped_total") == 1
    assert of(found, "failing_key", key="bad") == 4
    assert ("flotta_pool_failing_key", (("key", "k1"), ("pool", "orders"))) not in found

    assert of(found, "dispatch_seconds_count") == 5
    assert of(found, "dispatch_seconds_bucket", le="+Inf") == 5
    assert of(found, "dispatch_seconds_bucket", le="60.0") == 5
    assert 0 < of(found, "dispatch_seconds_sum") < 5
    buckets = [value for (name, _), value in found.items() if name == "flotta_pool_dispatch_seconds_bucket"]
    assert buckets == sorted(buckets)

    assert of(found, "fleet_workers") == 1
    assert of(found, "fleet_jobs") == 4
    assert of(found, "fleet_queued") == 0
    assert of(found, "fleet_tasks_running") == 3
    assert of(found, "fleet_tasks_waiting") == 1
    assert of(found, "fleet_tasks_due") == 1
    assert of(found, "fleet_tasks_ready", queue="slow") == 0
    assert of(found, "fleet_tasks_total", outcome="enqueued") == 5
    assert of(found, "fleet_tasks_total", outcome="failed") == 1
    assert of(found, "fleet_dead") == 1


async def test_crashes_and_dead_letters_are_counted(fleet):
    pool = fleet.pool("orders", worker_ttl_s=2.0)

    @pool.job(key="poison", crashes_max=2, backoff=Backoff(first_s=0.01))
    async def poison(job: Job[None]) -> None:
        raise ValueError

    async with fleet:
        await poison.dispatch()
        await until(lambda: pool.stats.dead)
        found = await scrape()
    assert of(found, "crashed_total") == 3
    assert of(found, "started_total") == 3
    assert of(found, "dead_total") == 1
    assert of(found, "failing_key", key="poison") == 3
    assert of(found, "fleet_dead") == 1
    assert of(found, "fleet_jobs") == 0


async def test_without_redis_a_scrape_says_what_the_process_knows(own_valkey: EmbeddedRedis, fleet, unique):
    lone = Fleet(replace(fleet._given_settings, redis_url=own_valkey.url))
    pool = lone.pool("orders", worker_ttl_s=2.0, client_only=True)
    async with lone:
        own_valkey.pause()
        try:
            found = await asyncio.wait_for(scrape(), 5)
        finally:
            own_valkey.resume()
        assert pool.started
    assert of(found, "dispatched_total") == 0
    assert not any(name.startswith("flotta_pool_fleet_") for name, _ in found)


async def test_pool_that_has_not_started_is_left_out(fleet):
    fleet.pool("orders", worker_ttl_s=2.0)
    assert not any(labels for name, labels in await scrape() if name.startswith("flotta_pool_"))
