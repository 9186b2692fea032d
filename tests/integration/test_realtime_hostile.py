"""Clients and handlers that misbehave: what they make the server hold is bounded, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
from collections import Counter
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed

from flotta.errors import AckTimeout
from flotta.realtime import Server
from flotta.realtime.client import ACKS_MAX, Client, Socket
from flotta.realtime.dispatch import CALLERS_MAX
from flotta.realtime.engineio.handshake import Facts, origin_allowed
from flotta.realtime.socketio.connection import NAMESPACES_MAX
from flotta.realtime.transports.asgi import _ASGITransport
from flotta.realtime.transports.native import NativeTransport
from realtime_fixtures import native, serving, until

__all__ = ["native"]

QUERY = "EIO=4&transport=websocket"
UPGRADE = (
    f"GET /socket.io/?{QUERY} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


async def _open(port: int, **options: Any) -> ClientConnection:
    socket = await ws_connect(f"ws://127.0.0.1:{port}/socket.io/?{QUERY}", **options)
    assert str(await socket.recv()).startswith("0{")
    return socket


async def _join(port: int) -> tuple[ClientConnection, str]:
    socket = await _open(port)
    await socket.send("40")
    return socket, json.loads(str(await socket.recv())[2:])["sid"]


async def _raw(port: int, headers: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write((UPGRADE + headers + "\r\n").encode())
    return reader, writer


def _frame(text: str, opcode: int = 0x81) -> bytes:
    assert len(text) < 126
    return bytes((opcode, 0x80 | len(text))) + b"\x00" * 4 + text.encode()


def _alive() -> Counter[str]:
    gc.collect()
    kinds = {Client, Socket, NativeTransport, _ASGITransport, asyncio.Task}
    return Counter(kind.__name__ for kind in map(type, gc.get_objects()) if kind in kinds)


async def test_storms_of_connections_leave_no_object_behind(native: bool) -> None:
    sio = Server()

    @sio.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await sio.enter_room(sid, "all")
        await sio.save_session(sid, {"user": sid})

    async def come_and_go(port: int, number: int) -> None:
        reader, writer = await _raw(port)
        await reader.readuntil(b'"maxPayload"')
        if number % 4:  # a quarter never joins
            writer.write(_frame("40"))
            await reader.readuntil(b'40{"sid"')
        if number % 4 == 1:
            writer.write(_frame("41") + _frame('42["late"]'))
        elif number % 4 == 2:
            writer.write(b"\x88\x80\x00\x00\x00\x00")
        writer.transport.abort()

    async with serving(sio, native=native) as port:
        await asyncio.gather(*(come_and_go(port, number) for number in range(50)))
        await until(lambda: not sio.stats.connections and not sio.stats.handlers_running)
        before, opened = _alive(), sio.stats.opened
        for start in range(0, 3_000, 150):
            await asyncio.gather(*(come_and_go(port, start + number) for number in range(150)))
        await until(lambda: not sio.stats.connections and not sio.stats.handlers_running)
        await until(lambda: _alive() <= before)
        assert sio.stats.opened == opened + 3_000
        assert sum(sio.stats.ended.values()) == sio.stats.opened
        beat = sio._core._heartbeat
        assert (sio.stats.sockets, sio.stats.rooms) == (0, 0)
        assert [len(wheel) for wheel in (beat._resting, beat._pinged, beat._joining)] == [0, 0, 0]


async def test_one_segment_full_of_events_is_not_taken_apart_before_its_turn() -> None:
    sio = Server(backlog_max=8)
    gate, done = asyncio.Event(), []

    @sio.event
    async def work(sid: str, number: int) -> None:
        await gate.wait()
        done.append(number)

    async with serving(sio, native=True) as port:
        reader, writer = await _raw(port)
        await reader.readuntil(b'"maxPayload"')
        writer.write(_frame("40"))
        await reader.readuntil(b'40{"sid":"')
        sid = (await reader.readexactly(20)).decode()
        writer.write(b"".join(_frame(f'42["work",{number}]') for number in range(3_000)))
        held = sio._core.spaces["/"].rooms.get(sid)
        assert held is not None
        await until(lambda: held.paused)
        assert len(held.backlog or ()) == 8
        gate.set()
        await until(lambda: len(done) == 3_000)
        assert done == list(range(3_000))
        writer.close()


async def test_client_that_was_not_read_gets_its_time_for_the_pong_again(native: bool) -> None:
    sio = Server(ping_interval_s=0.05, ping_timeout_s=30)
    async with serving(sio, native=native) as port:
        socket = await _open(port)
        (client,) = sio._core.clients.values()
        client.pause()
        await until(lambda: client.pinged)
        due_s, began_s = client.due_s, sio._core.now()
        await until(lambda: sio._core.now() > began_s + 0.01)
        client.resume()
        assert client.due_s > due_s
        assert sio._core._heartbeat._pinged.next_due_s() == pytest.approx(client.due_s, abs=0.005)
        await socket.close()


async def test_client_that_pings_and_does_not_read_is_cut() -> None:
    sio = Server(send_bytes_max=100_000, volatile_bytes_max=20_000)
    async with serving(sio, native=True) as port:
        reader, writer = await _raw(port)
        await reader.readuntil(b'"maxPayload"')
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        ping = _frame("p" * 125, 0x89) * 1_000
        with contextlib.suppress(OSError):
            while not sio.stats.ended:
                writer.write(ping)
                await writer.drain()
        await until(lambda: sio.stats.ended == {"slow client": 1})
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_peer_that_closes_and_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flotta.realtime.transports.native.CLOSE_TIMEOUT_S", 0.1)
    sio = Server(send_bytes_max=50_000_000)
    async with serving(sio, native=True) as port:
        reader, writer = await _raw(port)
        await reader.readuntil(b'"maxPayload"')
        writer.write(_frame("40"))
        await reader.readuntil(b'40{"sid"')
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = _alive()["NativeTransport"]
        await sio.emit("big", "x" * 20_000_000)
        writer.write(b"\x88\x80\x00\x00\x00\x00")
        await until(lambda: sio.stats.connections == 0)
        await until(lambda: _alive()["NativeTransport"] == before - 1)
        writer.transport.abort()


async def test_who_leaves_and_joins_again_while_connecting_gets_the_second_session(native: bool) -> None:
    sio = Server()
    gates: list[asyncio.Event] = []
    left: list[str] = []

    @sio.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        gates.append(asyncio.Event())
        await gates[-1].wait()

    sio.on("disconnect", lambda sid, reason: left.append(sid))
    sio.on("echo", lambda sid, value: value)
    async with serving(sio, native=native) as port:
        socket = await _open(port)
        for packet in ("40", "41", "40"):
            await socket.send(packet)
        await until(lambda: len(gates) == 2)
        (second,) = sio._core.spaces["/"].rooms
        gates[0].set()
        await until(lambda: len(left) == 1)
        gates[1].set()
        assert json.loads(str(await socket.recv())[2:])["sid"] == second
        assert left != [second]
        await socket.send('421["echo",5]')
        assert await socket.recv() == "431[5]"
        assert sio.is_connected(second)
        await socket.close()


async def test_client_that_comes_and_goes_runs_a_bounded_number_of_handlers(native: bool) -> None:
    sio = Server()
    gate, calls = asyncio.Event(), 0

    async def slow(sid: str) -> None:
        nonlocal calls
        calls += 1
        await gate.wait()

    sio.on("connect", slow)
    sio.on("disconnect", slow)
    async with serving(sio, native=native) as port:
        socket = await _open(port)
        for _ in range(500):
            await socket.send("40")
            await socket.send("41")
        await until(lambda: calls == CALLERS_MAX)
        good = await _open(port)
        await good.send("40")
        await until(lambda: calls == CALLERS_MAX + 1)
        gate.set()
        await until(lambda: calls == 1_001 and not sio.stats.handlers_running)
        assert [(client.pauses, client.callers) for client in sio._core.clients.values()] == [(0, 0)] * 2
        socket.transport.abort()
        await good.close()


async def test_handler_that_awaits_something_cancelled_fails_and_its_socket_goes_on(native: bool) -> None:
    sio = Server(backlog_max=4)
    cancelled: asyncio.Future[None] | None = None

    @sio.event
    async def bad(sid: str) -> None:
        await asyncio.sleep(0)
        assert cancelled is not None
        await cancelled

    sio.on("echo", lambda sid, value: value)
    async with serving(sio, native=native) as port:
        cancelled = asyncio.get_running_loop().create_future()
        cancelled.cancel()
        socket, _ = await _join(port)
        for number in range(6):
            await socket.send('42["bad"]')
            await socket.send(f'42{number}["echo",{number}]')
        assert [await socket.recv() for _ in range(6)] == [f"43{number}[{number}]" for number in range(6)]
        assert sio.stats.handlers_failed == 6
        await socket.close()


async def test_connect_handler_that_awaits_something_cancelled_refuses(native: bool) -> None:
    sio = Server()

    @sio.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        raise asyncio.CancelledError

    async with serving(sio, native=native) as port:
        socket = await _open(port)
        await socket.send("40")
        assert await socket.recv() == '44{"message":"internal error"}'
        await socket.close()


async def test_who_was_refused_or_has_left_is_sent_away_in_time(native: bool) -> None:
    sio = Server(connect_timeout_s=0.3)
    sio.on("connect", lambda sid, environ, auth: auth is None)
    async with serving(sio, native=native) as port:
        refused, left = await _open(port), await _open(port)
        await refused.send('40{"no":1}')
        await left.send("40")
        await left.recv()
        await left.send("41")
        assert str(await refused.recv()).startswith("44")
        for socket in (refused, left):
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(socket.recv(), 5)
        assert sio.stats.ended == {"connect timeout": 2}


async def test_call_ends_when_its_client_leaves_and_acks_are_bounded(native: bool) -> None:
    sio = Server()
    async with serving(sio, native=native) as port:
        socket, sid = await _join(port)
        held = sio._core.spaces["/"].rooms.get(sid)
        assert held is not None
        for _ in range(ACKS_MAX + 50):
            await sio.emit("e", to=sid, callback=print)
        assert len(held._acks or ()) == ACKS_MAX
        asking = asyncio.create_task(sio.call("question", to=sid, timeout_s=60))
        await until(lambda: held.last_ack == ACKS_MAX + 51)
        socket.transport.abort()
        with pytest.raises(AckTimeout) as caught:
            await asyncio.wait_for(asking, 5)
        assert caught.value.waited_s < 5


async def test_what_cannot_travel_is_refused_before_anybody_gets_it(native: bool) -> None:
    sio = Server()
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    async with serving(sio, native=native) as port:
        for wrong in (float("nan"), object(), deep):
            with pytest.raises((TypeError, ValueError)):
                await sio.emit("e", wrong)  # nobody is there, and it is wrong all the same
        socket, _ = await _join(port)
        for nobody in ([], (), frozenset()):
            await sio.emit("secret", to=nobody)
            await sio.emit("secret", room=nobody)
        await sio.emit("end", "\ud800 alone")
        assert await socket.recv() == '42["end","\\ud800 alone"]'
        await socket.close()


@pytest.mark.parametrize("why", ["full", "draining"])
async def test_who_became_one_too_many_while_its_accept_was_sent_is_closed_with_1008(why: str) -> None:
    sio = Server(connections_max=1)
    app, gate, leaving = sio.app(), asyncio.Event(), asyncio.Event()
    headers = [(b"host", b"x")]
    scope = {"type": "websocket", "path": "/socket.io/", "query_string": QUERY.encode(), "headers": headers}

    async def connect(sent: list[dict[str, Any]]) -> None:
        messages = iter([{"type": "websocket.connect"}])

        async def receive() -> dict[str, Any]:
            message = next(messages, None)
            if message is None:
                await leaving.wait()
            return message or {"type": "websocket.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "websocket.accept":
                await gate.wait()  # a web server may take its time

        await app(dict(scope), receive, send)  # type: ignore[arg-type]

    await sio.start()
    logs: list[list[dict[str, Any]]] = [[], []]
    connecting = [asyncio.create_task(connect(sent)) for sent in logs]
    await until(lambda: all(logs))
    if why == "draining":
        await sio.drain(0.1)
    gate.set()
    await until(lambda: all(len(sent) > 1 for sent in logs))
    refused = [sent[1] for sent in logs if sent[1]["type"] == "websocket.close"]
    reason = "Server at capacity" if why == "full" else "Server is draining"
    assert refused == [{"type": "websocket.close", "code": 1008, "reason": reason}] * (1 if why == "full" else 2)
    assert sio.stats.opened == 2 - len(refused)
    leaving.set()
    await asyncio.gather(*connecting)
    await sio.aclose()


async def test_wrong_websocket_version_learns_the_right_one() -> None:
    async with serving(Server(), native=True) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((UPGRADE.replace("Version: 13", "Version: 8") + "\r\n").encode())
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer
        writer.close()


async def test_polling_client_sends_no_second_body_while_the_first_waits() -> None:
    sio = Server(backlog_max=4)
    gate = asyncio.Event()
    sio.on("work", lambda sid: gate.wait())
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{port}/socket.io/?EIO=4&transport=polling"
        url += "&sid=" + json.loads((await http.get(url)).text[1:])["sid"]
        await http.post(url, content="40")
        first = asyncio.create_task(http.post(url, content="\x1e".join(['42["work"]'] * 20)))
        (client,) = sio._core.clients.values()
        await until(lambda: client.pauses)
        assert (await http.post(url, content='42["work"]')).status_code == 400
        gate.set()
        assert (await first).status_code == 200
        assert sio.stats.ended == {"transport error": 1}


async def test_polling_body_that_never_ends_ends_its_session() -> None:
    sio = Server(ping_interval_s=0.3, ping_timeout_s=0.2)
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{port}/socket.io/?EIO=4&transport=polling"
        sid = json.loads((await http.get(url)).text[1:])["sid"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {url[url.index('/socket') :]}&sid={sid} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n4"
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408")
        assert sio.stats.connections == 0
        writer.close()


# --- origins and proxies ---------------------------------------------------------------------------------------------


def _facts(origin: str | None, host: str, *, secure: bool) -> Facts:
    return Facts("GET", True, "4", "websocket", "", origin, host, secure)


@pytest.mark.parametrize(
    ("origin", "host", "secure", "allowed"),
    [
        ("https://example.com", "example.com", True, True),
        ("https://example.com", "example.com", False, True),  # a proxy ended TLS and nobody said so
        ("http://example.com", "example.com", False, True),
        ("http://example.com", "example.com", True, False),  # anyone on the way could have written that page
        ("http://example.com:443", "example.com:443", True, False),
        ("https://example.com:443", "example.com", True, True),
        ("https://example.com:8443", "example.com", True, False),
        ("https://example.com", "example.com:8443", True, False),
        ("https://example.com.evil.com", "example.com", True, False),
        ("https://example.com:99999", "example.com", True, False),
        ("https://[::1]:8000", "[::1]:8000", True, True),
        ("https://[::1", "[::1]", True, False),
        ("file://", "example.com", False, False),
        ("chrome-extension://example.com", "example.com", False, False),
        ("null", "null", False, False),
        ("", "", False, False),
        ("https://LISTED.example", "x", True, False),
        ("https://listed.example", "x", True, True),
        (None, "x", True, True),
    ],
)
def test_origin_rules(origin: str | None, host: str, secure: bool, allowed: bool) -> None:
    assert origin_allowed(_facts(origin, host, secure=secure), ("https://listed.example",)) is allowed


@pytest.mark.parametrize(("trusted", "address", "status"), [("127.0.0.1", "203.0.113.7", 403), ("", "127.0.0.1", 101)])
async def test_forwarded_headers_count_only_from_a_trusted_proxy(
    native: bool, trusted: str, address: str, status: int
) -> None:
    sio = Server()
    seen: list[str] = []
    sio.on("connect", lambda sid, environ: seen.append(environ["REMOTE_ADDR"]))
    headers = "X-Forwarded-For: 198.51.100.1, 203.0.113.7\r\nX-Forwarded-Proto: https\r\n"
    async with serving(sio, native=native, forwarded_allow_ips=trusted) as port:
        reader, writer = await _raw(port, headers)
        await reader.readuntil(b'"maxPayload"')
        writer.write(_frame("40"))
        await reader.readuntil(b'40{"sid"')
        assert seen == [address]
        writer.close()
        # The proxy says https: then a page of http is foreign.
        reader, writer = await _raw(port, headers + "Origin: http://x\r\n")
        assert int((await reader.readline()).split()[1]) == status
        writer.close()


async def test_app_without_a_lifespan_is_served_too(native: bool) -> None:
    async def django_like(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError(f"can only handle HTTP, not {scope['type']}")

    sio = Server()
    async with serving(sio, native=native, other=django_like) as port:
        socket, _ = await _join(port)
        await socket.close()
    assert sio.stats.state == "closed"


async def test_client_may_come_and_go_through_any_number_of_namespaces_but_be_in_so_many_at_once() -> None:
    sio = Server()

    @sio.event(namespace=re.compile(r"/doc-\d+"))
    def disconnect(namespace: str, sid: str) -> None:
        """There is such a namespace."""

    async with serving(sio, native=True) as port:
        socket = await _open(port)
        for number in range(NAMESPACES_MAX * 3):
            await socket.send(f"40/doc-{number},")
            assert str(await socket.recv()).startswith(f"40/doc-{number},{{")
            await socket.send(f"41/doc-{number},")
            await socket.send(f'42/doc-{number},["late"]')  # it has crossed the end on its way
        for number in range(NAMESPACES_MAX):
            await socket.send(f"40/doc-{number},")
            assert str(await socket.recv()).startswith(f"40/doc-{number},{{")
        await socket.send("40/doc-1000,")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 5)
        assert sio.stats.ended == {"parse error": 1}
