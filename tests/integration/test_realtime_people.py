"""Users over all instances: rooms, limits, expiry, revocation."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from flotta.errors import AccessExpired, AccessRevoked, InvalidName, UserFull
from flotta.realtime.deadlines import SLACK, Deadlines
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy
from realtime_fixtures import serving, until
from realtime_people import come, fleet, make


@pytest.fixture(params=["redis", "alone"])
def shared(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "redis")


async def test_event_for_a_user_reaches_every_socket_of_it_on_every_instance(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique) as ((one, at_one), (two, at_two)):
        ada, ada_too, bob = (
            await come(at_one, user="ada"),
            await come(at_two, user="ada"),
            await come(at_two, user="bob"),
        )
        assert (one.user_of(ada.sid), two.user_of(ada_too.sid), one.user_of(bob.sid)) == ("ada", "ada", None)
        await one.emit("hello", 1, user="ada")
        await one.emit("all")
        assert [await person.next() for person in (ada, ada_too)] == ['42["hello",1]'] * 2
        assert await bob.next() == '42["all"]'


async def test_second_user_of_a_socket_takes_the_place_of_the_first(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique, 1, presence=True) as ((sio, port),):
        person = await come(port, user="ada")
        await sio.set_user(person.sid, "bob")
        await sio.emit("for", "ada", user="ada")
        await sio.emit("for", "bob", user="bob")
        assert await person.next() == '42["for","bob"]'
        assert sio.rooms(person.sid) == sorted([person.sid, "user:bob"])
        await until(lambda: not sio.presence.stats.waiting)  # type: ignore[union-attr]
        assert await sio.presence.users() == ["bob"]


async def test_user_of_who_has_left_is_known_to_its_last_handler_only(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique, 1) as ((sio, port),):
        gone: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        @sio.event
        async def disconnect(sid: str) -> None:
            gone.set_result(sio.user_of(sid))

        person = await come(port, user="ada")
        await person.socket.close()
        assert await gone == "ada"
        await until(lambda: sio.user_of(person.sid) is None)
        assert len(sio._core.people) == 0


async def test_wrong_user_is_refused(unique: str) -> None:
    async with fleet(None, unique, 1) as ((sio, port),):
        person = await come(port, user="ada")
        for wrong in ("", "x" * 257, 7):
            with pytest.raises(InvalidName):
                await sio.set_user(person.sid, wrong)  # type: ignore[arg-type]


# --- limits ---


async def test_user_has_as_many_connections_as_allowed_on_all_instances_together(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique, 2, connections_per_user_max=3) as ((_, at_one), (two, at_two)):
        came = await asyncio.gather(*(come(port, user="ada") for port in (at_one, at_two) * 10))
        inside = [person for person in came if person.answer.startswith("40{")]
        assert len(inside) == 3
        assert {person.refusal for person in came if person not in inside} == {"too many connections"}
        assert (await come(at_two, user="bob")).sid
        await inside[0].socket.close()
        await until(lambda: sum(sio.presence.stats.entries for sio in (_, two)) == 3)  # type: ignore[union-attr]
        await until(lambda: not any(sio.presence.stats.waiting for sio in (_, two)))  # type: ignore[union-attr]
        assert (await come(at_two, user="ada")).sid
        assert (await come(at_one, user="ada")).refusal


async def test_connection_in_two_namespaces_counts_once(shared: bool, redis: Redis, unique: str) -> None:
    sio = make(redis if shared else None, unique, connections_per_user_max=1)

    @sio.on("connect", namespace="/other")
    async def connect(sid: str) -> None:
        await sio.set_user(sid, "ada", namespace="/other")

    async with serving(sio, native=True) as port:
        person = await come(port, user="ada")
        await person.socket.send("40/other,")
        assert (await person.next()).startswith("40/other,{")
        assert (await come(port, user="ada")).refusal == "too many connections"


async def test_limit_of_a_user_holds_here_while_redis_is_away_and_is_whole_again_after(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with (
        await Redis.from_url(own_valkey.url).connect() as redis,
        fleet(redis, unique, 1, connections_per_user_max=2, presence_ttl_s=2.0) as ((sio, port),),
    ):
        assert (await come(port, user="ada")).sid
        own_valkey.kill()
        await until(lambda: not redis.link.connected)
        assert (await come(port, user="ada")).sid
        assert (await come(port, user="ada")).refusal == "too many connections"
        await own_valkey.restart()
        await until(lambda: sio._core.people.registry._connections > 1)  # type: ignore[union-attr]
        assert len(await redis.hgetall(f"{{{unique}}}:people:user:ada")) == 2
        assert (await come(port, user="ada")).refusal == "too many connections"


# --- expiry ---


@pytest.mark.parametrize("native", [True, False])
async def test_connection_ends_at_the_moment_its_access_does(unique: str, native: bool) -> None:
    sio = make(None, unique)
    async with serving(sio, native=native) as port:
        ends_at = time.time() + 1.0
        person, other = await come(port, user="ada", expires_at=ends_at), await come(port, user="ada")
        came, code = await person.ended()
        assert (came, code) == ([], 1008)
        assert -0.01 < time.time() - ends_at < 2.0  # no heartbeat was waited for: 25 s
        assert sio.stats.ended == {"access expired": 1}
        await sio.emit("still there")
        assert await other.next() == '42["still there"]'
        assert (await come(port, user="ada", expires_at=time.time() - 1)).refusal == "access expired"


async def test_newer_token_extends_the_stay_and_an_older_one_shortens_it(unique: str) -> None:
    async with fleet(None, unique, 1) as ((sio, port),):
        soon = time.time() + 0.5
        longer, shorter = await come(port, user="ada", expires_at=soon), await come(port, user="bob")
        assert await sio.extend(longer.sid, soon + 60)
        assert await sio.extend(shorter.sid, soon)
        assert await shorter.ended() == ([], 1008)
        await sio.emit("still there")
        assert await longer.next() == '42["still there"]'
        assert not await sio.extend(shorter.sid, soon)
        assert await sio.extend(longer.sid, None)
        assert len(sio._core.people._deadlines) == 0
        assert await sio.extend(longer.sid, time.time() - 1)
        assert await longer.ended() == ([], 1008)


async def test_deadlines_come_in_their_order_and_hold_no_more_than_they_must() -> None:
    due: list[str] = []
    deadlines = Deadlines(due.append)
    now = time.time()
    for number in range(5_000):
        deadlines.put("moved", now + 100 + number)
    deadlines.put("second", now + 0.05)
    deadlines.put("first", now + 0.02)
    deadlines.put("dropped", now + 0.01)
    deadlines.drop("dropped")
    assert len(deadlines._heap) <= 2 * len(deadlines) + SLACK
    await until(lambda: len(due) == 2)
    assert (due, len(deadlines)) == (["first", "second"], 1)
    deadlines.drop("moved")
    assert deadlines._heap == []
    assert deadlines._timer is None


async def test_end_that_fails_keeps_no_other_from_its_own() -> None:
    due: list[str] = []
    told: list[Any] = []

    def end(key: str) -> None:
        due.append(key)
        if key == "first":
            raise RuntimeError("a bug")

    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    deadlines = Deadlines(end)
    now = time.time()
    for number, key in enumerate(("first", "second", "third")):
        deadlines.put(key, now + number / 100)
    await until(lambda: len(due) == 3)
    assert (due, [str(error) for error in told]) == (["first", "second", "third"], ["a bug"])


# --- the end from elsewhere ---


async def test_revocation_ends_a_users_connections_everywhere_and_refuses_older_accesses(
    shared: bool, redis: Redis, unique: str
) -> None:
    async with fleet(redis if shared else None, unique, 2 if shared else 1) as servers:
        (one, _), (two, port) = servers[0], servers[-1]
        ada, bob = await come(port, user="ada"), await come(port, user="bob")
        token_at = time.time() - 10
        await one.revoke("ada", keep_s=60)
        assert await ada.ended() == (["41"], 1008)
        assert (await come(port, user="ada", issued_at=token_at)).refusal == "access revoked"
        assert (await come(port, user="ada")).sid  # asked after it: whether it may is the application's to say
        await two.emit("still there", user="bob")
        assert await bob.next() == '42["still there"]'
        assert two.stats.ended["access revoked"] == 1


async def test_revocation_of_old_accesses_leaves_newer_ones_alone(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique) as ((one, _), (two, port)):
        now = time.time()
        old, new = await come(port, user="ada", issued_at=now - 100), await come(port, user="ada", issued_at=now - 10)
        await one.revoke("ada", issued_before=now - 50)
        assert await old.ended() == (["41"], 1008)
        await two.emit("still there", user="ada")
        assert await new.next() == '42["still there"]'
        with pytest.raises(AccessRevoked):
            await two.set_user(new.sid, "ada", issued_at=now - 60)
        await one.revoke("ada", issued_before=now - 90)  # what was revoked stays revoked
        assert (await come(port, user="ada", issued_at=now - 60)).refusal == "access revoked"


async def test_who_is_just_connecting_when_the_user_is_revoked_does_not_get_in(redis: Redis, unique: str) -> None:
    """The token was good when the handler looked at it, and is not when the handler says whose socket that is."""
    async with fleet(redis, unique) as ((one, port), (two, _)):
        looked, go_on = asyncio.Event(), asyncio.Event()

        @one.event
        async def connect(sid: str, environ: dict[str, Any], auth: dict[str, Any]) -> None:
            looked.set()
            await go_on.wait()
            await one.set_user(sid, "ada")

        coming = asyncio.create_task(come(port, user="ada"))
        await looked.wait()
        await two.revoke("ada")
        go_on.set()
        assert (await coming).refusal == "access revoked"
        assert len(one._core.people) == 0


async def test_instance_that_was_cut_off_learns_of_a_revocation_when_it_is_back(
    redis: Redis, valkey_url: str, unique: str
) -> None:
    async with (
        FaultProxy(valkey_url) as proxy,
        await Redis.from_url(proxy.url).connect() as far,
        fleet(redis, unique, 1) as ((near, _),),
        fleet(far, unique, 1) as ((_, port),),
    ):
        ada = await come(port, user="ada")
        await proxy.refuse()
        proxy.cut()
        await until(lambda: not far.hub.connected)
        await near.revoke("ada")
        await proxy.accept()
        assert await ada.ended() == (["41"], 1008)


async def test_disconnected_user_is_gone_everywhere_and_may_come_back(redis: Redis, unique: str) -> None:
    async with fleet(redis, unique) as ((one, at_one), (_, at_two)):
        ada, ada_too, bob = (
            await come(at_one, user="ada"),
            await come(at_two, user="ada"),
            await come(at_two, user="bob"),
        )
        await one.disconnect_user("ada")
        for person in (ada, ada_too):
            await person.ended()
        await one.emit("still there")
        assert await bob.next() == '42["still there"]'
        assert (await come(at_one, user="ada")).sid


@pytest.mark.parametrize("milliseconds", [1_795_338_031_194.8, float("nan")])
async def test_times_that_are_no_unix_seconds_are_refused(unique: str, milliseconds: float) -> None:
    async with fleet(None, unique, 1) as ((sio, port),):
        ada = await come(port, user="ada")
        with pytest.raises(ValueError, match=r"expires_at.*divide by 1000"):
            await sio.set_user(ada.sid, "ada", expires_at=milliseconds)
        with pytest.raises(ValueError, match="issued_at"):
            await sio.set_user(ada.sid, "ada", issued_at=milliseconds)
        with pytest.raises(ValueError, match="expires_at"):
            await sio.extend(ada.sid, milliseconds)
        with pytest.raises(ValueError, match="issued_before"):
            await sio.revoke("ada", issued_before=milliseconds)
        assert sio.user_of(ada.sid) == "ada"


async def test_errors_carry_their_facts(unique: str) -> None:
    async with fleet(None, unique, 1, connections_per_user_max=1) as ((sio, port),):
        ada, bob = await come(port, user="ada"), await come(port, user="bob")
        with pytest.raises(UserFull) as full:
            await sio.set_user(bob.sid, "ada")
        assert (full.value.user, full.value.connections_max) == ("ada", 1)
        assert sio.user_of(bob.sid) is None
        with pytest.raises(AccessExpired) as expired:
            await sio.set_user(ada.sid, "ada", expires_at=5.0)
        assert (expired.value.user, expired.value.expired_at) == ("ada", 5.0)
