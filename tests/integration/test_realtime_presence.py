"""Who is online, on a real Redis and without one."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from flotta.errors import InvalidName, LinkUnavailable, RealtimeError, StateError
from flotta.realtime import Server
from flotta.realtime.presence import Online, PresenceChange
from flotta.realtime.presence.shared import BATCH
from flotta.realtime.presence.watching import QUEUE_MAX
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import serving, until
from realtime_people import come, fleet, make


@pytest.fixture(params=["redis", "alone"])
def where(request: pytest.FixtureRequest, redis: Redis) -> Redis | None:
    """Both registries must agree about everything."""
    return redis if request.param == "redis" else None


async def settled(*servers: Server) -> None:
    """Everything that has happened is written."""
    await until(lambda: not any(sio.presence.stats.waiting for sio in servers))  # type: ignore[union-attr]


async def test_who_is_online_where_since_when_and_in_which_state(where: Redis | None, unique: str) -> None:
    async with fleet(where, unique, 1, presence=True) as ((sio, port),):
        before = time.time()
        phone, desk = await come(port, user="ada"), await come(port, user="ada")
        await come(port, user="bob")
        assert await sio.presence.set_status(desk.sid, "away", {"typing": None})
        assert await sio.presence.set_status(desk.sid, state={"typing": "to bob"})
        await settled(sio)
        found = {online.socket_id: online for online in await sio.presence.online("ada")}
        assert found.keys() == {phone.sid, desk.sid}
        assert before - 0.01 <= found[phone.sid].connected_at <= time.time()
        at = found[desk.sid].connected_at
        assert found[desk.sid] == Online("ada", desk.sid, desk.sid[:4], "/", at, "away", {"typing": "to bob"})
        assert (await sio.presence.is_online("bob"), await sio.presence.is_online("eve")) == (True, False)
        both = await sio.presence.sockets(["bob", "eve", "ada", "bob"])
        assert {user: len(sockets) for user, sockets in both.items()} == {"bob": 1, "eve": 0, "ada": 2}
        assert await sio.presence.sockets([]) == {}


async def test_user_is_online_until_the_last_socket_has_gone(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique, presence=True) as ((one, at_one), (two, at_two)):
        phone, desk = await come(at_one, user="ada"), await come(at_two, user="ada")
        await phone.socket.close()
        await until(lambda: one.presence.stats.entries == 0)  # type: ignore[union-attr]
        await settled(one)
        assert [online.server_id for online in await one.presence.online("ada")] == [two.stats.instance]
        await desk.socket.close()
        await until(lambda: two.presence.stats.entries == 0)  # type: ignore[union-attr]
        await settled(two)
        assert await one.presence.online("ada") == []
        assert not await redis.keys(f"{{{unique}}}:people:user*")  # nothing is left behind


async def test_users_come_in_pages(where: Redis | None, unique: str) -> None:
    names = ["Zoë", "ada", "bob", "émile", "zoe", "\U0001f600"]
    async with fleet(where, unique, 1, presence=True) as ((sio, port),):
        for name in names:
            await come(port, user=name)
        pages, after = [], ""
        while page := await sio.presence.users(after=after, count=4):
            pages.append(page)
            after = page[-1]
        assert pages == [sorted(names)[:4], sorted(names)[4:]]
        assert await sio.presence.users_count() == 6
        for count in (0, 1_001):
            with pytest.raises(ValueError, match="1 to 1000"):
                await sio.presence.users(count=count)
        with pytest.raises(ValueError, match="at most 1000"):
            await sio.presence.sockets(str(number) for number in range(1_001))


async def test_everybody_who_watches_hears_of_each_change_once(redis: Redis, unique: str) -> None:
    servers = [make(redis, f"{unique}", presence=True) for _ in range(2)]
    heard: list[list[PresenceChange]] = [[], []]
    for changes, sio in zip(heard, servers, strict=True):
        sio.presence.on_change(changes.append)

        @sio.presence.on_change
        async def fails(change: PresenceChange) -> None:
            raise RuntimeError("of the application")

    one, two = servers
    async with one, two, serving(two, native=True) as port:
        phone, desk = await come(port, user="ada"), await come(port, user="ada")
        await two.presence.set_status(desk.sid, "away")
        await settled(two)
        await phone.socket.close()
        await until(lambda: [change.kind for change in heard[0]].count("leave") == 1)
        await desk.socket.close()
        await until(lambda: all([change.kind for change in changes].count("leave") == 2 for changes in heard))
    for changes in heard:
        assert [(change.kind, change.user, change.sockets) for change in changes] == [
            ("join", "ada", 1),
            ("join", "ada", 2),
            ("status", "ada", 2),
            ("leave", "ada", 1),
            ("leave", "ada", 0),
        ]
        assert [change.came_online for change in changes] == [True, False, False, False, False]
        assert [change.went_offline for change in changes] == [False, False, False, False, True]
        assert changes[2].socket is not None
        assert (changes[2].socket.socket_id, changes[2].socket.status) == (desk.sid, "away")


async def test_changes_can_be_iterated_and_who_is_too_slow_gets_a_gap(where: Redis | None, unique: str) -> None:
    async with fleet(where, unique, 1, presence=True) as ((sio, port),):
        async with sio.presence.changes() as changes:
            visitor = await come(port, user="ada")
            async for change in changes:
                assert (change.kind, change.came_online) == ("join", True)
                break
            for number in range(QUEUE_MAX + 3):
                sio._core.people.on_change(PresenceChange("status", f"user {number}"))
            async for change in changes:
                assert change == PresenceChange("gap")
                break
            async for change in changes:
                assert change.user == f"user {QUEUE_MAX + 1}"
                break
        assert not sio._core.people.watchers.wanted
        assert visitor.sid


async def test_mass_of_sockets_comes_and_goes_in_batches(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique, 1, presence=True) as ((sio, port),):
        visitors = await asyncio.gather(*(come(port, user=f"user {n % 50}") for n in range(2 * BATCH + 10)))
        assert await sio.presence.users_count() == 50
        before = redis.link.stats.commands
        for visitor in visitors:
            visitor.socket.transport.abort()
        await until(lambda: not sio.presence.stats.entries)  # type: ignore[union-attr]
        await settled(sio)
        assert await sio.presence.users_count() == 0
        assert redis.link.stats.commands - before < BATCH


async def test_wrong_status_or_state_is_refused_and_changes_nothing(unique: str) -> None:
    async with fleet(None, unique, 1, presence=True) as ((sio, port),):
        visitor = await come(port, user="ada")
        for status in ("", "x" * 65, 5):
            with pytest.raises(InvalidName):
                await sio.presence.set_status(visitor.sid, status)  # type: ignore[arg-type]
        for state, told in (("x" * 4_096, "4096 bytes"), (object(), "JSON"), ({"deep": {1, object()}}, "JSON")):
            with pytest.raises(RealtimeError, match=told):
                await sio.presence.set_status(visitor.sid, "busy", state)
        assert [online.status for online in await sio.presence.online("ada")] == ["online"]
        assert not await sio.presence.set_status("gone", "busy")


async def test_presence_that_is_off_says_so(unique: str) -> None:
    async with fleet(None, unique, 1) as ((sio, _),):
        with pytest.raises(StateError, match="presence=True"):
            await sio.presence.online("ada")
        with pytest.raises(StateError, match="presence=True"):
            sio.presence.on_change(print)
    async with fleet(None, unique, 1, presence=True) as ((sio, _),):
        with pytest.raises(StateError, match="before the server starts"):
            sio.presence.on_change(print)


async def test_record_is_json_that_other_programs_read(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique, 1, presence=True) as ((_, port),):
        visitor = await come(port, user="ada")
        (value,) = (await redis.hgetall(f"{{{unique}}}:people:user:ada")).values()
        record: dict[str, Any] = json.loads(value.split(b"\n", 2)[2])
        at = record.pop("connectedAt")
        assert abs(at / 1000 - time.time()) < 5
        assert record == {
            "user": "ada",
            "socketId": visitor.sid,
            "serverId": visitor.sid[:4],
            "namespace": "/",
            "status": "online",
            "state": None,
        }


async def test_session_that_moves_keeps_its_user_and_the_old_instance_cannot_take_it_away(
    redis: Redis, unique: str
) -> None:
    """What the relay and the recovery do: the facts go along, the old instance drops its socket later."""
    async with fleet(redis, unique, presence=True) as ((one, at_one), (two, at_two)):
        visitor, other = await come(at_one, user="ada"), await come(at_two, user="bob")
        await one.presence.set_status(visitor.sid, "away", 5)
        await settled(one)
        facts = one._core.people.facts(visitor.sid)
        assert facts is not None
        async with two.presence.changes() as changes:
            socket = two._core.spaces["/"].rooms.get(other.sid)
            assert socket is not None
            socket.sid, other_sid = visitor.sid, socket.sid  # the session's own id goes on
            two._core.spaces["/"].rooms.add(visitor.sid, socket)
            two._core.people.restore(socket, facts)
            await settled(two)
            await visitor.socket.close()
            await until(lambda: one.presence.stats.entries == 0)  # type: ignore[union-attr]
            await settled(one)
            async for change in changes:
                assert (change.kind, change.sockets) == ("move", 1)
                break
            socket.sid = other_sid
        (online,) = await two.presence.online("ada")
        assert (online.server_id, online.status, online.state) == (two.stats.instance, "away", 5)
        assert online.connected_at == pytest.approx(facts["connectedAt"], abs=0.001)


async def test_junk_on_the_channels_is_dropped(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique, 1, presence=True) as ((sio, port),), sio.presence.changes() as changes:
        for channel in ("changes", "control"):
            for junk in (b"", b"\xc1", b"\x95\x01", b"\x93\xa1x\xa1y\xa1z"):
                await redis.publish(f"{{{unique}}}:people:{channel}", junk)
        await come(port, user="ada")
        async for change in changes:
            assert (change.kind, change.user) == ("join", "ada")
            break


async def test_presence_that_cannot_be_asked_raises_and_connections_go_on(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with (
        await Redis.from_url(own_valkey.url).connect() as redis,
        fleet(redis, unique, 1, presence=True) as ((sio, port),),
    ):
        own_valkey.kill()
        await until(lambda: not redis.link.connected)
        assert (await come(port, user="ada")).sid
        with pytest.raises(LinkUnavailable):
            await asyncio.wait_for(sio.presence.online("ada"), 20)
