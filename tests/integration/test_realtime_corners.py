"""Corners of the API over real connections: names that clients choose, refusals that cannot travel, who has left."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed

from flotta.errors import AckTimeout, CommandError, ConnectRefused
from flotta.realtime import Namespace, Reason, Server, SyncEmitter
from flotta.realtime.adapters.memory import MemoryAdapter
from flotta.realtime.client import HELD_MAX, Client
from flotta.realtime.engine.request import Request
from flotta.realtime.transports.native import NativeTransport
from flotta.redis import Redis
from realtime_fixtures import serving, until

QUERY = "EIO=4&transport=websocket"


async def _open(port: int) -> ClientConnection:
    socket = await ws_connect(f"ws://127.0.0.1:{port}/socket.io/?{QUERY}")
    assert str(await socket.recv()).startswith("0{")
    return socket


async def _next(socket: ClientConnection) -> str:
    return str(await asyncio.wait_for(socket.recv(), 5))


async def _join(socket: ClientConnection, namespace: str = "") -> str:
    await socket.send(f"40{namespace}," if namespace else "40")
    answer = await _next(socket)
    assert answer.startswith("40"), answer
    return str(json.loads(answer[answer.index("{") :])["sid"])


@asynccontextmanager
async def _client(sio: Server) -> AsyncIterator[ClientConnection]:
    async with serving(sio, native=True) as port:
        socket = await _open(port)
        yield socket
        await socket.close()


# --- events that are called as a client likes ---


@pytest.mark.parametrize("namespace", ["/", "*"])
async def test_event_called_star_does_not_put_its_data_where_handlers_expect_the_session_id(namespace: str) -> None:
    sio = Server(namespaces=("/",))
    heard: list[tuple[Any, ...]] = []

    @sio.on("*", namespace=namespace)
    def anything(*args: Any) -> None:
        heard.append(args)

    async with _client(sio) as socket:
        sid = await _join(socket)
        await socket.send('421["*","somebody else"]')
        assert await _next(socket) == "431[]"
    assert heard == [("*", *(() if namespace == "/" else ("/",)), sid, "somebody else")]


async def test_function_for_every_event_takes_the_place_of_a_class_method_for_it() -> None:
    class Everything(Namespace):
        def catch_all(self, event: str, sid: str) -> str:
            return "class"

        def on_known(self, sid: str) -> str:
            return "class"

    sio = Server()

    @sio.on("*")
    def anything(event: str, sid: str) -> str:
        return "function"

    sio.register_namespace(Everything())
    async with _client(sio) as socket:
        await _join(socket)
        await socket.send('421["unknown"]')
        assert await _next(socket) == '431["function"]'
        await socket.send('422["known"]')
        assert await _next(socket) == '432["class"]'


# --- refusals ---


async def test_refusal_whose_data_cannot_travel_is_a_refusal_and_leaves_nothing_behind() -> None:
    sio = Server()

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        await sio.enter_room(sid, "all")
        if auth is None:
            raise ConnectRefused("not now", {"reasons": {1, 2}})

    async with _client(sio) as socket:
        for _ in range(2):
            await socket.send("40")
            assert await _next(socket) == '44{"message":"not now"}'
        await until(lambda: sio.stats.sockets == sio.stats.rooms == 0)
        assert sio.stats.handlers_failed == 2
        await socket.send('40{"token":1}')
        assert (await _next(socket)).startswith("40{")


# --- who has left ---


class Slow:
    """An adapter whose `settled` waits until it is let go."""

    alone = True
    echoes = False

    def __init__(self) -> None:
        self._inner = MemoryAdapter()
        self.asked, self.may_settle = asyncio.Event(), asyncio.Event()

    async def settled(self) -> None:
        self.asked.set()
        await self.may_settle.wait()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_call_to_a_client_that_leaves_before_it_is_sent_ends_at_once() -> None:
    adapter = Slow()
    sio = Server(adapter=adapter)
    async with _client(sio) as socket:
        sid = await _join(socket)
        call = asyncio.create_task(sio.call("ping", to=sid, timeout_s=30.0))
        await adapter.asked.wait()
        await socket.send("41")
        await until(lambda: not sio.stats.sockets)
        adapter.may_settle.set()
        with pytest.raises(AckTimeout):
            await asyncio.wait_for(call, 5)


async def test_callback_follows_what_was_sent_before_it_when_broadcasts_come_back_first(
    redis: Redis, unique: str
) -> None:
    sio = Server(redis, adapter="streams", channel_prefix=unique, stream_name=unique, recovery_s=None)
    answered = asyncio.Event()
    async with _client(sio) as socket:
        sid = await _join(socket)
        for number in range(5):
            await sio.emit("before", number, to=sid)
        await sio.emit("asked", to=sid, callback=answered.set)
        got = [await _next(socket) for _ in range(6)]
        assert got == [*(f'42["before",{number}]' for number in range(5)), '421["asked"]']
        await socket.send("431[]")
        await asyncio.wait_for(answered.wait(), 5)


async def test_disconnecting_a_user_follows_what_was_sent_to_it_before(redis: Redis, unique: str) -> None:
    sio = Server(redis, adapter="streams", channel_prefix=unique, stream_name=unique, recovery_s=None)
    async with _client(sio) as socket:
        await sio.set_user(await _join(socket), "ada")
        await sio.emit("goodbye", user="ada")
        await sio.disconnect_user("ada")
        assert [await _next(socket), await _next(socket)] == ['42["goodbye"]', "41"]


async def test_last_handlers_of_a_dynamic_namespace_that_has_to_make_room_find_the_session() -> None:
    sio = Server(namespaces_max=1)
    goes_on, found = asyncio.Event(), []

    @sio.event(namespace=re.compile("/room-.*"))
    async def connect(namespace: str, sid: str, environ: dict[str, Any]) -> None:
        await sio.save_session(sid, {"user": "ada"}, namespace=namespace)

    @sio.event(namespace=re.compile("/room-.*"))
    async def disconnect(namespace: str, sid: str) -> None:
        await goes_on.wait()
        found.append(await sio.get_session(sid, namespace=namespace))

    async with serving(sio, native=True) as port:
        socket = await _open(port)
        await _join(socket, "/room-1")
        await socket.send("41/room-1,")
        await until(lambda: not sio.stats.sockets)
        await socket.send("40/room-2,")
        assert "Too many namespaces" in await _next(socket)
        goes_on.set()
        await until(lambda: found)
        assert found == [{"user": "ada"}]
        await until(lambda: not sio.stats.handlers_running)
        await _join(socket, "/room-2")  # now there is room
        await socket.close()


async def test_abandoned_socket_hears_nothing_and_its_connection_goes_on() -> None:
    sio = Server(namespaces=("/", "/b"))
    heard: list[str] = []

    @sio.on("*", namespace="*")
    def anything(event: str, namespace: str, sid: str) -> None:
        heard.append(f"{event} {namespace}")

    async with _client(sio) as socket:
        sid = await _join(socket)
        await _join(socket, "/b")
        held = sio._core.spaces["/"].rooms.get(sid)
        assert held is not None
        held.client.abandon(held)  # as when its session goes on at another connection
        await socket.send('42["late"]')
        await socket.send('42/b,1["alive"]')
        assert await _next(socket) == "43/b,1[]"
    assert heard == ["alive /b"]


async def test_leaving_that_comes_too_late_does_not_meet_who_has_come_back() -> None:
    sio = Server()
    async with _client(sio) as socket:
        old = sio._core.spaces["/"].rooms.get(await _join(socket))
        assert old is not None
        await socket.send("41")
        sid = await _join(socket)
        old.client.leave(old)
        await sio.emit("still", to=sid)
        assert await _next(socket) == '42["still"]'


async def test_nothing_follows_the_last_packet_of_a_namespace() -> None:
    sio = Server(namespaces=("/", "/b"))
    goes_on = asyncio.Event()

    @sio.event
    async def work(sid: str) -> str:
        await goes_on.wait()
        await sio.disconnect(sid)
        return "done"

    @sio.event
    async def more(sid: str) -> str:
        return "done as well"

    async with _client(sio) as socket:
        await _join(socket)
        await _join(socket, "/b")
        await socket.send('421["work"]')
        await socket.send('422["more"]')
        goes_on.set()
        assert await _next(socket) == "41"
        await until(lambda: not sio.stats.handlers_running)
        await sio.emit("alive", namespace="/b")
        assert await _next(socket) == '42/b,["alive"]'


# --- handlers ---


async def test_last_handlers_come_after_all_others_and_one_after_the_other() -> None:
    sio = Server(handlers_max=4)
    goes_on, told = asyncio.Event(), []

    @sio.event
    async def work(sid: str) -> None:
        await goes_on.wait()
        told.append("work")

    @sio.event
    async def disconnecting(sid: str) -> None:
        told.append("disconnecting")
        await asyncio.sleep(0.01)
        told.append("still disconnecting")

    @sio.event
    async def disconnect(sid: str) -> None:
        told.append("disconnect")

    async with _client(sio) as socket:
        await _join(socket)
        await socket.send('42["work"]')
        await socket.send('42["work"]')
        await socket.send("41")
        await until(lambda: not sio.stats.sockets)
        assert not told
        goes_on.set()
        await until(lambda: not sio.stats.handlers_running)
    assert told == ["work", "work", "disconnecting", "still disconnecting", "disconnect"]


async def test_events_that_wait_are_not_handled_once_their_client_was_sent_away() -> None:
    sio = Server(backlog_max=2)
    told = list[str]()

    @sio.event
    async def kick(sid: str) -> None:
        await until(lambda: (held := sio._core.spaces["/"].rooms.get(sid)) is not None and held.paused)
        await sio.disconnect(sid)
        told.append("kicked")

    @sio.event
    async def more(sid: str) -> None:
        told.append("more")

    @sio.event
    async def disconnect(sid: str, reason: str) -> None:
        told.append(reason)

    async with _client(sio) as socket:
        await _join(socket)
        for event in ("kick", "more", "more"):
            await socket.send(f'42["{event}"]')
        assert await _next(socket) == "41"
        await _join(socket)  # it is read again
        assert told == ["kicked", "server namespace disconnect"]


async def test_client_that_would_miss_what_is_held_for_it_is_closed() -> None:
    sio = Server()
    waits, ended = asyncio.Event(), []

    @sio.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        for number in range(HELD_MAX + 1):
            await sio.emit("news", number, to=sid)
        await waits.wait()

    @sio.event
    async def disconnect(sid: str, reason: str) -> None:
        ended.append(reason)

    async with _client(sio) as socket:
        await socket.send("40")
        with pytest.raises(ConnectionClosed):
            await _next(socket)
        waits.set()
        await until(lambda: ended)
        assert ended == [Reason.SLOW_CLIENT]


class Failing:
    """A recovery that has a bug, at one place."""

    def __init__(self, at: str) -> None:
        self._at = at

    def trusts(self, _socket: Any) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        async def step(*_: Any) -> Any:
            if name == self._at:
                raise LookupError(name)
            return name == "restore" or None

        return step


@pytest.mark.parametrize("at", ["restore", "admit", "accepted"])
async def test_client_is_not_left_in_between_when_its_coming_fails(at: str) -> None:
    sio = Server()
    async with serving(sio, native=True) as port:
        sio._core.dispatcher.recovery = Failing(at)
        socket = await _open(port)
        await socket.send("40")
        if at == "accepted":
            assert (await _next(socket)).startswith("40{")
            with pytest.raises(ConnectionClosed):
                await _next(socket)
        else:
            assert await _next(socket) == '44{"message":"internal error"}'
        await until(lambda: not sio.stats.sockets)
        assert sio.stats.handlers_failed == 1
        await socket.close()


# --- orders for clients elsewhere ---


@pytest.mark.parametrize("order", ["enter_room", "leave_room", "disconnect", "close_room", "disconnect_user"])
async def test_orders_wait_while_too_many_are_on_their_way_to_redis(redis: Redis, unique: str, order: str) -> None:
    sio = Server(redis, channel_prefix=unique, publish_in_flight_max=4)
    async with sio:
        most = 0
        for number in range(64):
            rooms = ("r",) if order in {"enter_room", "leave_room"} else ()
            await getattr(sio, order)(f"nobody-{number}", *rooms)
            adapter = sio.stats.adapter
            assert adapter is not None
            most = max(most, adapter.in_flight)
        assert most <= 4


# --- what a request says ---


def test_header_with_an_underscore_does_not_pass_for_the_one_with_a_hyphen() -> None:
    headers = [(b"x-remote-user", b"ada"), (b"x_remote_user", b"root"), (b"X_REAL_IP", b"::1")]
    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": headers, "client": ("::1", 1)}
    environ = Request(scope=scope).environ()
    assert environ["HTTP_X_REMOTE_USER"] == "ada"
    assert "HTTP_X_REAL_IP" not in environ


@pytest.mark.parametrize("path", ["tcp", "unix"])
async def test_small_packets_do_not_wait_for_each_other_whatever_the_listening_socket(
    tmp_path: Path, path: str
) -> None:
    if path == "tcp":
        listening = socket.create_server(("127.0.0.1", 0))  # names no protocol, as those of uvicorn's workers
    else:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
    sio = Server()
    async with serving(sio, native=True, listening=listening):
        peer = socket.socket(listening.family)
        peer.connect(listening.getsockname())
        client = await ws_connect(f"ws://localhost/socket.io/?{QUERY}", sock=peer)
        assert str(await client.recv()).startswith("0{")
        (held,) = sio._core.clients.values()
        assert isinstance(held.transport, NativeTransport)
        own = held.transport._transport.get_extra_info("socket")
        assert path == "unix" or own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await client.close()


# --- servers among themselves, and emitters ---


@pytest.mark.parametrize("adapter", ["classic", "sharded", "streams"])
async def test_server_side_answer_that_cannot_travel_is_none_and_keeps_nobody_waiting(
    redis: Redis, unique: str, adapter: str
) -> None:
    names: dict[str, Any] = {"channel_prefix": unique, "stream_name": unique, "recovery_s": None, "adapter": adapter}
    async with Server(redis, **names) as one, Server(redis, **names) as two:
        two.on_server_side("odd", object)
        assert await one.server_side_call("odd", timeout_s=5.0) == [None]


def test_database_that_redis_does_not_have_is_an_error_of_ours(valkey_url: str) -> None:
    with SyncEmitter(valkey_url.rpartition("/")[0] + "/999") as emitter, pytest.raises(CommandError, match="DB index"):
        emitter.emit("never")


async def test_client_whose_end_fails_does_not_stop_the_heartbeat_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sio = Server(connect_timeout_s=0.2, idle_s=0.4)
    async with serving(sio, native=True) as port:
        joins_nothing, idle = await _open(port), await _open(port)
        await _join(idle)
        with monkeypatch.context() as patched, capture_logs() as lines:
            for end in ("close", "expel"):
                patched.setattr(Client, end, lambda *_: 1 / 0)
            await until(lambda: len({line["sid"] for line in lines if "heartbeat" in line["event"]}) == 2)
        late = await _open(port)
        await asyncio.wait_for(late.wait_closed(), 5)
        assert sio.stats.ended == {"connect timeout": 1}
        for socket in (joins_nothing, idle):
            await socket.close()
