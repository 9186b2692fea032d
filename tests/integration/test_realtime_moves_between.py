"""What comes between the steps of a move: members of the same rooms, a room joined late, an answer that comes late, a
namespace made by a pattern, somebody who listens in. Nothing is lost, and nobody's connection ends for it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from flotta.realtime.relay import departures
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import until
from realtime_members import attach
from realtime_moves import Wanderer, World, move, world


def _coming(made: World, number: int = 1) -> Any:
    return made.servers[number]._relay._arrivals._coming  # type: ignore[union-attr]


async def _go_until_ready(made: World, wanderer: Wanderer) -> None:
    """Instance 1 is ready and has said so; instance 0 has not heard it."""
    wanderer.upgrade_at(made.servers[1])
    await until(lambda: wanderer.websocket.got == ["3probe"])
    made.gates[0].is_open = False
    wanderer.switch()
    await until(lambda: made.gates[0].held)
    made.gates[0].let()
    await until(lambda: _coming(made) and made.gates[0].held)


async def _cut_but_not_here(made: World) -> None:
    """Instance 0 goes on as far as it can while instance 1 hears nothing."""
    made.gates[1].is_open = False
    made.gates[0].open()
    for _ in range(4):
        await made.turn()


@pytest.mark.parametrize("who", ["member", "session"])
async def test_others_who_leave_a_room_do_not_make_a_session_on_its_way_deaf_in_it(
    valkey_url: str, unique: str, who: str
) -> None:
    async with world(valkey_url, unique, adapter="sharded") as made:
        _, there, third = made.servers
        wanderer = Wanderer(made.servers[0])
        await wanderer.join("room")
        await _go_until_ready(made, wanderer)
        if who == "member":
            member = await attach(there)
            await there.enter_room(member.sid, "room")
            await there.leave_room(member.sid, "room")
        else:  # another one that was on its way here too, and does not come
            delivery = there._core.delivery
            delivery.hold_room("/", "room")
            delivery.release_room("/", "room")
        await made.turn()
        await _cut_but_not_here(made)
        await third.emit("n", 1, room="room")
        await made.turn()
        made.gates[1].open()
        await until(lambda: made.relay(1).moved_here == 1)
        await until(lambda: wanderer.events == [["n", 1]])
        await until(lambda: not there._core.delivery._holds)


async def test_member_who_leaves_where_a_session_is_going_does_not_make_it_deaf(valkey_url: str, unique: str) -> None:
    async with world(valkey_url, unique, adapter="sharded") as made:
        home, _, third = made.servers
        member = await attach(home)
        wanderer = Wanderer(home)
        await wanderer.join("room")
        await home.enter_room(member.sid, "room")
        await _go_until_ready(made, wanderer)
        while made.gates[0].held:  # it hears that the other is ready, and asks for the cut, which it does not hear
            made.gates[0].let()
        assert home.stats.connections == 1
        await home.leave_room(member.sid, "room")
        await third.emit("n", 1, room="room")  # before or behind the cut, one of the two hears it
        await made.turn()
        made.gates[0].open()
        await until(lambda: made.relay(1).moved_here == 1)
        await until(lambda: wanderer.events == [["n", 1]])
        assert not home._core.delivery._holds


async def test_room_joined_after_the_other_instance_was_asked_is_listened_to_before_the_cut(
    valkey_url: str, unique: str
) -> None:
    async with world(valkey_url, unique, adapter="sharded") as made:
        home, _, third = made.servers
        wanderer = Wanderer(home)
        await wanderer.join("room")
        await _go_until_ready(made, wanderer)
        await home.enter_room(wanderer.socket_sid, "late")
        await _cut_but_not_here(made)
        await third.emit("n", 1, room="late")
        await made.turn()
        made.gates[1].open()
        await until(lambda: made.relay(1).moved_here == 1)
        await until(lambda: wanderer.events == [["n", 1]])


async def test_instance_that_gets_ready_too_late_is_asked_again_and_the_connection_stays(
    valkey_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures, "STEP_TIMEOUT_S", 0.05)
    async with world(valkey_url, unique, 2) as made:
        there = made.servers[1]
        adapter, heard, thawed = there._core.adapter, asyncio.Event(), asyncio.Event()
        assert adapter is not None
        relay: Any = there._relay

        async def slow(namespace: str, room: str) -> None:
            await heard.wait()

        monkeypatch.setattr(adapter, "room_heard", slow)
        told = relay._arrivals.thawed
        monkeypatch.setattr(relay._arrivals, "thawed", lambda near: (told(near), thawed.set()))
        wanderer = Wanderer(made.servers[0])
        await wanderer.join("room")
        wanderer.upgrade_at(there)
        await until(lambda: wanderer.websocket.got == ["3probe"])
        wanderer.switch()
        await asyncio.wait_for(thawed.wait(), 5)
        await made.turn()
        assert wanderer.websocket.closed is None
        wanderer.send('427["said",1]')
        await until(lambda: "437[1]" in wanderer.websocket.got)
        assert made.heard[-1] == ("said", 0, 1)
        heard.set()
        await until(lambda: made.relay(1).moved_here == 1)
        await until(lambda: not there._core.delivery._holds)


async def test_session_whose_cut_redis_has_no_memory_for_stays_whole_and_moves_later(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with world(own_valkey.url, unique, 2, adapter="streams", stream_name=unique, recovery_s=None) as made:
        home, there = made.servers
        wanderer = Wanderer(home)
        await wanderer.join("room")
        await made.clients[0].config_set("maxmemory", 1)
        wanderer.upgrade_at(there)
        await until(lambda: wanderer.websocket.got == ["3probe"])
        wanderer.switch()
        await until(lambda: home.stats.adapter.publish_lost > 1)  # type: ignore[union-attr] # it is tried again
        wanderer.send('421["said",1]')
        await until(lambda: wanderer.flush() or "431[1]" in wanderer.websocket.got)
        await home.emit("n", 1, room="room")
        await until(lambda: wanderer.events == [["n", 1]])
        await made.clients[0].config_set("maxmemory", 0)
        await until(lambda: made.relay(1).moved_here == 1)
        await there.emit("n", 2, room="room")
        await until(lambda: wanderer.events == [["n", 1], ["n", 2]])
        assert not home._core.delivery._holds
        assert not there._core.delivery._holds


async def test_session_in_a_namespace_that_a_pattern_made_moves_and_leaves_none_behind(
    valkey_url: str, unique: str
) -> None:
    pattern, came = re.compile(r"/room-\d+"), []
    async with world(valkey_url, unique, 2) as made:
        for number, sio in enumerate(made.servers):
            sio.on("where", lambda namespace, sid, number=number: number, namespace=pattern)
            sio.on("connect", lambda namespace, sid, environ: came.append(namespace), namespace=pattern)
        home, there = made.servers
        wanderer = Wanderer(home)
        await wanderer.join("room")
        wanderer.client.receive("40/room-7,")
        await until(lambda: "/room-7" in wanderer.client.sockets and not wanderer.client.sockets["/room-7"].connecting)
        sid = wanderer.client.sockets["/room-7"].sid
        await home.enter_room(sid, "corner", namespace="/room-7")
        wanderer.polled += (await wanderer.polling.take()).split("\x1e")
        await move(made, wanderer)
        assert there.rooms(sid, namespace="/room-7") == sorted([sid, "corner"])
        wanderer.send('42/room-7,5["where"]')
        await until(lambda: "43/room-7,5[1]" in wanderer.websocket.got)
        await home.emit("n", 1, room="corner", namespace="/room-7")
        await until(lambda: '42/room-7,["n",1]' in wanderer.websocket.got)
        assert came == ["/room-7"]
        gate = home._core.spaces["/room-7"].gate
        assert gate is not None
        assert gate.is_vacant
        assert home._core.namespaces._empty.first() == "/room-7"  # removed after a while
        assert not home._core.delivery._holds
        assert not there._core.delivery._holds


async def test_somebody_who_listens_to_every_channel_ends_nobodys_connection(valkey_url: str, unique: str) -> None:
    class Monitor:
        def on_message(self, channel: bytes, payload: bytes) -> None: ...
        def on_lost(self) -> None: ...
        def on_restored(self) -> None: ...

    async with world(valkey_url, unique, 3) as made:
        await made.clients[2].hub.subscribe("*", Monitor(), kind="pattern")
        wanderer = Wanderer(made.servers[0])
        await wanderer.join("room")
        await _go_until_ready(made, wanderer)
        made.gates[0].let()
        await made.turn()  # Redis has said how many heard the cut, before it is heard
        assert wanderer.websocket.closed is None
        made.gates[0].open()
        await until(lambda: made.relay(1).moved_here == 1)
