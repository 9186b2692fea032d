"""A TCP proxy that makes the network fail on purpose: cuts, silence, loss, delay, slices.

Owns: the connections that go through it and the one set of faults that applies to all of them, also to later ones.
Invariants: without a fault bytes pass unchanged and in order; a pause holds bytes back and loses none; every fault can
be taken back. It changes bytes only by leaving them out, so it fits every protocol over TCP (Redis, PostgreSQL, HTTP).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from typing import Final, Literal, Self, final
from urllib.parse import urlsplit

__all__ = ["Direction", "FaultProxy"]

Direction = Literal["up", "down"]
"""``up``: from the client to the server. ``down``: from the server to the client."""

_BOTH: Final[tuple[Direction, Direction]] = ("up", "down")
_CHUNK_BYTES: Final = 64 * 1024


class _Faults:
    """What happens to the bytes of one direction."""

    __slots__ = ("budget_bytes", "drops", "flows")

    def __init__(self) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self.drops = False
        self.budget_bytes: int | None = None


@final
class FaultProxy:
    """Stands between a client and ``upstream`` ("host:port" or a URL). Use it as an async context manager.

    ``tls``: a server-side context; clients then speak TLS to the proxy, and the proxy speaks plainly to the server.
    ``slice_bytes`` and ``latency_s`` may be set at any time and hold for every byte from then on.
    """

    def __init__(self, upstream: str, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        place = urlsplit(upstream if "://" in upstream else f"tcp://{upstream}")
        if place.hostname is None or place.port is None:
            raise ValueError(f"upstream must name a host and a port, not {upstream.rpartition('@')[2]!r}")
        self.upstream_host: str = place.hostname
        self.upstream_port: int = place.port
        self._upstream = upstream
        self._asked_port = port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: dict[Direction, _Faults] = {}
        self._port = 0
        self.accepted = 0
        self.slice_bytes: int | None = None
        self.latency_s: float = 0.0

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Listen on 127.0.0.1. You owe it ``aclose``. Raises ``OSError`` if the port is taken."""
        if self._server is None:
            self._faults = self._faults or {direction: _Faults() for direction in _BOTH}
            await self.accept()
        return self

    async def aclose(self) -> None:
        """Stop listening and cut every connection. Again: harmless."""
        self.resume()
        await self.refuse()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    # --- facts --------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1; kept over ``refuse`` and ``accept``."""
        return self._port

    @property
    def address(self) -> str:
        """``127.0.0.1:port``."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The upstream's URL with the proxy's host and port in it (user, password, path and arguments kept)."""
        if "://" not in self._upstream:
            return f"tcp://{self.address}"
        parts = urlsplit(self._upstream)
        login, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{login}{at}{self.address}").geturl()

    @property
    def connections(self) -> int:
        """How many clients are connected now. ``accepted`` counts all that ever were."""
        return len(self._writers) // 2

    # --- faults -------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """End every connection at once with a reset. New ones are still accepted."""
        for writer in tuple(self._writers):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                # Linger 0: the close is a reset, and what was sent but not taken is lost, as in a crash.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def cut_after(self, count: int, direction: Direction = "down") -> None:
        """Let ``count`` more bytes pass in ``direction`` (all connections together), then ``cut``: once."""
        if count < 0:
            raise ValueError("count must be 0 or more")
        self._faults[direction].budget_bytes = count

    def pause(self, *directions: Direction) -> None:
        """Hold every byte back (default: both directions): a peer that is silent but not gone."""
        for direction in directions or _BOTH:
            self._faults[direction].flows.clear()

    def resume(self, *directions: Direction) -> None:
        """Let what was held back pass, and everything after it."""
        for direction in directions or _BOTH:
            if direction in self._faults:
                self._faults[direction].flows.set()

    def drop(self, *directions: Direction) -> None:
        """Read and throw away (default: both directions): a half-open link. These bytes never come back."""
        for direction in directions or _BOTH:
            self._faults[direction].drops = True

    def restore(self, *directions: Direction) -> None:
        """Stop dropping. A connection that lost bytes is still broken: ``cut`` it."""
        for direction in directions or _BOTH:
            self._faults[direction].drops = False

    async def refuse(self) -> None:
        """Cut every connection and refuse new ones (the port is closed) until ``accept``."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    async def accept(self) -> None:
        """Listen again after ``refuse``, on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve_soon, "127.0.0.1", self._port or self._asked_port, ssl=self._tls
            )
            self._port = self._server.sockets[0].getsockname()[1]

    # --- inside -------------------------------------------------------------------------------------------------

    def _serve_soon(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name=f"proxy {self.address}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._writers.add(client)  # from here on a cut reaches it
        try:
            server_reader, server = await asyncio.open_connection(self.upstream_host, self.upstream_port)
        except BaseException as error:
            self._writers.discard(client)
            client.transport.abort()
            if isinstance(error, OSError):
                return
            raise
        self._writers.add(server)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(client_reader, server, "up"), name=f"proxy up {self.address}")
                group.create_task(self._pump(server_reader, client, "down"), name=f"proxy down {self.address}")
        except* OSError:
            pass  # either side is gone; both are closed below
        finally:
            self._writers -= {client, server}
            for writer in (client, server):
                writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
        faults = self._faults[direction]
        while data := await reader.read(_CHUNK_BYTES):
            if self.latency_s > 0:
                await asyncio.sleep(self.latency_s)
            await faults.flows.wait()
            if not faults.drops:
                await self._forward(data, writer, faults)
        await faults.flows.wait()
        if self._tls is not None:
            raise ConnectionResetError  # TLS has no half-close
        if not writer.transport.is_closing():
            with contextlib.suppress(OSError):
                writer.write_eof()

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter, faults: _Faults) -> None:
        if faults.budget_bytes is not None and len(data) >= faults.budget_bytes:
            writer.write(data[: faults.budget_bytes])
            faults.budget_bytes = None
            # Let the last bytes out before the reset, or the kernel may throw them away with it.
            await writer.drain()
            await asyncio.sleep(0.01)
            self.cut()
            raise ConnectionResetError
        if faults.budget_bytes is not None:
            faults.budget_bytes -= len(data)
        step = self.slice_bytes or len(data)
        for start in range(0, len(data), step):
            await faults.flows.wait()
            writer.write(data[start : start + step])
            await writer.drain()
            if self.slice_bytes:
                await asyncio.sleep(0)  # a packet of its own: asyncio sets TCP_NODELAY
