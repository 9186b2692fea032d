"""Clients that make load, the servers they talk to, and how what arrives is counted: by bytes, all packets of a run
have one size, whoever sends them. Clients do not parse: one process must hold thousands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from dataclasses import dataclass, field

import psutil

__all__ = [
    "CORES",
    "ECHO",
    "ECHO_BYTES",
    "ENTERED_BYTES",
    "TICK_BYTES",
    "VESSEL",
    "Counter",
    "LoadClient",
    "Peer",
    "frame",
]

WAIT_S = 60.0
BIND_ADDRESS_NO_PORT = 24
"""``IP_BIND_ADDRESS_NO_PORT`` of ``linux/in.h``: Python's socket module does not name it."""
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
MASKED = b"\x00\x00\x00\x00"  # a mask of zeros leaves the payload as it is


def frame(text: bytes) -> bytes:
    size = len(text)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2, "big")
    return head + MASKED + text


def _bytes_of(text: bytes) -> int:
    """A packet on the wire, as every server frames it."""
    assert len(text) < 126
    return len(text) + 2


VESSEL = b'{"mmsi":219000001,"lat":55.676098,"lon":12.568337,"sog":12.4,"cog":271.3}'
JOIN = frame(b"40")
PONG = frame(b"3")
PING = b"\x81\x012"  # no packet of the bench holds this byte
ECHO = frame(b'421["echo",' + VESSEL + b"]")
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


async def _dial(port: int, local: str | None) -> socket.socket:
    """A connection from the address ``local``. The kernel chooses the port when it connects: choosing one at the bind
    means to search for one that is free towards everybody, which takes a millisecond after ten thousand."""
    sock = socket.socket()
    sock.setblocking(False)
    if local is not None:
        with contextlib.suppress(OSError):  # of Linux
            sock.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
        sock.bind((local, 0))
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


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

    async def connect(self, count: int, *, at_once: int = 100, local: str | None = None) -> None:
        """Open ``count`` more clients that have joined, from the address ``local``."""
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with places:
                joined = loop.create_future()
                sock = await _dial(self.port, local)
                _, client = await loop.create_connection(lambda: LoadClient(joined, self.counter), sock=sock)
                await joined
                self.clients.append(client)

        await asyncio.gather(*(one() for _ in range(count)))

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

    def kernel_s(self) -> float:
        return psutil.Process(self.process.pid).cpu_times().system  # type: ignore[union-attr]

    def rss_kib(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1024  # type: ignore[union-attr]
