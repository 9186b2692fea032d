"""The official JavaScript client and the official Redis adapter against Flotta's server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flotta.errors import AckTimeout, ConnectRefused
from flotta.realtime import Server
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import NodePeer, native, node, node_modules, serving, start_node, until

__all__ = ["native", "node", "node_modules", "start_node"]

pytestmark = pytest.mark.node


def _server(**options: Any) -> Server:
    """A server with one handler of each kind; what they saw is in ``sio.seen``."""
    sio = Server(**options)
    seen: list[Any] = []

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        if auth and auth.get("token") == "wrong":
            raise ConnectRefused("unknown token", {"hint": "sign in"})
        await sio.save_session(sid, {"user": (auth or {}).get("user")})
        await sio.emit("early", "sent while connecting", to=sid)

    @sio.event
    def disconnect(sid: str, reason: str) -> None:
        seen.append(("disconnect", sid, reason))

    @sio.event
    async def echo(sid: str, *data: Any) -> Any:
        return data

    @sio.event
    async def join(sid: str, room: str) -> None:
        await sio.enter_room(sid, room)

    @sio.event
    async def leave(sid: str, room: str) -> None:
        await sio.leave_room(sid, room)

    @sio.event
    async def to_room(sid: str, room: str, *data: Any) -> None:
        await sio.emit("said", data, room=room, skip_sid=sid)

    @sio.event
    async def fails(sid: str) -> None:
        raise RuntimeError("the handler's own fault")

    sio.seen = seen  # type: ignore[attr-defined]
    return sio


async def test_client_connects_with_auth_and_gets_what_its_connect_handler_sent(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        sid = await node.connect("a", port, auth={"user": "ada"})
        assert len(sid) == 20
        assert sid.startswith(sio.stats.instance)
        assert await node.wait_event("a", "early") == [["sent while connecting"]]
        assert await sio.get_session(sid) == {"user": "ada"}
        environ = sio.get_environ(sid)
        assert environ is not None
        assert "transport=websocket" in environ["QUERY_STRING"]
        assert environ["REMOTE_ADDR"] == "127.0.0.1"


async def test_refused_client_learns_message_and_data(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        await node.do("connect", name="a", url=f"http://127.0.0.1:{port}", options={"auth": {"token": "wrong"}})
        assert await node.wait("a", "connect_error") == [["unknown token", {"hint": "sign in"}]]
        assert sio.stats.sockets == 0
        assert not [entry for entry in sio.seen if entry[0] == "disconnect"]  # type: ignore[attr-defined]


async def test_unknown_namespace_is_refused_and_a_known_one_is_served(node: NodePeer, native: bool) -> None:
    sio = _server()

    @sio.on("whoami", namespace="/admin")
    def whoami(sid: str) -> str:
        return sid

    async with serving(sio, native=native) as port:
        await node.do("connect", name="a", url=f"http://127.0.0.1:{port}/nowhere", options={})
        assert await node.wait("a", "connect_error") == [["Invalid namespace", None]]
        sid = await node.connect("b", port, namespace="/admin")
        assert await node.do("ask", name="b", args=["whoami"]) == [sid]


async def test_values_and_bytes_come_back_as_they_went(node: NodePeer, native: bool) -> None:
    values = [1, -2.5, "vessel – 船", None, True, [b"\x00\xff" * 1000, {"deep": [b"", b"x"]}], {}, b"z"]
    sio = _server()
    async with serving(sio, native=native) as port:
        await node.connect("a", port)
        assert await node.do("ask", name="a", args=["echo", *values]) == values
        await node.connect("b", port, forceBase64=True)
        assert await node.do("ask", name="b", args=["echo", *values]) == values


async def test_number_may_be_the_name_of_an_event(node: NodePeer, native: bool) -> None:
    sio = _server()
    sio.on("7", lambda _sid, *data: data)
    async with serving(sio, native=native) as port:
        await node.connect("a", port)
        assert await node.do("ask", name="a", args=[7, "x"]) == ["x"]


async def test_server_asks_and_client_answers(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        sid = await node.connect("a", port)
        assert await sio.call("question", {"n": 1, "blob": b"abc"}, to=sid, timeout_s=5) == {"n": 1, "blob": b"abc"}
        assert await sio.call("question", (1, 2), to=sid, timeout_s=5) == (1, 2)
        answered = asyncio.Event()
        await sio.emit("question", 7, to=sid, callback=lambda value: answered.set() if value == 7 else None)
        await asyncio.wait_for(answered.wait(), 5)
        with pytest.raises(AckTimeout) as caught:
            await sio.call("never-answered", to=sid, timeout_s=0.1)
        assert caught.value.event == "never-answered"


async def test_failing_handler_sends_no_ack_and_keeps_the_connection(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        await node.connect("a", port)
        with pytest.raises(RuntimeError, match="timed out"):
            await node.do("ask", name="a", args=["fails"], timeout=300)
        assert await node.do("ask", name="a", args=["echo", 1]) == [1]
        assert sio.stats.handlers_failed == 1


async def test_room_reaches_its_members_but_not_the_sender(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        for name in "abc":
            await node.connect(name, port)
        for name in "ab":
            await node.do("ask", name=name, args=["join", "harbour"])
        await node.do("ask", name="a", args=["to_room", "harbour", "hello", b"\x01"])
        assert await node.wait_event("b", "said") == [["hello", b"\x01"]]
        await sio.emit("end")
        for name in "abc":
            await node.wait_event(name, "end")
        assert node.events("a", "said") == []
        assert node.events("c", "said") == []
        await node.do("ask", name="b", args=["leave", "harbour"])
        assert sio.stats.rooms == 1


async def test_filter_decides_per_recipient_at_the_time_of_the_event(node: NodePeer, native: bool) -> None:
    sio = _server()
    shared = {"ada": {"v1"}, "bob": set()}

    @sio.may_see("vessel")
    def sees(sid: str, session: dict[str, Any], position: dict[str, Any]) -> bool:
        return position["vessel"] in shared[session["user"]]

    async with serving(sio, native=native) as port:
        await node.connect("a", port, auth={"user": "ada"})
        await node.connect("b", port, auth={"user": "bob"})
        await sio.emit("position", {"vessel": "v1", "n": 1}, may_see="vessel")
        shared["ada"].clear()
        shared["bob"].add("v1")
        await sio.emit("position", {"vessel": "v1", "n": 2}, may_see="vessel")
        await sio.emit("position", {"vessel": "v1", "n": 3}, may_see="nobody knows this filter")
        await sio.emit("end")
        await node.wait_event("a", "end")
        await node.wait_event("b", "end")
        assert [args[0]["n"] for args in node.events("a", "position")] == [1]
        assert [args[0]["n"] for args in node.events("b", "position")] == [2]


async def test_disconnect_reasons_of_both_sides(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        first = await node.connect("a", port)
        second = await node.connect("b", port)
        await node.do("close", name="a")
        await sio.disconnect(second)
        assert await node.wait("b", "disconnect") == [["io server disconnect"]]
        await until(lambda: len(sio.seen) == 2)  # type: ignore[attr-defined]
        assert set(sio.seen) == {  # type: ignore[attr-defined]
            ("disconnect", first, "client namespace disconnect"),
            ("disconnect", second, "server namespace disconnect"),
        }


@pytest.mark.parametrize("close", [True, False])
async def test_client_that_is_sent_away_while_it_polls_meets_no_error(node: NodePeer, close: bool) -> None:
    sio = _server()
    answered: list[tuple[str, int]] = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        async def heard(message: Any) -> None:
            if message["type"] == "http.response.start":
                answered.append((scope["method"], message["status"]))
            await send(message)

        await app(scope, receive, heard if scope["type"] == "http" else send)

    app = sio.app()
    async with serving(sio, native=True, whole=listening) as port:
        await node.connect("a", port, transports=["polling"])
        await until(lambda: answered.count(("GET", 200)) == 2)  # its third GET waits
        posts = answered.count(("POST", 200))
        await sio.disconnect_sockets(close=close)
        assert await node.wait("a", "disconnect") == [["io server disconnect"]]
        await until(lambda: answered.count(("POST", 200)) == posts + 1)
        assert {status for _, status in answered} == {200}


async def test_client_comes_back_after_the_server_died_and_after_a_drain(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        await node.connect("a", port)
        await sio.drain(0.2)
        assert await node.wait("a", "disconnect") == [["transport close"]]
        await node.wait("a", "connect_error")  # 503 while it drains
    async with serving(_server(), native=native, port=port):
        await node.wait("a", "connect", 2)


async def test_full_server_refuses_with_503_and_says_so_in_its_counters(node: NodePeer, native: bool) -> None:
    sio = _server(connections_max=1)
    async with serving(sio, native=native) as port:
        await node.connect("a", port)
        await node.do("connect", name="b", url=f"http://127.0.0.1:{port}", options={"reconnection": False})
        await node.wait("b", "connect_error")
        assert sio.stats.refused == 1
        await node.do("close", name="a")
        await until(lambda: sio.stats.connections == 0)
        await node.connect("c", port)


async def test_heartbeat_keeps_a_client_and_ends_a_silent_one(node: NodePeer, native: bool) -> None:
    sio = _server(ping_interval_s=0.2, ping_timeout_s=1.0)
    async with serving(sio, native=native) as port:
        await node.connect("a", port)
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await until(lambda: sio.stats.connections == 2)
        await until(lambda: sio.stats.ended.get("ping timeout") == 1)
        assert await node.do("ask", name="a", args=["echo", "alive"]) == ["alive"]
        assert node.seen("a", "disconnect") == []
        writer.close()


async def test_default_client_polls_first_and_upgrades(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        sid = await node.connect("a", port, transports=["polling", "websocket"])
        assert await node.wait("a", "upgrade") == [["websocket"]]
        assert await node.do("ask", name="a", args=["echo", 1, b"\x00bytes"]) == [1, b"\x00bytes"]
        assert await sio.call("question", b"\xff", to=sid, timeout_s=5) == b"\xff"
        await sio.emit("news", 1)
        assert await node.wait_event("a", "news") == [[1]]
        assert sio.stats.connections == 1


async def test_every_event_arrives_once_and_in_order_across_the_upgrade(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        sent = 0
        stop = asyncio.Event()

        async def flood() -> None:
            nonlocal sent
            while not stop.is_set():
                await sio.emit("n", (sent, b"x"), room="flood")
                sent += 1
                await asyncio.sleep(0.0005)

        task = asyncio.create_task(flood())
        for number in range(5):
            name = f"c{number}"
            await node.connect(name, port, transports=["polling", "websocket"])
            await node.do("ask", name=name, args=["join", "flood"])
            await node.wait(name, "upgrade")
            await node.wait_event(name, "n", 50)
        stop.set()
        await task
        for number in range(5):
            name = f"c{number}"
            await until(lambda name=name: node.events(name, "n")[-1][0] == sent - 1)  # type: ignore[misc]
            got = [args[0] for args in node.events(name, "n")]
            assert got == list(range(got[0], sent))


async def test_client_that_only_polls_is_served_whole(node: NodePeer) -> None:
    sio = _server(ping_interval_s=0.2, ping_timeout_s=2.0)
    async with serving(sio, native=True) as port:
        sid = await node.connect("a", port, transports=["polling"])
        assert await node.do("ask", name="a", args=["echo", 1, b"\x00bytes", "é"]) == [1, b"\x00bytes", "é"]
        assert await sio.call("question", [b"\xff", 2], to=sid, timeout_s=5) == [b"\xff", 2]
        await asyncio.sleep(1.0)  # five heartbeats
        assert node.seen("a", "disconnect") == []
        await sio.disconnect(sid)
        assert await node.wait("a", "disconnect") == [["io server disconnect"]]
        await node.connect("b", port, transports=["polling"])
        await node.do("close", name="b")
        await until(lambda: sio.stats.connections == 0 or sio.stats.sockets == 0)


# --- clusters --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cluster(start_node: Callable[[], Awaitable[NodePeer]], valkey_url: str, unique: str) -> Any:
    """Two Flotta instances and one Node server in one Redis, a client on each."""
    peer = await start_node()
    one, two = _server(), _server()
    await one.start(valkey_url)
    await two.start(valkey_url)
    async with serving(one, native=True) as port_one, serving(two, native=False) as port_two:
        port_node = await peer.do("serve", redis=valkey_url)
        sids = {
            "one": await peer.connect("one", port_one),
            "two": await peer.connect("two", port_two),
            "node": await peer.connect("node", port_node),
        }
        for name in sids:
            await peer.do("ask", name=name, args=["join", "r"])
        yield peer, one, two, sids


async def test_broadcasts_cross_between_flotta_and_node(cluster: Any) -> None:
    peer, one, two, sids = cluster
    blob = bytes(range(256))
    await one.emit("from-one", ("x", blob, {"n": [1.5, None]}))
    await peer.do("broadcast", args=["from-node", "y", blob])
    await two.emit("from-two-in-room", 1, room="r", skip_sid=sids["two"])
    for name in sids:
        assert await peer.wait_event(name, "from-one") == [["x", blob, {"n": [1.5, None]}]]
        assert await peer.wait_event(name, "from-node") == [["y", blob]]
    for name in ("one", "node"):
        assert await peer.wait_event(name, "from-two-in-room") == [[1]]
    assert peer.events("two", "from-two-in-room") == []
    await peer.do("broadcast", rooms=["r"], except_=[], args=["room-from-node", 2])
    for name in sids:
        assert await peer.wait_event(name, "room-from-node") == [[2]]
    # To one client that is connected elsewhere, by its session id.
    await one.emit("direct", 3, to=sids["node"])
    await two.emit("direct", 4, to=sids["one"])
    assert await peer.wait_event("node", "direct") == [[3]]
    assert await peer.wait_event("one", "direct") == [[4]]
    for sender in (one, two):
        await sender.emit("end")
    await peer.do("broadcast", args=["end"])
    for name in sids:
        await peer.wait_event(name, "end", 3)
    counts = {(name, args[0]): 0 for name in sids for args in peer.seen(name, "event")}
    for name in sids:
        for args in peer.seen(name, "event"):
            counts[name, args[0]] += 1
    twice = {key for key, count in counts.items() if count > 1 and key[1] != "end"}
    assert not twice


async def test_node_counts_and_commands_sockets_of_flotta(cluster: Any) -> None:
    peer, one, _two, sids = cluster
    found = await peer.do("fetchSockets", room="r")
    assert {socket["id"] for socket in found} == set(sids.values())
    assert {"r", *sids.values()} <= set(await peer.do("allRooms"))
    await peer.do("join", target=sids["one"], room="late")
    await until(lambda: "late" in one.rooms(sids["one"]))
    await peer.do("leave", target="late", room="late")
    await until(lambda: "late" not in one.rooms(sids["one"]))
    await peer.do("kick", target=sids["two"])
    await peer.wait("two", "disconnect")
    await one.disconnect(sids["node"])
    await peer.wait("node", "disconnect")


async def test_node_broadcast_with_ack_hears_flotta_clients(cluster: Any) -> None:
    peer, *_ = cluster
    answer = await peer.do("broadcastWithAck", args=["question", "q"])
    assert answer == {"error": None, "answers": ["q", "q", "q"]}


async def test_official_emitter_reaches_flotta(cluster: Any, valkey_url: str) -> None:
    peer, _, _, sids = cluster
    await peer.do("emitter", redis=valkey_url, room="r", args=["from-emitter", b"\x00\x01"])
    for name in sids:
        assert await peer.wait_event(name, "from-emitter") == [[b"\x00\x01"]]


async def test_filtered_broadcast_passes_instances_but_never_node(cluster: Any) -> None:
    peer, one, two, sids = cluster
    for sio in (one, two):
        sio.may_see("everybody")(lambda sid, session, value: True)
    await one.emit("secret", 1, may_see="everybody")
    await one.emit("end")
    for name in sids:
        await peer.wait_event(name, "end")
    await peer.wait_event("two", "secret")
    assert peer.events("one", "secret") == [[1]]
    assert peer.events("node", "secret") == []


@pytest.mark.faults
async def test_lost_redis_costs_the_other_instances_only_while_it_is_away(
    node: NodePeer, own_valkey: EmbeddedRedis
) -> None:
    one, two = _server(), _server()
    await one.start(own_valkey.url)
    await two.start(own_valkey.url)
    async with serving(one, native=True) as port_one, serving(two, native=True) as port_two:
        await node.connect("one", port_one)
        await node.connect("two", port_two)
        own_valkey.kill()
        await until(lambda: not (one.stats.adapter.connected or two.stats.adapter.connected))  # type: ignore[union-attr]
        await one.emit("while-away", 1)
        assert await node.wait_event("one", "while-away") == [[1]]
        adapter = one.stats.adapter
        assert adapter is not None
        assert (adapter.publish_lost, adapter.gaps) == (1, 1)
        await own_valkey.restart()
        await until(lambda: one.stats.adapter.connected and two.stats.adapter.connected)  # type: ignore[union-attr]
        await one.emit("again", 2)
        assert await node.wait_event("two", "again") == [[2]]
        assert node.events("two", "while-away") == []
