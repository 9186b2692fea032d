"""Cron tasks on a real server: enqueued once for each time, together with the step that moves the schedule on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest

from flotta.errors import ConfigError
from flotta.pool.keys import PoolKeys
from flotta.pool.schedules.cron import Cron, Every, Recurrence
from flotta.pool.schedules.recurring import Recurring, RecurringTasks
from flotta.pool.tasks import Enqueuing, TaskRegistry
from flotta.pool.tasks.records import PRIORITY_STEP
from flotta.pool.tasks.store import Item
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FakeClock, FaultProxy

START = datetime(2030, 1, 1, 0, 0, 30, tzinfo=UTC)
Node = Callable[..., "asyncio.Task[None]"]


def recurring(times: Recurrence, name: str = "report", **options: float | None) -> Recurring:
    return Recurring(name, times, lambda task_id: Item(task_id, name, b"\x80", "default", 5, b"", False), **options)


@pytest.fixture
async def node(redis: Redis, unique: str) -> AsyncIterator[Node]:
    """Starts what one more working node runs."""
    running: list[asyncio.Task[None]] = []

    def start(*tasks: Recurring, clock: FakeClock, through: Redis | None = None) -> asyncio.Task[None]:
        looking = RecurringTasks((through or redis).link, PoolKeys(unique), tasks, clock=clock)
        running.append(asyncio.create_task(looking.run()))
        return running[-1]

    yield start
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def enqueued(redis: Redis, pool: str) -> list[str]:
    """The times that tasks were enqueued for, in the order of their places in line."""
    ids = await redis.zrange(PoolKeys(pool).prefix + "ready:default", 0, -1)
    return [datetime.fromtimestamp(int(each.rpartition(b".")[2]) / 1000, UTC).strftime("%H:%M") for each in ids]


async def test_each_time_is_enqueued_once_by_all_nodes_together(node, redis, unique):
    clock = FakeClock(START)
    for _ in range(5):
        node(recurring(Cron("*/5 * * * *")), clock=clock)
    await clock.armed(5)
    await clock.advance(1200)
    assert await enqueued(redis, unique) == ["00:05", "00:10", "00:15", "00:20"]


async def test_node_that_dies_right_after_its_turn_has_lost_nothing(node, redis, unique):
    clock = FakeClock(START)
    task = recurring(Cron("*/5 * * * *"))
    for minute in ("00:05", "00:10", "00:15"):
        dying = node(task, clock=clock)
        await clock.armed()
        await clock.advance(300)
        assert (await enqueued(redis, unique))[-1] == minute
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    assert await enqueued(redis, unique) == ["00:05", "00:10", "00:15"]


async def test_of_times_missed_by_everybody_only_the_newest_is_enqueued(node, redis, unique):
    clock = FakeClock(START)
    task = recurring(Cron("*/5 * * * *"))
    first = node(task, clock=clock)
    await clock.armed()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await clock.advance(1000)  # 00:05, 00:10 and 00:15 pass
    node(task, clock=clock)
    await clock.armed()
    assert await enqueued(redis, unique) == []
    await clock.advance(0.1)
    assert await enqueued(redis, unique) == ["00:15"]
    await clock.advance(300)
    assert await enqueued(redis, unique) == ["00:15", "00:20"]


async def test_time_missed_by_too_much_is_left_out(node, redis, unique):
    clock = FakeClock(START)
    task = recurring(Cron("0 * * * *"), late_max_s=600)
    first = node(task, clock=clock)
    await clock.armed()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await clock.advance(3600 + 900)
    node(task, clock=clock)
    await clock.armed()
    await clock.advance(3600)
    assert await enqueued(redis, unique) == ["02:00"]


async def test_old_and_new_expression_of_a_rolling_deploy_share_their_times(node, redis, unique):
    clock = FakeClock(START)
    node(recurring(Cron("*/10 * * * *")), clock=clock)
    node(recurring(Cron("*/15 * * * *")), clock=clock)
    await clock.armed(2)
    await clock.advance(1800)
    assert await enqueued(redis, unique) == ["00:10", "00:15", "00:20", "00:30"]


async def test_schedules_of_code_that_is_gone_are_forgotten(node, redis, unique):
    clock, tickers = FakeClock(START), PoolKeys(unique).tickers
    week_ago = clock.now_ms() - 8 * 24 * 3600 * 1000
    await redis.hset(tickers, mapping={"cron:old:x": week_ago, "cron:late:x": clock.now_ms() - 1000, "t": "stopped"})
    node(recurring(Every(60)), clock=clock)
    await clock.armed()
    assert set(await redis.hkeys(tickers)) == {b"cron:late:x", b"t", b"cron:report:every 60 s"}


async def test_answer_that_is_lost_neither_loses_nor_doubles_a_time(node, redis, unique, valkey_url):
    clock = FakeClock(START)
    async with FaultProxy(valkey_url) as proxy, Redis.from_url(proxy.url) as cut_off:
        node(recurring(Every(60)), clock=clock, through=cut_off)
        await clock.armed()
        proxy.drop("down")
        await clock.advance(30, settle_timeout_s=0.1)
        async with asyncio.timeout(5):
            while not await enqueued(redis, unique):
                await asyncio.sleep(0.01)
        proxy.restore("down")
        proxy.cut()
        await clock.armed()
        await clock.advance(60)
    assert await enqueued(redis, unique) == ["00:01", "00:02"]


async def test_outage_is_waited_out(own_valkey: EmbeddedRedis, unique):
    async with Redis.from_url(own_valkey.url) as redis:
        looking = RecurringTasks(redis.link, PoolKeys(unique), [recurring(Every(0.2))])
        running = asyncio.create_task(looking.run())
        ready = PoolKeys(unique).prefix + "ready:default"
        async with asyncio.timeout(30):
            while not await redis.zcard(ready):
                await asyncio.sleep(0.01)
            own_valkey.kill()
            await asyncio.to_thread(own_valkey.restart_sync)
            before = await redis.zcard(ready)
            while await redis.zcard(ready) <= before:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_shutdown_of_the_pool_ends_it(node, redis, unique):
    clock = FakeClock(START)
    running = node(recurring(Every(60)), clock=clock)
    await clock.armed()
    await redis.hset(PoolKeys(unique).meta, "shutdown", "n")
    await clock.advance(60)
    await asyncio.wait_for(running, 5)
    assert await enqueued(redis, unique) == []


async def test_hook_that_raises_costs_neither_the_time_nor_the_other_tasks(node, redis, unique):
    clock, registry, seen = FakeClock(START), TaskRegistry(unique), []

    @registry.task()
    async def report() -> None: ...

    @registry.on_enqueue
    def once_wrong(enqueuing: Enqueuing) -> None:
        seen.append(enqueuing.id)
        if len(seen) == 1:
            raise LookupError("no request here")

    node(Recurring.of(report, Every(60)), recurring(Every(60), name="other"), clock=clock)
    await clock.armed()
    assert seen == [], "a hook sees what travels, not what is planned"
    await clock.advance(30)
    assert await enqueued(redis, unique) == ["00:01"]
    await clock.advance(2)
    assert await enqueued(redis, unique) == ["00:01", "00:01"]
    assert len(set(seen)) == 1


async def test_options_of_a_task_hold_when_it_comes_round(node, redis, unique):
    clock, registry = FakeClock(START), TaskRegistry(unique)

    @registry.task()
    async def late() -> None: ...

    @registry.task(priority=1)
    async def urgent() -> None: ...

    node(
        Recurring.of(late.options(delay_s=3600), Every(60)),
        Recurring.of(urgent.options(priority=9, queue="quick"), Every(120)),
        clock=clock,
    )
    await clock.armed()
    await clock.advance(30)
    assert await redis.zcard(PoolKeys(unique).prefix + "due") == 1
    await clock.advance(60)
    [(_, place)] = await redis.zrange(PoolKeys(unique).prefix + "ready:quick", 0, -1, withscores=True)
    assert place < PRIORITY_STEP


def test_intervals_that_differ_have_names_that_differ():
    assert str(Every(1_234_567)) != str(Every(1_234_568))
    assert str(Every(30)) == str(Every(30.0)) == "every 30 s"


def test_wrong_lateness_is_refused():
    with pytest.raises(ConfigError):
        recurring(Every(60), late_max_s=-1)
