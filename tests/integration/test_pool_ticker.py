"""Tickers on a real server: one node gets a tick, none gets it twice, none is lost with an answer or a node."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from flotta.errors import Closed, ConfigError, InvalidName, StateError
from flotta.pool.keys import PoolKeys
from flotta.pool.schedules.ticker import Tick, Ticker
from flotta.redis import LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FakeClock, FaultProxy

Make = Callable[..., Ticker]


@pytest.fixture
async def make(redis: Redis, unique: str) -> AsyncIterator[Make]:
    """Makes tickers of one pool, each as another node would have it."""
    async with AsyncExitStack() as stack:

        def ticker(name: str = "t", *, every_s: float = 1.0, **options: object) -> Ticker:
            made = Ticker(redis.link, PoolKeys(unique), name, every_s=every_s, **options)  # type: ignore[arg-type]
            stack.push_async_callback(made.close)
            return made

        yield ticker


async def collect(ticker: Ticker, into: list[Tick]) -> None:
    async for tick in ticker:
        into.append(tick)  # noqa: PERF401


async def test_each_time_goes_to_exactly_one_of_many_nodes(make):
    tickers = [await make(every_s=0.02).start() for _ in range(8)]
    got: list[Tick] = []
    tasks = [asyncio.create_task(collect(ticker, got)) for ticker in tickers]
    while sum(1 + tick.missed for tick in got) < 50:
        await asyncio.sleep(0.01)
    for ticker in tickers:
        await ticker.close()
    await asyncio.gather(*tasks)
    before = min(got, key=lambda tick: tick.at).missed  # nobody was given any until then
    times = sorted(tick.at for tick in got)
    assert len(set(times)) == len(times)
    steps = {(later - earlier) / timedelta(milliseconds=20) for earlier, later in itertools.pairwise(times)}
    assert all(step == int(step) for step in steps), "off the beat"
    assert sum(1 + tick.missed for tick in got) == (times[-1] - times[0]) / timedelta(milliseconds=20) + 1 + before


async def test_ticks_of_a_node_that_is_gone_go_to_the_others(make):
    first, second = await make(every_s=0.05).start(), await make(every_s=0.05).start()
    tick = await anext(first)
    later = [await anext(second), await anext(second)]
    assert tick.at < later[0].at < later[1].at


async def test_what_nobody_waited_for_is_missed(make):
    clock = FakeClock()
    ticker = await make(every_s=10, clock=clock).start()
    await clock.advance(35, settle_timeout_s=0.1)
    tick = await anext(ticker)
    assert (tick.missed, tick.late_s) == (2, 5.0)
    assert tick.at == clock.now - timedelta(seconds=5)
    waiting = asyncio.ensure_future(anext(ticker))
    await clock.armed()
    await clock.advance(5, settle_timeout_s=0.1)
    assert (await waiting).missed == 0


async def test_busy_node_leaves_the_tick_to_another(make):
    clock = FakeClock()
    busy, free = await make(every_s=1, clock=clock).start(), await make(every_s=1, clock=clock).start()
    waiting = asyncio.ensure_future(anext(busy))
    await clock.armed()
    await clock.advance(1, settle_timeout_s=0.1)
    await waiting  # its consumer works now and does not ask
    waiting = asyncio.ensure_future(anext(free))
    await clock.armed()
    await clock.advance(1, settle_timeout_s=0.1)
    assert (await waiting).missed == 0


async def test_declaring_a_ticker_again_keeps_its_beat(make):
    clock = FakeClock()
    await make(every_s=10, clock=clock).start()
    await clock.advance(7, settle_timeout_s=0.1)
    again = await make(every_s=10, clock=clock).start()
    waiting = asyncio.ensure_future(anext(again))
    await clock.armed()
    await clock.advance(3, settle_timeout_s=0.1)
    assert (await waiting).late_s == 0


async def test_new_interval_is_valid_on_every_node(make):
    clock = FakeClock()
    old = await make(every_s=3600, clock=clock).start()
    new = await make(every_s=5, clock=clock).start()
    await clock.advance(5, settle_timeout_s=0.1)
    assert (await anext(old)).late_s == 0
    assert old.every_s == 5
    await new.change(20)
    waiting = asyncio.ensure_future(anext(old))
    await clock.armed()
    assert old.every_s == 20
    await clock.advance(20, settle_timeout_s=0.1)
    assert (await waiting).missed == 0


async def test_change_of_interval_reaches_a_node_that_waits(make):
    slow, other = await make(every_s=3600).start(), make(every_s=3600)
    waiting = asyncio.ensure_future(anext(slow))
    await asyncio.sleep(0)
    await other.change(0.05)
    assert (await asyncio.wait_for(waiting, 30)).late_s < 30  # of an hour


async def test_stop_ends_it_everywhere_and_declaring_it_starts_it_again(make):
    first, second = await make(every_s=3600).start(), await make(every_s=3600).start()
    waiting = asyncio.create_task(collect(first, []))
    await asyncio.sleep(0)
    await second.stop()
    await asyncio.wait_for(waiting, 10)
    assert first.stopped
    with pytest.raises(Closed):
        await second.change(1)
    assert await anext(await make(every_s=0.02).start())


async def test_close_ends_it_here_only(make):
    first, second = await make(every_s=0.05).start(), await make(every_s=0.05).start()
    waiting = asyncio.create_task(collect(first, []))
    await asyncio.sleep(0)
    await first.close()
    await asyncio.wait_for(waiting, 10)
    assert not first.stopped
    assert await anext(second)


async def test_tick_whose_wait_was_cancelled_comes_with_the_next_call(make, redis, unique):
    await anext(await make("another", every_s=30, first_s=0).start())  # Redis has the script now
    ticker = await make(every_s=30, first_s=0).start()
    waiting = asyncio.create_task(anext(ticker))
    await asyncio.sleep(0)  # its question has been written
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    record = await redis.hget(PoolKeys(unique).tickers, "t")
    assert b".0" in record, "the cancelled call took the tick"
    assert (await asyncio.wait_for(anext(ticker), 10)).missed == 0


async def test_tick_whose_answer_was_lost_is_given_once(valkey_url, redis, unique):
    async with FaultProxy(valkey_url) as proxy, Redis.from_url(proxy.url) as cut_off:
        ticker = await Ticker(cut_off.link, PoolKeys(unique), "t", every_s=60, first_s=0).start()
        proxy.drop("down")
        waiting = asyncio.ensure_future(anext(ticker))
        async with asyncio.timeout(10):
            while b".0" not in (await redis.hget(PoolKeys(unique).tickers, "t") or b""):
                await asyncio.sleep(0.01)  # until Redis has given it
        proxy.restore("down")
        proxy.cut()
        assert (await asyncio.wait_for(waiting, 10)).missed == 0


async def test_lost_data_does_not_end_a_ticker(make, redis, unique):
    clock = FakeClock()
    ticker = await make(every_s=5, clock=clock).start()
    await redis.delete(PoolKeys(unique).tickers)
    waiting = asyncio.ensure_future(anext(ticker))
    await clock.armed()
    await clock.advance(5, settle_timeout_s=0.1)
    assert (await waiting).missed == 0


async def test_outage_is_waited_out(own_valkey: EmbeddedRedis, unique):
    options = LinkOptions(connect_timeout_s=0.2, command_timeout_s=0.5)
    async with Redis.from_url(own_valkey.url, options=options) as redis:
        ticker = await Ticker(redis.link, PoolKeys(unique), "t", every_s=0.1).start()
        await anext(ticker)
        own_valkey.kill()
        waiting = asyncio.ensure_future(anext(ticker))
        await asyncio.sleep(0.3)
        own_valkey.restart_sync()
        assert await asyncio.wait_for(waiting, 10)


async def test_held_tick_keeps_the_next_from_others_until_it_is_let_go(make):
    holder, other = await make(every_s=0.05, hold_s=30).start(), await make(every_s=0.05, hold_s=30).start()
    first = await anext(holder)
    assert await holder.hold()
    waiting = asyncio.ensure_future(anext(other))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await holder.let_go()
    second = await asyncio.wait_for(waiting, 20)  # what nobody lets go of: 30 s
    assert second.at > first.at
    assert second.missed >= 4
    assert not await holder.hold(), "another has it now"


async def test_hold_of_a_dead_node_runs_out(make):
    dead, other = await make(every_s=0.05, hold_s=0.2).start(), await make(every_s=0.05, hold_s=0.2).start()
    await anext(dead)
    assert (await asyncio.wait_for(anext(other), 10)).missed >= 2


async def test_second_waiter_is_refused(make):
    ticker = await make(every_s=60).start()
    waiting = asyncio.ensure_future(anext(ticker))
    await asyncio.sleep(0)
    with pytest.raises(StateError, match="waits"):
        await anext(ticker)
    waiting.cancel()


@pytest.mark.parametrize("every_s", [0, -1, 0.001, float("nan"), float("inf"), True, "1", 1e9])
def test_wrong_interval_is_refused(make, every_s):
    with pytest.raises(ConfigError):
        make(every_s=every_s)


def test_wrong_name_is_refused(make):
    with pytest.raises(InvalidName):
        make("a:b")
