"""The move of a session, step by step, on a real Redis: whatever happens between two steps, nothing is lost, doubled or
reordered, and what cannot go on ends with its handlers run once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from typing import Any

import pytest

from flotta.realtime import Server
from flotta.realtime.presence.shared import RELEASE_S
from flotta.realtime.recovery.session import read_session
from flotta.realtime.recovery.store import Saved
from flotta.realtime.relay import leases
from realtime_fixtures import until
from realtime_moves import Wanderer, World, move, world

ROUNDS = int(os.environ.get("FLOTTA_TEST_MOVE_ROUNDS", "25"))


async def test_moved_session_keeps_ids_rooms_data_request_and_forgets_its_first_instance(
    valkey_url: str, unique: str
) -> None:
    async with world(valkey_url, unique, 2) as made:
        home, there = made.servers
        wanderer = Wanderer(home)
        await wanderer.join("r1", "r2")
        sid = wanderer.socket_sid
        await home.save_session(sid, {"by": 0, "raw": b"\x00\xff", "list": [1, 2.5, None]})
        await move(made, wanderer)
        assert home.stats.connections == home.stats.sockets == home.stats.rooms == 0
        assert there.stats.connections == 1
        assert there.rooms(sid) == sorted([sid, "r1", "r2"])
        assert await there.get_session(sid) == {"by": 0, "raw": b"\x00\xff", "list": [1, 2.5, None]}
        environ = there.get_environ(sid)
        assert environ is not None
        assert (environ["HTTP_COOKIE"], environ["REMOTE_ADDR"]) == ("who=ada", "192.0.2.7")
        wanderer.send('427["said",1]')
        await until(lambda: wanderer.websocket.got[-1:] == ["437[1]"])
        assert made.heard == [("said", 1, 1)]
        await home.drain(0.1)  # the first instance's end is nothing to it
        await home.aclose()
        await there.emit("still", room="r1")
        assert wanderer.events[-1] == ["still"]
        wanderer.near.lost("transport close")
        assert made.heard[1:] == [("disconnect", 1, "transport close")]


async def test_watchers_hear_that_a_session_has_moved_and_never_that_its_user_was_offline(
    valkey_url: str, unique: str
) -> None:
    async with world(valkey_url, unique, 2, presence=True) as made, made.servers[0].presence.changes() as changes:
        home, there = made.servers
        wanderer = Wanderer(home)
        await wanderer.join()
        await home.set_user(wanderer.socket_sid, "ada")
        await move(made, wanderer)
        await until(lambda: there.presence.stats.waiting == 0)
        wanderer.near.lost("transport close")
        heard = []
        async for change in changes:
            heard.append((change.kind, change.sockets, change.socket.server_id))
            if change.kind == "leave":
                break
        assert heard == [("join", 1, "ins0"), ("move", 1, "ins1"), ("leave", 0, "ins1")]


@pytest.mark.parametrize("adapter", ["classic", "sharded", "streams"])
async def test_any_order_of_broadcasts_and_steps_gives_each_senders_events_once_and_in_order(
    valkey_url: str, unique: str, adapter: str
) -> None:
    async with world(valkey_url, unique, adapter=adapter, stream_name=unique) as made:
        for seed in range(ROUNDS):
            await _wander(made, random.Random(seed))


async def _wander(made: World, chance: random.Random) -> None:
    """One move among broadcasts of all instances, with every hub as slow as chance will have it."""
    for gate in made.gates:
        gate.is_open = False
    wanderer = Wanderer(made.servers[0])
    await wanderer.join("room")
    sid, sent, said = wanderer.socket_sid, [0, 0, 0], 0
    made.heard.clear()
    switched = upgrading = False
    before = made.relay(1).moved_here
    for step in range(400):
        number = chance.randrange(3)
        what = chance.random()
        if what < 0.35 and step < 300:
            target = chance.choice([{"room": "room"}, {}, {"to": sid}, {"to": [sid, "other"]}])
            await made.servers[number].emit("n", (number, sent[number]), **target)
            sent[number] += 1
        elif what < 0.4 and switched and said < 20:
            wanderer.send(f'42["said",{said}]')
            said += 1
        elif what < 0.5:
            await made.turn()
        else:
            made.gates[number].let(chance.choice([1, 1, 1, 2, 5]))
            await asyncio.sleep(0)
        if step == 20:
            wanderer.upgrade_at(made.servers[1])
            upgrading = True
        if upgrading and not switched and wanderer.websocket.got == ["3probe"]:
            wanderer.switch()
            switched = True
        if upgrading:
            wanderer.flush()
    await _settle(made, wanderer, switched=switched)
    with contextlib.suppress(TimeoutError):
        await until(lambda: len(wanderer.events) >= sum(sent), 3)
    assert made.relay(1).moved_here == before + 1
    assert wanderer.websocket.closed is None
    for number in range(3):
        got = [event[2] for event in wanderer.events if event[1] == number]
        assert got == list(range(sent[number])), f"of instance {number}"
    assert [what for kind, _, what in made.heard if kind == "said"] == list(range(said))
    wanderer.near.lost("transport close")


async def _settle(made: World, wanderer: Wanderer, *, switched: bool) -> None:
    for gate in made.gates:
        gate.open()
    if not switched:
        await until(lambda: wanderer.websocket.got == ["3probe"])
        wanderer.switch()
    await until(lambda: wanderer.client.sid in made.servers[1]._core.clients)
    await until(lambda: wanderer.websocket.is_read)
    wanderer.flush()
    await made.turn()
    await made.turn()


async def test_own_events_hold_their_order_with_those_that_are_still_coming_back(valkey_url: str, unique: str) -> None:
    async with world(valkey_url, unique, 2) as made:
        home, there = made.servers
        wanderer = Wanderer(home)
        await wanderer.join("room")
        sid = wanderer.socket_sid
        wanderer.upgrade_at(there)
        await until(lambda: wanderer.websocket.got == ["3probe"])
        made.gates[1].is_open = False
        wanderer.switch()
        while there.stats.connections == 0:  # one message at a time, an event of the new instance before each
            await there.emit("n", wanderer.near.over, room="room")
            await made.turn()
            made.gates[1].let()
        await there.emit("direct", to=sid)
        await there.emit("last", room="room")
        assert wanderer.events[-1:] != [["last"]]  # what it sent before is not back yet
        made.gates[1].open()
        await until(lambda: wanderer.events[-1:] == [["last"]])
        assert wanderer.events[-2] == ["direct"]


async def test_busy_session_is_relayed_and_moves_when_its_handler_has_ended(valkey_url: str, unique: str) -> None:
    async with world(valkey_url, unique, 2) as made:
        home, there = made.servers
        go_on = asyncio.Event()

        @home.event
        async def long(sid: str) -> Any:
            answer = await home.call("question", to=sid)  # over the tunnel, while it is busy
            await home.enter_room(sid, "late")
            await go_on.wait()
            return answer

        wanderer = Wanderer(home)
        await wanderer.join()
        wanderer.upgrade_at(there)
        await until(lambda: wanderer.websocket.got == ["3probe"])
        wanderer.client.receive('421["long"]')
        wanderer.switch()
        await until(lambda: '421["question"]' in wanderer.websocket.got)
        wanderer.send('431["reply"]')
        await made.turn()
        assert made.relay(0).moved_away == 0
        assert made.relay(0).tunnels == made.relay(1).tunnels == 1
        go_on.set()
        await until(lambda: made.relay(1).moved_here == 1)
        assert '431["reply"]' in wanderer.websocket.got
        assert "late" in there.rooms(next(iter(there._core.spaces["/"].rooms)))


async def test_unpackable_session_stays_relayed_says_so_once_and_goes_on(
    valkey_url: str, unique: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world(valkey_url, unique, 2) as made:
        home, there = made.servers
        wanderers = [Wanderer(home), Wanderer(home)]
        for wanderer in wanderers:
            await wanderer.join("room")
            await home.save_session(wanderer.socket_sid, {"open file": object()})
            wanderer.upgrade_at(there)
            await until(lambda got=wanderer.websocket.got: got == ["3probe"])
            wanderer.switch()
        await until(lambda: made.relay(0).tunnels == 2)
        for number in range(20):
            await made.servers[number % 2].emit("n", number, room="room")
        for wanderer in wanderers:
            wanderer.send('429["said","x"]')
            await until(lambda got=wanderer.websocket.got: '439["x"]' in got)
            assert sorted(event[1] for event in wanderer.events) == list(range(20))
        assert made.relay(0).moved_away == 0
        assert capsys.readouterr().out.count("cannot move") == 1
        await home.save_session(wanderers[0].socket_sid, {"open file": None})  # the cure
        await until(lambda: made.relay(0).moved_away == 1)


async def test_acknowledgement_that_was_asked_for_before_the_move_reaches_who_asked(
    valkey_url: str, unique: str
) -> None:
    async with world(valkey_url, unique, 2) as made:
        home, there = made.servers
        wanderer = Wanderer(home)
        await wanderer.join()
        sid = wanderer.socket_sid
        first = asyncio.create_task(home.call("question", 1, to=sid))
        second = asyncio.create_task(home.call("question", 2, to=sid, timeout_s=30.0))
        await move(made, wanderer)
        assert '421["question",1]' in wanderer.websocket.got
        wanderer.send('431["reply",{"n":1}]')
        assert await first == ("reply", {"n": 1})
        third = asyncio.create_task(there.call("question", 3, to=sid))
        await until(lambda: '423["question",3]' in wanderer.websocket.got)  # ids go on where they were
        wanderer.send('433["third"]')
        assert await third == "third"
        wanderer.near.lost("transport close")
        with pytest.raises(Exception, match="not acknowledged"):  # told at once that the client has left
            await asyncio.wait_for(second, 5)


async def test_moved_session_can_be_recovered_with_what_it_missed(valkey_url: str, unique: str) -> None:
    async with world(valkey_url, unique, adapter="streams", stream_name=unique, recovery_key_prefix=unique) as made:
        home, there, third = made.servers
        wanderer = Wanderer(home)
        await wanderer.join("room")
        ids = json.loads(next(packet for packet in wanderer.polled if packet.startswith("40"))[2:])
        await home.set_user(ids["sid"], "ada")
        await move(made, wanderer)
        await home.emit("n", 1, room="room")
        await until(lambda: len(wanderer.events) == 1)
        offset = wanderer.events[0][-1]
        await there.enter_room(ids["sid"], "late")
        await made.turn()
        wanderer.near.lost("transport close")
        await home.emit("n", 2, room="room")
        await third.emit("n", 3, room="late")
        await home.emit("n", 4, user="ada")
        back = Wanderer(third)
        back.client.receive("40" + json.dumps({"pid": ids["pid"], "offset": offset}))
        await until(lambda: back.client.sockets and not back.client.sockets["/"].connecting)
        assert back.socket_sid == ids["sid"]
        await until(lambda: third.user_of(ids["sid"]) == "ada")
        got: list[str] = []
        back.polling.getting = True  # what was missed is sent no faster than the client takes it
        while len(got) < 4:
            got += (await asyncio.wait_for(back.polling.take(), 5)).split("\x1e")
        assert sorted(json.loads(packet[2:])[1] for packet in got if packet.startswith("42")) == [2, 3, 4]


async def test_what_the_first_instance_wrote_over_a_stalled_connection_is_refused_after_the_move(
    valkey_url: str, unique: str
) -> None:
    async with world(valkey_url, unique, 2, adapter="streams", stream_name=unique, recovery_key_prefix=unique) as made:
        wanderer = Wanderer(made.servers[0])
        await wanderer.join("room")
        ids = json.loads(next(packet for packet in wanderer.polled if packet.startswith("40"))[2:])
        before = await made.clients[0].get(unique + ids["pid"])
        assert before is not None
        await move(made, wanderer)
        await made.servers[1].enter_room(ids["sid"], "late")
        await made.turn()
        late = Saved(ids["pid"], read_session(before).owner, before, 60.0)
        keeper = made.servers[0]._core.keeper
        assert keeper is not None
        assert await keeper._store.save([late]) == [False]
        await keeper._store.forget(late.pid, late.owner, 60.0)
        after = await made.clients[0].get(unique + ids["pid"])
        assert after is not None
        assert sorted(read_session(after).rooms) == sorted([ids["sid"], "room", "late"])
        wanderer.send("41")  # it ends here, once and for all
        await until(lambda: made.servers[1].stats.sockets == 0)
        await made.turn()
        assert await made.clients[0].get(unique + ids["pid"]) == b""


@pytest.mark.parametrize("steps", range(9))
async def test_first_instance_dies_at_any_step_and_nothing_hangs(
    valkey_url: str, unique: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    async with world(valkey_url, unique, 2) as made:
        wanderer = await _go(made, steps)
        await made.clients[0].hub.aclose()  # as its kernel does it for a killed process
        await made.clients[0].link.aclose(drain_s=0.0)
        made.gates[1].open()
        await until(lambda: wanderer.websocket.closed or made.servers[1].stats.connections == 1)
        if wanderer.websocket.closed is None:
            wanderer.send('429["said","x"]')
            await until(lambda: '439["x"]' in wanderer.websocket.got)
        else:
            assert wanderer.websocket.closed[0] == 1012
            assert wanderer.near.over
        assert made.relay(1).tunnels == 0


@pytest.mark.parametrize("steps", range(9))
async def test_new_instance_dies_at_any_step_and_handlers_of_the_end_run_once(
    valkey_url: str, unique: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    async with world(valkey_url, unique, 2, presence=True) as made:
        wanderer = await _go(made, steps, user="ada")
        arrived = made.servers[1].stats.connections == 1
        await made.clients[1].hub.aclose()
        await made.clients[1].link.aclose(drain_s=0.0)
        made.gates[0].open()
        if arrived:
            return  # it died with its instance
        client = wanderer.client
        await until(lambda: client.over or (client.upgrade is None and client.transport.name == "polling"))
        if client.over:  # the client had gone over to the dead instance
            assert made.heard == [("disconnect", 0, "transport error")]
            assert made.servers[0].stats.connections == made.servers[0].stats.sockets == 0
            registry = made.servers[0].presence
            await until(lambda: registry.stats.waiting == 0, RELEASE_S / 2)
            assert await registry.users() == []
        else:  # it goes on polling
            await made.servers[0].emit("still", room="room")
            assert '42["still"]' in await wanderer.polling.take()


async def _go(made: World, steps: int, user: str | None = None) -> Wanderer:
    """A move up to the ``steps``-th message, each instance hearing in turn."""
    wanderer = Wanderer(made.servers[0])
    await wanderer.join("room")
    if user is not None:
        await made.servers[0].set_user(wanderer.socket_sid, user)
    made.heard.clear()
    for gate in made.gates:
        gate.is_open = False
    wanderer.upgrade_at(made.servers[1])
    for step in range(steps):
        await made.turn()
        await asyncio.sleep(0.03)  # what is asked of Redis before the next step
        made.gates[step % 2].let()
        if wanderer.websocket.got == ["3probe"]:
            wanderer.switch()
    return wanderer


async def test_junk_and_messages_of_nobody_on_the_relay_channels_are_counted_and_change_nothing(
    valkey_url: str, unique: str
) -> None:
    async with world(valkey_url, unique, 2) as made:
        wanderer = Wanderer(made.servers[0])
        await wanderer.join("room")
        channel = made.servers[1]._relay._post.channel("ins1")  # type: ignore[union-attr]
        junk = [b"", b"\xc1", b"\x91", b"\x92\xa3ask\x01", b"\x93\xa6answer\xa1x\xa1y", b"\x91" * 900, b"\x91\xa4what"]
        nobodys = [
            b"\x93\xa8received\xa1t\x01\xc4\x00\xc3",
            b"\x95\xa6answer\xa1x\xcc\xc8\xc4\x00\xc4\x00",
            b"\x92\xa4left\xa1x",
            b"\x92\xa7release\xa1x",
            b"\x92\xa3cut\xa1x",
            b"\x92\xa5flush\xa1x",
            b"\x92\xa6broken\xa1x",
            b"\x92\xa5ended\xa1x",
            b"\x94\xa5acked\xa1x\x01\xc4\x01\x90",
        ]
        for payload in junk + nobodys:
            await made.clients[0].publish(channel, payload)
        await move(made, wanderer)
        assert made.relay(1).junk == len(junk) + 1  # `received` has five parts


async def test_own_name_is_claimed_a_taken_one_is_refused_and_a_random_one_drawn_again(
    valkey_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TTL_S", 1.5)
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    one = Server(valkey_url, channel_prefix=unique, instance="same")
    await one.start()
    two = Server(valkey_url, channel_prefix=unique, instance="same")
    with pytest.raises(ValueError, match="no other living instance"):
        await two.start()
    names = iter(["same", "free"])
    monkeypatch.setattr("flotta.realtime.relay.leases.secrets.token_urlsafe", lambda n: next(names) if n == 3 else "i")
    three = Server(valkey_url, channel_prefix=unique)
    await three.start()
    assert three.stats.instance == "free"
    await three.aclose()
    await one.aclose()
    monkeypatch.undo()
    again = Server(valkey_url, channel_prefix=unique, instance="same")  # given back at once
    await asyncio.wait_for(again.start(), 5)
    await again.aclose()
