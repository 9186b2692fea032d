"""Tickers and cron tasks while the processes that have them are killed: no time twice, no cron time lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import textwrap
from collections import Counter

import pytest

from flotta.pool.keys import PoolKeys
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis

pytestmark = pytest.mark.faults

EVERY_S = 0.5
NODE = """
    import asyncio, sys
    from flotta.pool import TaskContext, WorkerPool, PoolOptions

    pool = WorkerPool("p", options=PoolOptions(worker_ttl_s=1.0))

    @pool.every({every_s})
    @pool.task(worker_losses_max=50)
    async def beat(context: TaskContext) -> None:
        print("task", context.id, flush=True)

    async def main() -> None:
        await pool.start(sys.argv[1], work=True)
        ticker = await pool.ticker("t", every_s=0.05)
        print("ready", flush=True)
        async for tick in ticker:
            print("tick", round(tick.at.timestamp() * 1000), tick.missed, flush=True)

    asyncio.run(main())
"""


class Nodes:
    """Processes of one pool, and everything they said, in the order in which it was heard."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.said: list[list[str]] = []
        self.alive: list[asyncio.subprocess.Process] = []
        self.reading: list[asyncio.Task[None]] = []

    async def spawn(self) -> None:
        code = textwrap.dedent(NODE.format(every_s=EVERY_S))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, self.url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        ready = asyncio.Event()
        self.reading.append(asyncio.create_task(self._read(process, ready)))
        await asyncio.wait_for(ready.wait(), 30)
        self.alive.append(process)

    async def _read(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            words = line.decode().split()
            if words == ["ready"]:
                ready.set()
            elif words and words[0] in ("tick", "task"):
                self.said.append(words)

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        self.alive.remove(process)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()

    async def close(self) -> None:
        for process in (*self.alive,):
            await self.kill(process)
        await asyncio.gather(*self.reading)

    def ticks(self) -> list[tuple[int, int]]:
        return [(int(words[1]), int(words[2])) for words in self.said if words[0] == "tick"]


async def test_no_time_is_ticked_twice_and_no_cron_time_is_lost_while_nodes_are_killed(own_valkey: EmbeddedRedis):
    chance = random.Random(20261122)
    nodes = Nodes(own_valkey.url)
    try:
        await asyncio.gather(*(nodes.spawn() for _ in range(3)))
        for _ in range(6):
            heard = len(nodes.ticks())
            async with asyncio.timeout(20):
                while len(nodes.ticks()) < heard + 10:
                    await asyncio.sleep(0.01)
            await nodes.kill(chance.choice(nodes.alive))
            await nodes.spawn()
        enqueued = await settled(own_valkey.url)
    finally:
        await nodes.close()

    times = Counter(at for at, _ in nodes.ticks())
    assert [at for at, count in times.items() if count > 1] == []
    ran = {words[1] for words in nodes.said if words[0] == "task"}
    slots = sorted(int(task.rpartition(".")[2]) for task in ran)
    assert len(slots) >= enqueued, "enqueued more than once for a time, or one has not run"
    step_ms = round(EVERY_S * 1000)
    missing = set(range(slots[0], slots[-1] + 1, step_ms)) - set(slots)
    # A time is left out only where every node was late by a whole interval, never where one died.
    assert len(missing) <= 1, missing


async def settled(url: str) -> int:
    """How many tasks were ever enqueued, once all of them have run: the node whose lease is over has lost none."""
    key = f"{PoolKeys('p').prefix}tasks"
    async with Redis.from_url(url) as redis, asyncio.timeout(30):
        while True:
            totals = {name: int(value) for name, value in (await redis.hgetall(key)).items()}
            if totals[b"enqueued"] == totals.get(b"done", 0):
                return totals[b"enqueued"]
            await asyncio.sleep(0.01)
