"""Three instances over one Redis: how long a broadcast takes to the clients of the others, and whether all get it.

The same clients stand once on one instance and once on three, and the events go out one at a time. The two 99th
percentiles are of the same rounds, so their difference is what the way through Redis costs.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
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
            self.waits_s.append(asyncio.get_running_loop().time() - self.sent_s)
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
        loop, everybody = asyncio.get_running_loop(), len(self.clients)
        for number in range(1, EVENTS + 1):
            self.watch.sent_s = loop.time()
            self.peers[number % len(self.peers)].clients[0].send(GO)
            await self.peers[0].reach(number * everybody)
        assert len(self.watch.waits_s) == EVENTS * everybody, "an event came twice"
        return statistics.quantiles(self.watch.waits_s, n=100)[98] * 1000


async def compare_fleets(peers: list[Peer]) -> None:
    """``fleet-p99`` and ``single-p99``; who loses an event ends the run with an error."""
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedRedis(Path(folder)) as redis:
            await _compare(peers, redis.url)


async def _compare(peers: list[Peer], redis_url: str) -> None:
    single: dict[str, list[float]] = {}
    sides: dict[str, Side] = {}
    fleets: list[Fleet] = []
    for peer in peers:
        adapters = ADAPTERS if peer.name == "flotta" else ADAPTERS[:1]
        for adapter in adapters:
            name = peer.name if adapter == "classic" else f"{peer.name}-{adapter}"
            pair = [Fleet(peer, count, redis_url, adapter) for count in (1, INSTANCES)]
            fleets += pair
            single[name] = []
            sides[name] = _side(pair[0], pair[1], single[name])
    try:
        for fleet in fleets:
            await fleet.start()
        several = await compete(sides, rounds=rounds_from())
    finally:
        for fleet in fleets:
            fleet.stop()
    report("fleet-p99", several, unit="ms")
    for name, result in several.items():
        alone = statistics.median(single[name][1:])
        print(f"      {name}: {alone:.2f} ms on one instance, {result.median - alone:+.2f} ms on {INSTANCES}; lost 0")


def _side(one: Fleet, several: Fleet, noted: list[float]) -> Side:
    async def measure() -> float:
        noted.append(await one.p99_ms())
        return await several.p99_ms()

    return measure
