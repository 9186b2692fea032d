"""A delay line between clients and a server: `delay.py URL`. It prints its port; each line it reads is a new delay.

Owns: the added round trip (milliseconds), half of it in each direction. Bytes that come while others wait are delayed
by the same time and not queued behind them, as on a long cable: one connection with many commands under way is no worse
off than many connections. It is a process of its own, so that it takes no time from the contestants.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from urllib.parse import urlsplit

_delay_s = 0.0  # of one direction


class End(asyncio.Protocol):
    """One end of a passage; what it reads leaves at the other end, later and in order."""

    transport: asyncio.Transport
    other: End

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(_delay_s, self.other.transport.write, data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if hasattr(self, "other"):
            asyncio.get_running_loop().call_later(_delay_s, self.other.transport.close)


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
