"""As many clients as a process may have files: 15,000 on one instance, 45,000 on three, a broadcast to all of them.

The clients live in processes of their own (``python crowd.py port count network``), since theirs are files too, each
with two loopback addresses of its own, since Linux gives an address 14,000 ports towards one other before it searches.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import uvloop

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from _realtime.load import CORES, TICK_BYTES, VESSEL, LoadClient, Peer, frame
from flotta.redis.embedded import EmbeddedRedis

__all__ = ["hold_crowds"]

CROWD = int(os.environ.get("CROWD", "15000"))
EVENTS = 10
WAIT_S = 180.0


class Crowd:
    """The clients of one instance, in a process of their own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, port: int, count: int, network: str) -> Crowd:
        """Start to connect ``count`` clients from the addresses of ``network``, its first three bytes."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            str(port),
            str(count),
            network,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        if len(CORES) > 1:
            os.sched_setaffinity(process.pid, set(CORES[:-1]))
        return cls(process)

    async def next_figure(self) -> float:
        """The next line that the process prints: seconds."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), WAIT_S)
        if not line:
            raise RuntimeError("the clients ended: events or connections were lost")
        return float(line)

    def tell(self, line: str) -> None:
        """``go``: the first client asks for a broadcast. Every crowd then prints when all have all so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def stop(self) -> None:
        """End it."""
        self._process.kill()
        await self._process.wait()


async def hold_crowds(peer: Peer) -> None:
    """``crowd-15000`` on one instance and three times as many on three."""
    for instances in (1, 3):
        with tempfile.TemporaryDirectory() as folder:
            async with EmbeddedRedis(Path(folder)) as redis:
                await _hold(peer, instances, redis.url)


async def _hold(peer: Peer, instances: int, redis_url: str) -> None:
    environment = {**peer.environment, "REDIS_URL": redis_url}
    servers = [replace(peer, environment=environment, clients=[]) for _ in range(instances)]
    crowds: list[Crowd] = []
    try:
        for server in servers:
            await server.start()
        before_kib = [server.rss_kib() for server in servers]
        started_s = time.perf_counter()
        for number, server in enumerate(servers):
            crowds.append(await Crowd.start(server.port, CROWD, f"127.0.{number + 1}"))
        await asyncio.gather(*(crowd.next_figure() for crowd in crowds))
        connected_s = time.perf_counter() - started_s
        per_client_kib = [(server.rss_kib() - kib) / CROWD for server, kib in zip(servers, before_kib, strict=True)]
        took_s = []
        for number in range(EVENTS):
            began_s = time.perf_counter()
            crowds[number % instances].tell("go")
            for place, crowd in enumerate(crowds):
                if place != number % instances:
                    crowd.tell("expect")
            await asyncio.gather(*(crowd.next_figure() for crowd in crowds))
            took_s.append(time.perf_counter() - began_s)
    finally:
        for crowd in crowds:
            await crowd.stop()
        for server in servers:
            server.stop()
    total = CROWD * instances
    print(f"BENCH crowd-{total} flotta={total / connected_s:.0f} unit=connects/s")
    print(
        f"      {total:,} clients on {instances} instance(s): {max(per_client_kib):.1f} KiB each; {EVENTS} broadcasts,"
        f" {total * EVENTS:,} deliveries, lost 0; to all in {sorted(took_s)[len(took_s) // 2]:.2f} s (median)",
        flush=True,
    )


# --- the process of the clients ---


async def _be_crowd(port: int, count: int, network: str) -> None:
    peer = Peer("crowd", [], port=port)
    started_s = time.perf_counter()
    for number, size in enumerate((count // 2, count - count // 2), 1):
        await peer.connect(size, at_once=200, local=f"{network}.{number}")
    print(time.perf_counter() - started_s, flush=True)
    lines: asyncio.Queue[str] = asyncio.Queue()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), lambda: lines.put_nowait(sys.stdin.readline()))
    peer.counter.reset()
    events = 0
    while (line := await lines.get()).strip():
        began_s = time.perf_counter()
        events += 1
        if line.strip() == "go":
            first: LoadClient = peer.clients[0]
            first.send(frame(b'42["go",' + VESSEL + b",1]"))
        await peer.reach(events * count * TICK_BYTES)
        if peer.counter.lost or peer.counter.value != events * count * TICK_BYTES:
            raise RuntimeError(f"{peer.counter.lost} connections lost, {peer.counter.value} bytes")
        print(time.perf_counter() - began_s, flush=True)


if __name__ == "__main__":
    uvloop.run(_be_crowd(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
