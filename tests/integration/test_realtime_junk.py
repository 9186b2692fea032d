"""Junk ends the connection that sent it and no other: whoever else is there keeps its connection and its latency."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import struct
import time
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect

from flotta.realtime import EngineServer, Server
from realtime_fixtures import native, serving, until

__all__ = ["native"]

QUERY = "EIO=4&transport=websocket"
UPGRADE = (
    "GET {path}?{query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
CLOSE = b"\x88"  # the first byte of a close frame, in nothing else that is sent here
ECHOES = 60
DELAY_S_MAX = 0.5
"""What junk may add to the slowest echo: the work of a few pieces at once. A loop that is held takes seconds.

In the processor's time of the loop's thread: what other processes take meanwhile is nobody's fault here.
"""


def _frame(payload: bytes, opcode: int = 0x81) -> bytes:
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", opcode, 0x80 | size)
    elif size < 65_536:
        head = struct.pack("!BBH", opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", opcode, 0x80 | 127, size)
    return head + b"\0\0\0\0" + payload


DEEP = b"[" * 400_000
# What follows a joined session, as bytes on the socket.
JUNK: dict[str, bytes] = {
    "unknown packet": _frame(b"x"),
    "unknown Socket.IO packet": _frame(b"49"),
    "no JSON": _frame(b'42["a"'),
    "deep JSON": _frame(b"42" + DEEP),
    "deep binary JSON": _frame(b"451-" + DEEP) + _frame(b"x", 0x82),
    "too many attachments": _frame(b'4517-["a"]'),
    "one attachment in many places": _frame(b'451-["a"' + b',{"_placeholder":true,"num":0}' * 30_000 + b"]")
    + _frame(b"x" * 100_000, 0x82),
    "attachment of nothing": _frame(b"\xff", 0x82),
    "a huge integer": _frame(b'42["a",' + b"9" * 900_000 + b"]"),
    "a huge id": _frame(b"42" + b"1" * 900_000 + b'["a"]'),
    "event of a namespace that was not joined": _frame(b'42/other,["a"]'),
    "no UTF-8": _frame(b"4\xff\xfe"),
    "too large": struct.pack("!BBQ", 0x81, 0xFF, 2**40) + b"\0\0\0\0",
    "not masked": b"\x81\x02ab",
    "reserved bits": b"\xf1\x80\0\0\0\0",
    "a long ping": struct.pack("!BBH", 0x89, 0xFE, 200) + b"\0\0\0\0" + b"p" * 200,
    "continuation of nothing": _frame(b"x", 0x80),
    "no frames": b"GET / HTTP/1.1\r\nHost: y\r\n\r\n",
    "random bytes": random.Random(4).randbytes(20_000),
}


async def _raw(port: int, path: str = "/socket.io/") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(UPGRADE.format(path=path, query=QUERY).encode())
    await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b'"maxPayload":1000000}')
    return reader, writer


async def _send_junk(port: int, junk: bytes) -> None:
    """Join, send it, and wait until the server has said that it ends the connection, or has."""
    reader, writer = await _raw(port)
    try:
        writer.write(_frame(b"40"))
        await reader.readuntil(b"}")
        writer.write(junk)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                while (said := await reader.read(65_536)) and CLOSE not in said:
                    pass
    finally:
        writer.close()


def _server() -> Server:
    sio = Server()
    sio.on("echo", lambda sid, *data: data)
    sio.on("a", lambda sid, *data: None)
    return sio


async def _joined(port: int) -> ClientConnection:
    socket = await ws_connect(f"ws://127.0.0.1:{port}/socket.io/?{QUERY}")
    await socket.recv()
    await socket.send("40")
    await socket.recv()
    return socket


async def _slowest_echo(socket: ClientConnection, busy: asyncio.Task[Any] | None = None) -> float:
    """Echo until the junk is through (a while at least); the longest round trip in the processor's seconds."""
    slowest_s, count = 0.0, 0
    while count < ECHOES or not (busy is None or busy.done()):
        began_s = time.thread_time()
        await socket.send('421["echo","x"]')
        while await socket.recv() != '431["x"]':
            pass
        slowest_s = max(slowest_s, time.thread_time() - began_s)
        count += 1
    return slowest_s


async def test_every_kind_of_junk_ends_its_own_connection_and_delays_nobody(native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        good = await _joined(port)
        usual_s = await _slowest_echo(good)

        async def attack() -> None:
            await asyncio.gather(*(_send_junk(port, junk) for junk in JUNK.values() for _ in range(3)))

        attacking = asyncio.create_task(attack())
        slowest_s = await _slowest_echo(good, attacking)
        await attacking
        await until(lambda: sio.stats.connections == 1)
        assert sum(sio.stats.ended.values()) == 3 * len(JUNK)
        assert slowest_s < 4 * usual_s + DELAY_S_MAX
        await good.close()


FLOODS: dict[str, bytes] = {
    "noops": _frame(b"6") * 40_000,
    "pings": _frame(b"", 0x89) * 40_000,
    "fragments": _frame(b"42", 0x01) + _frame(b"", 0x00) * 10_000,
    "events": _frame(b'42["a"]') * 20_000,
    "connects": _frame(b"40/none,") * 20_000,
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_flood_of_one_client_delays_nobody(kind: str) -> None:
    sio = _server()
    async with serving(sio, native=True) as port:  # through ASGI it is the web server that reads
        good = await _joined(port)
        usual_s = await _slowest_echo(good)

        async def flood() -> None:
            reader, writer = await _raw(port)
            reading = asyncio.create_task(reader.read(-1))
            writer.write(_frame(b"40"))
            with contextlib.suppress(ConnectionError):
                writer.write(FLOODS[kind])
                await writer.drain()
            # What it was answered last tells that all was taken, unless the connection was ended before.
            writer.close()
            await asyncio.wait({reading}, timeout=10)
            reading.cancel()

        flooding = asyncio.create_task(flood())
        slowest_s = await _slowest_echo(good, flooding)
        await flooding
        await until(lambda: sio.stats.connections == 1)
        assert slowest_s < 4 * usual_s + DELAY_S_MAX
        await good.close()


async def test_largest_polling_body_delays_nobody_and_its_packets_are_all_taken(native: bool) -> None:
    server = EngineServer()
    seen: dict[str, int] = {}

    @server.on_message
    def count(sid: str, data: str | bytes) -> None:
        seen[sid] = seen.get(sid, 0) + 1
        if data == "echo":
            server.send(sid, data)

    async with serving(server, native=native) as port, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{port}/engine.io/?EIO=4&transport=polling"
        sid = json.loads((await http.get(url)).text[1:])["sid"]
        packets = 100_000
        good = await ws_connect(f"ws://127.0.0.1:{port}/engine.io/?{QUERY}")
        await good.recv()
        posting = asyncio.create_task(http.post(f"{url}&sid={sid}", content="\x1e".join(["4x"] * packets), timeout=30))
        slowest_s = 0.0
        while not posting.done():
            began_s = time.thread_time()
            await good.send("4echo")
            await good.recv()
            slowest_s = max(slowest_s, time.thread_time() - began_s)
        assert (await posting).text == "ok"
        assert seen[sid] == packets
        assert slowest_s < DELAY_S_MAX
        await good.close()


HTTP_JUNK = [
    b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\nOrigin: http://[\r\n\r\n",
    b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: [::1\r\nOrigin: http://[::1\r\n\r\n",
    b"GET /socket.io/?EIO=%ff%fe&transport=\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /socket.io/?EIO=4&transport=polling&sid=%00%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde",
    UPGRADE.format(path="/socket.io/", query=QUERY).replace("Version: 13", "Version: 12").encode(),
    UPGRADE.format(path="/socket.io/", query=QUERY).replace("AAAA", "").encode(),
    os.urandom(200) + b"\r\n\r\n",
]


@pytest.mark.parametrize("head", HTTP_JUNK, ids=range(len(HTTP_JUNK)))
async def test_junk_in_a_request_is_answered_and_harms_nobody(
    native: bool, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        status = await asyncio.wait_for(reader.readline(), 5)
        assert status.startswith(b"HTTP/1.1 4")
        writer.close()
        assert "Traceback" not in caplog.text
        assert "Exception" not in caplog.text
        good = await _joined(port)
        await good.close()
