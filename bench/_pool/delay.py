"""A delay line between clients and a server: `delay.py URL`. It prints its port; each line it reads is a new delay.

Owns: the added round trip (milliseconds), half of it in each direction. Bytes that come while others wait are delayed
by the same time and not queued behind them, as on a long cable: one connection with many commands under way is no worse
off than many connections. It is a process of its own, so that it takes no time from the contestants.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections import deque
from urllib.parse import urlsplit

_delay_s = 0.0  # of one direction


class End(asyncio.Protocol):
    """One end of a passage; what it reads leaves at the other end, later and in order."""

    transport: asyncio.Transport
    other: End

    def __init__(self) -> None:
        self._under_way: deque[tuple[float, bytes]] = deque()  # when each part arrives at the other end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        arrives = loop.time() + _delay_s
        if self._under_way:  # never before what was sent first, even if the delay has just become shorter
            arrives = max(arrives, self._under_way[-1][0])
        else:
            loop.call_at(arrives, self._arrive)
        self._under_way.append((arrives, data))

    def _arrive(self) -> None:
        loop = asyncio.get_running_loop()
        while self._under_way and self._under_way[0][0] <= loop.time():
            self.other.transport.write(self._under_way.popleft()[1])
        if self._under_way:
            loop.call_at(self._under_way[0][0], self._arrive)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if hasattr(self, "other"):
            self.other.transport.close()


async def main() -> None:
    """Serve until standard input ends."""
    upstream = urlsplit(sys.argv[1])
    loop = asyncio.get_running_loop()

    async def accept(client: End) -> None:
        client.transport.pause_reading()
        _, server = await loop.create_connection(End, upstream.hostname, upstream.port)
        client.other, server.other = server, client
        client.transport.resume_reading()

    class Entry(End):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._accepting = loop.create_task(accept(self), name="accept")

    server = await loop.create_server(Entry, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        global _delay_s  # noqa: PLW0603
        _delay_s = float(line) / 2000
        print("ok", flush=True)


if __name__ == "__main__":
    # select() waits in microseconds; epoll rounds a millisecond up, to two.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(main())
