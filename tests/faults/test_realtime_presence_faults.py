"""Presence through what happens to instances and to Redis: nobody dead stays online, nobody alive is taken for dead."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flotta.realtime import Server
from flotta.realtime.presence import PresenceChange
from flotta.redis import LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy
from free_ports import free_port
from realtime_fixtures import until
from realtime_people import Visitor, come, fleet

pytestmark = pytest.mark.faults

PROGRAM = Path(__file__).parent.parent / "realtime_people_instance.py"
TTL_S = 2.0
MARGIN_S = 1.0
"""For machines that are busy with other tests."""
HALT_S = 0.05
"""A turn of the event loop that takes longer was taken from it by the machine."""


class Instance:
    """A process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


@asynccontextmanager
async def running(redis_url: str, prefix: str, name: str) -> AsyncIterator[Instance]:
    arguments = (str(PROGRAM), redis_url, prefix, name, str(TTL_S))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while not (line := await process.stdout.readline()).startswith(b"ready"):
                assert line, "it has ended"
        yield Instance(process, int(line.split()[1]))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def watching(url: str, prefix: str, count: int) -> AsyncIterator[list[tuple[Server, list[PresenceChange]]]]:
    """Instances without clients whose watchers keep what they hear."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            heard: list[PresenceChange] = []
            sio = Server(url, channel_prefix=prefix, presence=True, presence_ttl_s=TTL_S)
            sio.presence.on_change(heard.append)
            await stack.enter_async_context(sio)
            found.append((sio, heard))
        yield found


@asynccontextmanager
async def counting_own_time() -> AsyncIterator[Callable[[], float]]:
    """Gives how much time this event loop has had since, without that in which it was not let run: the instances that
    watch live in it."""
    had_s = 0.0

    async def count() -> None:
        nonlocal had_s
        last_s = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now_s = time.monotonic()
            had_s += min(now_s - last_s, HALT_S)
            last_s = now_s

    counting = asyncio.create_task(count(), name="own time")
    try:
        yield lambda: had_s
    finally:
        counting.cancel()


def counted(heard: list[PresenceChange]) -> Counter[tuple[str, str]]:
    return Counter((change.kind, change.user) for change in heard)


async def test_people_of_a_killed_instance_are_offline_within_the_time_and_everybody_hears_it_once(
    valkey_url: str, unique: str
) -> None:
    users = [f"user {n}" for n in range(20)]
    async with watching(valkey_url, unique, 3) as watchers, running(valkey_url, unique, "aaaa") as instance:
        await asyncio.gather(*(come(instance.port, user=user) for user in users * 2))
        one = watchers[0][0]
        assert await one.presence.users_count() == 20
        assert (await come(instance.port, user="user 0")).refusal == "too many connections"
        leaves = Counter({("leave", user): 2 for user in users})
        async with counting_own_time() as since_killed_s:
            instance.signal(signal.SIGKILL)
            await until(lambda: all(counted(heard) & leaves == leaves for _, heard in watchers))
            assert since_killed_s() < TTL_S + MARGIN_S
        assert await one.presence.sockets(users) == {user: [] for user in users}
        assert await one.presence.users() == []
        gone = [change for change in watchers[1][1] if change.went_offline]
        assert Counter(change.user for change in gone) == Counter(users)
        # A change that comes after all that belongs to the death: then there was no second time.
        async with (
            await one_redis(valkey_url) as redis,
            fleet(redis, unique, 1, presence=True, presence_ttl_s=TTL_S) as ((_, port),),
        ):
            assert (await come(port, user="last")).sid
            await until(lambda: all(counted(heard)["join", "last"] for _, heard in watchers))
        for _, heard in watchers:
            changes = Counter({pair: count for pair, count in counted(heard).items() if pair[1] != "last"})
            assert changes == leaves + Counter({("join", user): 2 for user in users})


async def one_redis(url: str) -> Redis:
    """A client that comes back soon: a lease is short here."""
    return await Redis.from_url(url, options=LinkOptions(reconnect_max_s=0.2)).connect()


async def test_limit_of_a_user_is_free_again_as_soon_as_the_lease_of_a_killed_instance_is_over(
    valkey_url: str, unique: str
) -> None:
    async with (
        await one_redis(valkey_url) as redis,
        fleet(redis, unique, 1, connections_per_user_max=2, presence_ttl_s=TTL_S) as ((_, port),),
        running(valkey_url, unique, "aaaa") as instance,
    ):
        await asyncio.gather(*(come(instance.port, user="ada") for _ in range(2)))
        async with counting_own_time() as since_killed_s:
            instance.signal(signal.SIGKILL)
            killed_at = time.monotonic()
            while (visitor := await come(port, user="ada")).answer.startswith("44"):
                await asyncio.sleep(0.05)
            assert visitor.sid
            assert time.monotonic() - killed_at > TTL_S / 2 - 0.1
            assert since_killed_s() < TTL_S + MARGIN_S


async def test_instance_that_hung_past_its_lease_writes_its_people_again(valkey_url: str, unique: str) -> None:
    async with watching(valkey_url, unique, 2) as watchers, running(valkey_url, unique, "aaaa") as instance:
        visitor = await come(instance.port, user="ada")
        one = watchers[0][0]
        await until(lambda: all(heard for _, heard in watchers))
        instance.signal(signal.SIGSTOP)
        await until(lambda: all(len(heard) == 2 for _, heard in watchers))
        assert await one.presence.online("ada") == []
        instance.signal(signal.SIGCONT)
        await until(lambda: all(len(heard) == 3 for _, heard in watchers))
        for _, heard in watchers:
            assert [change.kind for change in heard] == ["join", "leave", "join"]
        assert [online.socket_id for online in await one.presence.online("ada")] == [visitor.sid]
        await visitor.socket.close()
        await until(lambda: all(len(heard) == 4 for _, heard in watchers))
        assert await one.presence.users() == []


async def _comes_back(sio: Server, visitors: list[Visitor], redis: Redis, prefix: str) -> None:
    """Redis has exactly those who are here."""
    expected = {visitor.sid for visitor in visitors}

    async def found() -> set[str]:
        users: dict[str, list[Any]] = await sio.presence.sockets([f"user {n}" for n in range(20)])
        return {online.socket_id for sockets in users.values() for online in sockets}

    async with asyncio.timeout(20):
        while not redis.link.connected or await found() != expected:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["flushed", "restarted empty", "restarted with its data"])
async def test_instances_write_their_people_again_when_redis_has_lost_them(how: str, unique: str) -> None:
    aof = how == "restarted with its data"
    with EmbeddedRedis(port=free_port(), appendonly=aof, appendfsync="always") as valkey:
        async with (
            await one_redis(valkey.url) as redis,
            fleet(redis, unique, 2, presence=True, presence_ttl_s=TTL_S) as ((one, at_one), (two, at_two)),
            watching(valkey.url, unique, 1) as ((_, heard),),
        ):
            visitors = [await come((at_one, at_two)[n % 2], user=f"user {n}") for n in range(10)]
            await until(lambda: len(heard) == 10)
            await one.revoke("banned", keep_s=60)
            if how == "flushed":
                await redis.flushall()
            else:
                valkey.kill()
                await until(lambda: not redis.link.connected)
                await visitors.pop().socket.close()  # nobody can be told now
                visitors.append(await come(at_one, user="user 11"))
                await valkey.restart()
            await _comes_back(two, visitors, redis, unique)
            if how != "flushed":  # the subscription was away
                await until(lambda: ("gap", "") in counted(heard))
            if how != "restarted with its data":
                await until(lambda: ("gap", "") in counted(heard))
                # Nobody was told that they went, so nobody is told that they came.
                assert max(Counter(change.user for change in heard if change.kind == "join").values()) == 1
                assert (await come(at_one, user="banned", issued_at=time.time() - 100)).refusal == "access revoked"
            else:
                await until(lambda: counted(heard) & Counter({("join", "user 11"): 1, ("leave", "user 9"): 1}))
            assert {change.user for change in heard if change.kind == "leave"} <= {"user 9"}


async def test_nobody_is_taken_for_dead_because_redis_was_away_for_longer_than_a_lease(unique: str) -> None:
    """One instance is back at once, the other a little later: by the clock its lease was over long ago."""
    with EmbeddedRedis(appendonly=True, appendfsync="always") as valkey:
        async with (
            FaultProxy(valkey.url) as proxy,
            await one_redis(valkey.url) as near,
            await one_redis(proxy.url) as far,
            fleet(near, unique, 1, presence=True, presence_ttl_s=TTL_S) as ((one, at_one),),
            fleet(far, unique, 1, presence=True, presence_ttl_s=TTL_S) as ((_, at_two),),
            watching(valkey.url, unique, 1) as ((_, heard),),
        ):
            visitors = [await come((at_one, at_two)[n % 2], user=f"user {n}") for n in range(10)]
            await until(lambda: len(heard) == 10)
            beats = one._core.people.registry
            valkey.pause()
            await proxy.refuse()
            await asyncio.to_thread(time.sleep, TTL_S * 1.2)  # as long as the outage is to be
            valkey.resume()
            await until(lambda: near.link.connected and not beats._away)  # type: ignore[union-attr]
            await until(_beaten_twice(near, unique))
            await proxy.accept()
            await _comes_back(one, visitors, far, unique)
            assert [change.kind for change in heard if change.kind == "leave"] == []
            assert await one.presence.users_count() == 10


async def test_everybody_stays_online_while_redis_has_no_memory_for_leases(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with (
        await one_redis(own_valkey.url) as redis,
        fleet(redis, unique, 2, presence=True, presence_ttl_s=TTL_S / 2) as ((one, at_one), (_, at_two)),
    ):
        visitors = [await come((at_one, at_two)[n % 2], user=f"user {n}") for n in range(4)]
        await redis.config_set("maxmemory", 1)
        while (await redis.zrange(f"{{{unique}}}:people:leases", -1, -1, withscores=True))[0][1] > await _now_ms(redis):
            await asyncio.sleep(0.02)
        visitors.append(await come(at_one, user="user 4"))  # who comes now is let in, and written down afterwards
        found = await one.presence.sockets([f"user {n}" for n in range(5)])
        assert [len(sockets) for sockets in found.values()] == [1, 1, 1, 1, 0]
        await redis.config_set("maxmemory", 0)
        await _comes_back(one, visitors, redis, unique)


async def _now_ms(redis: Redis) -> float:
    seconds, microseconds = await redis.time()
    return seconds * 1000 + microseconds / 1000


def _beaten_twice(redis: Redis, prefix: str) -> Callable[[], bool]:
    """Whether the link has sent two beats since now: then everybody dead by its clock would have been reaped."""
    begun = redis.link.stats.commands
    return lambda: redis.link.stats.commands >= begun + 2


async def test_connections_of_an_instance_without_a_lease_do_not_count(redis: Redis, unique: str) -> None:
    """Also where nobody has cleared it away yet."""
    async with fleet(redis, unique, 2, connections_per_user_max=1, presence_ttl_s=TTL_S) as (
        (dead, port),
        (asked, other),
    ):
        assert (await come(port, user="ada")).sid
        assert (await come(other, user="ada")).refusal == "too many connections"
        for sio in (dead, asked):
            for task in sio._core.people.registry._tasks:  # type: ignore[union-attr]
                task.cancel()
        (lease,) = [
            name for name in await redis.zrange(f"{{{unique}}}:people:leases", 0, -1) if name[:4] in _name(dead)
        ]
        await redis.zadd(f"{{{unique}}}:people:leases", {lease: 1})
        assert (await come(other, user="ada")).sid


def _name(sio: Server) -> bytes:
    return sio.stats.instance.encode()


async def test_instance_that_ends_in_order_takes_its_people_along_at_once(valkey_url: str, unique: str) -> None:
    async with watching(valkey_url, unique, 1) as ((sio, heard),), running(valkey_url, unique, "aaaa") as instance:
        await asyncio.gather(*(come(instance.port, user=f"user {n}") for n in range(20)))
        instance.signal(signal.SIGTERM)
        await asyncio.wait_for(instance.process.wait(), 20)
        await until(lambda: sum(change.kind == "leave" for change in heard) == 20)
        assert await sio.presence.users() == []
        async with await one_redis(valkey_url) as redis:
            left = [key for key in await redis.keys(f"{{{unique}}}:people:*") if b":of:" in key or b":user:" in key]
            assert left == []
