"""`EngineServer`: handlers in order, refusals, limits, and messages that cannot travel."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import InvalidStatus

from conformance_client import ended, next_message
from flotta.errors import Closed, ConfigError, ConnectRefused
from flotta.realtime import EngineOptions, EngineServer, ServerOptions
from realtime_fixtures import native, serving, until

__all__ = ["native"]


def _url(port: int, scheme: str = "ws", transport: str = "websocket") -> str:
    return f"{scheme}://127.0.0.1:{port}/engine.io/?EIO=4&transport={transport}"


async def _open(port: int) -> tuple[ClientConnection, str]:
    socket = await ws_connect(_url(port))
    return socket, json.loads(str(await socket.recv())[1:])["sid"]


async def test_handlers_of_one_client_run_in_order_and_those_of_others_beside_them(native: bool) -> None:
    server = EngineServer()
    seen: list[tuple[str, Any]] = []
    gates: dict[str, asyncio.Event] = {}

    @server.on_connect
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        gates[sid] = asyncio.Event()
        await gates[sid].wait()
        seen.append((sid, environ["PATH_INFO"]))

    @server.on_message
    async def message(sid: str, data: str | bytes) -> None:
        await asyncio.sleep(0)
        seen.append((sid, data))

    @server.on_disconnect
    def disconnect(sid: str, reason: str) -> None:
        seen.append((sid, reason))

    async with serving(server, native=native) as port:
        slow, slow_sid = await _open(port)
        await slow.send("4early")
        quick, quick_sid = await _open(port)
        await quick.send("4x")
        await until(lambda: len(gates) == 2)
        gates[quick_sid].set()
        await quick.close()
        await until(lambda: len(seen) == 3)
        assert seen == [(quick_sid, "/engine.io/"), (quick_sid, "x"), (quick_sid, "transport close")]
        seen.clear()
        await slow.send(b"late")
        await slow.close()
        await until(lambda: server.stats.connections == 0)
        assert seen == []
        gates[slow_sid].set()
        await until(lambda: len(seen) == 4)
        assert [what for _, what in seen] == ["/engine.io/", "early", b"late", "transport close"]


@pytest.mark.parametrize("how", ["raise", "false", "async", "fails"])
async def test_refused_client_is_closed_and_handled_no_further(native: bool, how: str) -> None:
    server = EngineServer()
    seen: list[Any] = []

    async def later() -> bool:
        await asyncio.sleep(0)
        return False

    @server.on_connect
    def connect(sid: str, environ: dict[str, Any]) -> Any:
        if how == "raise":
            raise ConnectRefused
        if how == "fails":
            raise RuntimeError("the handler's own fault")
        return later() if how == "async" else False

    server.on_message(lambda sid, data: seen.append(data))
    server.on_disconnect(lambda sid, reason: seen.append(reason))
    async with serving(server, native=native) as port:
        socket, _ = await _open(port)
        assert await ended(socket) == 1008
        await until(lambda: server.stats.connections == 0)
        assert seen == []
        assert server.stats.handlers_failed == (how == "fails")


async def test_handler_that_fails_ends_nothing(native: bool) -> None:
    server = EngineServer()

    @server.on_message
    def message(sid: str, data: str) -> None:
        if data == "bad":
            raise RuntimeError("the handler's own fault")
        server.send(sid, data)

    async with serving(server, native=native) as port:
        socket, _ = await _open(port)
        await socket.send("4bad")
        await socket.send("4good")
        assert await next_message(socket) == "4good"
        assert server.stats.handlers_failed == 1


async def test_client_that_sends_faster_than_it_is_handled_is_read_no_further() -> None:
    server = EngineServer(backlog_max=4)
    gate, seen = asyncio.Event(), 0

    @server.on_message
    async def message(sid: str, data: str) -> None:
        nonlocal seen
        await gate.wait()
        seen += 1

    async with serving(server, native=True) as port:
        socket, sid = await _open(port)
        for _ in range(1_000):
            await socket.send("4" + "x" * 1_000)
        client = server._engine.clients[sid]
        await until(lambda: client.pauses == 1)
        assert client.jobs is not None
        assert len(client.jobs) == 4
        gate.set()
        await until(lambda: seen == 1_000)


async def test_messages_reach_one_or_all_and_unknown_clients_none(native: bool) -> None:
    server = EngineServer()
    async with serving(server, native=native) as port, httpx.AsyncClient() as http:
        first, first_sid = await _open(port)
        second, _ = await _open(port)
        polling = _url(port, "http", "polling")
        polling += "&sid=" + json.loads((await http.get(polling)).text[1:])["sid"]
        assert server.send(first_sid, "one")
        assert not server.send("unknown", "one")
        assert server.broadcast(b"\x00\x01") == 3
        assert server.broadcast("all") == 3
        assert [await next_message(first) for _ in range(3)] == ["4one", b"\x00\x01", "4all"]
        assert [await next_message(second) for _ in range(2)] == [b"\x00\x01", "4all"]
        assert (await http.get(polling)).text == "bAAE=\x1e4all"
        assert set(server.sids) >= {first_sid}
        assert server.broadcast("volatile", volatile=True) == 2  # no GET waits
        assert server.disconnect(first_sid)
        assert not server.disconnect(first_sid)
        assert not server.send(first_sid, "gone")


def test_what_cannot_travel_is_refused_whoever_it_is_for() -> None:
    server = EngineServer()
    for bad in ("a\x1eb", "\ud800"):
        with pytest.raises(ValueError, match=r"separator|surrogate"):
            server.send("anybody", bad)
        with pytest.raises(ValueError, match=r"separator|surrogate"):
            server.broadcast(bad)
    with pytest.raises(TypeError):
        server.send("anybody", {"no": "event"})  # type: ignore[arg-type]


async def test_limits_hold(native: bool) -> None:
    server = EngineServer(connections_max=1, messages_per_s_max=5, payload_bytes_max=1_000, send_bytes_max=100_000)
    async with serving(server, native=native) as port:
        socket, _ = await _open(port)
        with pytest.raises(InvalidStatus):
            await _open(port)
        for _ in range(6):
            await socket.send("4x")
        assert await ended(socket) == 1008
        socket, _ = await _open(port)
        await socket.send("4" + "x" * 2_000)
        assert await ended(socket) == 1009
        await until(lambda: server.stats.connections == 0)
        assert server.stats.ended["message rate exceeded"] == 1
        assert server.stats.refused == 1


async def test_slow_client_is_disconnected(native: bool) -> None:
    server = EngineServer(send_bytes_max=1_000_000)
    async with serving(server, native=native) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /engine.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"maxPayload")
        for _ in range(200):
            if not server.sids:
                break
            server.broadcast(b"x" * 100_000)
            await asyncio.sleep(0)
        await until(lambda: server.stats.ended == {"slow client": 1})
        writer.close()


async def test_drain_sends_everybody_away_and_takes_nobody(native: bool) -> None:
    server = EngineServer()
    gone: list[str] = []
    server.on_disconnect(lambda sid, reason: gone.append(reason))
    async with serving(server, native=native, drain=False) as port:
        socket, _ = await _open(port)
        await server.drain(2.0)
        assert await ended(socket) == 1012
        assert gone == ["server draining"]
        with pytest.raises(InvalidStatus):
            await _open(port)


async def test_life_is_idempotent_and_ends_once() -> None:
    async with EngineServer() as server:
        await server.start()
        assert server.stats.state == "running"
    await server.aclose()
    with pytest.raises(Closed):
        await server.start()
    with pytest.raises(TypeError):
        EngineServer(options=EngineOptions(), path="/x")
    with pytest.raises(ConfigError, match=r"EngineOptions"):
        EngineServer(ping_interval_s=0)
    with pytest.raises(TypeError):
        EngineServer(recovery_s=1)
    assert (EngineOptions().path, ServerOptions().path) == ("/engine.io", "/socket.io")
