"""B4: the pool beside Go Pulse's, and short tasks beside the task queues of Python, on one server: `make bench-pool`.

*Jobs* (``pool-dispatch-*``): one client process dispatches, one worker process starts; a dispatch ends when the client
knows that the job runs. Fifty callers that each wait for their own (jobs/s), and one (latency), with 0, 1,000 and
10,000 jobs on the worker already. ``pulse`` is Pulse in two processes like ours, ``pulse-one`` in one; the loops run
inside the contestants. After each round its jobs are stopped.

*Tasks*: a task that does nothing but count itself. ``task-enqueue``: one producer with fifty callers fills the queue,
nobody works. ``task-drain``: one worker process starts and empties it, from its first task to the last.
``task-noop``: producer and worker at once, from the first enqueue to the last task done. Every contestant gets as many
tasks as take it about ``SECONDS``. Results are not stored, except in ``task-noop-results``.

``-rtt2``: the same with 2 ms more of round trip between everybody and the server. ``ROUNDS=5 RTT_MS=0,2 SECONDS=0.7``
and ``ONLY=dispatch,tasks,results LEVELS=0,1000,10000 PEERS=pulse,taskiq,saq,streaq,arq,celery`` narrow it down.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _common import Result, compete, pin, print_versions, report, rounds_from, run, skip
from _pool.harness import Counter
from _pool.programs import CONTESTANTS, Contestant, DelayedServer, Lines, environment_of, versions_in
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from interop.peer import GoPeer, PeerError, PeerMissingError, peer_binary, pulse_version

RTT_MS = [float(value) for value in os.environ.get("RTT_MS", "0,2").split(",")]
ONLY = set(os.environ.get("ONLY", "dispatch,tasks,results").split(","))
LEVELS = [int(value) for value in os.environ.get("LEVELS", "0,1000,10000").split(",")]
PEERS = set(os.environ.get("PEERS", "flotta,pulse,taskiq,saq,streaq,arq,celery").split(",")) | {"flotta"}
SECONDS = float(os.environ.get("SECONDS", "0.7"))

CALLERS = 50
DISPATCHES = 2_000
DISPATCHES_PULSE = 500
DISPATCHES_PULSE_SLOW = 200  # with 10,000 jobs on its worker, or 2 ms away: more take too long
DISPATCHES_ALONE = 100
WAIT_S = 120.0
ATTEMPTS_MAX = 5
FILL_WAIT_S = 400.0
"""Pulse's worker takes 10,000 jobs in 40 s on a quiet machine: each start sends the keys of all to all nodes."""
TASKS_FIRST = 300
TASKS_MAX = 50_000
number = itertools.count()
JOB_PROGRAM = Path(__file__).parent / "_pool" / "job_flotta.py"


async def main() -> None:
    async with EmbeddedRedis() as server, DelayedServer.start(server.url) as delayed:
        pin([server.pid, delayed.pid])
        contestants = [peer for peer in CONTESTANTS if peer.name in PEERS and is_there(peer)]
        await print_all_versions(server.url, contestants)
        for milliseconds in RTT_MS:
            url = server.url
            if milliseconds:
                url = delayed.url
                await delayed.set_round_trip(milliseconds)
                print(f"# {milliseconds:g} ms more of round trip; a PING takes {await ping_ms(url):.2f} ms")
            suffix = f"-rtt{milliseconds:g}" if milliseconds else ""
            if "dispatch" in ONLY:
                await bench_dispatch(url, delayed, milliseconds, suffix)
            if "tasks" in ONLY:
                await bench_tasks(contestants, url, suffix)
            if "results" in ONLY and not milliseconds:
                await bench_tasks(contestants, url, suffix, results=True)


def is_there(peer: Contestant) -> bool:
    reason = environment_of(peer) if peer.packages else None
    if reason is not None:
        skip(peer.name, reason)
    return reason is None


async def print_all_versions(url: str, contestants: list[Contestant]) -> None:
    async with Redis.from_url(url) as redis:
        await redis.connect()
        version = ".".join(map(str, redis.link.server_version))
    print_versions("flotta", "redis", "hiredis", "uvloop", Valkey=version, pulse=pulse_version())
    for peer in contestants:
        if peer.packages:
            print(f"# {await asyncio.to_thread(versions_in, peer)}", flush=True)


async def ping_ms(url: str, times: int = 200) -> float:
    async with Redis.from_url(url) as redis:
        await redis.link.call("PING")
        began = time.perf_counter()
        for _ in range(times):
            await redis.link.call("PING")
        return (time.perf_counter() - began) / times * 1000


# --- jobs ------------------------------------------------------------------------------------------------------------


@dataclass
class Dispatching:
    """A pool with one client node and one worker node, and what its rounds showed besides the rate."""

    client: GoPeer
    worker: GoPeer
    handle: str
    """The client's node, which is the worker's too where one process is both."""
    dispatches: int
    running: int = 0
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(10_000_000, 10_000))

    async def dispatch(self, first: int, jobs: int, callers: int) -> dict[str, float]:
        arguments = {"handle": self.handle, "payload": "x" * 100, "timeout_s": FILL_WAIT_S}
        found = await self.client.call("pool.bench.dispatch", first=first, jobs=jobs, callers=callers, **arguments)
        assert isinstance(found, dict)
        return found

    async def fill(self, level: int) -> None:
        """Let the worker have so many jobs."""
        if level > self.running:
            await self.dispatch(self.running, level - self.running, CALLERS)
            self.running = level
        self.p50_ms.clear()
        self.p99_ms.clear()

    async def empty(self, first: int, jobs: int) -> None:
        """End jobs again; not measured, since Pulse does not wait for it."""
        arguments = {"handle": self.handle, "callers": CALLERS, "timeout_s": WAIT_S}
        await self.client.call("pool.bench.stop", first=first, jobs=jobs, **arguments)
        await self.worker.call("pool.bench.settle", handle="worker", running=self.running, timeout_s=WAIT_S)

    async def measure(self) -> float:
        """Jobs per second by fifty callers; the latency of one caller is noted beside it."""
        jobs = self.dispatches
        for _ in range(ATTEMPTS_MAX):
            first = next(self.numbers)
            alone = await self.dispatch(first, DISPATCHES_ALONE, 1)
            found = await self.dispatch(first + DISPATCHES_ALONE, jobs, CALLERS)
            await self.empty(first, jobs + DISPATCHES_ALONE)
            lost = alone["lost"] + found["lost"]
            if not lost:
                self.p50_ms.append(alone["p50_ms"])
                self.p99_ms.append(alone["p99_ms"])
                return jobs / found["seconds"]
            print(f"# {lost:.0f} of {jobs} dispatches never heard their answer: that round is repeated", flush=True)
        raise RuntimeError(f"dispatches were lost in {ATTEMPTS_MAX} rounds")


async def bench_dispatch(url: str, delayed: DelayedServer, milliseconds: float, suffix: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        pools = {"flotta": await stack.enter_async_context(flotta_pool(url))}
        if "pulse" in PEERS:
            try:
                await asyncio.to_thread(peer_binary)
            except PeerMissingError as error:
                skip("pulse", str(error))
            else:
                pools["pulse"] = await stack.enter_async_context(pulse_pool(url, processes=2))
                if milliseconds:
                    pools["pulse"].dispatches = DISPATCHES_PULSE_SLOW
                else:
                    pools["pulse-one"] = await stack.enter_async_context(pulse_pool(url, processes=1))
        for level in LEVELS:
            if level > 1_000:
                pools.pop("pulse-one", None)  # filling it takes most of a minute, and it is not better
                if "pulse" in pools:
                    pools["pulse"].dispatches = DISPATCHES_PULSE_SLOW
            await delayed.set_round_trip(0)
            for name in tuple(pools):
                try:
                    await pools[name].fill(level)
                except (PeerError, TimeoutError) as error:
                    skip(name, f"it cannot have {level} jobs: {type(error).__name__} {error}")
                    del pools[name]
            await delayed.set_round_trip(milliseconds)
            rates = await compete({name: pool.measure for name, pool in pools.items()}, rounds=rounds_from())
            report(f"pool-dispatch-{level}{suffix}", rates, unit="jobs/s")
            for line in ("p50", "p99"):
                found = {name: kept(getattr(pool, f"{line}_ms")) for name, pool in pools.items()}
                report(f"pool-dispatch-latency-{line}-{level}{suffix}", found, unit="ms")


def kept(values: list[float]) -> Result:
    """What was noted beside a contest, without its first round, which is thrown away there too."""
    return Result(tuple(values[1:]))


@contextlib.asynccontextmanager
async def flotta_pool(url: str) -> AsyncIterator[Dispatching]:
    async with flotta_node(url) as client, flotta_node(url) as worker:
        name = f"bench-{next(number)}"
        await worker.call("pool.node", name=name)
        await worker.call("pool.worker")
        await client.call("pool.node", name=name, client_only=True)
        yield Dispatching(client, worker, "client", DISPATCHES)


@contextlib.asynccontextmanager
async def flotta_node(url: str) -> AsyncIterator[GoPeer]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(JOB_PROGRAM), url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    node = GoPeer(process)
    try:
        yield node
    finally:
        await node.aclose()


@contextlib.asynccontextmanager
async def pulse_pool(url: str, *, processes: int) -> AsyncIterator[Dispatching]:
    """Its limit of queued jobs is raised: it trims the queue, and with it jobs, instead of refusing."""
    async with contextlib.AsyncExitStack() as stack:
        worker = client = await stack.enter_async_context(GoPeer.start(url, pool=2 * CALLERS))
        name = f"bench-{next(number)}"
        await worker.call("pool.node", handle="worker", name=name, queued_max=20_000)
        await worker.call("pool.worker", handle="worker")
        if processes == 2:
            client = await stack.enter_async_context(GoPeer.start(url, pool=2 * CALLERS))
            await client.call("pool.node", handle="client", name=name, queued_max=20_000, client_only=True)
        yield Dispatching(client, worker, "client" if processes == 2 else "worker", DISPATCHES_PULSE)


# --- tasks -----------------------------------------------------------------------------------------------------------


class TaskQueue:
    """One task queue: its producer lives as long as the contest, its worker as long as one round of it."""

    def __init__(self, peer: Contestant, environment: dict[str, str], done: Counter, producer: Lines) -> None:
        self._peer = peer
        self._environment = environment
        self._done = done
        self._producer = producer
        self._backlog = self._stream = TASKS_FIRST
        self.enqueued: list[float] = []
        self.drained: list[float] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, peer: Contestant, url: str, folder: Path, *, results: bool) -> AsyncIterator[TaskQueue]:
        path = folder / f"{peer.name}{'-results' if results else ''}"
        done = Counter(path)
        environment = {"BENCH_REDIS_URL": url, "BENCH_COUNTER": str(path), "BENCH_RESULTS": "1" if results else "0"}
        producer = await Lines.start(peer.command("produce"), environment)
        try:
            await producer.read()
            yield cls(peer, environment, done, producer)
        finally:
            await producer.end()

    async def measure(self) -> float:
        """Fill, drain with a new worker, then fill and drain at once: the rate of the last."""
        goal = self._done.value + self._backlog
        self.enqueued.append(self._backlog / float(await self._producer.ask(str(self._backlog))))
        worker = await Lines.start(self._peer.command("work"), self._environment)
        try:
            await self.until(goal - self._backlog + 1)
            began, before = time.perf_counter(), self._done.value
            await self.until(goal)
            seconds = time.perf_counter() - began
            self.drained.append((goal - before) / seconds)
            self._backlog = tasks_in(SECONDS, self.drained[-1])
            return await self._measure_both()
        finally:
            await worker.end()

    async def _measure_both(self) -> float:
        tasks, goal = self._stream, self._done.value + self._stream
        began = time.perf_counter()
        await self._producer.ask(str(tasks))
        await self.until(goal)
        rate = tasks / (time.perf_counter() - began)
        self._stream = tasks_in(SECONDS, rate)
        return rate

    async def until(self, goal: int) -> None:
        """Wait until so many tasks have run, and look each millisecond."""
        deadline = time.perf_counter() + WAIT_S
        while self._done.value < goal:
            if time.perf_counter() > deadline:
                raise RuntimeError(f"{self._peer.name} ran {self._done.value} of {goal} tasks in {WAIT_S:.0f} s")
            await asyncio.sleep(0.001)


def tasks_in(seconds: float, per_s: float) -> int:
    return max(TASKS_FIRST, min(TASKS_MAX, round(seconds * per_s)))


async def bench_tasks(contestants: list[Contestant], url: str, suffix: str, *, results: bool = False) -> None:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flotta-bench-", dir=shared_memory())))
        queues: dict[str, TaskQueue] = {}
        for peer in contestants:
            queues[peer.name] = await stack.enter_async_context(TaskQueue.start(peer, url, folder, results=results))
        rates = await compete({name: queue.measure for name, queue in queues.items()}, rounds=rounds_from())
        word = "-results" if results else ""
        report(f"task-noop{word}{suffix}", rates, unit="tasks/s")
        drained = {name: kept(queue.drained) for name, queue in queues.items()}
        report(f"task-drain{word}{suffix}", drained, unit="tasks/s")
        if not results:
            enqueued = {name: kept(queue.enqueued) for name, queue in queues.items()}
            report(f"task-enqueue{suffix}", enqueued, unit="tasks/s")


def shared_memory() -> str | None:
    """A folder that is no disk, if the system has one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    run(main)
