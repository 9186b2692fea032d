"""Recovery where clients, other instances and the order of things are against it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from flotta.errors import AmbiguousOutcome
from flotta.realtime import Server
from flotta.realtime.adapters.streams_wire import Read
from flotta.realtime.client import Socket
from flotta.realtime.engineio import session as engine
from flotta.realtime.recovery.history import History, Past
from flotta.realtime.recovery.past import Archive
from flotta.realtime.recovery.replay import Replay
from flotta.realtime.recovery.session import Position, Session, read_session
from flotta.realtime.recovery.store import Store
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.streaming.event import parse_id
from realtime_fixtures import until
from realtime_recovery_places import Place, connections, gone, one, place, two
from realtime_recovery_stage import Raw

__all__ = ["connections", "one", "two"]


@pytest.fixture
def store(redis: Redis, unique: str) -> Store:
    return Store(redis, key_prefix=f"{unique}:session:", stream=unique)


async def positions(redis: Redis, stream: str) -> list[Position]:
    """Of all entries."""
    entries: Any = await redis.xrange(stream)
    return [parse_id(entry) for entry, _ in entries]


# --- hostile clients ---


@pytest.mark.parametrize("pid", ["\ud800" * 20, "a\0b", "ä" * 20, "*", "x" * 64, "../../x"])
async def test_a_private_id_that_no_server_gives_is_answered_with_a_new_session(one: Place, pid: str) -> None:
    client = await Raw.join(one.port, {"pid": pid, "offset": "1-1"})
    assert client.ids["pid"] != pid


async def test_a_connection_whose_session_was_claimed_in_one_namespace_may_go_on_talking(
    valkey_url: str, unique: str
) -> None:
    """A copied private id, or a client whose new connection is quicker than its old one's end."""

    def more(sio: Server) -> None:
        sio.on("connect", lambda sid, environ, auth: None, namespace="/more")
        sio.on("hear", lambda sid: "heard", namespace="/more")

    async with place(valkey_url, unique, prepare=more) as one, place(valkey_url, unique, prepare=more) as two:
        client = await Raw.join(one.port)
        await client.connection.send("40/more,")
        await client.next()
        mine = client.ids
        await Raw.join(two.port, client.back(None))
        await until(lambda: not one.sio.is_connected(mine["sid"]))
        for text in ('42["hear"]', '421["hear"]', "431[]", '42/more,7["hear"]'):
            await client.connection.send(text)
        assert await client.next() == '43/more,7["heard"]'


# --- what ends stays ended ---


async def test_a_room_that_the_handler_took_away_stays_away_when_the_client_comes_a_third_time(
    one: Place, two: Place
) -> None:
    client = await Raw.join(one.port, {"rooms": ["secret", "open"]})
    await gone(one, client)
    await one.sio.emit("n", 1, room="secret")
    await one.sio.emit("n", 2, room="open")
    second = await Raw.join(two.port, {**client.back(None), "leave": ["secret"]})
    await gone(two, second)  # it has not read what it missed
    third = await Raw.join(one.port, {**client.back(None), "leave": ["secret"]})
    await one.sio.emit("end")
    assert [event[:2] for event in await third.events_until("end")] == [["n", 2]]


async def test_a_session_that_has_ended_elsewhere_is_not_made_anew_by_a_late_owner(
    one: Place, two: Place, store: Store
) -> None:
    client = await Raw.join(one.port)
    pid, sid = client.ids["pid"], client.ids["sid"]
    await one.sio._core.keeper._claims.aclose()  # type: ignore[union-attr]  # as if stopped: it hears of nothing
    again = await Raw.join(two.port, client.back(None))
    await again.connection.send("41")
    await until(lambda: not two.sio.is_connected(sid))
    await two.sio._core.keeper._saver.aclose()  # type: ignore[union-attr]
    await one.sio.save_session(sid, {"late": True})
    assert await store.load(pid) is None
    assert not one.sio.is_connected(sid)


async def test_a_refresh_on_its_way_does_not_bring_back_what_ends_meanwhile(
    one: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many sessions are saved in several writes; what waits for its write may end before."""
    monkeypatch.setattr("flotta.realtime.recovery.saver.BATCH_MAX", 1)
    clients = [await Raw.join(one.port) for _ in range(3)]
    last = clients[-1]
    keeper = one.sio._core.keeper
    assert keeper is not None
    saver = keeper._saver
    sockets = [one.sio._core.spaces["/"].rooms.get(client.ids["sid"]) for client in clients]
    saving = asyncio.create_task(saver._save([socket for socket in sockets if socket is not None]))
    await asyncio.sleep(0)  # the first write has left
    await one.sio.disconnect(last.ids["sid"])
    await saving
    await saver.aclose()
    assert await store.load(last.ids["pid"]) is None


async def test_data_that_can_be_stored_again_brings_the_recovery_back(one: Place, two: Place) -> None:
    client = await Raw.join(one.port)
    sid = client.ids["sid"]
    await one.sio.save_session(sid, {"no": object()})
    await one.sio.save_session(sid, {"yes": 1})
    assert one.sio.is_connected(sid)
    await gone(one, client)
    again = await Raw.join(two.port, client.back(None))
    assert again.ids == client.ids
    assert await two.sio.get_session(sid) == {"yes": 1}


# --- what a pong says ---


async def test_a_pong_says_nothing_of_what_was_sent_after_its_ping(one: Place) -> None:
    client = await Raw.join(one.port)
    socket = one.sio._core.spaces["/"].rooms.get(client.ids["sid"])
    keeper = one.sio._core.keeper
    assert socket is not None
    assert keeper is not None
    held, socket._held = socket._held, []  # it holds: what it missed goes first
    later_s = one.sio._core.now() + 1e6
    socket.client._perform(socket.client._session.on_event(engine.Tick(), later_s))
    keeper.beat(socket.client)
    assert socket.client.pinged
    socket._held = held
    await one.sio.emit("n", 1)
    await until(lambda: one.position != "0-0")
    keeper.beat(socket.client)  # its deadline was moved, for whatever reason
    socket.client.receive("3")
    assert (socket.client.heard or (0, 0)) == (0, 0)


# --- failures inside ---


async def test_a_failure_that_nobody_thought_of_still_answers_the_client(
    one: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await Raw.join(one.port)
    await gone(one, client)

    async def broken(*_: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Store, "load", broken)
    again = await Raw.join(one.port, client.back(None))
    assert again.ids["pid"] != client.ids["pid"]


async def test_what_redis_refuses_for_good_keeps_nobody_waiting(own_valkey: EmbeddedRedis, unique: str) -> None:
    """A right that is missing: the client begins anew at once instead of coming back for ever."""
    async with await Redis.from_url(own_valkey.url).connect() as admin, place(own_valkey.url, unique) as there:
        client = await Raw.join(there.port)
        await gone(there, client)
        await admin.link.call("ACL", "SETUSER", "default", "-xinfo")
        async with asyncio.timeout(5):
            again = await Raw.join(there.port, client.back(None))
        assert again.ids["pid"] != client.ids["pid"]


async def test_redis_without_memory_is_told_of_rarely_and_without_private_ids(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    said: list[str] = []

    class Logs:
        def __getattr__(self, level: str) -> Any:
            return lambda what, **facts: said.append(f"{level}: {what} {facts}")

    async with (
        await Redis.from_url(own_valkey.url).connect() as admin,
        place(own_valkey.url, unique, logger=Logs()) as there,
    ):
        client = await Raw.join(there.port)
        left = await Raw.join(there.port)
        await gone(there, left)
        said.clear()
        await admin.config_set("maxmemory", 1)
        for number in range(20):
            await there.sio.save_session(client.ids["sid"], {"number": number})
        again = await Raw.join(there.port, left.back(None))
        assert again.ids["pid"] != left.ids["pid"]
        assert 5 <= len([line for line in said if "sessions could not be saved" in line]) <= 7
        assert len([line for line in said if "refuses to restore" in line]) == 1
        assert not any(line.startswith("exception") or left.ids["pid"] in line for line in said)
        await admin.config_set("maxmemory", 0)
        await there.sio.save_session(client.ids["sid"], {"number": 20})
        value = await admin.get(f"{unique}:session:{client.ids['pid']}")
        assert value is not None
        assert read_session(value).data == {"number": 20}


async def test_who_is_the_owner_is_told_though_the_first_answer_to_the_claim_was_lost(
    one: Place, two: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await Raw.join(one.port)
    sid = client.ids["sid"]
    claim, calls = Store.claim, 0

    async def ambiguous(self: Store, *args: Any) -> bool:
        nonlocal calls
        calls += 1
        found = await claim(self, *args)
        if calls == 1:
            raise AmbiguousOutcome("the connection broke")
        return found

    monkeypatch.setattr(Store, "claim", ambiguous)
    again = await Raw.join(two.port, client.back(None))
    assert again.ids == client.ids
    await until(lambda: not one.sio.is_connected(sid))


# --- crowds ---


async def test_a_crowd_asks_for_the_state_of_the_stream_together_and_strangers_do_not(
    own_valkey: EmbeddedRedis,
) -> None:
    """Redis sends the oldest and the newest event along, and anybody may name a private id."""
    async with await Redis.from_url(own_valkey.url).connect() as redis:
        store = Store(redis, key_prefix="session:", stream="events")
        for _ in range(2):
            await redis.xadd("events", {"data": "x" * 10_000})
        asked = [f"p{number}" for number in range(300)]
        await redis.mset({f"session:{pid}": "a session" for pid in asked})
        assert await asyncio.gather(*(store.load(f"stranger {pid}") for pid in asked)) == [None] * 300
        found = await asyncio.gather(*(store.load(pid) for pid in asked))
        assert {loaded.value for loaded in found if loaded is not None} == {b"a session"}
        calls = (await redis.info("commandstats"))["cmdstat_xinfo|stream"]["calls"]
        assert 1 <= calls <= 30
        newest = await redis.xadd("events", {"data": "y"})
        loaded = await store.load("p0")
        assert loaded is not None
        assert loaded.stream.last == parse_id(newest)  # what was asked before does not count


async def test_what_does_not_fit_into_memory_is_read_once_for_all_who_ask_together(
    one: Place, redis: Redis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        await one.sio.emit("n", number)
    entries = await positions(redis, unique)
    history = History(entries[-1], count_max=5, bytes_max=10_000)
    archive = Archive(redis, unique, history)
    pages = 0
    page = Archive._page

    async def counted(self: Archive, after: Position, until: Position) -> list[Read]:
        nonlocal pages
        pages += 1
        return await page(self, after, until)

    monkeypatch.setattr(Archive, "_page", counted)
    begins = [entries[number % 20] for number in range(200)]
    found = await asyncio.gather(*(archive.older(begin) for begin in begins))
    for begin, older in zip(begins, found, strict=True):
        assert older is not None
        rest = history.after(max(older.upto, history.floor))
        assert [past.position for past in (*older.events, *rest)] == [at for at in entries[1:] if at > begin]
    assert pages <= 3
    await redis.xtrim(unique, maxlen=10, approximate=False)
    least = (await positions(redis, unique))[0]
    short = Archive(redis, unique, History(entries[-1], count_max=5, bytes_max=10_000))
    found = await asyncio.gather(*(short.older(begin) for begin in entries[:-1]))
    assert [older is not None for older in found] == [begin >= least for begin in entries[:-1]]


async def test_the_loop_turns_while_many_look_for_what_they_missed(redis: Redis) -> None:
    """Work for a second or so (of the processor), if it were done at once."""
    archive = Archive(redis, "unused", History((0, 0), count_max=20_000, bytes_max=2**24))
    data = b'{"opts":{"rooms":["r"],"except":[],"flags":{}},"packet":{"type":2,"data":["n"],"nsp":"/"}}'
    for number in range(1, 5_001):
        archive.history.append(Past((number, 0), "/", data))
    replay = Replay(archive, pace_bytes=1)
    session = Session("s", "p", ("r",), {}, "o" * 18, "/")
    longest_s, last_s = 0.0, time.thread_time()

    async def look() -> None:
        missed = await replay.missed(session, "/", (0, 0))
        assert missed is not None
        assert len(replay.complete(missed)) == 5_000

    async def watch() -> None:
        nonlocal longest_s, last_s
        while True:
            await asyncio.sleep(0)
            longest_s, last_s = max(longest_s, time.thread_time() - last_s), time.thread_time()

    watching = asyncio.create_task(watch())
    begun_s = time.thread_time()
    await asyncio.gather(*(look() for _ in range(100)))
    whole_s = time.thread_time() - begun_s
    watching.cancel()
    assert longest_s < max(0.2, whole_s / 2)  # at once it would be all of it


# --- sessions on the move ---


async def test_a_session_on_its_way_to_another_instance_is_not_stored_without_its_rooms(
    one: Place, store: Store
) -> None:
    """It has left the rooms here, and is not there yet: who dies now, or just after, may not take them along."""
    client = await Raw.join(one.port, {"rooms": ["r"]})
    core = one.sio._core
    socket = core.spaces["/"].rooms.get(client.ids["sid"])
    assert socket is not None
    assert core.keeper is not None
    rooms = core.detach(socket.client)
    await core.keeper._saver._save([socket])
    found = await store.load(client.ids["pid"])
    assert found is not None
    assert set(read_session(found.value).rooms) == {"r", client.ids["sid"]}
    core.adopt(socket.client, rooms)


async def test_who_leaves_late_takes_nobody_else_along(one: Place) -> None:
    """A session that was on its way elsewhere ends here, when its client has come back under the same id."""
    client = await Raw.join(one.port)
    core = one.sio._core
    sid = client.ids["sid"]
    old = core.spaces["/"].rooms.get(sid)
    assert old is not None
    core.detach(old.client)
    core.spaces["/"].rooms.add(sid, new := Socket(sid, "/", old.client))
    core.left(old, "transport close")
    assert core.spaces["/"].rooms.get(sid) is new
    core.spaces["/"].rooms.remove(sid)
    client.cut()


# --- what cannot be written at once, or at all ---


async def test_what_is_held_for_a_client_goes_no_faster_than_it_reads(valkey_url: str, unique: str) -> None:
    """Nothing was missed, but much came while it was let in."""

    def slowly(sio: Server) -> None:
        @sio.on("connect")
        async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
            for number in range(900):
                await sio.emit("n", (number, "x" * 10_000))
            await sio._core.adapter.settled()  # type: ignore[union-attr]

    async with place(valkey_url, unique, prepare=slowly, send_bytes_max=200_000) as one:
        client = await Raw.join(one.port)
        await one.sio.emit("end")
        assert [event[1] for event in await client.events_until("end")] == list(range(900))


async def test_an_entry_that_no_client_can_be_sent_does_not_stop_the_replay(
    valkey_url: str, unique: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place(valkey_url, unique) as one:
        client = await Raw.join(one.port)
        await gone(one, client)
        for number in range(3):
            await one.sio.emit("n", number)
        await one.sio._core.adapter.settled()  # type: ignore[union-attr]
        delivery = one.sio._core.delivery
        encode = delivery.encode

        def picky(broadcast: Any, offset: str | None = None) -> Any:
            if broadcast.args == ["n", 1]:
                raise ValueError("it nests too deep")
            return encode(broadcast, offset)

        monkeypatch.setattr(delivery, "encode", picky)
        again = await Raw.join(one.port, client.back(None))
        await one.sio.emit("end")
        assert [event[1] for event in await again.events_until("end")] == [0, 2]
