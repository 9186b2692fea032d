"""Presence and revocations where instances, users and Redis change at the same moment."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from flotta.errors import InvalidName, RedisError
from flotta.realtime import Server
from flotta.realtime.presence.making import make_registry
from flotta.realtime.presence.records import Online, PresenceChange
from flotta.realtime.presence.registry import Entered, Entry
from flotta.realtime.presence.revocations import Revocations
from flotta.realtime.presence.shared import SharedRegistry
from flotta.redis import LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import serving, until
from realtime_people import come, fleet, make

LONG_S = 300.0
"""No beat comes while a test runs."""


class Told:
    """Keeps what a registry tells."""

    def __init__(self) -> None:
        self.changes: list[PresenceChange] = []
        self.revoked: list[str] = []

    def on_change(self, change: PresenceChange) -> None:
        self.changes.append(change)

    def on_revoked(self, user: str, until_s: float) -> None:
        self.revoked.append(user)

    def on_kicked(self, user: str, *, close: bool, told: Collection[str]) -> None:
        raise AssertionError("nobody kicks here")

    def users(self) -> Collection[str]:
        return ()

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(change.kind, change.user) for change in self.changes]


@asynccontextmanager
async def registry(redis: Redis, prefix: str, name: str) -> AsyncIterator[tuple[SharedRegistry, Told]]:
    """One that beats only when it starts, and what it is told."""
    options = Server(channel_prefix=prefix, presence=True, presence_ttl_s=LONG_S).options
    made = make_registry(redis, options, instance=name, logger=structlog.get_logger())
    assert isinstance(made, SharedRegistry)
    told = Told()
    await made.start(told)
    await made.watch()
    try:
        yield made, told
    finally:
        await made.aclose()


def entry(sid: str, user: str, instance: str = "aaaa", state: Any = None) -> Entry:
    return Entry(Online(user, sid, instance, "/", 1.0, "online", state), f"connection of {sid}")


async def entered(registry: SharedRegistry, what: Entry) -> None:
    assert await registry.enter(what, issued_at=time.time(), connections_max=None) is Entered.ENTERED


async def settled(registry: SharedRegistry) -> None:
    await until(lambda: not registry.stats.waiting)


# --- who is who ---


async def test_socket_that_becomes_a_third_users_leaves_nothing_of_the_first_two(redis: Redis, unique: str) -> None:
    async with registry(redis, unique, "aaaa") as (one, told):
        for user in ("ada", "bob", "eve"):
            await entered(one, entry("s1", user))
            if user != "eve":
                one.leave("s1")
        await settled(one)
        assert await one.users("", 10) == ["eve"]
        assert [len(sockets) for sockets in await one.online(["ada", "bob", "eve"])] == [0, 0, 1]
        everything = [("join", "ada"), ("join", "bob"), ("join", "eve"), ("leave", "ada"), ("leave", "bob")]
        await until(lambda: sorted(told.kinds) == everything)
        of = await redis.hgetall(f"{{{unique}}}:people:of:{one._me}")
        assert of == {b"s1": b"eve"}  # or nobody would clear eve away after a crash
    assert await redis.keys(f"{{{unique}}}:people:user*") == []


async def test_socket_that_goes_and_comes_before_that_is_written_stays(redis: Redis, unique: str) -> None:
    """A session that is recovered on the same instance keeps its id."""
    async with registry(redis, unique, "aaaa") as (one, told):
        await entered(one, entry("s1", "ada"))
        one.leave("s1")
        await entered(one, entry("s1", "ada"))
        await settled(one)
        assert [len(sockets) for sockets in await one.online(["ada"])] == [1]
        one.leave("s1")
        one.restore(entry("s1", "ada"))
        await settled(one)
        assert [len(sockets) for sockets in await one.online(["ada"])] == [1]
        await entered(one, entry("s2", "end"))
        await until(lambda: ("join", "end") in told.kinds)
        assert told.kinds == [("join", "ada"), ("join", "end")]


async def test_instance_that_hung_does_not_take_back_what_has_gone_on_elsewhere(redis: Redis, unique: str) -> None:
    async with registry(redis, unique, "aaaa") as (hung, told), registry(redis, unique, "bbbb") as (other, _):
        await entered(hung, entry("s1", "ada"))
        await entered(hung, entry("s2", "bob"))
        other.restore(entry("s1", "ada", "bbbb"))  # the client has come back there, with its session
        await settled(other)
        await hung._renew(quiet=False)  # it still holds the old connection
        assert [online.server_id for (online,) in await hung.online(["ada", "bob"])] == ["bbbb", "aaaa"]
        hung.leave("s1")
        await settled(hung)
        assert [online.server_id for (online,) in await hung.online(["ada"])] == ["bbbb"]
        await entered(hung, entry("s3", "end"))
        await until(lambda: ("join", "end") in told.kinds)
        assert told.kinds == [("join", "ada"), ("join", "bob"), ("move", "ada"), ("join", "end")]


async def test_what_goes_elsewhere_is_there_all_the_time_and_gone_soon_if_nobody_takes_it(
    redis: Redis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flotta.realtime.presence.shared.RELEASE_S", 0.1)
    async with registry(redis, unique, "aaaa") as (one, told), registry(redis, unique, "bbbb") as (other, _):
        for number, user in enumerate(("ada", "bob", "eve")):
            await entered(one, entry(f"s{number}", user))
        for number in range(3):
            one.release(f"s{number}")
        await one._renew(quiet=False)  # it may fall into that time
        assert [len(sockets) for sockets in await one.online(["ada", "bob", "eve"])] == [1, 1, 1]
        other.restore(entry("s0", "ada", "bbbb"))
        one.restore(entry("s1", "bob"))  # it has come back
        await settled(other)
        await until(lambda: one.stats.waiting == 0)
        found = await one.online(["ada", "bob", "eve"])
        assert [[online.server_id for online in sockets] for sockets in found] == [["bbbb"], ["aaaa"], []]
        await until(lambda: ("leave", "eve") in told.kinds)
        assert told.kinds[3:] == [("move", "ada"), ("leave", "eve")]


async def test_client_that_leaves_while_redis_does_not_answer_is_not_written_down_after(unique: str) -> None:
    with EmbeddedRedis() as valkey:
        async with (
            Redis.from_url(valkey.url, options=LinkOptions(reconnect_max_s=0.2, command_timeout_s=0.5)) as redis,
            fleet(redis, unique, 1, presence=True, presence_ttl_s=1.0) as ((sio, port),),
        ):
            valkey.pause()
            coming = asyncio.create_task(come(port, user="ada"))
            await until(lambda: sio.stats.people.sockets)
            coming.cancel()
            for client in list(sio._core.clients.values()):
                client.close(sio.reason.TRANSPORT_CLOSE)
            await until(lambda: not sio.stats.people.sockets)
            valkey.kill()
            await until(lambda: not sio.stats.handlers_running)  # it has asked in vain
            await valkey.restart()
            await until(lambda: redis.link.connected)
            assert sio.presence.stats is not None
            assert sio.presence.stats.entries == 0
            assert await sio.presence.users() == []


async def test_users_of_a_large_dead_instance_are_cleared_away_to_the_last(redis: Redis, unique: str) -> None:
    """As many as a scan of emptied places does not come to the end of, if it begins anew each time."""
    async with registry(redis, unique, "aaaa") as (one, _), registry(redis, unique, "bbbb") as (dead, _):
        people = [entry(f"s{n}", f"user {n}", "bbbb") for n in range(20_000)]
        dead._wanted |= {who.online.socket_id: who for who in people}
        for at in range(0, len(people), 250):
            await dead._put(people[at : at + 250], "")
        assert await one.users_count() == len(people)
        await redis.zadd(f"{{{unique}}}:people:leases", {dead._me: 1})
        async with asyncio.timeout(20):
            await one._beat()
        assert await one.users_count() == 0
        assert await redis.keys(f"{{{unique}}}:people:of:*") == []
        dead._wanted.clear()
        assert await redis.zrange(f"{{{unique}}}:people:leases", 0, -1) == [one._me.encode()]


# --- what nobody can write down ---


async def test_halves_of_characters_are_refused_before_they_are_to_be_written(redis: Redis, unique: str) -> None:
    """A client may send them, and programs take users and states out of what clients send."""
    async with fleet(redis, unique, 1, presence=True) as ((sio, port),):
        refusal = (await come(port, user="ada\ud83d")).refusal
        assert "characters" not in refusal  # our reasons are not the client's
        visitor = await come(port, user="bob")
        with pytest.raises(InvalidName, match="whole characters"):
            await sio.presence.set_status(visitor.sid, "\udc00")
        with pytest.raises(InvalidName, match="whole characters"):
            await sio.revoke("\ud83d")
        assert await sio.presence.set_status(visitor.sid, "away")
        async with asyncio.timeout(10):
            while [online.status for online in await sio.presence.online("bob")] != ["away"]:
                await asyncio.sleep(0.01)


async def test_state_is_what_it_was_when_it_was_said(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique, 1, presence=True) as ((sio, port),):
        visitor = await come(port, user="ada")
        state: dict[str, Any] = {"doing": ["reading"]}
        assert await sio.presence.set_status(visitor.sid, state=state)
        state["doing"].append(object())  # nobody could write that
        assert await sio.presence.set_status(visitor.sid, "away")
        async with asyncio.timeout(10):
            while [online.status for online in await sio.presence.online("ada")] != ["away"]:
                await asyncio.sleep(0.01)
        assert [online.state for online in await sio.presence.online("ada")] == [{"doing": ["reading"]}]


async def test_socket_that_says_something_and_is_refused_in_the_same_moment_stops_no_writing(unique: str) -> None:
    with EmbeddedRedis() as valkey:
        async with Redis.from_url(valkey.url) as redis, registry(redis, unique, "aaaa") as (one, _):
            await one.revoke("ada", time.time() + 60, 60)
            await entered(one, entry("s1", "bob"))
            assert one._ears is not None
            one._ears.revocations = Revocations()  # this instance has not heard of it
            valkey.pause()
            one.update(entry("s1", "bob", state="typing"))
            await until(lambda: one._writing == 1)  # the writer waits for Redis
            entering = asyncio.create_task(one.enter(entry("s2", "ada"), issued_at=time.time(), connections_max=None))
            await until(lambda: "s2" in one._wanted)
            one.update(entry("s2", "ada", state="typing"))
            valkey.resume()
            assert await entering is Entered.REVOKED
            await settled(one)
            one.update(entry("s1", "bob", state="calling"))
            await settled(one)
            assert [online.state for (online,) in await one.online(["bob"])] == ["calling"]


# --- what watchers are told ---


async def test_nobody_comes_twice_when_redis_is_flushed_while_people_are_written(redis: Redis, unique: str) -> None:
    """The flush comes between what an instance has asked and what it writes, before any beat has noticed."""
    async with registry(redis, unique, "aaaa") as (one, told):
        await entered(one, entry("s1", "ada"))
        await entered(one, entry("s2", "bob"))
        await redis.delete(*await redis.keys(f"{{{unique}}}:people:*"))
        one.update(entry("s1", "ada", state="typing"))
        await settled(one)
        await one._renew(quiet=False)
        assert [len(sockets) for sockets in await one.online(["ada", "bob"])] == [1, 1]
        await one._beat()
        await entered(one, entry("s3", "end"))
        await until(lambda: ("join", "end") in told.kinds)
        assert [kind for kind, user in told.kinds if user != "end"] == ["join", "join", "gap", "gap"]


async def test_nobody_comes_twice_when_redis_goes_away_again_while_a_loss_is_made_good(unique: str) -> None:
    with EmbeddedRedis() as valkey:
        async with Redis.from_url(valkey.url) as redis, registry(redis, unique, "aaaa") as (one, told):
            await entered(one, entry("s1", "ada"))
            await redis.flushall()
            await redis.link.call("ACL", "SETUSER", "default", "-hgetall")
            with pytest.raises(RedisError):
                await one._beat()
            await redis.link.call("ACL", "SETUSER", "default", "+hgetall")
            await one._beat()
            await entered(one, entry("s2", "end"))
            await until(lambda: ("join", "end") in told.kinds)
            assert [user for kind, user in told.kinds if kind == "join"] == ["ada", "end"]
            assert [len(sockets) for sockets in await one.online(["ada"])] == [1]


async def test_who_looks_again_after_a_loss_of_data_ends_with_the_truth(redis: Redis, unique: str) -> None:
    """Another instance may write its people again later than one looks, and nobody is told of each."""
    async with registry(redis, unique, "aaaa") as (one, told), registry(redis, unique, "bbbb") as (other, _):
        await entered(other, entry("s1", "ada", "bbbb"))
        await until(lambda: told.kinds == [("join", "ada")])
        await redis.delete(*await redis.keys(f"{{{unique}}}:people:*"))
        await one._beat()
        assert told.kinds[1:] == [("gap", "")]
        assert await one.online(["ada"]) == [[]]
        await other._beat()
        await until(lambda: len(told.kinds) == 3)
        assert told.kinds[2] == ("gap", "")
        assert [len(sockets) for sockets in await one.online(["ada"])] == [1]


async def test_change_that_redis_refuses_at_first_is_told_once_it_does_not(unique: str) -> None:
    with EmbeddedRedis() as valkey:
        async with (
            Redis.from_url(valkey.url) as redis,
            registry(redis, unique, "aaaa") as (one, told),
        ):
            await entered(one, entry("s1", "ada"))
            await redis.link.call("ACL", "SETUSER", "default", "-evalsha")
            one.update(entry("s1", "ada", state="typing"))
            await until(lambda: one.stats.lost == 1)
            await redis.link.call("ACL", "SETUSER", "default", "+evalsha")
            await until(lambda: len(told.changes) == 2)
            assert told.kinds == [("join", "ada"), ("status", "ada")]
            one.update(entry("s1", "ada", state="calling"))
            await one._renew(quiet=False)  # everything is written before the change's turn has come
            await settled(one)
            one.update(entry("s1", "ada", state="calling"))  # the same again is no change
            await settled(one)
            await entered(one, entry("s2", "end"))
            await until(lambda: ("join", "end") in told.kinds)
            assert [kind for kind, _ in told.kinds] == ["join", "status", "status", "join"]


@pytest.mark.parametrize("shared", [True, False])
async def test_iteration_of_changes_ends_with_the_server(shared: bool, redis: Redis, unique: str) -> None:
    sio = make(redis if shared else None, unique, presence=True)
    watching = asyncio.Event()

    async def iterate() -> list[str]:
        async with sio.presence.changes() as changes:
            watching.set()
            return [change.kind async for change in changes]

    async with serving(sio, native=True) as port:
        task = asyncio.create_task(iterate())
        await watching.wait()
        await come(port, user="ada")
    assert (await asyncio.wait_for(task, 10))[0] == "join"


# --- the end of access ---


async def test_signed_out_user_leaves_namespaces_that_only_other_instances_have(redis: Redis, unique: str) -> None:
    """A dynamic one, and one that has a name elsewhere; and a client that comes back at once may stay."""
    caller = Server(redis, channel_prefix=unique)
    other = Server(redis, channel_prefix=unique)
    came: list[str] = []

    async def enter(*args: Any) -> None:
        namespace = args[0] if args[0].startswith("/") else "/named"
        sid = args[1] if args[0].startswith("/") else args[0]
        await other.set_user(sid, "ada", namespace=namespace)
        came.append(namespace)

    other.on("connect", enter, namespace=re.compile(r"/room-\d+"))
    other.on("connect", enter, namespace="/named")
    async with serving(caller, native=False), serving(other, native=True) as port:
        visitor = await come(port)
        for namespace in ("/room-1", "/named"):
            await visitor.socket.send(f"40{namespace},")
            assert (await visitor.next()).startswith(f"40{namespace},")
        await caller.disconnect_user("ada", close=False)
        assert {await visitor.next(), await visitor.next()} == {"41/room-1,", "41/named,"}
        for namespace in ("/room-1", "/named"):
            await visitor.socket.send(f"40{namespace},")
            assert (await visitor.next()).startswith(f"40{namespace},")
        await caller.disconnect_user("ada")
        assert (await visitor.ended())[1] == 1000
        assert came == ["/room-1", "/named"] * 2


async def test_missed_revocation_is_asked_for_until_redis_answers(unique: str) -> None:
    """The subscription is back, but the first question finds no answer."""
    with EmbeddedRedis() as valkey:
        async with Redis.from_url(valkey.url) as redis, fleet(redis, unique, 1) as ((_, port),):
            visitor = await come(port, user="ada")
            await redis.link.call("ACL", "SETUSER", "default", "-mget")
            await redis.set(f"{{{unique}}}:people:revoked:ada", str(round(time.time() * 1000) + 1000))
            await redis.link.call("CLIENT", "KILL", "TYPE", "pubsub")
            async with asyncio.timeout(10):
                while b"errorstat_NOPERM" not in await redis.link.call("INFO", "errorstats"):
                    await asyncio.sleep(0.01)
            await redis.link.call("ACL", "SETUSER", "default", "+mget")
            assert (await visitor.ended())[1] == 1008


async def test_revocation_that_redis_has_lost_is_given_back_and_holds_meanwhile(redis: Redis, unique: str) -> None:
    """Also where nobody keeps presence, and where Redis came back with older data (its epoch is the same then)."""
    async with fleet(redis, unique, 1) as ((sio, port),):
        await sio.revoke("ada", keep_s=60)
        key = f"{{{unique}}}:people:revoked:ada"
        was = await redis.get(key)
        people = sio._core.people.registry
        assert isinstance(people, SharedRegistry)
        assert people._ears is not None
        await until(lambda: list(people._ears.revocations.valid(time.time())))
        await redis.delete(key)
        assert (await come(port, user="ada", issued_at=time.time() - 10)).refusal == "access revoked"
        assert (await come(port, user="ada", issued_at=time.time() + 10)).sid
        await redis.link.call("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(10):
            while await redis.get(key) != was:
                await asyncio.sleep(0.01)
        assert 50_000 < await redis.pttl(key) <= 60_000


async def test_change_counts_as_waiting_until_redis_has_it(unique: str) -> None:
    with EmbeddedRedis() as valkey:
        async with Redis.from_url(valkey.url) as redis, registry(redis, unique, "aaaa") as (one, _):
            await entered(one, entry("s1", "ada"))
            valkey.pause()
            sent = redis.link.stats.commands
            one.update(entry("s1", "ada", state="typing"))
            await until(lambda: redis.link.stats.commands > sent)
            assert one.stats.waiting == 1
            valkey.resume()
            await settled(one)
            assert [online.state for (online,) in await one.online(["ada"])] == ["typing"]
