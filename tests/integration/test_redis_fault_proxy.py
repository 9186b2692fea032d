"""The fault proxy does what it says, and nothing while no fault is set."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import pytest

from flotta.testing import FaultProxy


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort() if reader.exception() else writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with FaultProxy(f"{host}:{port}") as made:
        yield made
    server.close()
    await server.wait_closed()


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, proxy: FaultProxy) -> Peer:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def echoed(self, data: bytes) -> bytes:
        self.writer.write(data)
        async with asyncio.timeout(10):
            return await self.reader.readexactly(len(data))

    async def is_silent(self) -> bool:
        try:
            async with asyncio.timeout(0.05):
                return not await self.reader.read(1)
        except TimeoutError:
            return True

    def close(self) -> None:
        self.writer.transport.abort()


async def test_without_a_fault_bytes_pass_unchanged(proxy: FaultProxy) -> None:
    peer = await Peer.open(proxy)
    data = secrets.token_bytes(1_000_000)
    for start in range(0, len(data), 50_000):
        assert await peer.echoed(data[start : start + 50_000]) == data[start : start + 50_000]
    peer.writer.write_eof()
    assert await peer.reader.read() == b"", "an end of the stream passes too"
    peer.close()


async def test_slices_lose_nothing(proxy: FaultProxy) -> None:
    proxy.slice_bytes = 1
    peer = await Peer.open(proxy)
    assert await peer.echoed(b"0123456789" * 20) == b"0123456789" * 20
    peer.close()


async def test_pause_holds_back_and_resume_delivers(proxy: FaultProxy) -> None:
    peer = await Peer.open(proxy)
    proxy.pause("down")
    peer.writer.write(b"held")
    assert await peer.is_silent()
    proxy.resume()
    async with asyncio.timeout(5):
        assert await peer.reader.readexactly(4) == b"held"
    peer.close()


async def test_drop_loses_and_restore_stops_losing(proxy: FaultProxy) -> None:
    peer = await Peer.open(proxy)
    proxy.drop("up")
    peer.writer.write(b"lost")
    assert await peer.is_silent()
    proxy.restore()
    assert await peer.echoed(b"kept") == b"kept"
    peer.close()


async def test_cut_after_lets_exactly_that_many_bytes_pass(proxy: FaultProxy) -> None:
    peer = await Peer.open(proxy)
    proxy.cut_after(3)
    peer.writer.write(b"0123456789")
    assert await peer.reader.readexactly(3) == b"012"
    with pytest.raises(ConnectionResetError):
        await peer.reader.readexactly(1)
    peer.close()
    again = await Peer.open(proxy)
    assert await again.echoed(b"0123456789") == b"0123456789"
    assert proxy.accepted == 2
    again.close()


async def test_refuse_and_accept_keep_the_port(proxy: FaultProxy) -> None:
    port = proxy.port
    peer = await Peer.open(proxy)
    await peer.echoed(b"x")
    await proxy.refuse()
    with pytest.raises(ConnectionResetError):
        await peer.reader.readexactly(1)
    with pytest.raises(ConnectionRefusedError):
        await Peer.open(proxy)
    await proxy.accept()
    assert proxy.port == port
    again = await Peer.open(proxy)
    assert await again.echoed(b"x") == b"x"
    for each in (peer, again):
        each.close()


async def test_latency_delays(proxy: FaultProxy) -> None:
    proxy.latency_s = 0.05
    peer = await Peer.open(proxy)
    started_s = asyncio.get_running_loop().time()
    await peer.echoed(b"x")
    assert asyncio.get_running_loop().time() - started_s >= 0.09  # uvloop's clock counts whole milliseconds
    peer.close()


def test_url_keeps_everything_but_host_and_port() -> None:
    proxy = FaultProxy("redis://user:pw@10.0.0.1:6379/3?x=1")
    assert proxy.url == "redis://user:pw@127.0.0.1:0/3?x=1"
    assert (proxy.upstream_host, proxy.upstream_port) == ("10.0.0.1", 6379)
    with pytest.raises(ValueError, match="host and a port"):
        FaultProxy("nowhere")
