"""A map when things break: real servers killed, subscriptions dropped, messages swallowed, data lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from flotta.errors import AmbiguousOutcome, NotAnInteger, NotApplied, RedisError
from flotta.redis import Hub, LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.rmap import EventKind, Map, MapOptions
from flotta.testing import FaultProxy
from free_ports import free_port
from linearizability import UNKNOWN, Operation, is_linearizable

pytestmark = pytest.mark.faults

QUICK_LINK = LinkOptions(command_timeout_s=1.0, reconnect_min_s=0.01, reconnect_max_s=0.05)
NO_CHECK = MapOptions(check_interval_s=None)


async def until(condition: Any, events: Any = None, *, timeout_s: float = 10) -> None:
    """Wait until ``condition()``, woken by events of a map where there are any."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await (anext(events) if events is not None else asyncio.sleep(0.001))


Connect = Callable[[str], Awaitable[Redis]]


@pytest.fixture
async def connected() -> AsyncIterator[Connect]:
    """Makes clients that reconnect quickly, and closes them at the end."""
    async with contextlib.AsyncExitStack() as clients:

        async def connect(url: str) -> Redis:
            client = Redis.from_url(url, options=QUICK_LINK)
            clients.push_async_callback(client.aclose)
            return await client.connect()

        yield connect


async def stored(redis: Redis, name: str) -> dict[str, bytes]:
    fields = await redis.link.call("HGETALL", f"map:{name}:content")
    return {key.decode(): value for key, value in fields.items() if not key.startswith(b"=")}


@pytest.fixture
async def direct(own_valkey: EmbeddedRedis, connected: Connect) -> Redis:
    """A client that nothing disturbs."""
    return await connected(own_valkey.url)


@pytest.fixture
async def behind_proxy(own_valkey: EmbeddedRedis, connected: Connect) -> AsyncIterator[tuple[Redis, FaultProxy]]:
    """A client whose subscriptions, and only they, pass a fault proxy."""
    async with FaultProxy(own_valkey.url) as proxy:
        client = await connected(own_valkey.url)
        await client.hub.aclose()
        client.hub = Hub(proxy.url, options=QUICK_LINK)
        yield client, proxy


# --- Redis gone and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missed", "event"),
    [
        (["set"], EventKind.CHANGE),
        (["set", "delete", "set"], EventKind.DELETE),
        (["set", "reset", "set"], EventKind.RESET),
    ],
)
async def test_an_outage_is_visible_survived_and_reported(
    connected: Connect, missed: list[str], event: EventKind, own_valkey: EmbeddedRedis, unique: str
) -> None:
    reader_client = await connected(own_valkey.url)
    async with await Map.join(unique, reader_client, options=NO_CHECK) as reader:
        writer = await Map.join(unique, own_valkey.url)
        for key in ("a", "b"):
            await writer.set_and_wait(key, "before")
        await until(lambda: reader.revision == 2, reader.subscribe())
        await writer.aclose()
        events = reader.subscribe()

        own_valkey.kill()
        await until(lambda: reader.stale)
        assert reader.snapshot() == {"a": "before", "b": "before"}
        with pytest.raises(RedisError):
            await reader.set("a", "while gone")

        own_valkey.restart_sync()
        async with await Map.join(unique, own_valkey.url) as other:
            for operation in missed:
                await {
                    "set": lambda: other.set("c", "after"),
                    "delete": lambda: other.delete("a"),
                    "reset": other.reset,
                }[operation]()
            await until(lambda: not reader.stale and reader.revision == 2 + len(missed))
            kinds = []
            while not kinds or events._pending is not None:
                kinds.append((await asyncio.wait_for(anext(events), 5)).kind)
            assert max(kinds) is event
            await other.refresh()
            assert reader.snapshot() == other.snapshot()


async def test_a_cut_subscription_comes_back_with_what_was_missed(
    behind_proxy: tuple[Redis, FaultProxy], direct: Redis, unique: str
) -> None:
    client, proxy = behind_proxy
    async with await Map.join(unique, client, options=NO_CHECK) as reader, await Map.join(unique, direct) as writer:
        await writer.set("a", "1")
        await until(lambda: reader.get("a") == "1", reader.subscribe())
        events = reader.subscribe()
        await proxy.refuse()
        proxy.cut()
        await until(lambda: reader.stale)
        await writer.set("a", "2")
        await writer.reset()
        await writer.set("b", "3")
        assert reader.get("a") == "1"
        await proxy.accept()
        event = await asyncio.wait_for(anext(events), 5)
        assert event.kind is EventKind.RESET
        assert not reader.stale
        assert reader.snapshot() == {"b": "3"}
        assert reader.stats.lost == 1
        await writer.set("b", "4")
        await asyncio.wait_for(anext(events), 5)
        assert reader["b"] == "4"


async def test_an_outage_in_which_nothing_was_written_reports_nothing(
    behind_proxy: tuple[Redis, FaultProxy], direct: Redis, unique: str
) -> None:
    client, proxy = behind_proxy
    async with await Map.join(unique, client, options=NO_CHECK) as reader, await Map.join(unique, direct) as writer:
        await writer.set("a", "1")
        await until(lambda: reader.get("a") == "1", reader.subscribe())
        events = reader.subscribe()
        proxy.cut()
        await until(lambda: reader.stale)
        await until(lambda: not reader.stale)
        await writer.set("a", "2")
        event = await asyncio.wait_for(anext(events), 5)
        assert (event.kind, event.revision, event.count) == (EventKind.CHANGE, 2, 1)


async def test_a_server_that_lost_its_data_leaves_the_map_empty(connected: Connect, unique: str) -> None:
    with EmbeddedRedis(port=free_port()) as server:
        client = await connected(server.url)
        async with await Map.join(unique, client, options=NO_CHECK) as joined:
            await joined.set_and_wait("a", "1")
            events = joined.subscribe()
            server.kill()
            await until(lambda: joined.stale)
            server.restart_sync()
            assert (await asyncio.wait_for(anext(events), 10)).kind is EventKind.RESET
            assert (joined.snapshot(), joined.revision, joined.stale) == ({}, 0, False)
            await joined.set_and_wait("b", "2")
            assert joined.snapshot() == {"b": "2"}


async def test_a_map_that_should_expire_while_redis_is_away_waits_quietly(connected: Connect, unique: str) -> None:
    with EmbeddedRedis(port=free_port()) as server:
        client = await connected(server.url)
        async with await Map.join(unique, client, options=NO_CHECK, ttl_s=0.2) as joined:
            await joined.set_and_wait("a", "1")
            server.kill()
            await until(lambda: joined.stale)
            await asyncio.sleep(0.5)  # past its expiry, which nobody can confirm
            used_s = time.process_time()
            await asyncio.sleep(1.0)
            assert time.process_time() - used_s < 0.5


# --- gaps ------------------------------------------------------------------------------------------------------------


async def write_until(stop: asyncio.Event, writer: Map[str], dice: random.Random) -> int:
    """Writes of all kinds until told to stop; gives how many."""
    count = 0
    while not stop.is_set():
        key = f"key-{dice.randrange(50)}"
        roll = dice.random()
        if roll < 0.85:
            await writer.set(key, str(count))
        elif roll < 0.99:
            await writer.delete(key)
        else:
            await writer.reset()
        count += 1
    return count


async def test_subscriptions_killed_under_load_end_where_redis_is(
    connected: Connect, own_valkey: EmbeddedRedis, direct: Redis, unique: str
) -> None:
    """CLIENT KILL TYPE pubsub, twenty times, while four writers write."""
    followers = [await connected(own_valkey.url) for _ in range(3)]
    readers = [await Map.join(unique, client, options=NO_CHECK) for client in followers]
    stop = asyncio.Event()
    async with await Map.join(unique, direct, options=NO_CHECK) as writer:
        writing = [asyncio.create_task(write_until(stop, writer, random.Random(seed))) for seed in range(4)]
        for kill in range(20):
            await direct.link.call("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda kill=kill: all(reader.stats.lost > kill and not reader.stale for reader in readers))
        stop.set()
        assert sum(await asyncio.gather(*writing)) > 100
        await writer.set("last", "1")
        expected = await stored(direct, unique)
        for reader in readers:
            await until(lambda reader=reader: "last" in reader and not reader.stale)
            assert dict(reader._replica.content) == expected
            assert reader.stats.loads > 20
    for reader in readers:
        await reader.aclose()


async def test_swallowed_messages_are_noticed_under_load(
    behind_proxy: tuple[Redis, FaultProxy], direct: Redis, unique: str
) -> None:
    """The connection stays up and some of what it carried never arrives: only the revisions can tell."""
    client, proxy = behind_proxy
    stop = asyncio.Event()
    async with await Map.join(unique, client, options=NO_CHECK) as reader, await Map.join(unique, direct) as writer:
        writing = [asyncio.create_task(write_until(stop, writer, random.Random(seed))) for seed in range(2)]
        for swallowed in range(10):
            proxy.drop("down")
            written = writer.revision
            await until(lambda written=written: writer.revision > written + 20)
            proxy.restore("down")
            # A message cut in two may end the connection: then it is noticed that way.
            await until(lambda count=swallowed: reader.stats.gaps + reader.stats.lost > count and not reader.stale)
        stop.set()
        await asyncio.gather(*writing)
        await writer.set("last", "1")
        await until(lambda: "last" in reader and not reader.stale)
        assert dict(reader._replica.content) == await stored(direct, unique)
        assert reader.stats.loads > 1


async def test_one_swallowed_message_costs_one_reload_at_the_next(
    behind_proxy: tuple[Redis, FaultProxy], direct: Redis, unique: str
) -> None:
    client, proxy = behind_proxy
    async with await Map.join(unique, client, options=NO_CHECK) as reader, await Map.join(unique, direct) as writer:
        await writer.set("a", "1")
        await until(lambda: reader.get("a") == "1", reader.subscribe())
        proxy.drop("down")
        await writer.set_and_wait("a", "swallowed")
        await direct.link.call("PING")
        proxy.restore("down")
        assert reader.get("a") == "1"
        assert not reader.stale
        await writer.set("b", "2")
        await until(lambda: reader.get("a") == "swallowed", reader.subscribe())
        assert reader.get("b") == "2"
        assert (reader.stats.gaps, reader.stats.loads) == (1, 2)


async def test_a_swallowed_last_message_is_found_by_the_check(
    behind_proxy: tuple[Redis, FaultProxy], direct: Redis, unique: str
) -> None:
    client, proxy = behind_proxy
    options = MapOptions(check_interval_s=0.2)
    async with await Map.join(unique, client, options=options) as reader, await Map.join(unique, direct) as writer:
        events = reader.subscribe()
        proxy.drop("down")
        await writer.set_and_wait("a", "swallowed")
        await direct.link.call("PING")
        proxy.restore("down")
        await asyncio.wait_for(anext(events), 5)
        assert reader.get("a") == "swallowed"


async def test_a_flush_is_found_by_the_check_and_by_the_next_write(
    connected: Connect, direct: Redis, own_valkey: EmbeddedRedis, unique: str
) -> None:
    other = await connected(own_valkey.url)
    async with (
        await Map.join(unique, direct, options=MapOptions(check_interval_s=0.2)) as checking,
        await Map.join(unique, other, options=NO_CHECK) as waiting,
    ):
        for number in range(5):
            await checking.set_and_wait(f"k{number}", "v")
        await until(lambda: waiting.revision == 5, waiting.subscribe())
        events = checking.subscribe(), waiting.subscribe()
        await direct.link.call("FLUSHALL")
        assert (await asyncio.wait_for(anext(events[0]), 5)).kind is EventKind.RESET
        assert len(checking) == 0
        assert len(waiting) == 5
        await checking.set_and_wait("new", "1")
        assert (await asyncio.wait_for(anext(events[1]), 5)).kind is EventKind.RESET
        assert waiting.snapshot() == checking.snapshot() == {"new": "1"}


async def test_junk_on_the_channel_changes_nothing(direct: Redis, unique: str) -> None:
    async with await Map.join(unique, direct, options=NO_CHECK) as joined:
        await joined.set_and_wait("a", "1")
        for junk in (b"", b"junk", b"set:", b"set:\xff\xff\xff\xff", b"reset:x", b"del:\x04\x00\x00\x00=rev"):
            await direct.link.call("PUBLISH", f"map:{unique}:updates", junk)
        await joined.set_and_wait("a", "2")
        assert (joined.stats.junk, joined.stats.gaps, joined.stats.loads) == (6, 0, 1)
        assert not joined.stale


async def test_a_forged_revision_costs_a_reload_and_no_truth(direct: Redis, unique: str) -> None:
    async with await Map.join(unique, direct, options=NO_CHECK) as joined:
        await joined.set_and_wait("a", "1")
        await direct.link.call("PUBLISH", f"map:{unique}:updates", b"reset:999")
        await joined.set_and_wait("b", "2")
        await until(lambda: not joined.stale)
        assert joined.snapshot() == {"a": "1", "b": "2"}


async def test_a_reader_too_slow_for_the_server_is_told_and_resyncs(
    connected: Connect, own_valkey: EmbeddedRedis, direct: Redis, unique: str
) -> None:
    """client-output-buffer-limit pubsub: the server ends the subscription of a peer that does not read."""
    await direct.link.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 65536 0 0")
    async with FaultProxy(own_valkey.url) as proxy:
        client = await connected(own_valkey.url)
        await client.hub.aclose()
        client.hub = Hub(proxy.url, options=QUICK_LINK)
        async with await Map.join(unique, client, options=NO_CHECK) as reader, await Map.join(unique, direct) as writer:
            proxy.pause("down")
            value = "x" * 4096
            async with asyncio.timeout(20):
                while (await direct.link.call("PUBSUB", "NUMSUB", f"map:{unique}:updates"))[1] == 2:
                    await asyncio.gather(*(writer.set(f"k{number}", value) for number in range(200)))
            proxy.resume("down")
            await writer.set_and_wait("last", "1")
            await until(lambda: "last" in reader and not reader.stale)
            assert dict(reader._replica.content) == await stored(direct, unique)


# --- one key, many writers -------------------------------------------------------------------------------------------


def one_key(state: str | None, call: tuple[Any, ...]) -> tuple[str | None, Any]:
    """What one key of a map is: the model that histories are held against."""
    name, *arguments = call
    if name == "set":
        return arguments[0], state
    if name == "test_and_set":
        expected, value = arguments
        return (value, (True, state)) if state == expected else (state, (False, state))
    total = int(state or 0) + arguments[0]
    return str(total), total


Plan = Iterator[tuple[Any, ...]]


def few_values(dice: random.Random, count: int) -> Plan:
    """Calls on values that often meet."""
    for _ in range(count):
        value = str(dice.randrange(4))
        yield dice.choice(
            [("set", value), ("test_and_set", str(dice.randrange(4)), value), ("incr", dice.randrange(1, 3))]
        )


def own_values(dice: random.Random, count: int, first: int) -> Plan:
    """Calls that write values which nobody else writes: whether a call with a lost reply has run can then be told."""
    for number in range(count):
        value = str((first + number) * 1_000)
        expected = str((first + max(0, number - 1)) * 1_000)
        yield dice.choice([("set", value), ("set", value), ("test_and_set", expected, value), ("incr", 1)])


async def run_plan(writer: Map[str], plan: Plan, history: list[Operation]) -> None:
    """One writer; the times of call and return go into the history."""
    for call in plan:
        start = time.monotonic()
        try:
            reply = await getattr(writer, call[0])("k", *call[1:])
        except AmbiguousOutcome:
            reply = UNKNOWN
        except NotApplied:
            continue
        if call[0] == "test_and_set" and reply is not UNKNOWN:
            reply = (reply.done, reply.previous)
        history.append(Operation(start, time.monotonic(), call, reply))


@pytest.mark.parametrize("seed", range(5))
async def test_writes_to_one_key_are_linearizable(seed: int, valkey_url: str, unique: str) -> None:
    writers = [await Map.join(f"{unique}-{seed}", valkey_url) for _ in range(3)]
    history: list[Operation] = []
    plans = [(writer, few_values(random.Random(seed * 100 + i), 40)) for i, writer in enumerate(writers * 3)]
    await asyncio.gather(*(run_plan(writer, plan, history) for writer, plan in plans))
    assert len(history) == 360
    assert is_linearizable(history, None, one_key)
    for writer in writers:
        await writer.aclose()


@pytest.mark.parametrize("seed", range(3))
async def test_writes_to_one_key_are_linearizable_while_connections_die(
    seed: int, connected: Connect, own_valkey: EmbeddedRedis, direct: Redis, unique: str
) -> None:
    """A lost reply is AmbiguousOutcome, and the history must allow for both; anything else must be exact."""
    writers = [await Map.join(unique, await connected(own_valkey.url)) for _ in range(3)]
    history: list[Operation] = []
    plans = [
        (writer, own_values(random.Random(seed * 100 + i), 120, 1 + i * 1_000)) for i, writer in enumerate(writers)
    ]
    running = asyncio.gather(*(run_plan(writer, plan, history) for writer, plan in plans))
    for killed in range(1, 5):
        await until(lambda killed=killed: len(history) >= killed * 60)
        await direct.link.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await running
    assert any(operation.reply is UNKNOWN for operation in history)
    assert is_linearizable(history, None, one_key)
    for writer in writers:
        await writer.aclose()


async def test_a_history_with_a_lost_update_is_refused() -> None:
    """The checker can fail: two increments that both returned 1."""
    assert not is_linearizable([Operation(0, 2, ("incr", 1), 1), Operation(1, 3, ("incr", 1), 1)], None, one_key)


async def test_incr_never_runs_twice_unseen(
    connected: Connect, own_valkey: EmbeddedRedis, direct: Redis, unique: str
) -> None:
    client = await connected(own_valkey.url)
    sums: list[int] = []
    unknown = 0
    async with await Map.join(unique, client) as joined:

        async def count() -> None:
            nonlocal unknown
            for _ in range(100):
                try:
                    sums.append(await joined.incr("n"))
                except AmbiguousOutcome:
                    unknown += 1
                except (NotApplied, NotAnInteger):
                    continue

        counting = asyncio.gather(*(count() for _ in range(10)))
        while not counting.done():
            await direct.link.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.005)
        await counting
    total = int(await direct.link.call("HGET", f"map:{unique}:content", "n"))
    assert len(set(sums)) == len(sums)
    assert len(sums) <= total <= len(sums) + unknown
