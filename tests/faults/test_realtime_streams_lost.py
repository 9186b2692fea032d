"""The streams adapter when Redis comes back without the stream, or with less of it: whoever notices second, or third,
keeps its clients too, for nothing was trimmed; only a true trim closes them.

The first server has Redis; each of the others has it through a proxy of its own, so the test decides who notices when.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from flotta.realtime.adapters import AdapterStats
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.streaming.event import parse_id
from flotta.testing import FaultProxy
from free_ports import free_port
from realtime_fixtures import until
from realtime_recovery_places import Place, connections, place
from realtime_recovery_stage import Raw, Switchboard

__all__ = ["connections"]

pytestmark = pytest.mark.faults

TRIMMED = "events were trimmed before they were read: clients here begin anew"
LOST = "Redis has lost events of the stream: clients that come back begin anew"
MISSED = "Redis has lost events that other servers had read: clients here begin anew"


class Logs:
    """What a server says for errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __getattr__(self, level: str) -> Any:
        return lambda what, **_: self.errors.append(what) if level == "error" else None


@dataclass
class Member:
    """A server, a client of it, and its way to Redis."""

    at: Place
    logs: Logs
    client: Raw
    proxy: FaultProxy | None
    offset: str = ""

    @property
    def stats(self) -> AdapterStats:
        found = self.at.sio.stats.adapter
        assert found is not None
        return found


@dataclass
class Cluster:
    """All of them; events are numbered."""

    members: list[Member] = field(default_factory=list)
    sent: int = 0

    async def shut_out(self, *members: Member) -> None:
        """Keep these servers, or all but the first, away from Redis."""
        for member in members or self.members[1:]:
            assert member.proxy is not None
            await member.proxy.refuse()
            member.proxy.cut()
            await until(lambda member=member: not member.stats.connected)

    async def let_in(self, *members: Member) -> None:
        """One after the other."""
        for member in members or self.members[1:]:
            assert member.proxy is not None
            await member.proxy.accept()
            await until(lambda member=member: member.stats.connected)

    async def emit(self, member: Member, count: int = 1) -> None:
        """Events of one server."""
        for _ in range(count):
            await member.at.sio.emit("n", self.sent)
            self.sent += 1
        await member.at.sio._core.adapter.settled()  # type: ignore[union-attr]

    async def hear(self, numbers: range) -> None:
        """Every client gets exactly these, in this order, and nothing before them."""
        for member in self.members:
            got = [await member.client.event() for _ in numbers]
            assert [event[1] for event in got] == list(numbers)
            member.offset = got[-1][-1]

    async def go_on(self) -> None:
        """Each server is heard by the clients of all."""
        begin = self.sent
        for member in self.members:
            await self.emit(member, 2)
        await self.hear(range(begin, self.sent))


@asynccontextmanager
async def cluster(
    url: str, prefix: str, servers: int = 2, *, proxied: bool = False, **options: Any
) -> AsyncIterator[Cluster]:
    """Connected, and every client has got the first events. ``proxied``: the first server has a proxy too."""
    made = Cluster()
    async with AsyncExitStack() as stack:
        for number in range(servers):
            proxy = await stack.enter_async_context(FaultProxy(url)) if number or proxied else None
            logs = Logs()
            way = url if proxy is None else proxy.url
            at = await stack.enter_async_context(place(way, prefix, logger=logs, **options))
            made.members.append(Member(at, logs, await Raw.join(at.port), proxy))
        await made.go_on()
        yield made


async def empty(valkey: EmbeddedRedis, first: Member) -> None:
    """Kill Redis and start it without data; return when the first server has noticed."""
    gaps = first.stats.gaps
    valkey.kill()
    await until(lambda: not first.stats.connected)
    await valkey.start()
    await until(lambda: first.stats.connected and first.stats.gaps > gaps)


async def is_new_there(member: Member) -> None:
    """Who comes back from before the loss begins anew."""
    offset, client = member.offset, member.client
    await member.at.sio.save_session(client.ids["sid"], {})  # Redis has lost that too
    again = await Raw.join(member.at.port, client.back(offset))
    assert again.ids["pid"] != client.ids["pid"]


@pytest.mark.parametrize("servers", [2, 3])
async def test_all_servers_keep_their_clients_when_redis_comes_back_empty(unique: str, servers: int) -> None:
    with EmbeddedRedis(port=free_port()) as valkey:
        async with cluster(valkey.url, unique, servers) as them:
            await them.shut_out()
            await empty(valkey, them.members[0])
            await them.emit(them.members[0], 5)
            await them.let_in()
            await them.hear(range(them.sent - 5, them.sent))
            await them.go_on()
            assert [member.stats.gaps for member in them.members] == [1] * servers
            assert [member.logs.errors for member in them.members] == [[LOST]] * servers
            async with Redis.from_url(valkey.url) as redis:
                entries: Any = await redis.xrange(unique)
            assert [entry[b"flotta"] for _, entry in entries if b"flotta" in entry] == [b"lost"]
            # Who was away meanwhile gets what it missed, also of what came before the last server noticed.
            client, port = them.members[-1].client, them.members[-1].at.port
            await them.members[-1].at.sio.save_session(client.ids["sid"], {})
            again = await Raw.join(port, client.back(entries[1][0].decode()))
            assert again.ids["pid"] == client.ids["pid"]
            missed = [(await again.event())[1] for _ in entries[2:]]
            assert missed == list(range(them.sent - len(missed), them.sent))


async def test_who_comes_back_from_before_begins_anew_on_every_server(unique: str) -> None:
    with EmbeddedRedis(port=free_port()) as valkey:
        async with cluster(valkey.url, unique) as them:
            await them.shut_out()
            await empty(valkey, them.members[0])
            await them.let_in()
            for member in them.members:
                await is_new_there(member)


async def test_a_stream_that_begins_with_an_event_was_not_trimmed_either(unique: str) -> None:
    """Whoever sends is quicker than whoever looks."""
    with EmbeddedRedis(port=free_port()) as valkey:
        async with cluster(valkey.url, unique) as them:
            second, before = them.members[1], them.members[1].offset
            await them.shut_out()
            valkey.kill()
            await valkey.start()
            async with Redis.from_url(valkey.url) as redis:
                event = '{"opts":{"rooms":[],"except":[],"flags":{}},"packet":{"type":2,"data":["n",99],"nsp":"/"}}'
                await redis.xadd(unique, {"uid": "u", "nsp": "/", "type": "3", "data": event})
            await them.let_in()
            await until(lambda: them.members[0].stats.connected)
            assert (await second.client.event())[:2] == ["n", 99]
            assert (await them.members[0].client.event())[:2] == ["n", 99]
            await them.go_on()
            assert [member.logs.errors for member in them.members] == [[LOST]] * 2
            second.offset = before
            await is_new_there(second)


async def test_redis_comes_back_empty_twice_before_the_second_server_notices(unique: str) -> None:
    with EmbeddedRedis(port=free_port()) as valkey:
        async with cluster(valkey.url, unique) as them:
            first, second = them.members
            await them.shut_out()
            await empty(valkey, first)
            await empty(valkey, first)
            await them.let_in()
            with pytest.raises(ConnectionClosed):  # the first one had come to the mark of the first loss: was that all?
                await second.client.next()
            second.client = await Raw.join(second.at.port)
            await them.go_on()
            assert (first.logs.errors, second.logs.errors) == ([LOST] * 2, [LOST, MISSED])


@pytest.mark.parametrize("late", [0, 1])
async def test_only_clients_of_the_server_that_had_read_less_are_told_whoever_notices_first(
    unique: str, late: int
) -> None:
    """What the other server's clients have got, they can get no more."""
    with EmbeddedRedis(port=free_port()) as valkey:
        async with cluster(valkey.url, unique, proxied=True) as them:
            fresh, stale = them.members
            await them.shut_out(stale)
            await them.emit(fresh, 3)
            assert [(await fresh.client.event())[1] for _ in range(3)] == list(range(them.sent - 3, them.sent))
            await them.shut_out(fresh)
            valkey.kill()
            await valkey.start()
            await them.let_in(*((stale, fresh) if late == 0 else (fresh, stale)))
            with pytest.raises(ConnectionClosed):
                await stale.client.next()
            stale.client = await Raw.join(stale.at.port)
            await them.go_on()
            assert (fresh.logs.errors, stale.logs.errors) == ([LOST], [LOST, MISSED])


async def test_a_marker_that_was_trimmed_itself_is_a_true_trim(unique: str) -> None:
    with EmbeddedRedis(port=free_port()) as valkey:
        async with cluster(valkey.url, unique, stream_maxlen=200) as them:
            first, second = them.members
            await them.shut_out()
            await empty(valkey, first)
            begin = them.sent
            await them.emit(first, 2_000)
            await them.let_in()
            with pytest.raises(ConnectionClosed):
                await second.client.next()
            assert second.logs.errors == [TRIMMED]
            assert [(await first.client.event())[1] for _ in range(2_000)] == list(range(begin, them.sent))
            second.client = await Raw.join(second.at.port)
            await them.go_on()


async def test_an_older_snapshot_closes_nobody_and_no_id_comes_twice(unique: str) -> None:
    with EmbeddedRedis(port=free_port()) as valkey:
        async with cluster(valkey.url, unique) as them:
            first, second = them.members
            async with Redis.from_url(valkey.url) as redis:
                await redis.save()
            await them.go_on()
            await them.shut_out()
            await empty(valkey, first)
            await them.let_in()
            before = second.offset
            await them.go_on()
            assert parse_id(second.offset) > parse_id(before)
            assert [member.logs.errors for member in them.members] == [[LOST]] * 2
            second.offset = before
            await is_new_there(second)


@pytest.mark.parametrize("command", ["FLUSHALL", "DEL"])
async def test_a_stream_that_is_taken_away_while_all_are_connected_closes_nobody(
    unique: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flotta.realtime.adapters.streams_reader.PAUSE_S", 0.0)  # as if it had been quiet before
    with EmbeddedRedis() as valkey:
        async with cluster(valkey.url, unique) as them, Redis.from_url(valkey.url) as redis:
            before = them.members[0].offset
            await redis.link.call(command, *([unique] if command == "DEL" else []))
            await them.go_on()
            assert [member.logs.errors for member in them.members] == [[LOST]] * 2
            for member in them.members:
                member.offset = before
                await is_new_there(member)


async def test_a_loss_that_cannot_be_marked_for_want_of_memory_is_told_once(unique: str) -> None:
    with EmbeddedRedis() as valkey:
        async with cluster(valkey.url, unique) as them, Redis.from_url(valkey.url) as redis:
            await redis.config_set("maxmemory", 1)
            await redis.delete(unique)
            await redis.link.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # or they block for seconds
            while (await redis.info("errorstats")).get("errorstat_OOM", {"count": 0})["count"] < 6:
                await asyncio.sleep(0.01)
            await redis.config_set("maxmemory", 0)
            await them.go_on()
            assert [member.stats.gaps for member in them.members] == [1] * 2
            assert [member.logs.errors for member in them.members] == [[LOST]] * 2


async def test_a_failover_to_a_replica_that_lags_closes_nobody(unique: str) -> None:
    async with EmbeddedRedis() as primary, EmbeddedRedis() as replica, Switchboard() as board:
        board.target = primary.port
        async with cluster(f"redis://127.0.0.1:{board.port}/0", unique) as them, Redis.from_url(replica.url) as other:
            await other.link.call("REPLICAOF", "127.0.0.1", str(primary.port))

            async def has_all() -> bool:
                found: Any = await other.xrevrange(unique, count=1)
                return bool(found) and found[0][0].decode() == them.members[0].offset

            while not await has_all():
                pass
            await other.link.call("REPLICAOF", "NO", "ONE")  # what follows does not reach it
            await them.go_on()
            before = [member.offset for member in them.members]
            await them.shut_out()
            board.target = replica.port
            board.cut()
            primary.kill()
            await until(lambda: them.members[0].stats.connected and them.members[0].stats.gaps == 1)
            await them.let_in()
            await them.go_on()
            assert [member.logs.errors for member in them.members] == [[LOST]] * 2
            for member, offset in zip(them.members, before, strict=True):
                assert parse_id(member.offset) > parse_id(offset)
                member.offset = offset
                await is_new_there(member)
