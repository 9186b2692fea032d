"""B5 and B6: Socket.IO servers side by side: broadcast to all and to rooms, echo, memory per idle client, connects.

``broadcast-1000`` and ``rooms-10`` are deliveries per second of **server CPU**, ``echo`` events with an acknowledgement
per second of server CPU, each with the wall beside it: the load client shares the machine, so wall time alone would
measure it too. Everything is counted by bytes: all packets of a run have one size, whoever sends them. The server has
one core and the load another.

``CLIENTS=1000 EVENTS=200 ROUNDS=5 IDLE=5000`` and ``ONLY=broadcast,rooms,echo,idle,connect`` narrow it down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from _common import Result, Side, compete, is_installed, pin, print_versions, report, rounds_from, run, skip

CLIENTS = int(os.environ.get("CLIENTS", "1000"))
EVENTS = int(os.environ.get("EVENTS", "200"))
IDLE = int(os.environ.get("IDLE", "5000"))
ONLY = set(os.environ.get("ONLY", "broadcast,rooms,echo,idle,connect").split(","))
ROOMS = 10
ECHOES = 20
"""Events that each client sends in one round of ``echo``, each when the one before is acknowledged."""
WAIT_S = 60.0

HERE = Path(__file__).parent / "_realtime"
NODE_MODULES = Path(__file__).parent.parent / "tests" / "interop" / "node" / "node_modules"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
MASKED = b"\x00\x00\x00\x00"  # a mask of zeros leaves the payload as it is


def _frame(text: bytes) -> bytes:
    size = len(text)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2, "big")
    return head + MASKED + text


def _bytes_of(text: bytes) -> int:
    """A packet on the wire, as every server frames it."""
    assert len(text) < 126
    return len(text) + 2


VESSEL = b'{"mmsi":219000001,"lat":55.676098,"lon":12.568337,"sog":12.4,"cog":271.3}'
JOIN = _frame(b"40")
PONG = _frame(b"3")
PING = b"\x81\x012"  # no packet of the bench holds this byte
ECHO = _frame(b'421["echo",' + VESSEL + b"]")
TICK_BYTES = _bytes_of(b'42["tick",' + VESSEL + b"]")
ECHO_BYTES = _bytes_of(b"431[" + VESSEL + b"]")
ENTERED_BYTES = _bytes_of(b"431[]")


class Counter:
    """Bytes of events that all clients of a server got."""

    def __init__(self) -> None:
        self.lost = 0
        self.reset()

    def reset(self) -> None:
        self.value = 0
        self._target = 0
        self._reached: asyncio.Future[None] | None = None

    def add(self, size_bytes: int) -> None:
        self.value += size_bytes
        if self.value >= self._target and self._reached is not None and not self._reached.done():
            self._reached.set_result(None)

    async def reach(self, target: int) -> None:
        if self.value < target:
            self._target, self._reached = target, asyncio.get_running_loop().create_future()
            await self._reached


class LoadClient(asyncio.Protocol):
    """Connects, joins, then counts bytes."""

    __slots__ = ("_buffer", "counting", "got", "joined", "leaving", "transport")

    def __init__(self, joined: asyncio.Future[None], counter: Counter) -> None:
        self.joined = joined
        self.got = counter
        self.counting = False
        self.leaving = False
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(  # type: ignore[attr-defined]
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        if self.counting:
            pings = data.count(PING)
            if pings:
                self.transport.write(PONG)  # type: ignore[attr-defined]
            self.got.add(len(data) - pings * len(PING))
            return
        self._buffer += data
        if b'0{"sid"' in self._buffer and self.joined is not None:
            if b'40{"sid"' in self._buffer:
                self.counting = True
                self._buffer = b""
                if not self.joined.done():
                    self.joined.set_result(None)
            elif not self._buffer.startswith(b"joined"):
                self._buffer = b"joined" + self._buffer
                self.transport.write(JOIN)  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.joined.done():
            self.joined.set_exception(exc or ConnectionError("refused"))
        elif not self.leaving:
            self.got.lost += 1


@dataclass
class Peer:
    """One server process and its clients."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    clients: list[LoadClient] = field(default_factory=list)
    counter: Counter = field(default_factory=Counter)

    async def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(self.command, env={**os.environ, "PORT": str(self.port), **self.environment})
        if len(CORES) > 1:
            os.sched_setaffinity(self.process.pid, {CORES[-1]})
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                    return
                await asyncio.sleep(0.05)

    def stop(self) -> None:
        for client in self.clients:
            client.leaving = True
            client.transport.abort()  # type: ignore[attr-defined]
        self.clients.clear()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def connect(self, count: int, *, at_once: int = 100) -> None:
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with places:
                joined = loop.create_future()
                _, client = await loop.create_connection(
                    lambda: LoadClient(joined, self.counter), "127.0.0.1", self.port
                )
                await joined
                self.clients.append(client)

        await asyncio.gather(*(one() for _ in range(count)))

    async def enter_rooms(self) -> None:
        self.counter.reset()
        for number, client in enumerate(self.clients):
            client.send(_frame(b'421["enter","r%d"]' % (number % ROOMS)))
        await self.reach(len(self.clients) * ENTERED_BYTES)

    async def reach(self, target: int) -> None:
        """Wait until the clients got so many bytes since the counter's reset."""
        try:
            await asyncio.wait_for(self.counter.reach(target), WAIT_S)
        except TimeoutError:
            got = f"{self.counter.value:,} of {target:,} bytes, {self.counter.lost} connections lost"
            raise RuntimeError(f"{self.name} delivered {got}") from None

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()  # type: ignore[union-attr]
        return times.user + times.system

    def rss_kib(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1024  # type: ignore[union-attr]

    # One round of each contest: how many things were delivered. The next event is sent when everybody has the one
    # before, so that no server can fold several into one write.

    async def broadcast(self) -> int:
        command = _frame(b'42["go",' + VESSEL + b",1]")
        for number in range(1, EVENTS + 1):
            self.clients[0].send(command)
            await self.reach(number * len(self.clients) * TICK_BYTES)
        return EVENTS * len(self.clients)

    async def to_rooms(self) -> int:
        sent = 0
        for number in range(EVENTS * 2):
            room = number % ROOMS
            self.clients[0].send(_frame(b'42["goroom",' + VESSEL + b',"r%d"]' % room))
            sent += len(range(room, len(self.clients), ROOMS))
            await self.reach(sent * TICK_BYTES)
        return sent

    async def echo(self) -> int:
        for number in range(1, ECHOES + 1):
            for client in self.clients:
                client.send(ECHO)
            await self.reach(number * len(self.clients) * ECHO_BYTES)
        return ECHOES * len(self.clients)


def peers() -> list[Peer]:
    """Those that can run here; the others are named."""
    found = [
        Peer("flotta", [sys.executable, str(HERE / "server_flotta.py")]),
        Peer("flotta-asgi", [sys.executable, str(HERE / "server_flotta.py")], {"BENCH_ASGI": "1"}),
    ]
    if is_installed("python-socketio", "socketio"):
        found.append(Peer("python-socketio", [sys.executable, str(HERE / "server_python_socketio.py")]))
    if shutil.which("node") and (NODE_MODULES / "socket.io").exists():
        found.append(Peer("node", ["node", str(HERE / "server_node.js")]))
    else:
        skip("node", "needs node, and npm ci in tests/interop/node")
    if is_installed("uws", "socketify"):
        found.append(Peer("uws", [sys.executable, str(HERE / "server_uws.py")]))
    return found


def print_all_versions() -> None:
    others: dict[str, str] = {}
    package = NODE_MODULES / "socket.io" / "package.json"
    if shutil.which("node") and package.exists():
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        others = {"Node": node.stdout.strip(), "socket.io": json.loads(package.read_text())["version"]}
    print_versions("flotta", "python-socketio", "socketify", "uvicorn", "websockets", "uvloop", **others)


async def contest(name: str, unit: str, servers: list[Peer], one_round: Callable[[Peer], Awaitable[int]]) -> None:
    """Measure by CPU and by the wall in the same rounds."""
    by_wall: dict[str, list[float]] = {peer.name: [] for peer in servers}

    def side(peer: Peer) -> Side:
        async def measure() -> float:
            peer.counter.reset()
            cpu_s, started_s = peer.cpu_s(), time.perf_counter()
            count = await one_round(peer)
            by_wall[peer.name].append(count / (time.perf_counter() - started_s))
            return count / max(peer.cpu_s() - cpu_s, 0.01)

        return measure

    by_cpu = await compete({peer.name: side(peer) for peer in servers}, rounds=rounds_from())
    report(name, by_cpu, unit=f"{unit}/cpu-s")
    report(f"{name}-wall", _kept(by_wall), unit=f"{unit}/s")


def _kept(rounds: dict[str, list[float]]) -> dict[str, Result]:
    """What was noted beside a contest, without its first round, which is thrown away there too."""
    return {name: Result(tuple(values[1:])) for name, values in rounds.items()}


async def compare_busy(servers: list[Peer]) -> None:
    try:
        for peer in servers:
            await peer.start()
            await peer.connect(CLIENTS)
            await peer.enter_rooms()
        if "broadcast" in ONLY:
            await contest(f"broadcast-{CLIENTS}", "deliveries", servers, Peer.broadcast)
        if "rooms" in ONLY:
            await contest(f"rooms-{ROOMS}", "deliveries", servers, Peer.to_rooms)
        if "echo" in ONLY:
            await contest("echo", "events", servers, Peer.echo)
    finally:
        for peer in servers:
            peer.stop()


async def compare_idle(servers: list[Peer]) -> None:
    rate: dict[str, list[float]] = {peer.name: [] for peer in servers}
    cost: dict[str, list[float]] = {peer.name: [] for peer in servers}

    def side(peer: Peer) -> Side:
        async def measure() -> float:
            try:
                await peer.start()
                await peer.connect(200)
                await asyncio.sleep(0.3)
                before_kib, cpu_s, started_s = peer.rss_kib(), peer.cpu_s(), time.perf_counter()
                await peer.connect(IDLE)
                rate[peer.name].append(IDLE / (time.perf_counter() - started_s))
                cost[peer.name].append(IDLE / max(peer.cpu_s() - cpu_s, 0.01))
                await asyncio.sleep(1.0)
                return (peer.rss_kib() - before_kib) / IDLE
            finally:
                peer.stop()

        return measure

    memory = await compete({peer.name: side(peer) for peer in servers}, rounds=rounds_from())
    if "idle" in ONLY:
        report("idle-memory", memory, unit="KiB/connection")
    if "connect" in ONLY:
        report("connect-rate", _kept(rate), unit="connects/s")
        report("connect-rate-cpu", _kept(cost), unit="connects/cpu-s")


async def main() -> None:
    print_all_versions()
    servers = peers()
    pin([])
    if ONLY & {"broadcast", "rooms", "echo"}:
        await compare_busy(servers)
    if ONLY & {"idle", "connect"}:
        await compare_idle(servers)


if __name__ == "__main__":
    run(main)
