"""Socket.IO servers side by side: broadcast to 1,000 clients, memory per idle client, connects per second.

``broadcast-1000`` is deliveries per second of **server CPU** (wall beside it): the load client shares the machine, so
wall time alone would measure it too. Every delivery is counted, by bytes: all packets of a run have one size. Servers
are pinned to one core and the load to another; rounds are interleaved; median and range are printed.

    python bench/broadcast.py [--clients 1000] [--events 200] [--rounds 5] [--idle 5000] [--only broadcast|idle|connect]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).parent / "_realtime"
NODE_MODULES = Path(__file__).parent.parent / "tests" / "interop" / "node" / "node_modules"
EVENT = {"mmsi": 219_000_001, "lat": 55.676098, "lon": 12.568337, "sog": 12.4, "cog": 271.3}
TICK_TEXT = b'42["tick",{"mmsi":219000001,"lat":55.676098,"lon":12.568337,"sog":12.4,"cog":271.3}]'
MASKED = b"\x00\x00\x00\x00"  # a mask of zeros leaves the payload as it is


def _frame(text: bytes) -> bytes:
    size = len(text)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2, "big")
    return head + MASKED + text


JOIN = _frame(b"40")
PONG = _frame(b"3")
PING = b"\x81\x012"  # no packet of the bench holds this byte
TICK_BYTES = len(TICK_TEXT) + 2
assert len(TICK_TEXT) < 126


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

    async def start(self, core: int | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(self.command, env={**os.environ, "PORT": str(self.port), **self.environment})
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
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

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()  # type: ignore[union-attr]
        return times.user + times.system

    def rss_kib(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1024  # type: ignore[union-attr]

    async def broadcast(self, events: int) -> tuple[float, float]:
        """Deliveries per CPU second and per wall second.

        The next event is sent when everybody has the one before, so that no server can fold several into one write.
        """
        counter, text = self.counter, b'42["go",' + TICK_TEXT[10:-1] + b",1]"
        counter.reset()
        cpu_s, started_s = self.cpu_s(), time.perf_counter()
        for number in range(1, events + 1):
            self.clients[0].transport.write(_frame(text))  # type: ignore[attr-defined]
            target = number * len(self.clients) * TICK_BYTES
            try:
                await asyncio.wait_for(counter.reach(target), 30)
            except TimeoutError:
                got = f"{counter.value:,} of {target:,} bytes, {counter.lost} connections lost"
                raise RuntimeError(f"{self.name} delivered {got}") from None
        wall_s = time.perf_counter() - started_s
        cpu_s = self.cpu_s() - cpu_s
        total = len(self.clients) * events
        assert counter.value == total * TICK_BYTES, f"{self.name}: {counter.value} bytes, {total * TICK_BYTES} expected"
        return total / cpu_s, total / wall_s


def peers() -> list[Peer]:
    """Those that can run here; the others are named."""
    found = [
        Peer("flotta", [sys.executable, str(HERE / "server_flotta.py")]),
        Peer("flotta-asgi", [sys.executable, str(HERE / "server_flotta.py")], {"BENCH_ASGI": "1"}),
    ]
    if importlib.util.find_spec("socketio"):
        found.append(Peer("python-socketio", [sys.executable, str(HERE / "server_python_socketio.py")]))
    else:
        print("SKIP python-socketio: not installed (extra bench)")
    if shutil.which("node") and (NODE_MODULES / "socket.io").exists():
        found.append(Peer("node", ["node", str(HERE / "server_node.js")]))
    else:
        print("SKIP node: needs node, and npm ci in tests/interop/node")
    uws_python = os.environ.get("BENCH_UWS_PYTHON", sys.executable)
    if uws_python != sys.executable or importlib.util.find_spec("socketify"):
        found.append(Peer("uws", [uws_python, str(HERE / "server_uws.py")]))
    else:
        print("SKIP uws: socketify is not installed")
    return found


def report(name: str, unit: str, values: dict[str, list[float]]) -> None:
    """One line per peer, median of the rounds; the range in a comment."""
    middle = {peer: statistics.median(rounds) for peer, rounds in values.items()}
    for peer, rounds in values.items():
        print(f"#  {name} {peer}: median {middle[peer]:,.1f}, {min(rounds):,.1f} to {max(rounds):,.1f} {unit}")
    for peer, value in middle.items():
        if peer != "flotta":
            print(
                f"BENCH {name} flotta={middle['flotta']:.1f} {peer}={value:.1f} "
                f"ratio={middle['flotta'] / value:.2f} unit={unit}",
                flush=True,
            )


async def bench_broadcast(servers: list[Peer], clients: int, events: int, rounds: int) -> None:
    by_cpu: dict[str, list[float]] = {peer.name: [] for peer in servers}
    by_wall: dict[str, list[float]] = {peer.name: [] for peer in servers}
    try:
        for peer in servers:
            await peer.start(0)
            await peer.connect(clients)
            await peer.broadcast(10)
        for _ in range(rounds):
            for peer in servers:
                cpu, wall = await peer.broadcast(events)
                by_cpu[peer.name].append(cpu)
                by_wall[peer.name].append(wall)
    finally:
        for peer in servers:
            await peer.stop()
    report(f"broadcast-{clients}", "deliveries/cpu-s", by_cpu)
    report(f"broadcast-{clients}-wall", "deliveries/s", by_wall)


async def bench_idle(servers: list[Peer], clients: int, rounds: int, what: set[str]) -> None:
    memory: dict[str, list[float]] = {peer.name: [] for peer in servers}
    rate: dict[str, list[float]] = {peer.name: [] for peer in servers}
    cost: dict[str, list[float]] = {peer.name: [] for peer in servers}
    for _ in range(rounds):
        for peer in servers:
            try:
                await peer.start(0)
                await peer.connect(200)
                await asyncio.sleep(0.3)
                before_kib, cpu_s, started_s = peer.rss_kib(), peer.cpu_s(), time.perf_counter()
                await peer.connect(clients)
                rate[peer.name].append(clients / (time.perf_counter() - started_s))
                cost[peer.name].append(clients / max(peer.cpu_s() - cpu_s, 0.01))
                await asyncio.sleep(1.0)
                memory[peer.name].append((peer.rss_kib() - before_kib) / clients)
            finally:
                await peer.stop()
    if "idle" in what:
        report("idle-memory", "KiB/connection", memory)
    if "connect" in what:
        report("connect-rate", "connects/s", rate)
        report("connect-rate-cpu", "connects/cpu-s", cost)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=int, default=5_000)
    parser.add_argument("--only", choices=["broadcast", "idle", "connect"])
    options = parser.parse_args()
    what = {options.only} if options.only else {"broadcast", "idle", "connect"}
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    if "broadcast" in what:
        await bench_broadcast(peers(), options.clients, options.events, options.rounds)
    if what & {"idle", "connect"}:
        await bench_idle(peers(), options.idle, options.rounds, what)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
