"""The ordinary client over the link behaves as redis-py's own, reply by reply and error by error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio as redis_py
import redis.exceptions as driver

from flotta.errors import AmbiguousOutcome, Closed, CommandError, ConfigError, LinkUnavailable
from flotta.redis import LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy

Step = Callable[[Any, str], Awaitable[Any]]

STEPS: list[Step] = [
    lambda r, k: r.set(k, "v", ex=100),
    lambda r, k: r.set(k, "v", nx=True),
    lambda r, k: r.set(k, "w", get=True),
    lambda r, k: r.get(k),
    lambda r, k: r.get(f"{k}-none"),
    lambda r, k: r.exists(k),
    lambda r, k: r.ttl(k),
    lambda r, k: r.incr(f"{k}-n", 5),
    lambda r, k: r.incrbyfloat(f"{k}-f", 1.5),
    lambda r, k: r.mset({f"{k}-a": 1, f"{k}-b": 2.5}),
    lambda r, k: r.mget(f"{k}-a", f"{k}-b", f"{k}-none"),
    lambda r, k: r.hset(f"{k}-h", mapping={"f": 1, "ü": "ü"}),
    lambda r, k: r.hgetall(f"{k}-h"),
    lambda r, k: r.hmget(f"{k}-h", "f", "none"),
    lambda r, k: r.hrandfield(f"{k}-h", 5, withvalues=True),
    lambda r, k: r.rpush(f"{k}-l", 1, "two", b"three"),
    lambda r, k: r.lrange(f"{k}-l", 0, -1),
    lambda r, k: r.sadd(f"{k}-s", "only"),
    lambda r, k: r.smembers(f"{k}-s"),
    lambda r, k: r.zadd(f"{k}-z", {"a": 1, "b": 2.5}),
    lambda r, k: r.zrange(f"{k}-z", 0, -1, withscores=True),
    lambda r, k: r.zscore(f"{k}-z", "b"),
    lambda r, k: r.zpopmin(f"{k}-z"),
    lambda r, k: r.xadd(f"{k}-x", {"f": "v"}, id="1-1"),
    lambda r, k: r.xrange(f"{k}-x"),
    lambda r, k: r.xread({f"{k}-x": "0"}),
    lambda r, k: r.xread({f"{k}-x": "$"}, block=5),
    lambda r, k: r.xgroup_create(f"{k}-x", "g", id="0"),
    lambda r, k: r.xreadgroup("g", "c", {f"{k}-x": ">"}, block=5),
    lambda r, k: r.xpending(f"{k}-x", "g"),
    lambda r, k: r.xinfo_groups(f"{k}-x"),
    lambda r, k: r.xinfo_stream(f"{k}-x"),
    lambda r, k: r.xack(f"{k}-x", "g", "1-1"),
    lambda r, k: r.geoadd(f"{k}-g", (9.19, 45.46, "milano")),
    lambda r, k: r.geopos(f"{k}-g", "milano"),
    lambda r, k: r.scan(match=f"{k}-h", count=100_000),
    lambda r, k: r.config_get("maxmemory"),
    lambda r, k: r.command_count(),
    lambda r, k: r.object("encoding", f"{k}-h"),
    lambda r, k: r.eval("return {KEYS[1], ARGV[1], 1, false}", 1, k, "a"),
    lambda r, k: r.blpop([f"{k}-l"], timeout=1),
    lambda r, k: r.blpop([f"{k}-none"], timeout=0.01),
    lambda r, k: r.brpoplpush(f"{k}-l", f"{k}-l2", timeout=1),
    lambda r, k: r.wait(0, 10),
    lambda r, k: r.pfadd(f"{k}-p", "a", "b"),
    lambda r, k: r.setbit(f"{k}-bits", 7, 1),
    lambda r, k: r.bitfield(f"{k}-bits").get("u8", 0).execute(),
    lambda r, k: r.sort(f"{k}-l", alpha=True),
    lambda r, k: r.execute_command(b"get", k),
    lambda r, k: r.execute_command("Object Encoding", k),
    lambda r, k: r.ping(),
    lambda r, k: r.echo("héllo"),
    lambda r, k: r.delete(k, f"{k}-h"),
]
FAILURES: list[Step] = [
    lambda r, k: r.hget(k, "f"),
    lambda r, k: r.incr(k),
    lambda r, k: r.evalsha("0" * 40, 0),
    lambda r, k: r.xgroup_create(k, "g"),
    lambda r, k: r.execute_command("NOSUCHCOMMAND"),
    lambda r, k: r.execute_command("SET"),
    lambda r, k: r.set(k, None),
    lambda r, k: r.set(k, True),
    lambda r, k: r.eval("return redis.error_reply('CODE own words')", 0),
]


@pytest.mark.parametrize(
    "shape", [{}, {"decode_responses": True}, {"protocol": 2}, {"legacy_responses": False}], ids=str
)
async def test_every_reply_is_what_redis_py_gives(valkey_url: str, unique: str, shape: dict[str, Any]) -> None:
    ours = Redis.from_url(valkey_url, **shape)
    theirs = redis_py.Redis.from_url(valkey_url, **shape)
    for place, step in enumerate(STEPS):
        expected = await step(theirs, f"{unique}-t")
        found = await step(ours, f"{unique}-o")
        found_text = repr(found).replace(f"{unique}-o", f"{unique}-t")
        assert found_text == repr(expected), f"step {place}"
    await ours.aclose()
    await theirs.aclose()


async def test_every_error_is_redis_pys_and_flottas(redis: Redis, valkey_url: str, unique: str) -> None:
    theirs = redis_py.Redis.from_url(valkey_url)
    await redis.set(unique, "text")
    for fail in FAILURES:
        with pytest.raises(driver.RedisError) as expected:
            await fail(theirs, unique)
        with pytest.raises(type(expected.value)) as found:
            await fail(redis, unique)
        assert str(found.value) == str(expected.value)
        assert isinstance(found.value, CommandError | driver.DataError)
    await theirs.aclose()


@pytest.mark.parametrize("transaction", [True, False])
async def test_pipeline_is_one_write_and_shapes_every_reply(redis: Redis, unique: str, transaction: bool) -> None:
    before = redis.link.stats.commands
    async with redis.pipeline(transaction=transaction) as pipe:
        pipe.set(unique, 1).incr(unique).hset(f"{unique}-h", mapping={"a": 1}).hgetall(f"{unique}-h").get("none")
        assert await pipe.execute() == [True, 2, 1, {b"a": b"1"}, None]
    assert redis.link.stats.commands - before == (7 if transaction else 5)


@pytest.mark.parametrize("transaction", [True, False])
async def test_pipeline_errors_are_redis_pys(redis: Redis, unique: str, transaction: bool) -> None:
    async with redis.pipeline(transaction=transaction) as pipe:
        pipe.set(unique, "x").incr(unique).get(unique)
        replies = await pipe.execute(raise_on_error=False)
        assert isinstance(replies[1], driver.ResponseError)
        assert (replies[0], replies[2]) == (True, b"x")
        pipe.set(unique, "x").incr(unique)
        with pytest.raises(driver.ResponseError, match="Command # 2"):
            await pipe.execute()
        assert await pipe.execute() == []


async def test_refused_transaction_raises_the_cause(redis: Redis, unique: str) -> None:
    async with redis.pipeline() as pipe:
        pipe.set(unique, 1).execute_command("NOSUCHCOMMAND")
        with pytest.raises(driver.ResponseError, match="unknown command"):
            await pipe.execute()
    assert await redis.get(unique) is None


async def test_watch_sees_a_change_by_somebody_else(redis: Redis, unique: str) -> None:
    async with redis.pipeline() as pipe:
        await pipe.watch(unique)
        await redis.set(unique, "changed")
        pipe.multi()
        pipe.set(unique, "mine")
        with pytest.raises(driver.WatchError):
            await pipe.execute()

    def double(pipe: Any) -> None:
        pipe.multi()
        pipe.append(unique, "!")

    assert await redis.transaction(double, unique) == [8]


async def test_scripts_and_locks_of_redis_py_work(redis: Redis, unique: str) -> None:
    script = redis.register_script(f"return redis.call('INCR', KEYS[1]) -- {unique}")
    assert await script(keys=[unique]) == 1
    await redis.script_flush()
    async with redis.pipeline() as pipe:
        await script(keys=[unique], client=pipe)
        assert await pipe.execute() == [2]
    async with redis.lock(f"{unique}-lock", timeout=5) as lock:
        assert await lock.owned()
        assert not await redis.lock(f"{unique}-lock").acquire(blocking=False)


async def test_pubsub_monitor_and_single_connection_of_redis_py_work(redis: Redis, unique: str) -> None:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(unique)
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        assert await redis.publish(unique, "hi") == 1
        assert (await pubsub.get_message(timeout=5))["data"] == b"hi"
    async with redis.monitor() as monitor:
        await redis.set(unique, "seen")
        while unique not in (await monitor.next_command())["command"]:
            pass
    async with redis.client() as single:
        await single.select(5)
        await single.set(unique, "in 5")
    assert await redis.get(unique) == b"seen"


async def test_blocking_call_holds_up_nobody(redis: Redis, unique: str) -> None:
    popping = [asyncio.ensure_future(redis.blpop([unique], timeout=0)) for _ in range(3)]
    while (await redis.info("clients"))["blocked_clients"] < 3:
        assert await redis.echo("meanwhile") == b"meanwhile"
    assert await redis.rpush(unique, "a", "b", "c") == 3
    assert sorted(value for _, value in await asyncio.gather(*popping)) == [b"a", b"b", b"c"]


async def test_cancelled_blocking_call_takes_nothing_from_the_list(redis: Redis, unique: str) -> None:
    popping = asyncio.ensure_future(redis.blpop([unique], timeout=0))
    while (await redis.info("clients"))["blocked_clients"] < 1:
        pass
    popping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await popping
    while (await redis.info("clients"))["blocked_clients"] > 0:
        pass
    await redis.rpush(unique, "kept")
    assert await redis.lrange(unique, 0, -1) == [b"kept"]


async def test_namespace_goes_before_names_made_by_key(valkey_url: str) -> None:
    async with Redis.from_url(valkey_url, namespace="staging:") as client:
        assert client.key("map") == "staging:map"


async def test_dedicated_link_is_named_and_the_callers_own(valkey_url: str) -> None:
    client = Redis.from_url(valkey_url, options=LinkOptions(client_name="flotta:svc:1"))
    link = client.dedicated("sink")
    assert b"name=flotta:svc:1:sink" in await link.call("CLIENT", "INFO")
    await client.aclose()
    assert await link.call("PING") == b"PONG"
    await link.aclose()


async def test_closed_client_says_so_in_both_languages(valkey_url: str) -> None:
    client = Redis.from_url(valkey_url)
    await client.ping()
    await client.aclose()
    await client.aclose()
    for call in (client.get("k"), client.blpop(["k"], timeout=1), client.pipeline().get("k").execute()):
        with pytest.raises(driver.ConnectionError) as caught:
            await call
        assert isinstance(caught.value, Closed)


async def test_wrong_url_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        Redis.from_url("http://h")


async def test_lost_reply_is_repeated_only_where_a_second_run_does_no_harm(own_valkey: EmbeddedRedis) -> None:
    async with FaultProxy(own_valkey.url) as proxy:
        options = LinkOptions(reconnect_min_s=0.01, retry_delay_s=0.01)
        client = await Redis.from_url(proxy.url, options=options).connect()
        await client.set("k", "v")
        await client.ping()
        proxy.cut_after(0)
        assert await client.get("k") == b"v"
        await client.ping()
        proxy.cut_after(0)
        assert await client.hset("h", "f", 1) == 0, "the second run finds the field: only the count differs"
        for unsafe in (client.incr, client.getdel):
            await client.ping()
            proxy.cut_after(0)
            with pytest.raises(AmbiguousOutcome) as caught:
                await unsafe("n")
            assert isinstance(caught.value, driver.ConnectionError)
        assert await client.get("n") is None, "getdel did run"
        await client.ping()
        proxy.cut_after(0)
        with pytest.raises(AmbiguousOutcome):
            await client.pipeline().set("a", 1).incr("b").execute()
        assert await client.get("b") == b"1"
        await client.ping()
        proxy.cut_after(0)
        assert await client.pipeline().set("a", 1).get("a").execute() == [True, b"1"]
        await client.rpush("q", "job")
        proxy.cut_after(0)
        with pytest.raises(AmbiguousOutcome):  # a second run would find the list empty, and the job would be lost
            await client.pipeline().lrange("q", 0, -1).delete("q").execute()
        await client.aclose()


async def test_transaction_and_blocking_call_refused_by_a_replica_are_repeated(own_valkey: EmbeddedRedis) -> None:
    options = LinkOptions(retry_delay_s=0.05, retries=100)
    client = await Redis.from_url(own_valkey.url, options=options).connect()
    await client.rpush("q", "job")
    await client.replicaof("127.0.0.1", "1")
    transaction = asyncio.ensure_future(client.pipeline().incr("n").incr("n").execute())
    popping = asyncio.ensure_future(client.blpop(["q"], timeout=5))
    while (await client.info("errorstats")).get("errorstat_READONLY", {}).get("count", 0) < 6:
        pass
    await client.replicaof("NO", "ONE")
    assert await transaction == [1, 2]
    assert await popping == (b"q", b"job")
    await client.aclose()


async def test_encoding_of_the_client_is_kept(valkey_url: str, unique: str) -> None:
    async with Redis.from_url(valkey_url, encoding="latin-1") as client:
        await client.set(unique, "à")
        async with Redis.from_url(valkey_url) as plain:
            assert await plain.get(unique) == b"\xe0"


async def test_every_connection_of_the_client_bears_its_name(valkey_url: str, unique: str) -> None:
    async with Redis.from_url(valkey_url, options=LinkOptions(client_name=f"flotta:svc:{unique}")) as client:
        await client.blpop([unique], timeout=0.01)
        async with client.pubsub() as pubsub:
            await pubsub.subscribe(unique)
            names = [entry["name"] for entry in await client.client_list()]
    assert sorted(name for name in names if unique in name) == [
        f"flotta:svc:{unique}",
        f"flotta:svc:{unique}",
        f"flotta:svc:{unique}:blocking",
    ]


async def test_a_repeat_that_was_never_written_does_not_hide_that_the_first_may_have_run(valkey_url: str) -> None:
    async with FaultProxy(valkey_url) as proxy:
        options = LinkOptions(command_timeout_s=0.3, connect_timeout_s=0.3, reconnect_min_s=0.01, retry_delay_s=0.01)
        client = await Redis.from_url(proxy.url, options=options).connect()
        proxy.pause()
        with pytest.raises(AmbiguousOutcome):
            await client.set("k", "v")
        with pytest.raises(LinkUnavailable) as caught:
            await client.set("k", "v")
        assert isinstance(caught.value, driver.ConnectionError)
        await client.aclose()
