"""A map on a real server: every operation, typed values, notifications, life, TTL, namespaces."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pydantic
import pytest

from flotta.errors import (
    Closed,
    CommandError,
    ConfigError,
    InvalidName,
    LinkUnavailable,
    MapTimeout,
    NotAnInteger,
    NotStarted,
    WireError,
)
from flotta.redis import LinkOptions, Redis
from flotta.rmap import (
    BYTES,
    INT,
    JSON,
    MSGPACK,
    Attempt,
    Codec,
    DataclassCodec,
    EventKind,
    Map,
    MapOptions,
    ModelCodec,
)
from flotta.rmap.batch import BYTES_MAX

QUIET = MapOptions(check_interval_s=None)


@pytest.fixture
async def fleet_map(unique: str, valkey_url: str) -> AsyncIterator[Map[str]]:
    async with await Map.join(unique, valkey_url) as joined:
        yield joined


@pytest.fixture
async def other(unique: str, valkey_url: str) -> AsyncIterator[Map[str]]:
    """Another instance's copy of the same map."""
    async with await Map.join(unique, valkey_url) as joined:
        yield joined


async def until_equal(one: Map[Any], two: Map[Any]) -> None:
    """Wait until both copies are at one revision; the later one rings."""
    while one.revision != two.revision:
        behind = one if one.revision < two.revision else two
        await asyncio.wait_for(anext(behind.subscribe()), 5)


# --- operations ------------------------------------------------------------------------------------------------------


async def test_set_gives_the_previous_value(fleet_map: Map[str]) -> None:
    assert await fleet_map.set("color", "blue") is None
    assert await fleet_map.set("color", "") == "blue"
    assert await fleet_map.set("color", "red") == ""


async def test_a_write_is_seen_by_another_instance(fleet_map: Map[str], other: Map[str]) -> None:
    events = other.subscribe()
    await fleet_map.set("color", "blue")
    event = await asyncio.wait_for(anext(events), 5)
    assert (event.kind, event.revision, event.count) == (EventKind.CHANGE, 1, 1)
    assert other.get("color") == other["color"] == "blue"
    assert "color" in other
    assert list(other) == other.keys() == ["color"]
    assert other.items() == [("color", "blue")]
    assert other.values() == ["blue"]
    assert other.snapshot() == {"color": "blue"}
    assert len(other) == 1


async def test_a_missing_key_gives_the_default(fleet_map: Map[str]) -> None:
    assert fleet_map.get("none") is None
    assert fleet_map.get("none", 5) == 5
    assert "none" not in fleet_map
    with pytest.raises(KeyError):
        fleet_map["none"]


async def test_set_and_wait_returns_when_the_value_is_here(fleet_map: Map[str]) -> None:
    for number in range(200):
        previous = await fleet_map.set_and_wait("n", str(number))
        assert previous == (str(number - 1) if number else None)
        assert fleet_map["n"] == str(number)


async def test_many_set_and_wait_of_one_key_all_return(fleet_map: Map[str]) -> None:
    await asyncio.gather(*(fleet_map.set_and_wait("same", "value") for _ in range(500)))
    assert fleet_map.revision == 500


async def test_set_if_absent(fleet_map: Map[str]) -> None:
    assert await fleet_map.set_if_absent("a", "1")
    assert not await fleet_map.set_if_absent("a", "2")
    await fleet_map.refresh()
    assert fleet_map["a"] == "1"


async def test_test_and_set_sets_only_what_is_expected(fleet_map: Map[str]) -> None:
    assert await fleet_map.test_and_set("a", "1", "2") == Attempt(done=False, previous=None)
    await fleet_map.set("a", "1")
    assert await fleet_map.test_and_set("a", "2", "3") == Attempt(done=False, previous="1")
    swapped = await fleet_map.test_and_set("a", "1", "2")
    assert swapped
    assert swapped.previous == "1"


async def test_a_tested_write_may_test_for_an_empty_value(fleet_map: Map[str]) -> None:
    assert not await fleet_map.test_and_set("a", "", "x")
    await fleet_map.set("a", "")
    assert await fleet_map.test_and_set("a", "", "x")


async def test_incr_counts_in_64_bits(fleet_map: Map[str]) -> None:
    assert await fleet_map.incr("n") == 1
    assert await fleet_map.incr("n", 2**62) == 2**62 + 1
    assert await fleet_map.incr("n", -(2**62)) == 1
    await fleet_map.set("n", str(2**63 - 1))
    with pytest.raises(CommandError, match="overflow"):
        await fleet_map.incr("n")
    with pytest.raises(ValueError, match="64 bits"):
        await fleet_map.incr("n", 2**63)


async def test_incr_on_text_is_an_error_and_changes_nothing(fleet_map: Map[str]) -> None:
    await fleet_map.set("word", "seven")
    with pytest.raises(NotAnInteger) as caught:
        await fleet_map.incr("word")
    assert caught.value.key == "word"
    await fleet_map.refresh()
    assert fleet_map.revision == 1
    assert fleet_map["word"] == "seven"


async def test_lists_are_json_arrays_of_text(fleet_map: Map[str]) -> None:
    assert fleet_map.get_values("l") is None
    assert await fleet_map.append_values("l") == []
    assert await fleet_map.append_values("l", "a,b", 'c"', "ü/") == ["a,b", 'c"', "ü/"]
    assert await fleet_map.append_unique_values("l", "a,b", "d") == ["a,b", 'c"', "ü/", "d"]
    assert await fleet_map.append_unique_values("l", "d") == ["a,b", 'c"', "ü/", "d"]
    await fleet_map.refresh()
    assert fleet_map.get_values("l") == ["a,b", 'c"', "ü/", "d"]
    removal = await fleet_map.remove_values("l", "a,b", "none")
    assert removal
    assert removal.values == ['c"', "ü/", "d"]
    assert not await fleet_map.remove_values("l", "none")


async def test_a_value_that_is_no_list_is_split_at_its_commas(fleet_map: Map[str]) -> None:
    await fleet_map.set("l", "a,b,a")
    assert await fleet_map.append_values("l", "c") == ["a", "b", "a", "c"]
    assert (await fleet_map.remove_values("l", "a")).values == ["b", "c"]


async def test_removing_the_last_item_deletes_the_key(fleet_map: Map[str], other: Map[str]) -> None:
    events = other.subscribe()
    await fleet_map.append_values("l", "a", "a")
    await asyncio.wait_for(anext(events), 5)
    removal = await fleet_map.remove_values("l", "a")
    assert (removal.removed, removal.values) == (True, [])
    assert (await asyncio.wait_for(anext(events), 5)).kind is EventKind.DELETE
    assert "l" not in other


async def test_delete_gives_the_previous_value_and_announces_only_what_was_there(fleet_map: Map[str]) -> None:
    assert await fleet_map.delete("a") is None
    await fleet_map.set("a", "1")
    assert await fleet_map.delete("a") == "1"
    await fleet_map.refresh()
    assert fleet_map.revision == 2
    assert "a" not in fleet_map


async def test_test_and_delete_deletes_only_what_is_expected(fleet_map: Map[str]) -> None:
    await fleet_map.set("a", "1")
    assert await fleet_map.test_and_delete("a", "2") == Attempt(done=False, previous="1")
    assert await fleet_map.test_and_delete("a", "1") == Attempt(done=True, previous="1")
    assert await fleet_map.test_and_delete("a", "1") == Attempt(done=False, previous=None)


@pytest.mark.parametrize("operation", ["reset", "destroy"])
async def test_emptying_keeps_the_revisions_going_up(operation: str, fleet_map: Map[str], other: Map[str]) -> None:
    events = other.subscribe()
    await fleet_map.set("a", "1")
    await getattr(fleet_map, operation)()
    await fleet_map.set("b", "2")
    await until_equal(fleet_map, other)
    while other.revision < 3:
        await asyncio.wait_for(anext(events), 5)
    assert other.snapshot() == {"b": "2"}
    assert other.stats.gaps == 0


async def test_test_and_reset_asks_for_every_pair(fleet_map: Map[str]) -> None:
    await fleet_map.set("a", "1")
    await fleet_map.set("b", "2")
    assert not await fleet_map.test_and_reset({"a": "1", "b": "3"})
    assert not await fleet_map.test_and_reset({"a": "1", "none": ""})
    assert await fleet_map.test_and_reset({"a": "1", "b": "2"})
    await fleet_map.refresh()
    assert len(fleet_map) == 0


@pytest.mark.parametrize("key", ["", "a=b", "=rev"])
async def test_no_operation_takes_a_bad_key(key: str, fleet_map: Map[str]) -> None:
    for attempt in (
        lambda: fleet_map.set(key, "v"),
        lambda: fleet_map.set_and_wait(key, "v"),
        lambda: fleet_map.set_if_absent(key, "v"),
        lambda: fleet_map.test_and_set(key, "v", "w"),
        lambda: fleet_map.incr(key),
        lambda: fleet_map.append_values(key, "v"),
        lambda: fleet_map.append_unique_values(key, "v"),
        lambda: fleet_map.remove_values(key, "v"),
        lambda: fleet_map.delete(key),
        lambda: fleet_map.test_and_delete(key, "v"),
        lambda: fleet_map.test_and_reset({key: "v"}),
    ):
        with pytest.raises(InvalidName):
            await attempt()
    assert fleet_map.revision == 0


async def test_a_key_may_hold_any_bytes(fleet_map: Map[str], redis: Redis) -> None:
    key = b"\xff\x00 \n".decode("utf-8", "surrogateescape")
    await fleet_map.set_and_wait(key, "v")
    assert fleet_map.keys() == [key]
    stored = await redis.link.call("HGETALL", f"map:{fleet_map.name}:content")
    assert stored[b"\xff\x00 \n"] == b"v"


# --- typed values ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Flag:
    enabled: bool
    percent: int = 100


class Device(pydantic.BaseModel):
    name: str
    tags: list[str] = []


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (BYTES, b"\x00\xff"),
        (INT, -(2**63)),
        (JSON, {"b": [1, None, "ü"], "a": True}),
        (MSGPACK, {"a": b"\x00", "n": 2**63}),
        (DataclassCodec(Flag), Flag(enabled=False, percent=3)),
        (ModelCodec(Device), Device(name="d", tags=["x"])),
    ],
    ids=["bytes", "int", "json", "msgpack", "dataclass", "pydantic"],
)
async def test_typed_values_come_back(codec: Codec[Any], value: Any, unique: str, redis: Redis) -> None:
    async with await Map.join(unique, redis, codec=codec) as one, await Map.join(unique, redis, codec=codec) as two:
        assert await one.set_if_absent("k", value)
        await two.refresh()
        assert two["k"] == value
        assert type(two["k"]) is type(value)
        assert await two.test_and_set("k", value, value)
        assert await two.delete("k") == value


@pytest.mark.parametrize(
    ("codec", "junk"),
    [
        (None, b"\xff"),
        (INT, b"1_0"),
        (JSON, b"{"),
        (MSGPACK, b"\xc1"),
        (DataclassCodec(Flag), b"[]"),
        (DataclassCodec(Flag), b"{}"),
        (ModelCodec(Device), b'{"name":1}'),
    ],
)
async def test_a_value_that_the_codec_cannot_read_is_named(codec: Any, junk: bytes, unique: str, redis: Redis) -> None:
    async with (
        await Map.join(unique, redis, codec=BYTES) as writer,
        await Map.join(unique, redis, codec=codec) as reader,
    ):
        await writer.set("bad", junk)
        await reader.refresh()
        with pytest.raises(WireError, match=f"key 'bad' of map '{unique}'"):
            reader.get("bad")
        assert "bad" in reader


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (None, 5),
        (BYTES, "text"),
        (INT, True),
        (INT, 2**63),
        (JSON, {1, 2}),
        (JSON, float("nan")),
        (DataclassCodec(Flag), 1),
    ],
)
async def test_a_value_of_another_type_is_refused_before_it_travels(
    codec: Any, value: Any, unique: str, redis: Redis
) -> None:
    async with await Map.join(unique, redis, codec=codec) as joined:
        with pytest.raises((TypeError, ValueError)):
            await joined.set("k", value)
        await joined.refresh()
        assert joined.revision == 0


async def test_a_test_compares_meaning_where_this_copy_can_read_it(unique: str, redis: Redis) -> None:
    """Another program writes the same JSON with other spaces."""
    async with await Map.join(unique, redis, codec=BYTES) as raw, await Map.join(unique, redis, codec=JSON) as typed:
        await raw.set("k", b'{ "b": 1, "a": 2 }')
        await typed.refresh()
        assert await typed.test_and_set("k", {"a": 2, "b": 1}, "done")


def test_the_dataclass_codec_bridges_versions_of_a_class() -> None:
    assert DataclassCodec(Flag).decode(b'{"enabled":true,"of_tomorrow":1}') == Flag(enabled=True)


# --- being told ------------------------------------------------------------------------------------------------------


async def test_a_burst_folds_into_few_events(fleet_map: Map[str], other: Map[str]) -> None:
    events = other.subscribe()
    await asyncio.gather(*(fleet_map.set(f"key-{number}", "v") for number in range(10_000)))
    counts = []
    while sum(counts) < 10_000:
        counts.append((await asyncio.wait_for(anext(events), 10)).count)
    assert len(counts) <= 500
    assert len(other) == 10_000


async def test_folding_keeps_the_strongest_kind(fleet_map: Map[str], other: Map[str]) -> None:
    events = other.subscribe()
    await fleet_map.set("a", "1")
    await fleet_map.reset()
    await fleet_map.set("b", "1")
    await fleet_map.delete("b")
    while other.revision < 4:
        await asyncio.wait_for(anext(other.subscribe()), 5)
    event = await asyncio.wait_for(anext(events), 5)
    assert (event.kind, event.revision, event.count) == (EventKind.RESET, 4, 4)


async def test_a_watch_gives_the_present_value_then_each_other_one(fleet_map: Map[str], other: Map[str]) -> None:
    watch = other.watch("a")
    assert await anext(watch) is None
    await fleet_map.set("b", "not watched")
    await fleet_map.set("a", "1")
    assert await asyncio.wait_for(anext(watch), 5) == "1"
    await fleet_map.set("a", "1")
    await fleet_map.reset()
    assert await asyncio.wait_for(anext(watch), 5) is None
    await fleet_map.set("a", "2")
    assert await asyncio.wait_for(anext(watch), 5) == "2"


async def test_a_cancelled_wait_loses_no_event(fleet_map: Map[str], other: Map[str]) -> None:
    events = other.subscribe()
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await fleet_map.set("a", "1")
    assert (await asyncio.wait_for(anext(events), 5)).revision == 1


async def test_an_iterator_serves_one_task(fleet_map: Map[str]) -> None:
    events = fleet_map.subscribe()
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="two tasks"):
        await anext(events)
    waiting.cancel()


async def test_iterators_that_nobody_holds_are_gone(fleet_map: Map[str]) -> None:
    gone = [weakref.ref(fleet_map.subscribe()), weakref.ref(fleet_map.watch("k"))]
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    await fleet_map.set_and_wait("k", "v")


async def test_iterators_end_when_the_map_or_they_are_closed(unique: str, redis: Redis) -> None:
    joined = await Map.join(unique, redis)
    events, watch, ended = joined.subscribe(), joined.watch("k"), joined.subscribe()
    assert await anext(watch) is None
    await ended.aclose()
    assert [event async for event in ended] == []
    waiting = [asyncio.ensure_future(anext(iterator, "end")) for iterator in (events, watch)]
    await asyncio.sleep(0)
    await joined.aclose()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == ["end", "end"]
    assert [event async for event in joined.subscribe()] == []


# --- life ------------------------------------------------------------------------------------------------------------


async def test_before_the_start_nothing_works_and_says_so(unique: str) -> None:
    handle: Map[str] = Map(unique)
    for attempt in (
        lambda: handle.get("a"),
        lambda: handle["a"],
        lambda: len(handle),
        lambda: "a" in handle,
        handle.keys,
        handle.snapshot,
        handle.subscribe,
        lambda: handle.get_values("a"),
        lambda: handle.watch("a"),
    ):
        with pytest.raises(NotStarted):
            attempt()
    with pytest.raises(NotStarted):
        await handle.set("a", "1")
    assert handle.stale
    await handle.aclose()


async def test_start_and_close_may_be_called_twice(unique: str, redis: Redis) -> None:
    handle: Map[str] = Map(unique)
    await asyncio.gather(handle.start(redis), handle.start(redis))
    await handle.set_and_wait("a", "1")
    await asyncio.gather(handle.aclose(), handle.aclose())
    with pytest.raises(Closed):
        await handle.start(redis)
    with pytest.raises(Closed):
        await handle.set("a", "2")
    assert handle["a"] == "1"
    assert handle.stale
    assert (await redis.ping()) is True


async def test_close_ends_a_writer_that_waits(unique: str, own_valkey: Any) -> None:
    joined = await Map.join(unique, own_valkey.url)
    own_valkey.pause()
    waiting = asyncio.ensure_future(joined.refresh())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(joined.aclose())
    with pytest.raises(Closed):
        await asyncio.wait_for(waiting, 5)
    own_valkey.resume()
    await closing


async def test_a_join_that_fails_leaves_nothing_behind(unique: str, redis: Redis) -> None:
    await redis.link.call("SET", f"map:{unique}:content", "no hash")
    handle: Map[str] = Map(unique)
    with pytest.raises(CommandError, match="WRONGTYPE"):
        await handle.start(redis)
    async with asyncio.timeout(5):  # UNSUBSCRIBE travels on another connection
        while (await redis.link.call("PUBSUB", "NUMSUB", f"map:{unique}:updates"))[1]:
            await asyncio.sleep(0)
    await redis.link.call("DEL", f"map:{unique}:content")
    await handle.start(redis)
    await handle.aclose()


async def test_a_hash_that_is_no_map_is_refused(unique: str, redis: Redis) -> None:
    await redis.link.call("HSET", f"map:{unique}:content", "=rev", "seven")
    with pytest.raises(WireError, match="revision"):
        await Map.join(unique, redis)


async def test_no_server_is_an_error_that_names_the_place() -> None:
    redis = Redis.from_url("redis://127.0.0.1:1", options=LinkOptions(connect_timeout_s=0.5, command_timeout_s=0.5))
    with pytest.raises(LinkUnavailable):
        await Map.join("m", redis)
    await redis.aclose()


@pytest.mark.parametrize("name", ["", "a b", "x" * 513])
async def test_a_bad_name_stops_at_birth(name: str) -> None:
    with pytest.raises(InvalidName):
        Map(name)


@pytest.mark.parametrize(
    "options",
    [{"ttl_s": 0}, {"ttl_s": -1}, {"ttl_s": float("inf")}, {"sliding": True}],
)
async def test_a_bad_ttl_stops_at_birth(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Map("m", **options)


@pytest.mark.parametrize(
    "options",
    [{"load_timeout_s": 0}, {"check_interval_s": -1}, {"reload_delay_max_s": 0.01}, {"pending_max": 0}],
)
def test_a_bad_option_stops_at_birth(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MapOptions(**options)


async def test_a_namespace_keeps_two_fleets_apart(unique: str, valkey_url: str, redis: Redis) -> None:
    staging = Redis.from_url(valkey_url, namespace="staging:")
    async with await Map.join(unique, redis) as one, await Map.join(unique, staging) as two:
        await two.set_and_wait("a", "staging")
        await one.set_and_wait("b", "production")
        assert (one.keys(), two.keys()) == (["b"], ["a"])
        assert await redis.link.call("HGET", f"staging:map:{unique}:content", "a") == b"staging"
    await staging.aclose()


async def deafen(joined: Map[Any], redis: Redis) -> None:
    """Messages for ``joined`` go nowhere from now on, and nothing tells it."""
    assert joined._follower._subscription is not None
    await joined._follower._subscription.aclose()
    # One message that it misses: after that no reply of its own is the next write.
    async with await Map.join(joined.name, redis) as another:
        await another.set("missed", "1")


async def test_a_wait_that_cannot_end_is_bounded(unique: str, redis: Redis) -> None:
    async with await Map.join(unique, redis) as joined:
        await deafen(joined, redis)
        with pytest.raises(MapTimeout) as caught:
            await joined.set_and_wait("a", "1", timeout_s=0.05)
        assert caught.value.waited_s == 0.05
        assert await redis.link.call("HGET", f"map:{unique}:content", "a") == b"1"


# --- one's own writes -------------------------------------------------------------------------------------------------


async def test_an_awaited_write_of_any_kind_is_seen_by_its_writer(fleet_map: Map[str], other: Map[str]) -> None:
    """While another instance writes into the same map as fast as it can."""
    busy = asyncio.create_task(keep_writing(other))
    m = fleet_map
    for number in range(40):
        await m.set("a", str(number))
        assert m["a"] == str(number)
        assert await m.test_and_set("a", str(number), "swapped")
        assert m["a"] == "swapped"
        total = await m.incr("n")
        assert m["n"] == str(total)
        assert await m.delete("a") == "swapped"
        assert "a" not in m
        assert await m.set_if_absent("a", "new")
        assert m["a"] == "new"
        await m.append_values("l", "x", "y")
        assert m.get_values("l") == ["x", "y"]
        await m.append_unique_values("l", "x", "z")
        assert m.get_values("l") == ["x", "y", "z"]
        await m.remove_values("l", "x", "y", "z")
        assert "l" not in m
        assert await m.test_and_delete("a", "new")
        assert "a" not in m
    await m.set("last", "1")
    busy.cancel()
    await asyncio.wait([busy])
    await m.reset()
    assert len(m) == 0
    assert m.stats.gaps == m.stats.junk == other.stats.gaps == 0
    assert m.stats.loads == 1


async def keep_writing(joined: Map[str]) -> None:
    while True:
        await asyncio.gather(*(joined.set(f"noise-{number}", "x") for number in range(20)))


async def test_a_failed_test_leaves_the_copy_at_what_it_met(fleet_map: Map[str], other: Map[str]) -> None:
    """So ``while not await m.test_and_set(key, m[key], ...)`` never tries the same value twice."""
    await fleet_map.set("n", "0")
    await other.refresh()
    tries = 0

    async def add_hundred(one: Map[str]) -> None:
        nonlocal tries
        for _ in range(100):
            while True:
                tries += 1
                before = one["n"]
                found = await one.test_and_set("n", before, str(int(before) + 1))
                if found:
                    break
                assert found.previous != before
                assert int(one["n"]) >= int(found.previous or 0)

    await asyncio.gather(add_hundred(fleet_map), add_hundred(other))
    assert fleet_map["n"] == "200" or other["n"] == "200"
    assert tries <= 400


async def test_own_writes_change_nothing_in_the_order_of_events(fleet_map: Map[str]) -> None:
    """Their messages come later and are known by then; each write is told once."""
    events = fleet_map.subscribe()
    await asyncio.gather(*(fleet_map.set("k", str(number)) for number in range(300)))
    assert fleet_map["k"] == "299"
    told = 0
    while told < 300:
        told += (await asyncio.wait_for(anext(events), 5)).count
    await fleet_map.incr("n")
    assert (await asyncio.wait_for(anext(events), 5)).count == 1
    assert fleet_map.stats.applied == fleet_map.revision == 301


async def test_a_lost_message_is_noticed_by_the_next_own_write(unique: str, redis: Redis) -> None:
    async with await Map.join(unique, redis, options=QUIET) as joined:
        await deafen(joined, redis)
        await asyncio.wait_for(joined.set("a", "1"), 5)
        await joined.refresh()
        assert joined.snapshot() == {"missed": "1", "a": "1"}
        assert joined.stats.gaps == 1


async def test_a_write_into_lost_data_is_seen_too(unique: str, redis: Redis) -> None:
    """Revisions begin anew; the reply of the next write shows it."""
    async with await Map.join(unique, redis, options=QUIET) as joined:
        for number in range(10):
            await joined.set(f"old-{number}", "1")
        await redis.link.call("DEL", f"map:{unique}:content")
        await joined.set("new", "1")
        assert joined.snapshot() == {"new": "1"}
        await redis.link.call("DEL", f"map:{unique}:content")
        assert await joined.incr("n") == 1
        assert joined.snapshot() == {"n": "1"}


async def test_a_write_does_not_wait_while_the_map_is_deaf(
    unique: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flotta.rmap.arrival.CATCH_UP_S", 60.0)
    async with await Map.join(unique, redis, options=QUIET) as joined:
        joined._follower.on_lost()
        async with asyncio.timeout(10):  # less than it would wait for a message
            assert await joined.incr("n") == 1
            assert await joined.set("a", "1") is None
        assert joined.stale
        assert len(joined) == 0
        joined._follower.on_restored()
        await joined.refresh()
        assert joined.snapshot() == {"n": "1", "a": "1"}


async def test_a_replaced_value_that_cannot_be_read_says_what_became_of_the_write(unique: str, redis: Redis) -> None:
    async with await Map.join(unique, redis, codec=BYTES) as raw, await Map.join(unique, redis, codec=INT) as typed:
        await raw.set("k", b"junk")
        with pytest.raises(WireError, match=r"previous value of key 'k'.*the write is done"):
            await typed.set("k", 1)
        assert typed["k"] == 1
        await raw.set("k", b"junk")
        with pytest.raises(WireError, match="nothing was written"):
            await typed.test_and_set("k", 1, 2)
        with pytest.raises(WireError, match="the write is done"):
            await typed.delete("k")
        assert "k" not in typed


async def test_large_sets_of_one_turn_leave_in_several_scripts(fleet_map: Map[str], redis: Redis) -> None:
    """Else a hundred large values are one command, which the server refuses past its query buffer."""

    async def scripts_run() -> int:
        text = (await redis.link.call("INFO", "commandstats")).decode()
        line = next((line for line in text.splitlines() if line.startswith("cmdstat_evalsha:")), "calls=0,")
        return int(line.split("calls=")[1].split(",")[0])

    before = await scripts_run()
    await asyncio.gather(*(fleet_map.set(f"k{number}", "x" * BYTES_MAX) for number in range(10)))
    assert await scripts_run() - before >= 10
    assert len(fleet_map) == 10


async def test_arguments_of_a_wrong_type_are_refused_before_they_travel(fleet_map: Map[str]) -> None:
    with pytest.raises(TypeError, match="delta is an int"):
        await fleet_map.incr("n", 1.5)  # type: ignore[arg-type]
    for append in (fleet_map.append_values, fleet_map.append_unique_values, fleet_map.remove_values):
        with pytest.raises(TypeError, match="not list"):
            await append("l", ["a", "b"])  # type: ignore[arg-type]
    assert fleet_map.revision == 0


async def test_a_map_whose_redis_was_closed_first_is_stale(unique: str, valkey_url: str) -> None:
    redis = await Redis.from_url(valkey_url).connect()
    joined = await Map.join(unique, redis, options=MapOptions(check_interval_s=0.02))
    await joined.set("a", "1")
    await redis.aclose()
    assert joined._follower._task is not None
    await asyncio.wait_for(asyncio.shield(joined._follower._task), 5)
    assert joined.stale
    assert joined["a"] == "1"
    with pytest.raises(Closed):
        await joined.set("a", "2")
    await joined.aclose()


# --- time to live ----------------------------------------------------------------------------------------------------


async def test_a_fixed_ttl_counts_from_the_first_write(unique: str, redis: Redis) -> None:
    async with await Map.join(unique, redis, ttl_s=100) as joined:
        await joined.set("a", "1")
        await redis.link.call("PEXPIRE", f"map:{unique}:content", 5_000)
        await joined.set("a", "2")
        assert 0 < await redis.link.call("PTTL", f"map:{unique}:content") <= 5_000


async def test_a_sliding_ttl_counts_from_the_last_write(unique: str, redis: Redis) -> None:
    async with await Map.join(unique, redis, ttl_s=100, sliding=True) as joined:
        await joined.set("a", "1")
        await redis.link.call("PEXPIRE", f"map:{unique}:content", 5_000)
        await joined.reset()
        assert 95_000 < await redis.link.call("PTTL", f"map:{unique}:content") <= 100_000


@pytest.mark.parametrize("sliding", [False, True])
async def test_a_copy_is_empty_once_its_ttl_has_run_out(sliding: bool, unique: str, redis: Redis) -> None:
    async with (
        await Map.join(unique, redis, ttl_s=0.3, sliding=sliding, options=QUIET) as writer,
        await Map.join(unique, redis, ttl_s=0.3, sliding=sliding, options=QUIET) as reader,
    ):
        events = reader.subscribe()
        await writer.set_and_wait("a", "1")
        assert (await asyncio.wait_for(anext(events), 5)).kind is EventKind.CHANGE
        assert (await asyncio.wait_for(anext(events), 5)).kind is EventKind.RESET
        assert (len(reader), reader.revision) == (0, 0)
        await writer.set_and_wait("b", "2")
        await reader.refresh()
        assert reader.snapshot() == writer.snapshot() == {"b": "2"}


async def test_a_copy_that_joined_later_expires_with_the_hash(unique: str, redis: Redis) -> None:
    """It was given no TTL itself: it learns it from the server."""
    async with await Map.join(unique, redis, ttl_s=2.0) as writer:
        await writer.set("a", "1")
        async with await Map.join(unique, redis, options=QUIET) as reader:
            events = reader.subscribe()
            assert reader["a"] == "1"
            assert (await asyncio.wait_for(anext(events), 5)).kind is EventKind.RESET
            assert len(reader) == 0


async def test_a_sliding_map_that_is_written_stays(unique: str, redis: Redis) -> None:
    async with await Map.join(unique, redis, ttl_s=1.5, sliding=True, options=QUIET) as joined:
        end = asyncio.get_running_loop().time() + 2.5
        while asyncio.get_running_loop().time() < end:
            await joined.set_and_wait("a", "1")
            await asyncio.sleep(0.02)  # the time that must pass is the point of this test
            assert joined.get("a") == "1"


# --- sets of one turn of the loop ------------------------------------------------------------------------------------


async def test_sets_of_one_turn_keep_their_order_and_each_its_revision(fleet_map: Map[str], other: Map[str]) -> None:
    """They travel in one script and are writes of their own all the same."""
    values = [str(number) for number in range(300)]
    previous = await asyncio.gather(*(fleet_map.set("k", value) for value in values))
    assert previous == [None, *values[:-1]]
    await other.refresh()
    assert (other.revision, other["k"], other.stats.gaps) == (300, "299", 0)


async def test_other_writes_of_the_same_turn_stay_behind_the_sets_before_them(fleet_map: Map[str]) -> None:
    await asyncio.gather(fleet_map.set("m", "1"), fleet_map.incr("m"), fleet_map.delete("m"))  # the scripts are there
    replies = await asyncio.gather(
        fleet_map.set("n", "5"),
        fleet_map.incr("n"),
        fleet_map.set("n", "9"),
        fleet_map.delete("n"),
        fleet_map.set("n", "1"),
    )
    assert replies == [None, 6, "6", "9", None]


async def test_sets_survive_a_server_that_forgot_the_scripts(fleet_map: Map[str], own_valkey: Any, unique: str) -> None:
    async with await Map.join(unique, own_valkey.url) as joined:
        await joined.set("a", "1")
        await joined._redis.link.call("SCRIPT", "FLUSH")
        assert await asyncio.gather(*(joined.set("a", str(number)) for number in range(3))) == ["1", "0", "1"]


async def test_a_failed_script_is_told_to_every_set_of_its_turn(unique: str, own_valkey: Any) -> None:
    async with await Map.join(unique, own_valkey.url) as joined:
        await joined._redis.link.call("SET", f"map:{unique}:content", "no hash")
        replies = await asyncio.gather(*(joined.set(str(n), "v") for n in range(3)), return_exceptions=True)
        assert [type(reply) for reply in replies] == [CommandError] * 3
