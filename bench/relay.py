"""What it costs that a balancer is not sticky: requests at the instance that holds the session, and at another one.

`make bench-relay`. Two instances as processes with one Redis; ``CLIENTS`` polling clients, each over one kept-alive
connection, do what a polling client does for one question: a POST with an event, a GET that brings its acknowledgement.
``direct``: all at the session's instance; ``relayed``: all at the other one. One client alone gives the latency.
``websocket-moved`` is an echo over a WebSocket that was opened elsewhere, after its session has moved: as any other.
``ROUNDS=3 CLIENTS=50 SECONDS=2`` narrow it down. Server CPU is that of both instances; a Redis process comes on top.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
from websockets.asyncio.client import connect

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from flotta.redis.embedded import EmbeddedRedis
from realtime_balanced import Instance, instances

ROUNDS = int(os.environ.get("ROUNDS", "3"))
CLIENTS = int(os.environ.get("CLIENTS", "50"))
SECONDS = float(os.environ.get("SECONDS", "2"))
PATH = "/socket.io/?EIO=4&transport="
QUESTION = b'42%d["echo",1,null]'


class Connection:
    """One kept-alive HTTP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, target: str, body: bytes | None = None) -> bytes:
        head = f"{'GET' if body is None else 'POST'} {target} HTTP/1.1\r\nHost: x\r\n"
        if body is not None:
            head += f"Content-Length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"\r\n" + (body or b""))
        answer = await self._reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n", 1)[0])
        return await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


async def polling(home: int, port: int) -> tuple[Connection, Callable[[int], Awaitable[None]]]:
    """A session of ``home``, asked for at ``port``: its connection, and one question with its answer."""
    first = await Connection.to(home)
    sid = json.loads((await first.ask(PATH + "polling"))[1:])["sid"]
    first.close()
    connection, target = await Connection.to(port), f"{PATH}polling&sid={sid}"
    await connection.ask(target, b"40")
    await connection.ask(target)

    async def question(number: int) -> None:
        await connection.ask(target, QUESTION % number)
        body = await connection.ask(target)
        assert body.startswith(b"43%d" % number), body

    return connection, question


async def repeat(question: Callable[[int], Awaitable[None]], until_s: float) -> list[float]:
    """How long each question took, asked until then. Numbers that are no multiple of 10: the server asks back there."""
    took: list[float] = []
    while (began_s := time.perf_counter()) < until_s:
        await question(10 * len(took) + 1)
        took.append(time.perf_counter() - began_s)
    return took


async def measure(name: str, home: int, port: int, clients: int, servers: list[psutil.Process]) -> None:
    made = [await polling(home, port) for _ in range(clients)]
    cpu_s = -sum(sum(one.cpu_times()[:2]) for one in servers)
    until_s = time.perf_counter() + SECONDS
    took = await asyncio.gather(*(repeat(question, until_s) for _, question in made))
    cpu_s += sum(sum(one.cpu_times()[:2]) for one in servers)
    for connection, _ in made:
        connection.close()
    report(f"{name}-{clients}", [one for some in took for one in some], cpu_s)


def report(name: str, took: list[float], cpu_s: float) -> None:
    ordered = sorted(took)
    print(
        f"{name:22} {len(took) / SECONDS:8,.0f} questions/s   median {statistics.median(took) * 1e3:6.2f} ms"
        f"   p99 {ordered[int(len(ordered) * 0.99)] * 1e3:6.2f} ms   server CPU {cpu_s / len(took) * 1e6:6.0f} us each",
        flush=True,
    )


async def moved(home: int, port: int, servers: list[psutil.Process]) -> None:
    """A session that was opened at ``home`` and upgraded at ``port``."""
    connection = await Connection.to(home)
    sid = json.loads((await connection.ask(PATH + "polling"))[1:])["sid"]
    await connection.ask(f"{PATH}polling&sid={sid}", b"40")
    await connection.ask(f"{PATH}polling&sid={sid}")
    connection.close()
    async with connect(f"ws://127.0.0.1:{port}{PATH}websocket&sid={sid}", compression=None) as websocket:
        await websocket.send("2probe")
        assert await websocket.recv() == "3probe"
        await websocket.send("5")

        async def question(number: int) -> None:
            await websocket.send((QUESTION % number).decode())
            assert str(await websocket.recv()).startswith(f"43{number}")

        await repeat(question, time.perf_counter() + 0.5)  # meanwhile it moves
        cpu_s = -sum(sum(one.cpu_times()[:2]) for one in servers)
        took = await repeat(question, time.perf_counter() + SECONDS)
        cpu_s += sum(sum(one.cpu_times()[:2]) for one in servers)
        report("websocket-moved-1", took, cpu_s)


async def measure_all(one: Instance, other: Instance) -> None:
    servers = [psutil.Process(instance.process.pid) for instance in (one, other)]
    for _ in range(ROUNDS):
        for clients in (1, CLIENTS):
            await measure("direct", one.port, one.port, clients, servers)
            await measure("relayed", one.port, other.port, clients, servers)
        await moved(one.port, one.port, servers)
        await moved(one.port, other.port, servers)


async def main() -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(EmbeddedRedis())
        running = await stack.enter_async_context(
            instances(redis.url, "bench", ("aaaa", "bbbb"), FLOTTA_TEST_PAUSE_S="1000")
        )
        await measure_all(*running)


if __name__ == "__main__":
    asyncio.run(main())
