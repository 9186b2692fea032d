"""The four recipes on a real server, with several instances."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flotta.errors import ConfigError, NotStarted, RedisError
from flotta.redis import LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.rmap import MSGPACK, Map
from flotta.rmap.recipes import Cache, FeatureFlags, Flag, Members, RateLimit


async def until(condition: Any, *, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


# --- feature flags ---------------------------------------------------------------------------------------------------


async def test_a_flag_set_here_is_on_there(redis: Redis, unique: str) -> None:
    async with await FeatureFlags.join(redis, unique) as here, await FeatureFlags.join(redis, unique) as there:
        assert not there.is_on("new")
        assert there.is_on("new", default=True)
        await here.set("new", Flag())
        await until(lambda: there.is_on("new"))
        await there.switch("new", on=False)
        await until(lambda: not here.is_on("new"))
        await there.switch("unheard-of", on=True)
        await until(lambda: here.is_on("unheard-of"))


async def test_a_flag_that_cannot_be_read_answers_its_default(redis: Redis, unique: str) -> None:
    """Asking never fails, whatever another program has put there."""
    async with await FeatureFlags.join(redis, unique) as flags, await Map.join(unique, redis) as raw:
        for junk in ("no JSON", '{"percent": 900}', '{"percent": "many"}', "[]"):
            await raw.set("bad", junk)
            await flags.map.refresh()
            assert not flags.is_on("bad")
            assert flags.is_on("bad", default=True)


async def test_a_percentage_grows_without_taking_anyone_out(redis: Redis, unique: str) -> None:
    async with await FeatureFlags.join(redis, unique) as flags:
        subjects = [f"user-{number}" for number in range(2_000)]
        before: set[str] = set()
        for percent in (0, 10, 50, 99, 100):
            await flags.set("new", Flag(percent=percent, only_for=["vip"]))
            await flags.map.refresh()
            now = {subject for subject in subjects if flags.is_on("new", subject=subject)}
            assert before <= now
            assert abs(len(now) / len(subjects) * 100 - percent) < 4
            assert flags.is_on("new", subject="vip")
            assert flags.is_on("new") == (percent == 100)
            before = now


async def test_flags_are_answered_while_redis_is_gone(own_valkey: EmbeddedRedis, unique: str) -> None:
    async with await FeatureFlags.join(own_valkey.url, unique) as flags:
        await flags.set("new", Flag())
        await flags.map.refresh()
        own_valkey.kill()
        await until(lambda: flags.map.stale)
        assert flags.is_on("new")
        own_valkey.restart_sync()


def test_wrong_settings_stop_at_birth() -> None:
    for attempt in (
        lambda: Flag(percent=101),
        lambda: RateLimit("r", limit=0, window_s=1),
        lambda: RateLimit("r", limit=1, window_s=0),
        lambda: RateLimit("r", limit=1, window_s=1, burst=0),
        lambda: Members("m", me="a", about=None, ttl_s=0),
        lambda: Cache("c", ttl_s=0),
        lambda: Cache("c", ttl_s=1, keys_max=0),
    ):
        with pytest.raises(ConfigError):
            attempt()


# --- rate limit ------------------------------------------------------------------------------------------------------


async def test_all_instances_share_one_limit(valkey_url: str, unique: str) -> None:
    limiters = [await RateLimit.join(unique, valkey_url, limit=50, window_s=3600) for _ in range(4)]
    decisions = await asyncio.gather(*(limiters[number % 4].take("user") for number in range(200)))
    assert sum(map(bool, decisions)) == 50
    refused = next(decision for decision in decisions if not decision)
    assert 0 < refused.retry_after_s <= 72
    assert await limiters[0].take("another user")
    for limiter in limiters:
        await limiter.aclose()


async def test_a_refused_caller_is_granted_after_the_time_it_was_told(redis: Redis, unique: str) -> None:
    async with await RateLimit.join(unique, redis, limit=4, window_s=1, burst=2) as limiter:
        granted, refused = await asyncio.gather(limiter.take("k", 2), limiter.take("k"))  # at one time for the server
        assert granted
        assert not refused
        await asyncio.sleep(refused.retry_after_s)  # the wait is what is tested
        assert await limiter.take("k")


async def test_more_than_the_burst_is_never_granted(redis: Redis, unique: str) -> None:
    async with await RateLimit.join(unique, redis, limit=5, window_s=1) as limiter:
        assert not await limiter.take("k", 6)
        assert await limiter.take("k", 5)
        with pytest.raises(ValueError, match="units"):
            await limiter.take("k", 0)


async def test_keys_that_limit_nothing_any_more_are_removed(redis: Redis, unique: str) -> None:
    async with await RateLimit.join(unique, redis, limit=1_000, window_s=0.01) as limiter:
        for number in range(300):
            assert await limiter.take(f"user-{number}")
        await limiter.map.refresh()
        assert len(limiter.map) < 150


@pytest.mark.parametrize("choice", ["raise", "grant", "refuse"])
async def test_what_happens_without_redis_is_chosen(choice: Any, own_valkey: EmbeddedRedis, unique: str) -> None:
    redis = Redis.from_url(own_valkey.url, options=LinkOptions(command_timeout_s=0.3))
    async with await RateLimit.join(unique, redis, limit=5, window_s=1, when_unavailable=choice) as limiter:
        own_valkey.kill()
        if choice == "raise":
            with pytest.raises(RedisError):
                await limiter.take("k")
        else:
            assert bool(await limiter.take("k")) == (choice == "grant")
    await redis.aclose()


# --- members ---------------------------------------------------------------------------------------------------------


async def test_members_see_each_other_come_speak_and_leave(redis: Redis, unique: str) -> None:
    async with await Members.join(unique, redis, me="a", about={"port": 1}) as a:
        b = await Members.join(unique, redis, me="b", about={"port": 2})
        await until(lambda: a.alive() == {"a": {"port": 1}, "b": {"port": 2}})
        await b.update({"port": 3})
        await until(lambda: a.alive()["b"] == {"port": 3})
        await b.aclose()
        await until(lambda: a.alive() == {"a": {"port": 1}})
        await b.aclose()


async def test_a_member_that_dies_is_gone_after_its_ttl_and_then_removed(valkey_url: str, unique: str) -> None:
    async with await Members.join(unique, valkey_url, me="a", about=1, ttl_s=0.8, codec=MSGPACK) as a:
        b = await Members.join(unique, valkey_url, me="b", about=2, ttl_s=0.8, codec=MSGPACK)
        await until(lambda: a.alive() == {"a": 1, "b": 2})
        assert b._task is not None
        b._task.cancel()  # its process is gone
        await until(lambda: a.alive() == {"a": 1})
        assert "b" in a.map
        await until(lambda: "b" not in a.map)
        await b.map.aclose()


async def test_an_outage_costs_no_member(own_valkey: EmbeddedRedis, unique: str) -> None:
    """An outage of several TTLs: nobody counts as dead during it, nor right after it."""
    async with (
        await Members.join(unique, own_valkey.url, me="a", about=1, ttl_s=0.8) as a,
        await Members.join(unique, own_valkey.url, me="b", about=2, ttl_s=0.8) as b,
    ):
        await until(lambda: a.alive() == b.alive() == {"a": 1, "b": 2})
        assert b._task is not None
        b._task.cancel()  # b will not beat again by itself: what is seen of it is what a makes of its silence
        own_valkey.kill()
        await until(lambda: a.map.stale)
        await asyncio.sleep(1.7)  # more than two TTLs must pass
        assert a.alive() == {"a": 1, "b": 2}
        own_valkey.restart_sync()
        await until(lambda: not a.map.stale)
        assert a.alive() == {"a": 1, "b": 2}
        await until(lambda: a.alive() == {"a": 1})


# --- cache -----------------------------------------------------------------------------------------------------------


async def test_a_value_loaded_once_serves_all(redis: Redis, unique: str) -> None:
    loads = 0

    async def load() -> dict[str, int]:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0)
        return {"n": loads}

    async with await Cache.join(unique, redis, ttl_s=60) as here, await Cache.join(unique, redis, ttl_s=60) as there:
        found = await asyncio.gather(*(here.get_or_load("k", load) for _ in range(50)))
        assert (loads, found[0], found[-1]) == (1, {"n": 1}, {"n": 1})
        await until(lambda: there.get("k") == {"n": 1})
        assert await there.get_or_load("k", load) == {"n": 1}
        await there.invalidate("k")
        await until(lambda: here.get("k") is None)
        assert await here.get_or_load("k", load) == {"n": 2}
        await there.clear()
        await until(lambda: here.get("k") is None)


async def test_a_load_that_fails_is_tried_by_the_next(redis: Redis, unique: str) -> None:
    async def broken() -> int:
        raise LookupError("no such user")

    async def works() -> int:
        return 7

    async with await Cache.join(unique, redis, ttl_s=60) as cache:
        for _ in range(2):
            with pytest.raises(LookupError):
                await cache.get_or_load("k", broken)
        assert await cache.get_or_load("k", works) == 7


async def test_one_cancelled_caller_does_not_cost_the_others_their_load(redis: Redis, unique: str) -> None:
    gate = asyncio.Event()

    async def load() -> int:
        await gate.wait()
        return 7

    async with await Cache.join(unique, redis, ttl_s=60) as cache:
        first = asyncio.ensure_future(cache.get_or_load("k", load))
        second = asyncio.ensure_future(cache.get_or_load("k", load))
        await asyncio.sleep(0)
        first.cancel()
        gate.set()
        assert await second == 7
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_an_entry_is_gone_after_its_time(redis: Redis, unique: str) -> None:
    async with await Cache.join(unique, redis, ttl_s=0.5) as cache:
        await cache.set("k", 1)
        assert cache.get("k") == 1
        await until(lambda: cache.get("k") is None)


async def test_a_full_cache_drops_what_expires_first(redis: Redis, unique: str) -> None:
    async with await Cache.join(unique, redis, ttl_s=60, keys_max=20) as cache:
        for number in range(50):
            await cache.set(f"key-{number}", number)
        assert len(cache.map) <= 20
        assert cache.get("key-49") == 49
        assert cache.get("key-0") is None


async def test_a_recipe_before_its_start_says_so() -> None:
    with pytest.raises(NotStarted):
        FeatureFlags().is_on("new")
