"""Recovery in detail: who may come back, what is replayed, what is stored, and what happens at every edge."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed

from flotta.realtime import Server
from flotta.realtime.recovery.session import read_session
from flotta.realtime.recovery.store import Store
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.streaming.event import parse_id
from realtime_fixtures import until
from realtime_recovery_places import Place, connections, gone, one, place, two
from realtime_recovery_stage import Raw

__all__ = ["connections", "one", "two"]


async def test_rooms_tell_what_was_missed_and_the_handler_may_enter_them_again(one: Place, two: Place) -> None:
    client = await Raw.join(one.port, {"rooms": ["r"]})
    await gone(one, client)
    await one.sio.emit("n", 1, room="r")
    await one.sio.emit("n", 2, room="other")
    await one.sio._core.adapter.settled()  # type: ignore[union-attr]
    await two.has_read(one)
    again = await Raw.join(two.port, {**client.back(None), "rooms": ["r", "other"]})
    assert again.ids == client.ids
    await two.sio.emit("n", 3, room="other")
    await two.sio.emit("end")
    assert [event[:2] for event in await again.events_until("end")] == [["n", 1], ["n", 3]]
    assert two.sio.happened == [("connect", client.ids["sid"], True, True)]  # type: ignore[attr-defined]


async def test_a_room_that_the_handler_takes_away_takes_its_missed_events_along(one: Place, two: Place) -> None:
    client = await Raw.join(one.port, {"rooms": ["kept", "lost"]})
    await gone(one, client)
    await one.sio.emit("n", 1, room="lost")
    await one.sio.emit("n", 2, room="kept")
    await one.sio.emit("n", 3, room=["lost", "kept"])
    again = await Raw.join(two.port, {**client.back(None), "leave": ["lost"]})
    await two.sio.emit("end")
    assert [event[:2] for event in await again.events_until("end")] == [["n", 2], ["n", 3]]


async def test_events_before_a_room_was_joined_or_after_it_was_left_do_not_come(one: Place, two: Place) -> None:
    """The client has got nothing since its connect, so the server must know when it was where."""
    client = await Raw.join(one.port, {"rooms": ["first"]})
    sid = client.ids["sid"]
    client.connection.transport.pause_reading()  # the client hears nothing, and nobody knows
    await one.sio.emit("n", 1, room="first")
    await one.sio.emit("n", 2, room="second")
    await one.sio.enter_room(sid, "second")
    await one.sio.leave_room(sid, "first")
    await one.sio.emit("n", 3, room="first")
    await one.sio.emit("n", 4, room="second")
    await one.sio.emit("n", 5, skip_sid="second")
    again = await Raw.join(two.port, client.back(None))
    assert again.ids == client.ids
    await two.sio.emit("end")
    assert [event[:2] for event in await again.events_until("end")] == [["n", 1], ["n", 4]]
    client.cut()  # it would not hear that its server ends, and let it wait


async def test_who_comes_back_elsewhere_is_dropped_where_it_was_and_its_session_stays(one: Place, two: Place) -> None:
    client = await Raw.join(one.port, {"rooms": ["r"]})
    sid = client.ids["sid"]
    again = await Raw.join(two.port, client.back(None))
    await until(lambda: not one.sio.is_connected(sid))
    assert ("disconnect", sid, Server.reason.TRANSPORT_CLOSE) in one.sio.happened  # type: ignore[attr-defined]
    await gone(two, again)
    third = await Raw.join(one.port, client.back(None))
    assert third.ids == client.ids
    assert one.sio.rooms(sid) == sorted(["r", sid])


async def test_a_server_that_did_not_hear_of_a_claim_finds_out_when_it_saves(
    one: Place, unique: str, redis: Redis
) -> None:
    client = await Raw.join(one.port)
    sid = client.ids["sid"]
    store = Store(redis, key_prefix=f"{unique}:session:", stream=unique)
    loaded = await store.load(client.ids["pid"])
    assert loaded is not None
    other = read_session(loaded.value)._replace(owner="o" * 18)
    assert await store.claim(loaded, other, 60)
    await one.sio.save_session(sid, {"late": True})
    await until(lambda: not one.sio.is_connected(sid))
    found = await store.load(client.ids["pid"])
    assert found is not None
    assert read_session(found.value) == other
    assert not await store.claim(loaded, other._replace(owner="p" * 18), 60)


async def test_an_instance_that_is_behind_the_client_reads_first(one: Place, two: Place) -> None:
    client = await Raw.join(one.port)
    reader = two.sio._core.adapter._reader  # type: ignore[union-attr]
    reader._task.cancel()  # it stands still, as one that is overloaded
    for number in range(5):
        await one.sio.emit("n", number)
    offset = [await client.event() for _ in range(5)][-1][-1]
    await gone(one, client)
    again = await Raw.open(two.port)
    await again.ask(client.back(offset))
    answer = asyncio.create_task(again.answer())
    await until(lambda: reader._waiting)
    assert not answer.done()
    reader._task = asyncio.create_task(reader._run())
    assert (await answer)["pid"] == client.ids["pid"]
    await one.sio.emit("n", 5)
    await one.sio.emit("end")
    assert [event[1] for event in await again.events_until("end")] == [5]


async def test_who_comes_back_to_the_same_instance_takes_its_own_place(one: Place) -> None:
    client = await Raw.join(one.port, {"rooms": ["r"]})
    again = await Raw.join(one.port, client.back(None))
    assert again.ids == client.ids
    await one.sio.emit("end")
    assert await again.events_until("end") == []
    assert one.sio.stats.sockets == 1
    await until(lambda: one.sio.stats.connections == 1)


async def test_of_many_that_claim_one_session_one_gets_it(one: Place, two: Place) -> None:
    for _ in range(10):
        client = await Raw.join(one.port)
        await gone(one, client)
        rivals = await asyncio.gather(*(Raw.open(at.port) for at in (one, two) for _ in range(4)))
        await asyncio.gather(*(rival.ask(client.back(None)) for rival in rivals))
        answers = await asyncio.gather(*(rival.answer() for rival in rivals), return_exceptions=True)
        held = [at.sio.is_connected(client.ids["sid"]) for at in (one, two)]
        # A later claim may take it from an earlier one, whose connection is then dropped; never do two hold it.
        sid = client.ids["sid"]
        await until(lambda sid=sid: sum(at.sio.is_connected(sid) for at in (one, two)) == 1)
        assert any(held)
        pids = [answer["pid"] for answer in answers if isinstance(answer, dict)]
        assert client.ids["pid"] in pids
        for rival in rivals:
            rival.cut()
        await until(lambda: one.sio.stats.sockets + two.sio.stats.sockets == 0)


async def test_a_refusal_ends_the_recovery(one: Place, two: Place) -> None:
    client = await Raw.join(one.port)
    await gone(one, client)
    refused = await Raw.open(two.port)
    await refused.ask({**client.back(None), "refuse": True})
    assert (await refused.answer())["message"] == "no more"
    again = await Raw.join(two.port, client.back(None))
    assert again.ids["pid"] != client.ids["pid"]
    assert two.sio.happened[-1][2:] == (False, False)  # type: ignore[attr-defined]


async def test_the_handler_is_not_asked_again_where_sessions_are_trusted(valkey_url: str, unique: str) -> None:
    async with place(valkey_url, unique, recovery_skips_connect=True) as at:
        client = await Raw.join(at.port)
        await gone(at, client)
        again = await Raw.join(at.port, {**client.back(None), "refuse": True})
        assert again.ids == client.ids
        assert [what for what, *_ in at.sio.happened].count("connect") == 1  # type: ignore[attr-defined]


async def test_filters_are_asked_again_with_the_data_of_the_session(valkey_url: str, unique: str) -> None:
    def prepare(sio: Server) -> None:
        @sio.may_see("grown-up")
        def grown_up(_sid: str, session: dict[str, Any], _number: int) -> bool:
            return bool(session.get("age", 0) >= 18)

    async with place(valkey_url, unique, prepare=prepare) as one, place(valkey_url, unique, prepare=prepare) as two:
        young, old = await Raw.join(one.port), await Raw.join(one.port)
        await one.sio.save_session(young.ids["sid"], {"age": 8})
        await one.sio.save_session(old.ids["sid"], {"age": 80})
        for client in (young, old):
            await gone(one, client)
        await one.sio.emit("n", 1, may_see="grown-up")
        await one.sio.emit("n", 2)
        seen = []
        for client in (young, old):
            again = await Raw.join(two.port, client.back(None))
            await two.sio.emit("end")
            seen.append([event[1] for event in await again.events_until("end")])
        assert seen == [[2], [1, 2]]


async def test_another_user_on_the_same_page_gets_nothing_of_the_session(valkey_url: str, unique: str) -> None:
    def prepare(sio: Server) -> None:
        @sio.event
        async def connect(sid: str, _environ: dict[str, Any], auth: dict[str, Any]) -> None:
            if auth.get("user"):
                await sio.set_user(sid, auth["user"])

    async with place(valkey_url, unique, prepare=prepare) as at:
        client = await Raw.join(at.port, {"user": "ada"})
        await gone(at, client)
        await at.sio.emit("secret", user="ada")
        other = await Raw.open(at.port)
        await other.ask({**client.back(None), "user": "bob"})
        with pytest.raises(ConnectionClosed):
            await other.answer()
        again = await Raw.join(at.port, {**client.back(None), "user": "bob"})
        assert again.ids["pid"] != client.ids["pid"]
        await at.sio.emit("end")
        assert await again.events_until("end") == []


async def test_the_user_comes_back_with_the_session(valkey_url: str, unique: str) -> None:
    def prepare(sio: Server) -> None:
        @sio.event
        async def connect(sid: str, _environ: dict[str, Any], auth: dict[str, Any]) -> None:
            if auth.get("user"):
                await sio.set_user(sid, auth["user"], expires_at=4e9)

    async with place(valkey_url, unique, prepare=prepare) as at:
        client = await Raw.join(at.port, {"user": "ada"})
        await gone(at, client)
        await at.sio.emit("n", 1, user="ada")
        again = await Raw.join(at.port, client.back(None))
        assert again.ids == client.ids
        await at.sio.emit("end", user="ada")
        assert [event[1] for event in await again.events_until("end")] == [1]
        assert at.sio.user_of(client.ids["sid"]) == "ada"


async def test_another_namespace_does_not_get_the_session(valkey_url: str, unique: str) -> None:
    def prepare(sio: Server) -> None:
        @sio.event(namespace="/b")
        def connect(_sid: str, _environ: dict[str, Any]) -> None:
            """Everybody may."""

    async with place(valkey_url, unique, prepare=prepare) as at:
        client = await Raw.join(at.port)
        await gone(at, client)
        thief = await Raw.open(at.port)
        await thief.connection.send("40/b," + json.dumps({"pid": client.ids["pid"]}))
        assert client.ids["pid"] not in await thief.next()
        assert (await Raw.join(at.port, client.back(None))).ids == client.ids


@pytest.mark.parametrize(
    "auth",
    [
        {"pid": 5},
        {"pid": ""},
        {"pid": "x" * 1000},
        {"pid": "unknown"},
        {"pid": "unknown", "offset": "1-1"},
        {"pid": {"$": 1}, "offset": []},
    ],
)
async def test_junk_for_a_session_gives_a_new_one(one: Place, auth: Any) -> None:
    client = await Raw.join(one.port, auth)
    assert len(client.ids["pid"]) == 20


@pytest.mark.parametrize("offset", ["tick", "0-0", "99999999999999-0", 7, ""])
async def test_an_offset_that_the_client_cannot_have_gives_a_new_session(one: Place, offset: Any) -> None:
    client = await Raw.join(one.port)
    await one.sio.emit("n", 1)
    await client.event()
    await gone(one, client)
    again = await Raw.join(one.port, {"pid": client.ids["pid"], "offset": offset})
    assert (again.ids["pid"] == client.ids["pid"]) == (
        offset == "0-0"
    )  # older than the session: the server knows better


async def test_a_client_whose_events_were_trimmed_is_told_so(valkey_url: str, unique: str, redis: Redis) -> None:
    async with place(valkey_url, unique) as one:
        client = await Raw.join(one.port)
        await one.sio.emit("n", 1)
        offset = (await client.event())[-1]
        await gone(one, client)
        for number in range(3):
            await one.sio.emit("n", number)
        await one.sio.emit("kept", 1)
        await one.has_read(one)
    await redis.xtrim(unique, maxlen=1, approximate=False)
    async with place(valkey_url, unique) as two:  # its memory begins here
        again = await Raw.join(two.port, client.back(offset))
        assert again.ids["pid"] != client.ids["pid"]
        await two.sio.emit("end")
        assert await again.events_until("end") == []


async def test_an_instance_that_was_not_there_reads_what_was_missed_once_for_all(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    async with place(valkey_url, unique) as one:
        clients = [await Raw.join(one.port) for _ in range(10)]
        for client in clients:
            await gone(one, client)
        for number in range(1_200):  # three pages
            await one.sio.emit("n", number)
    async with place(valkey_url, unique) as two:
        before = await ranges_read(redis)
        again = await asyncio.gather(*(Raw.join(two.port, client.back(None)) for client in clients))
        await two.sio.emit("end")
        for client in again:
            assert [event[1] for event in await client.events_until("end")] == list(range(1_200))
        assert await ranges_read(redis) - before <= 4


async def ranges_read(redis: Redis) -> int:
    """How many XRANGE the Redis has answered."""
    found: int = (await redis.info("commandstats")).get("cmdstat_xrange", {"calls": 0})["calls"]
    return found


async def test_what_is_missed_may_be_larger_than_the_send_buffer(valkey_url: str, unique: str) -> None:
    async with (
        place(valkey_url, unique, send_bytes_max=200_000) as one,
        place(valkey_url, unique, send_bytes_max=200_000) as two,
    ):
        client = await Raw.join(one.port)
        await gone(one, client)
        for number in range(300):
            await one.sio.emit("n", (number, "x" * 10_000))
        await one.sio._core.adapter.settled()  # type: ignore[union-attr]
        await two.has_read(one)  # a page of the stream that is read only now is more than the buffer takes
        again = await Raw.open(two.port)
        await again.ask(client.back(None))
        assert (await again.answer())["pid"] == client.ids["pid"]
        for number in range(300, 320):  # live ones wait their turn
            await one.sio.emit("n", (number, ""))
        await one.sio.emit("end")
        assert [event[1] for event in await again.events_until("end")] == list(range(320))


async def until_all_is_delivered(at: Place, redis: Redis, stream: str) -> None:
    """Return when the server has read its stream to the end: what comes back then has missed it, and holds nothing."""
    await at.sio._core.adapter.settled()  # type: ignore[union-attr]
    ((newest, _),) = await redis.xrevrange(stream, count=1)
    await until(lambda: parse_id(at.position) >= parse_id(newest.decode()))


async def test_a_client_too_slow_for_its_replay_is_cut_off_and_goes_on_where_it_was(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    async with place(valkey_url, unique, send_bytes_max=200_000) as at:
        client = await Raw.join(at.port)
        await gone(at, client)
        for number in range(2_000):
            await at.sio.emit("n", (number, "x" * 10_000))
        await until_all_is_delivered(at, redis, unique)
        slow = await Raw.open(at.port)
        await slow.ask(client.back(None))
        assert (await slow.answer())["pid"] == client.ids["pid"]
        for number in range(2_000, 3_100):  # it does not read, and more is held than may be
            await at.sio.emit("n", (number, ""))
        await until(lambda: not at.sio.is_connected(client.ids["sid"]))
        assert at.sio.stats.ended.get(Server.reason.SLOW_CLIENT) == 1
        had = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                had.append(await slow.event())
        assert len(had) < 2_000
        await until_all_is_delivered(at, redis, unique)
        again = await Raw.join(at.port, client.back(had[-1][-1] if had else None))
        assert again.ids == client.ids
        await at.sio.emit("end")
        rest = await again.events_until("end")
        assert [event[1] for event in [*had, *rest]] == list(range(3_100))


async def test_the_session_in_redis_is_nodes_and_lives_as_long_as_promised(
    one: Place, unique: str, redis: Redis
) -> None:
    client = await Raw.join(one.port, {"rooms": ["r"]})
    sid, key = client.ids["sid"], f"{unique}:session:{client.ids['pid']}"
    await one.sio.save_session(sid, {"name": "ada", "blob": b"\0\xff"})
    value = await redis.get(key)
    fields = msgpack.unpackb(base64.b64decode(value))
    assert (fields["sid"], fields["pid"]) == (sid, client.ids["pid"])
    assert (sorted(fields["rooms"]), fields["data"]) == (sorted(["r", sid]), {"name": "ada", "blob": b"\0\xff"})
    assert read_session(value).live
    assert 170 < await redis.ttl(key) <= 180  # the window, and two refreshes that may be missed
    await gone(one, client)
    await until_saved(redis, key, live=False)
    assert 110 < await redis.ttl(key) <= 120


async def until_saved(redis: Redis, key: str, *, live: bool) -> None:
    """Return when the session says so."""
    async with asyncio.timeout(5):
        while read_session(await redis.get(key)).live != live:
            await asyncio.sleep(0.01)


async def test_data_that_cannot_be_stored_costs_the_recovery_and_nothing_else(
    one: Place, unique: str, redis: Redis
) -> None:
    client, other = await Raw.join(one.port), await Raw.join(one.port)
    await one.sio.save_session(client.ids["sid"], {"lock": object()})
    await one.sio.save_session(other.ids["sid"], {"fine": 1})
    assert (await one.sio.get_session(client.ids["sid"])).keys() == {"lock"}
    await gone(one, client)
    await gone(one, other)
    assert (await Raw.join(one.port, client.back(None))).ids["pid"] != client.ids["pid"]
    assert (await Raw.join(one.port, other.back(None))).ids == other.ids


async def test_a_session_is_refreshed_while_its_client_is_connected(valkey_url: str, unique: str, redis: Redis) -> None:
    async with place(valkey_url, unique, recovery_s=2.0, ping_interval_s=0.2, ping_timeout_s=5.0) as at:
        client = await Raw.join(at.port)
        listening = asyncio.create_task(client.events_until("end"))
        await at.sio.emit("n", 1)
        key = f"{unique}:session:{client.ids['pid']}"
        base = read_session(await redis.get(key)).seen
        assert base is not None
        async with asyncio.timeout(10):  # a pong comes for a ping behind the event, and then the refresh
            while (read_session(await redis.get(key)).seen or base) <= base:
                await asyncio.sleep(0.05)
        assert await redis.pttl(key) > 3_000  # the window and two refreshes, less a moment
        await at.sio.emit("end")
        assert len(await listening) == 1


async def test_what_follows_an_emit_happens_after_it(one: Place) -> None:
    client = await Raw.join(one.port, {"rooms": ["r"]})
    sid = client.ids["sid"]
    await one.sio.emit("n", 1, room="r")
    await one.sio.leave_room(sid, "r")
    await one.sio.emit("n", 2, room="r")
    await one.sio.emit("n", 3, to=sid)
    asked = asyncio.create_task(one.sio.call("question", to=sid))
    events = [await client.event(), await client.event()]
    assert [event[1] for event in events] == [1, 3]
    text = await client.next()
    assert "question" in text
    await client.connection.send("43" + text[2 : text.index("[")] + '["yes"]')
    assert await asked == "yes"
    await one.sio.emit("bye", 4, to=sid)
    await one.sio.disconnect(sid)
    assert (await client.event())[:2] == ["bye", 4]
    assert await client.next() == "41"


async def test_while_redis_is_away_the_own_clients_are_served_and_new_ones_come_in(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with place(own_valkey.url, unique) as at:
        client = await Raw.join(at.port)
        own_valkey.kill()
        await until(lambda: not at.sio.stats.adapter.connected)  # type: ignore[union-attr]
        await until(lambda: not at.sio._core.adapter.redis.link.connected)  # type: ignore[union-attr]
        await at.sio.emit("text", "alone")
        assert (await client.event())[:2] == ["text", "alone"]
        second = await Raw.join(at.port, {"rooms": ["r"]})
        own_valkey.start_sync()
        await until(lambda: at.sio.stats.adapter.connected)  # type: ignore[union-attr]
        await at.sio.emit("n", 1, room="r")
        assert (await second.event())[:2] == ["n", 1]
