"""Schedulers on a real server: what a plan wants is there after the tick, and stays so whatever dies in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog

from flotta.errors import ConfigError, InvalidName
from flotta.pool.jobs.states import JobState
from flotta.pool.jobs.store import JobStore
from flotta.pool.options import PoolOptions
from flotta.pool.schedules.scheduler import Plan, PlannedJob, Schedule, ScheduleStop
from flotta.redis import Redis
from flotta.testing import FakeClock

WORKER = "w"
Node = Callable[..., "asyncio.Task[None]"]


@pytest.fixture
async def store(redis: Redis, unique: str) -> JobStore:
    """A pool with one worker that owns everything and does nothing by itself."""
    store = JobStore(redis, unique, options=PoolOptions(worker_ttl_s=1.0))
    await redis.zadd(store.keys.leases, {WORKER: (time.time() + 3600) * 1000})
    await redis.hset(store.keys.slots, mapping=dict.fromkeys(range(4096), WORKER))
    return store


def pair(item: tuple[str, bytes]) -> PlannedJob:
    key, payload = item
    return PlannedJob(key, "", payload, 5)


@pytest.fixture
async def node(redis: Redis, store: JobStore) -> AsyncIterator[Node]:
    """Starts what one more node of the pool runs."""
    running: list[asyncio.Task[None]] = []

    def start(producer: Any, *, clock: FakeClock, every_s: float = 60, logger: Any = None) -> asyncio.Task[None]:
        schedule = Schedule(
            store, redis.link, "fleet", producer, every_s=every_s, resolve=pair, clock=clock, logger=logger
        )
        running.append(asyncio.create_task(schedule.run()))
        return running[-1]

    yield start
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def jobs(store: JobStore) -> set[str]:
    return {job.key async for job in store.jobs(WORKER) if job.state is not JobState.STOPPING}


def wanting(*keys: str, calls: list[int] | None = None) -> Callable[[], Plan]:
    def produce() -> Plan:
        if calls is not None:
            calls.append(1)
        return Plan(desired=dict.fromkeys(keys, b"p"))

    return produce


async def test_desired_jobs_are_started_and_what_is_not_desired_any_more_is_stopped(node, store):
    clock, desired = FakeClock(), ["a", "b"]
    node(lambda: Plan(desired=dict.fromkeys(desired, b"p")), clock=clock)
    await clock.armed()
    assert await jobs(store) == {"a", "b"}
    assert await store.payload("a") == b"p"
    before = await store.read("b")
    desired[:] = ["b", "c"]
    await clock.advance(60)
    assert await jobs(store) == {"b", "c"}
    assert await store.read("b") == before, "what is wanted still is left alone"
    desired.clear()
    await clock.advance(60)
    assert await jobs(store) == set()


async def test_plan_is_made_by_one_node_for_each_tick(node, store):
    clock, calls = FakeClock(), []
    for _ in range(6):
        node(wanting("a", calls=calls), clock=clock)
    await clock.armed(6)
    assert len(calls) == 1
    await clock.advance(180)
    assert len(calls) == 4


async def test_job_that_is_there_already_is_success_and_stays_its_starters(node, store):
    clock, desired = FakeClock(), ["mine", "a"]
    await store.dispatch("mine", "", b"x", did="1", crashes_max=5)
    node(lambda: Plan(desired=dict.fromkeys(desired, b"p")), clock=clock)
    await clock.armed()
    assert await jobs(store) == {"mine", "a"}
    assert await store.payload("mine") == b"x"
    desired.clear()
    await clock.advance(60)
    assert await jobs(store) == {"mine"}


async def test_job_that_has_ended_is_started_again_at_the_next_tick(node, store):
    clock = FakeClock()
    node(wanting("a", "b"), clock=clock)
    await clock.armed()
    info = await store.read("a")
    assert info is not None
    await store.claim(WORKER, "a", info.fence)
    await store.finished(WORKER, "a", info.fence)
    assert await jobs(store) == {"b"}
    await clock.advance(60)
    assert await jobs(store) == {"a", "b"}


async def test_another_node_goes_on_from_what_was_started(node, store):
    clock = FakeClock()
    first = node(wanting("a", "b", "c"), clock=clock)
    await clock.armed()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    node(wanting("c"), clock=clock)
    await clock.armed()
    assert await jobs(store) == {"a", "b", "c"}, "it keeps the beat"
    await clock.advance(60)
    assert await jobs(store) == {"c"}


async def test_start_and_stop_leave_others_alone_unless_told(node, store):
    clock = FakeClock()
    plans = [
        Plan(start={"a": b"", "b": b"", "c": b""}),
        Plan(start={"d": b""}, stop=["a", "never there"]),
        Plan(start={"d": b""}, stop_others=True),
    ]
    seen = []
    node(lambda: plans.pop(0), clock=clock)
    await clock.armed()
    for _ in range(3):
        seen.append(await jobs(store))
        await clock.advance(60)
    assert seen == [{"a", "b", "c"}, {"b", "c", "d"}, {"d"}]


async def test_stop_of_a_key_that_somebody_else_started_is_obeyed(node, store):
    clock = FakeClock()
    await store.dispatch("theirs", "", b"", did="1", crashes_max=5)
    node(lambda: Plan(stop=["theirs"]), clock=clock)
    await clock.armed()
    assert await jobs(store) == set()


async def test_producer_that_fails_is_asked_again_at_the_next_tick(node, store):
    clock, calls = FakeClock(), []

    async def produce() -> Plan:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("no plan today")
        if len(calls) == 2:
            return "no plan"  # type: ignore[return-value]
        return Plan(desired={"a": b""})

    with structlog.testing.capture_logs() as logs:
        node(produce, clock=clock, logger=structlog.get_logger())
        await clock.armed()
        await clock.advance(60)
    assert await jobs(store) == set()
    assert [type(log["exc_info"]) for log in logs if log["log_level"] == "error"] == [ZeroDivisionError, TypeError]
    await clock.advance(60)
    assert await jobs(store) == {"a"}


async def test_wrong_item_refuses_the_whole_plan(node, store):
    clock = FakeClock()
    node(lambda: Plan(desired={"a": b"", "": b""}), clock=clock)
    await clock.armed()
    assert await jobs(store) == set()


async def test_what_no_longer_fits_the_queue_waits_for_the_next_tick(node, redis, unique, store):
    clock = FakeClock()
    store.options = PoolOptions(worker_ttl_s=1.0, queue_max_per_worker=3)  # type: ignore[misc]
    node(wanting(*"abcde"), clock=clock)
    await clock.armed()
    there = await jobs(store)
    assert len(there) == 3
    for key in there:
        info = await store.read(key)
        assert info is not None
        await store.claim(WORKER, key, info.fence)
    await clock.advance(60)
    assert await jobs(store) == set("abcde")


async def test_schedule_stop_ends_it_on_every_node_and_leaves_the_jobs(node, store):
    clock, done = FakeClock(), []

    def produce() -> Plan:
        if done:
            raise ScheduleStop
        done.append(1)
        return Plan(desired={"a": b""})

    nodes = [node(produce, clock=clock) for _ in range(3)]
    await clock.armed(3)
    await clock.advance(60, settle_timeout_s=10)
    await clock.advance(60, settle_timeout_s=10)
    await asyncio.wait_for(asyncio.gather(*nodes), 10)
    assert await jobs(store) == {"a"}


async def test_shutdown_of_the_pool_ends_it(node, redis, store):
    clock = FakeClock()
    running = node(wanting("a"), clock=clock)
    await clock.armed()
    info = await store.read("a")
    assert info is not None
    await store.stop("a")
    await redis.hset(store.keys.meta, "shutdown", "n")
    await clock.advance(60, settle_timeout_s=10)
    await asyncio.wait_for(running, 10)


async def test_two_plans_are_never_carried_out_at_once(node, store):
    clock, running, most = FakeClock(), [0], [0]
    release = asyncio.Event()

    async def produce() -> Plan:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await release.wait()
        running[0] -= 1
        return Plan(desired={})

    for _ in range(3):
        node(produce, clock=clock)
    await clock.armed(2)
    await clock.advance(120, settle_timeout_s=10)
    assert most == [1]
    release.set()
    await clock.armed(3)
    await clock.advance(60, settle_timeout_s=10)
    assert most == [1]


async def test_node_that_dies_with_a_plan_is_succeeded_after_a_lease(node, redis, store):
    clock = FakeClock()
    hanging = node(lambda: time.sleep(0) or Plan(desired={"a": b""}), clock=clock)
    await clock.armed()
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)
    # As a SIGKILL in the middle of the next plan leaves it: taken and held, never let go.
    record = (await redis.hget(store.keys.tickers, "scheduler:fleet")).split(b":")
    record[4] = b"%d" % ((time.time() + store.options.worker_ttl_s) * 1000)
    await redis.hset(store.keys.tickers, "scheduler:fleet", b":".join(record))
    node(wanting("b"), clock=clock)
    await clock.armed()
    began = time.monotonic()
    async with asyncio.timeout(10):
        while await jobs(store) != {"b"}:
            await clock.advance(30, settle_timeout_s=10)
    assert time.monotonic() - began > 0.5


async def test_thousands_of_jobs_are_planned_in_one_tick(node, store):
    clock = FakeClock()
    store.options = PoolOptions(worker_ttl_s=1.0, queue_max_per_worker=10_000)  # type: ignore[misc]
    node(wanting(*(f"k{n}" for n in range(3000))), clock=clock)
    await clock.armed(timeout_s=20)
    assert len(await jobs(store)) == 3000


def test_plan_says_one_thing():
    with pytest.raises(ConfigError):
        Plan(desired={}, start={"a": b""})
    with pytest.raises(ConfigError):
        Plan(desired={}, stop_others=True)


def test_wrong_name_is_refused(redis, store):
    with pytest.raises(InvalidName):
        Schedule(store, redis.link, "a:b", wanting(), every_s=1, resolve=pair)


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(1)])
@pytest.mark.parametrize("in_thread", [True, False])
async def test_producer_that_raises_what_no_loop_can_take_is_asked_again(node, store, error, in_thread):
    clock, calls = FakeClock(), []

    def produce() -> Plan:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return Plan(desired={"a": b"p"})

    async def produce_async() -> Plan:
        return produce()

    running = node(produce if in_thread else produce_async, clock=clock)
    await clock.armed()
    assert not running.done()
    await clock.advance(60)
    assert await jobs(store) == {"a"}
