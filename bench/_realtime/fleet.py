"""Three instances over one Redis: how long a broadcast takes to the clients of the others, and whether all get it.

The same clients stand once on one instance and once on three, and the events go out one at a time. The two 99th
percentiles are of the same rounds, so their difference is what the way through Redis costs.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from _common import Side, compete, report, rounds_from
from _realtime.load import VESSEL, Counter, LoadClient, Peer, frame
from flotta.redis.embedded import EmbeddedRedis

__all__ = ["compare_fleets"]

INSTANCES = 3
CLIENTS = int(os.environ.get("FLEET_CLIENTS", "900"))
EVENTS = int(os.environ.get("FLEET_EVENTS", "200"))
GO = frame(b'42["go",' + VESSEL + b",1]")
ADAPTERS = ("classic", "sharded", "streams")


class Stopwatch(Counter):
    """Notes when each client got the event that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_s = 0.0
        self.waits_s: list[float] = []

    def add(self, size_bytes: int) -> None:
        """One read of one client: with one small event under way that is the event."""
        if size_bytes:
            self.waits_s.append(time.perf_counter() - self.sent_s)
        super().add(1 if size_bytes else 0)


class Fleet:
    """Some instances of one server, and clients spread over them."""

    def __init__(self, peer: Peer, instances: int, redis_url: str, adapter: str) -> None:
        self.watch = Stopwatch()
        environment = {**peer.environment, "REDIS_URL": redis_url, "ADAPTER": adapter}
        self.peers = [replace(peer, environment=environment, clients=[], counter=self.watch) for _ in range(instances)]

    @property
    def clients(self) -> list[LoadClient]:
        return [client for peer in self.peers for client in peer.clients]

    async def start(self) -> None:
        for peer in self.peers:
            await peer.start()
            await peer.connect(CLIENTS // len(self.peers))

    def stop(self) -> None:
        for peer in self.peers:
            peer.stop()

    async def p99_ms(self) -> float:
        """One event after the other, from each instance in turn; each waits until everybody has the one before."""
        self.watch.reset()
        self.watch.waits_s.clear()
        everybody = len(self.clients)
        for number in range(1, EVENTS + 1):
            self.watch.sent_s = time.perf_counter()
            self.peers[number % len(self.peers)].clients[0].send(GO)
            await self.peers[0].reach(number * everybody)
        assert len(self.watch.waits_s) == EVENTS * everybody, "an event came twice"
        return statistics.quantiles(self.watch.waits_s, n=100)[98] * 1000


async def compare_fleets(peers: list[Peer]) -> None:
    """``fleet-p99``; who loses or doubles an event ends the run with an error."""
    single: dict[str, list[float]] = {}
    sides: dict[str, Side] = {}
    async with AsyncExitStack() as stack:
        for peer in peers:
            for adapter in ADAPTERS if peer.name == "flotta" else ADAPTERS[:1]:
                name = peer.name if adapter == "classic" else f"{peer.name}-{adapter}"
                one, several = [await _start(stack, peer, count, adapter) for count in (1, INSTANCES)]
                sides[name] = _side(one, several, single.setdefault(name, []))
        results = await compete(sides, rounds=rounds_from())
    report("fleet-p99", results, unit="ms")
    for name, result in results.items():
        alone = statistics.median(single[name][1:])
        print(f"      {name}: {alone:.2f} ms on one instance, {result.median - alone:+.2f} ms on {INSTANCES}; lost 0")


async def _start(stack: AsyncExitStack, peer: Peer, instances: int, adapter: str) -> Fleet:
    """Each fleet has a Redis of its own: on a common one Flotta's servers and Node's would be one cluster."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    redis = await stack.enter_async_context(EmbeddedRedis(Path(folder)))
    fleet = Fleet(peer, instances, redis.url, adapter)
    stack.callback(fleet.stop)
    await fleet.start()
    return fleet


def _side(one: Fleet, several: Fleet, noted: list[float]) -> Side:
    async def measure() -> float:
        noted.append(await one.p99_ms())
        return await several.p99_ms()

    return measure
