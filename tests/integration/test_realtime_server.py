"""The realtime server under real uvicorn, driven by sockets that may misbehave as no JavaScript client would."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from flotta.errors import Closed, ConfigError, NotStarted, RealtimeError, StateError
from flotta.realtime import Namespace, Server, ServerOptions
from realtime_fixtures import native, serving, until

__all__ = ["native"]

QUERY = "EIO=4&transport=websocket"


async def _open(port: int, *, query: str = QUERY, **options: Any) -> ClientConnection:
    return await ws_connect(f"ws://127.0.0.1:{port}/socket.io/?{query}", **options)


async def _join(port: int, auth: str = "", **options: Any) -> tuple[ClientConnection, str]:
    """A connection that has joined the main namespace, and its session id."""
    socket = await _open(port, **options)
    assert (await socket.recv()).startswith("0{")
    await socket.send("40" + auth)
    answer = await socket.recv()
    assert answer.startswith("40{"), answer
    return socket, json.loads(answer[2:])["sid"]


async def test_handshake_tells_the_session_and_the_times(native: bool) -> None:
    sio = Server(ping_interval_s=3, ping_timeout_s=2, payload_bytes_max=5_000, cookie="io", instance="ab-1")
    async with serving(sio, native=native) as port:
        socket = await _open(port)
        facts = json.loads((await socket.recv())[1:])
        assert facts.pop("sid").startswith("ab-1")
        assert facts == {"upgrades": [], "pingInterval": 3000, "pingTimeout": 2000, "maxPayload": 5000}
        assert socket.response is not None
        assert socket.response.headers["Set-Cookie"] == "io=ab-1; Path=/; HttpOnly; SameSite=Lax"
        assert "Sec-WebSocket-Extensions" not in socket.response.headers or not native
        await socket.close()


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("http://127.0.0.1:{port}", 101),
        ("https://app.example.com", 101),
        ("https://example.com.evil.com", 403),
        ("http://127.0.0.1:1", 403),
        ("http://127.0.0.1.evil.com:{port}", 403),
        ("http://127.0.0.1:{port}.evil.com", 403),
        ("http://127.0.0.1:{port}@evil.com", 403),
        ("null", 403),
    ],
)
async def test_only_own_and_listed_origins_connect(native: bool, origin: str | None, status: int) -> None:
    sio = Server(cors_origins=("https://app.example.com",))
    async with serving(sio, native=native) as port:
        origin = origin.format(port=port) if origin else None
        if status == 101:
            socket = await _open(port, origin=origin)
            await socket.close()
        else:
            with pytest.raises(InvalidStatus) as caught:
                await _open(port, origin=origin)
            assert caught.value.response.status_code == status
            assert json.loads(caught.value.response.body or b"")["code"] == 4


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("EIO=3&transport=websocket", 5),
        ("transport=websocket", 5),
        ("EIO=4&transport=abc", 0),
        ("EIO=4", 0),
        ("EIO=4&transport=websocket&sid=unknown", 1),
    ],
)
async def test_wrong_handshake_is_answered_with_the_protocols_error(native: bool, query: str, code: int) -> None:
    async with serving(Server(), native=native) as port:
        with pytest.raises(InvalidStatus) as caught:
            await _open(port, query=query)
        assert caught.value.response.status_code == 400
        assert json.loads(caught.value.response.body or b"")["code"] == code


JUNK_TEXT = ["", "9", "4", "49", '42["connect"]', '42["event"]', "2", "0{}", "5", "459999-[]", "42" + "[" * 50_000]


@pytest.mark.parametrize("junk", [*JUNK_TEXT, b"no attachment is due"])
async def test_junk_ends_that_connection_only(native: bool, junk: str | bytes) -> None:
    sio = Server()
    sio.on("echo", lambda sid, value: value)
    async with serving(sio, native=native) as port:
        good, _ = await _join(port)
        bad = await _open(port)
        await bad.recv()
        await bad.send(junk)
        await asyncio.wait_for(bad.wait_closed(), 5)
        await good.send('421["echo","still here"]')
        assert await good.recv() == '431["still here"]'
        await until(lambda: sio.stats.connections == 1)
        await good.close()


async def test_message_over_the_limit_ends_that_connection(native: bool) -> None:
    sio = Server(payload_bytes_max=1_000)
    async with serving(sio, native=native) as port:
        socket, _ = await _join(port)
        await socket.send('42["e","' + "x" * 2_000 + '"]')
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009


async def test_raw_bytes_that_are_no_frames_end_that_connection(native: bool) -> None:
    sio = Server()
    async with serving(sio, native=native) as port:
        good, _ = await _join(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET /socket.io/?{QUERY} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        await reader.readuntil(b'"maxPayload"')
        writer.write(b"\xff\xff\xff\xff" * 100)
        await asyncio.wait_for(reader.read(), 5)
        await until(lambda: sio.stats.connections == 1)
        writer.close()
        await good.close()


async def test_events_of_one_client_are_handled_in_order_and_of_two_beside_each_other(native: bool) -> None:
    sio = Server()
    order: list[int] = []
    gate = asyncio.Event()

    @sio.event
    async def step(sid: str, number: int) -> None:
        if number == 0:
            await gate.wait()
        order.append(number)

    async with serving(sio, native=native) as port:
        first, _ = await _join(port)
        second, _ = await _join(port)
        for number in range(5):
            await first.send(f'42["step",{number}]')
        await second.send('42["step",100]')
        await until(lambda: order == [100])
        gate.set()
        await until(lambda: len(order) == 6)
        assert order == [100, 0, 1, 2, 3, 4]
        await first.close()
        await second.close()


async def test_client_that_sends_faster_than_handlers_run_is_read_no_further(native: bool) -> None:
    sio = Server(backlog_max=8, ping_interval_s=0.2, ping_timeout_s=0.7)
    gate, done = asyncio.Event(), []

    @sio.event
    async def work(sid: str, number: int) -> None:
        await gate.wait()
        done.append(number)

    async with serving(sio, native=native) as port:
        socket, sid = await _join(port)

        async def answer_pings() -> None:
            async for message in socket:
                if message == "2":
                    await socket.send("3")

        answering = asyncio.create_task(answer_pings())
        for number in range(200):
            await socket.send(f'42["work",{number}]')
        held = sio._core.spaces["/"].rooms.get(sid)
        assert held is not None
        await until(lambda: held.paused)
        await asyncio.sleep(1.0)  # two heartbeats: silence that we caused must not end the client
        assert sio.is_connected(sid)
        assert len(held.backlog or ()) < 150
        gate.set()
        await until(lambda: len(done) == 200)
        assert done == list(range(200))
        await socket.close()
        await answering


async def test_slow_client_loses_volatile_packets_then_its_connection_while_others_go_on() -> None:
    sio = Server(send_bytes_max=400_000, volatile_bytes_max=50_000)
    reasons: list[str] = []
    sio.on("disconnect", lambda sid, reason: reasons.append(reason))
    async with serving(sio, native=True) as port:
        good, _ = await _join(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET /socket.io/?{QUERY} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        await reader.readuntil(b'"maxPayload"')
        writer.write(b"\x81\x82\x00\x00\x00\x0040")
        await until(lambda: sio.stats.sockets == 2)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        got = 0

        async def read() -> None:
            nonlocal got
            async for _ in good:
                got += 1

        task = asyncio.create_task(read())
        sent = 0

        async def send_until(true: Callable[[], Any], **options: Any) -> None:
            nonlocal sent
            while not true():
                await sio.emit("big", "x" * 20_000, **options)
                sent += 1
                await until(lambda want=sent: got >= want)  # type: ignore[misc]

        await send_until(lambda: sio.stats.volatile_dropped, volatile=True)
        assert sio.stats.connections == 2
        await send_until(lambda: sio.stats.connections == 1)
        assert reasons == ["slow client"]
        assert got == sent
        task.cancel()
        writer.close()
        await good.close()


async def test_too_many_messages_or_rooms_are_refused(native: bool) -> None:
    sio = Server(messages_per_s_max=5, rooms_max=2)
    async with serving(sio, native=native) as port:
        socket, sid = await _join(port)
        assert [await sio.enter_room(sid, room) for room in "aabc"] == [True, True, True, False]
        assert sio.rooms(sid) == sorted(["a", "b", sid])
        for _ in range(20):
            await socket.send('42["e"]')
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1008
        assert sio.stats.ended == {"message rate exceeded": 1}
        assert sio.stats.rooms == 0


async def test_client_that_joins_nothing_is_sent_away(native: bool) -> None:
    sio = Server(connect_timeout_s=0.2, ping_interval_s=1)
    async with serving(sio, native=native) as port:
        joined, _ = await _join(port)
        idle = await _open(port)
        await idle.recv()
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(idle.recv(), 5)
        assert sio.stats.ended == {"connect timeout": 1}
        await joined.close()


async def test_connect_handler_that_takes_too_long_is_told_by_the_options_name(
    native: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sio = Server(connect_timeout_s=0.2)
    sio.on("connect", lambda sid, environ: asyncio.Event().wait())
    async with serving(sio, native=native) as port:
        socket = await _open(port)
        await socket.recv()
        await socket.send("40")
        assert await socket.recv() == '44{"message":"internal error"}'
        await socket.close()
    assert "connect and what decides before it have connect_timeout_s=0.2" in capsys.readouterr().out


async def test_what_is_sent_while_connecting_follows_the_confirmation(native: bool) -> None:
    sio = Server()

    @sio.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await sio.enter_room(sid, "r")
        await sio.emit("direct", 1, to=sid)
        await sio.emit("room", 2, room="r")
        await sio.emit("volatile", 3, volatile=True)

    async with serving(sio, native=native) as port:
        socket = await _open(port)
        await socket.recv()
        await socket.send("40")
        assert (await socket.recv()).startswith('40{"sid":')
        assert await socket.recv() == '42["direct",1]'
        assert await socket.recv() == '42["room",2]'
        await sio.emit("end")
        assert await socket.recv() == '42["end"]'
        await socket.close()


async def test_who_leaves_while_connecting_is_told_of_after_its_coming(native: bool) -> None:
    sio = Server()
    calls: list[str] = []
    gate = asyncio.Event()

    @sio.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        calls.append("connect")
        await gate.wait()
        assert not await sio.enter_room(sid, "r")

    @sio.event
    def disconnect(sid: str) -> None:
        calls.append("disconnect")

    async with serving(sio, native=native) as port:
        socket = await _open(port)
        await socket.send("40")
        await until(lambda: calls)
        await socket.close()
        await until(lambda: sio.stats.connections == 0)
        assert calls == ["connect"]
        gate.set()
        await until(lambda: calls == ["connect", "disconnect"])
        assert sio.stats.rooms == sio.stats.sockets == 0


async def test_drain_sends_clients_away_in_batches_and_refuses_new_ones(native: bool) -> None:
    sio = Server(drain_clients_per_s=10)
    async with serving(sio, native=native) as port:
        sockets = [(await _join(port))[0] for _ in range(20)]
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        ends: list[tuple[float, int]] = []

        async def watch(socket: ClientConnection) -> None:
            with pytest.raises(ConnectionClosed) as caught:
                await socket.recv()
            assert caught.value.rcvd is not None
            ends.append((loop.time() - began_s, caught.value.rcvd.code))

        watching = asyncio.gather(*map(watch, sockets))
        draining = asyncio.create_task(sio.drain(2.0))
        await until(lambda: not sio.running)
        with pytest.raises(InvalidStatus) as caught:
            await _open(port)
        assert caught.value.response.status_code == 503
        await draining
        await watching
        assert {code for _, code in ends} == {1012}
        assert max(ends)[0] - min(ends)[0] > 0.5
        assert max(ends)[0] < 4.0


async def test_stopping_web_server_drains_its_native_connections() -> None:
    sio = Server(drain_clients_per_s=20)
    gone: list[str] = []
    sio.on("disconnect", lambda sid, reason: gone.append(reason))
    loop = asyncio.get_running_loop()
    async with serving(sio, native=True, drain=False) as port:
        sockets = [(await _join(port))[0] for _ in range(10)]
        began_s = loop.time()
    # serving() stops uvicorn as SIGTERM does, and returns when it has ended
    assert gone == ["server draining"] * 10
    assert loop.time() - began_s > 0.2
    for socket in sockets:
        await socket.wait_closed()
        assert socket.close_code == 1012


async def test_emit_from_another_thread_and_from_wsgi_code(native: bool) -> None:
    sio = Server()
    async with serving(sio, native=native) as port:
        socket, _ = await _join(port)
        thread = threading.Thread(target=sio.emit_sync, args=("news", {"n": 1}))
        thread.start()
        assert await socket.recv() == '42["news",{"n":1}]'
        thread.join()
        with pytest.raises(StateError, match="await emit"):
            sio.emit_sync("news")
        await socket.close()


async def test_thousand_clients_come_get_everything_and_leave_nothing_behind(native: bool) -> None:
    sio = Server()

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: dict[str, Any]) -> None:
        await sio.enter_room(sid, f"room{auth['n'] % 10}")
        await sio.enter_room(sid, "all")

    async with serving(sio, native=native) as port:
        clients: list[ClientConnection] = []
        for at in range(0, 1_000, 100):
            joined = await asyncio.gather(
                *(_join(port, json.dumps({"n": n}), compression=None) for n in range(at, at + 100))
            )
            clients += [socket for socket, _ in joined]
        assert (sio.stats.connections, sio.stats.rooms) == (1_000, 11)
        await sio.emit("one", 1, room="all")
        await sio.emit("two", 2, room="room3")
        await sio.emit("end")
        for number, socket in enumerate(clients):
            got = [await socket.recv()]
            while got[-1] != '42["end"]':
                got.append(await socket.recv())
            assert got == ['42["one",1]', *(['42["two",2]'] if number % 10 == 3 else []), '42["end"]']
        for socket in clients:
            socket.transport.abort()
        await until(lambda: sio.stats.connections == 0)
        assert sio.stats.sockets == sio.stats.rooms == 0
        core = sio._core
        beat = core._heartbeat
        assert len(beat._resting) == len(beat._pinged) == len(beat._joining) == 0


async def test_plain_websocket_and_http_routes_of_the_other_app_are_untouched(native: bool) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": scope["path"]})
        await send({"type": "websocket.close", "code": 1000})

    sio = Server()
    async with serving(sio, native=native, other=other) as port:
        async with ws_connect(f"ws://127.0.0.1:{port}/mine") as socket:
            assert await socket.recv() == "/mine"
        joined, _ = await _join(port)
        await joined.close()


async def test_class_namespace_catch_all_and_sessions(native: bool) -> None:
    class Admin(Namespace):
        async def on_connect(self, sid: str, environ: dict[str, Any], auth: Any) -> bool:
            async with self.server.session(sid, namespace=self.namespace) as session:
                session["auth"] = auth
            return auth != {"no": True}

        async def on_whoami(self, sid: str) -> Any:
            return await self.server.get_session(sid, namespace=self.namespace)

    sio = Server()
    sio.register_namespace(Admin("/admin"))
    sio.on("*", lambda event, sid, *data: (event, *data), namespace="/admin")
    async with serving(sio, native=native) as port:
        socket = await _open(port)
        await socket.recv()
        await socket.send('40/admin,{"no":true}')
        assert await socket.recv() == '44/admin,{"message":"Connection rejected by server"}'
        await socket.send('40/admin,{"user":"ada"}')
        assert (await socket.recv()).startswith("40/admin,{")
        await socket.send('42/admin,1["whoami"]')
        assert await socket.recv() == '43/admin,1[{"auth":{"user":"ada"}}]'
        await socket.send('42/admin,2["anything",5]')
        assert await socket.recv() == '43/admin,2["anything",5]'
        await socket.close()


async def test_order_of_life_is_enforced() -> None:
    sio = Server()
    with pytest.raises(NotStarted):
        await sio.emit("too early")
    await sio.start()
    await sio.start()
    with pytest.raises(StateError):
        sio.on("late", print, namespace="/late")
    with pytest.raises(RealtimeError):
        await sio.emit("e", namespace="/unknown")
    with pytest.raises(RealtimeError):
        await sio.call("e", to="nobody")
    await sio.aclose()
    await sio.aclose()
    with pytest.raises(Closed):
        await sio.start()


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "socket.io"},
        {"path": "/socket.io/"},
        {"cors_origins": "*"},
        {"cors_origins": "https://a.example.com"},
        {"cors_origins": ("a.example.com",)},
        {"cors_origins": ("https://a.example.com/path",)},
        {"cors_origins": ("https://A.example.com",)},
        {"cors_origins": ("https://a.example.com:443",)},
        {"connections_max": 0},
        {"ping_interval_s": 0},
        {"transports": ()},
        {"transports": ("carrier pigeon",)},
        {"instance": "toolong"},
        {"volatile_bytes_max": 2_000_000},
    ],
)
def test_wrong_option_stops_the_construction_and_names_itself(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerOptions(**wrong)
    assert caught.value.variable in wrong
