"""Flotta instances and a real Node server in one Redis: all that servers ask of each other, over each adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flotta.errors import AckTimeout, ClusterTimeout, LinkUnavailable
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import NodePeer, node, node_modules, start_node, until
from realtime_fleet import ADAPTERS, BLOB, Fleet, fleet_of, settle

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def fleet(adapter: str, node: NodePeer, valkey_url: str, unique: str) -> AsyncIterator[Fleet]:
    async with fleet_of(adapter, valkey_url, unique, node) as made:
        yield made


async def _nothing_more(fleet: Fleet) -> None:
    """Return when everything that was sent before has arrived."""
    await fleet.one.emit("end")
    await fleet.two.emit("end")
    await fleet.peer.do("broadcast", args=["end"])
    for name in fleet.sids:
        await fleet.peer.wait_event(name, "end", 3)


# --- broadcasts ------------------------------------------------------------------------------------------------------


async def test_every_kind_of_broadcast_arrives_everywhere_once(fleet: Fleet) -> None:
    peer, one, two, sids = fleet
    await one.emit("all", ("x", BLOB, {"n": [1.5, None]}))
    await two.emit("room", 1, room="r")
    await one.emit("two rooms", 2, room=["r", sids["node"]])
    await two.emit("except", 3, room="r", skip_sid=sids["node"])
    await one.emit("direct", 5, to=sids["two"])
    await two.emit("direct to node", 6, to=sids["node"])
    await one.emit("local", 7, local=True)
    await peer.do("broadcast", args=["node all", BLOB])
    await peer.do("broadcast", rooms=["r"], args=["node room", 8])
    await peer.do("broadcast", rooms=["r"], args=["node except", 9], **{"except": [sids["one"]]})
    await peer.do("broadcast", rooms=[sids["two"]], args=["node direct", 10])
    await peer.do("broadcast", args=["node local", 12], local=True)
    await _nothing_more(fleet)
    every = {"all", "room", "two rooms", "node all", "node room"}
    expected = {
        "one": every | {"except", "local"},
        "two": every | {"except", "direct", "node except", "node direct"},
        "node": every | {"direct to node", "node except", "node local"},
    }
    for name in sids:
        got = [args[0] for args in peer.seen(name, "event") if args[0] not in {"end", "settle", "settle-node"}]
        assert sorted(got) == sorted(expected[name]), name
    assert peer.events("node", "all") == [["x", BLOB, {"n": [1.5, None]}]]
    assert peer.events("one", "node all") == [[BLOB]]
    # Node drops a volatile one for a client whose last packet is still being written: so these come alone.
    await one.emit("volatile", 4, volatile=True)
    for name in sids:
        assert await peer.wait_event(name, "volatile") == [[4]]
    await peer.do("broadcast", args=["node volatile", 11], volatile=True)
    for name in sids:
        assert await peer.wait_event(name, "node volatile") == [[11]]


async def test_a_user_is_reached_everywhere_by_their_room(fleet: Fleet) -> None:
    peer, one, two, sids = fleet
    for sio, name in ((one, "one"), (two, "two")):
        await sio.enter_room(sids[name], "user:ada")
    await peer.do("ask", name="node", args=["join", "user:ada"])
    await one.emit("for ada", 1, user="ada")
    for name in sids:
        assert await peer.wait_event(name, "for ada") == [[1]]


# --- acknowledgements ------------------------------------------------------------------------------------------------


async def test_clients_of_all_servers_answer_a_broadcast(fleet: Fleet) -> None:
    peer, one, _two, sids = fleet
    assert await one.call_all("question", BLOB, timeout_s=5) == [BLOB] * 3
    # Of a client's several arguments Node hands on the first; instances of Flotta hand each other all.
    assert sorted(map(str, await one.call_all("question", (1, 2), room="r", timeout_s=5))) == ["(1, 2)", "(1, 2)", "1"]
    assert await one.call_all("question", 1, room="r", skip_sid=sids["one"], timeout_s=5) == [1, 1]
    assert await one.call_all("question", 1, room=[], timeout_s=5) == []
    assert await one.call_all("question", 1, room="nobody", timeout_s=5) == []
    assert await one.call_all("question", 1, local=True, timeout_s=5) == [1]
    found = await peer.do("broadcastWithAck", args=["question", BLOB])
    assert found == {"error": None, "answers": [BLOB] * 3}
    found = await peer.do("broadcastWithAck", rooms=["r"], args=["question", "q"], **{"except": [sids["two"]]})
    assert found == {"error": None, "answers": ["q"] * 2}


async def test_who_does_not_answer_is_said_with_the_answers_of_the_others(fleet: Fleet) -> None:
    _peer, one, _two, sids = fleet
    with pytest.raises(ClusterTimeout) as caught:
        await one.call_all("never-answered", timeout_s=1.5)  # in which Node says how many it has asked
    assert (caught.value.expected, caught.value.answered, caught.value.answers) == (3, 0, [])
    with pytest.raises(AckTimeout):
        await one.call("never-answered", to=sids["node"], timeout_s=0.3)
    assert await one.call("question", 1, to=sids["node"], timeout_s=5) == 1  # nothing hangs behind


async def test_one_client_anywhere_is_called_by_its_id(fleet: Fleet) -> None:
    peer, one, two, sids = fleet
    for sio in (one, two):
        for name in sids:
            assert await sio.call("question", {"n": 1, "blob": BLOB}, to=sids[name], timeout_s=5) == {
                "n": 1,
                "blob": BLOB,
            }
    assert await one.call("question", (1, 2), to=sids["two"], timeout_s=5) == (1, 2)
    answered: asyncio.Queue[Any] = asyncio.Queue()
    for name in sids:
        await one.emit("question", name, to=sids[name], callback=answered.put)
        assert await asyncio.wait_for(answered.get(), 5) == name
    assert await peer.do("remote", sid=sids["one"], act="ask", args=["question", BLOB]) == BLOB
    assert await peer.do("remote", sid=sids["two"], act="ask", args=["question", 2]) == 2


async def test_a_client_that_is_nowhere_is_known_at_once(fleet: Fleet) -> None:
    with pytest.raises(AckTimeout) as caught:
        await fleet.one.call("question", to="AAAAAAAAAAAAAAAAAAAA", timeout_s=30)
    assert caught.value.waited_s < 5


# --- who is where ----------------------------------------------------------------------------------------------------


async def test_sockets_of_all_servers_are_found_with_their_rooms_and_data(fleet: Fleet) -> None:
    peer, one, _two, sids = fleet
    found = {socket.id: socket for socket in await one.fetch_sockets()}
    assert set(found) == set(sids.values())
    for name, sid in sids.items():
        assert found[sid].data == {"at": name}
        assert {"r", sid} <= found[sid].rooms
        assert found[sid].handshake["address"].endswith("127.0.0.1")
    assert {socket.id for socket in await one.fetch_sockets(room="r", skip_sid=sids["two"])} == {
        sids["one"],
        sids["node"],
    }
    assert [socket.id for socket in await one.fetch_sockets(local=True)] == [sids["one"]]
    assert await one.fetch_sockets(room=[]) == []
    seen = {socket["id"]: socket for socket in await peer.do("fetchSockets", room="r")}
    assert {sid: socket["data"] for sid, socket in seen.items()} == {sid: {"at": name} for name, sid in sids.items()}
    assert all({"r", sid} <= set(socket["rooms"]) for sid, socket in seen.items())
    assert {"r", *sids.values()} <= await one.all_rooms()
    assert (await one.server_count(), await peer.do("serverCount")) == (3, 3)


async def test_remote_sockets_are_worked_with_from_both_sides(fleet: Fleet) -> None:
    peer, one, two, sids = fleet
    (socket,) = await one.fetch_sockets(to=sids["node"])
    await socket.emit("hello", BLOB)
    assert await peer.wait_event("node", "hello") == [[BLOB]]
    assert await socket.call("question", 5, timeout_s=5) == 5
    await socket.join(["a", "b"])
    await _nothing_more(fleet)
    await socket.leave("b")
    await _nothing_more(fleet)
    (again,) = await one.fetch_sockets(to=sids["node"])
    assert again.rooms == {sids["node"], "r", "a"}
    await peer.do("remote", sid=sids["two"], act="join", args=["from node"])
    await until(lambda: "from node" in two.rooms(sids["two"]))
    await peer.do("remote", sid=sids["two"], act="disconnect")
    await peer.wait("two", "disconnect")
    await socket.disconnect()
    assert await peer.wait("node", "disconnect") == [["io server disconnect"]]


async def test_sockets_are_moved_and_sent_away_wherever_they_are(fleet: Fleet) -> None:
    peer, one, two, sids = fleet
    await one.sockets_join(["x", "y"], room="r", skip_sid=sids["two"])
    await _nothing_more(fleet)
    assert {socket.id for socket in await two.fetch_sockets(room="y")} == {sids["one"], sids["node"]}
    await two.sockets_leave("y", room="x")
    await two.enter_room(sids["node"], "z")
    await two.enter_room(sids["one"], "z")
    await _nothing_more(fleet)
    await two.leave_room(sids["one"], "z")
    await _nothing_more(fleet)
    assert await two.fetch_sockets(room="y") == []
    assert {socket.id for socket in await two.fetch_sockets(room="z")} == {sids["node"]}
    await peer.do("join", target="r", room="by node")
    await until(lambda: "by node" in one.rooms(sids["one"]) and "by node" in two.rooms(sids["two"]))
    await peer.do("leave", target="r", room="by node")
    await until(lambda: "by node" not in one.rooms(sids["one"]) and "by node" not in two.rooms(sids["two"]))
    await two.disconnect_sockets(room="x", close=True)
    # Told so: a client whose connection just ends would come back by itself.
    assert await peer.wait("one", "disconnect") == [["io server disconnect"]]
    assert await peer.wait("node", "disconnect") == [["io server disconnect"]]
    await peer.do("kick", target=sids["two"], close=True)
    assert await peer.wait("two", "disconnect") == [["io server disconnect"]]


# --- servers among themselves ----------------------------------------------------------------------------------------


async def test_servers_tell_and_ask_each_other(fleet: Fleet, adapter: str) -> None:
    peer, one, two, _sids = fleet
    await one.server_side_emit("told", "x", BLOB)
    assert await peer.wait("server", "told") == [["x", BLOB]]
    await until(lambda: two.told == [["x", BLOB]])  # type: ignore[attr-defined]
    await peer.do("serverSideEmit", args=["told", "from node"])
    await until(lambda: ["from node"] in one.told and ["from node"] in two.told)  # type: ignore[attr-defined]
    assert ["x", BLOB] not in one.told  # type: ignore[attr-defined] # who tells is not told
    assert await one.server_side_call("sum", 1, 2) == [3, 3]
    answers = await one.server_side_call("echo", BLOB)
    assert answers.count(BLOB) == (1 if adapter == "classic" else 2)  # there Node answers in JSON, whatever it answers
    assert await peer.do("serverSideAsk", args=["sum", 20, 22]) == {"error": None, "answers": [42, 42]}
    assert await peer.do("serverSideAsk", args=["nobody handles it"]) == {"error": None, "answers": [None, None]}
    with pytest.raises(ValueError, match="connection"):
        await one.server_side_emit("connection", {})


async def test_a_server_that_does_not_answer_is_a_timeout_with_the_answers_of_the_others(fleet: Fleet) -> None:
    _peer, one, _two, _sids = fleet
    with pytest.raises(ClusterTimeout) as caught:
        await one.server_side_call("silent", timeout_s=1.5)  # Node's listener never calls back
    assert (caught.value.expected, caught.value.answered, caught.value.answers) == (2, 1, [None])
    with pytest.raises(ClusterTimeout):
        await one.server_side_call("fails", timeout_s=0.4)
    assert await one.server_side_call("sum", 1, 1) == [2, 2]


async def test_a_server_that_dies_while_it_is_asked_hangs_nobody(fleet: Fleet, adapter: str) -> None:
    peer, one, two, sids = fleet
    published = one.stats.adapter.published
    waiting = asyncio.create_task(one.server_side_call("silent", timeout_s=3.0))
    await until(lambda: one.stats.adapter.published > published)
    await peer.kill()
    if adapter == "classic":  # its answers do not say whose they are: nobody can tell who is missing
        with pytest.raises(ClusterTimeout) as caught:
            await waiting
        assert caught.value.answers == [None]
    else:
        assert await waiting == [None]
    async with asyncio.timeout(10):  # Redis notices a dead process by its closed connection
        while await one.server_count() != 2:
            await asyncio.sleep(0.02)
    assert await one.server_side_call("sum", 1, 1) == [2]
    assert await two.all_rooms() <= {"r", *sids.values()}


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.faults
async def test_redis_killed_and_restarted_during_requests_and_broadcasts(
    adapter: str, node: NodePeer, own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with fleet_of(adapter, own_valkey.url, unique, node) as fleet:
        peer, one, two, sids = fleet
        asked = [
            asyncio.create_task(one.server_side_call("silent", timeout_s=8)),
            asyncio.create_task(one.call_all("never-answered", timeout_s=2)),
        ]
        await peer.wait_event("node", "never-answered")
        own_valkey.kill()
        results = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 7)
        assert isinstance(results[0], LinkUnavailable), results
        assert isinstance(results[1], ClusterTimeout), results
        await until(lambda: not (one.stats.adapter.connected or two.stats.adapter.connected))
        for ask in (one.server_count, one.fetch_sockets, one.all_rooms):
            with pytest.raises(LinkUnavailable):
                await asyncio.wait_for(ask(), 5)
        await one.emit("meanwhile", 1)
        assert await peer.wait_event("one", "meanwhile") == [[1]]
        await own_valkey.restart()
        await until(lambda: one.stats.adapter.connected and two.stats.adapter.connected)
        peer.happened.clear()
        await settle(fleet)
        await one.emit("again", 2)
        for name in sids:
            assert await peer.wait_event(name, "again") == [[2]]
        assert await one.call_all("question", 1, timeout_s=5) == [1, 1, 1]
        assert {socket.id for socket in await two.fetch_sockets()} == set(sids.values())


@pytest.mark.faults
async def test_subscriber_killed_by_redis_is_back_and_counted_once(
    adapter: str, node: NodePeer, own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with fleet_of(adapter, own_valkey.url, unique, node) as fleet:
        peer, one, two, sids = fleet
        async with Redis.from_url(own_valkey.url) as redis:
            for _ in range(3):
                killed = {client["id"] for client in await redis.client_list(_type="pubsub")}
                await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                async with asyncio.timeout(10):
                    while True:
                        there = {client["id"] for client in await redis.client_list(_type="pubsub")}
                        if len(there) >= len(killed) and not there & killed:
                            break
                        await asyncio.sleep(0.02)
        await until(lambda: one.stats.adapter.connected and two.stats.adapter.connected)
        peer.happened.clear()
        await settle(fleet)
        assert await one.server_count() == 3
        assert await one.call_all("question", 1, timeout_s=5) == [1, 1, 1]
        assert len(await two.fetch_sockets()) == len(sids)
