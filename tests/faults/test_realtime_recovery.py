"""The proof of recovery: whatever dies, every client ends with every event that was for it, in order, once.

Three instances behind one port, clients that break off at random, instances killed one after the other. The short form
runs with the other tests; ``FLOTTA_RECOVERY_S=120 FLOTTA_RECOVERY_CLIENTS=500`` makes it long.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from flotta.realtime import Server
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import node, node_modules, start_node, until
from realtime_recovery_stage import Client, Instance, Publisher

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.faults

LENGTH_S = float(os.environ.get("FLOTTA_RECOVERY_S", "12"))
CLIENTS = int(os.environ.get("FLOTTA_RECOVERY_CLIENTS", "100"))
KILL_EVERY_S = float(os.environ.get("FLOTTA_RECOVERY_KILL_S", "4"))
CUTS_PER_S = 0.03
"""Part of the clients whose connection breaks each second."""
ROOMS = [f"room{number}" for number in range(10)]
FAST: dict[str, Any] = {"ping_interval_s": 1.0, "ping_timeout_s": 2.0, "recovery_s": 60.0}


@dataclass
class Stage:
    """All that takes part."""

    instances: list[Instance]
    clients: list[Client]
    publisher: Publisher
    port: int

    async def settle(self, timeout_s: float = 30.0) -> None:
        """Stop publishing; return when every client has the last event of everything, or the time is over."""
        self.publisher.running.clear()
        await self.publisher.sio.emit("all", self.publisher.sent["all"])
        self.publisher.sent["all"] += 1
        with suppress(TimeoutError):
            await until(lambda: all(map(self.publisher.is_whole, self.clients)), timeout_s)

    async def cut_at_random(self) -> None:
        """Until cancelled."""
        while True:
            for client in random.sample(self.clients, max(1, round(len(self.clients) * CUTS_PER_S))):
                client.cut()
            await asyncio.sleep(1)


@asynccontextmanager
async def staged(
    redis_url: str, stream: str, *, clients: int = CLIENTS, instances: int = 3, **options: Any
) -> AsyncIterator[Stage]:
    """Everything is up and every client is in."""
    names = {"stream_name": stream, "channel_prefix": stream, "recovery_key_prefix": f"{stream}:session:"}
    made: list[Client] = []
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as listening:
        fleet = [Instance(listening, redis_url, stream, {**FAST, **options}) for _ in range(instances)]
        port = listening.getsockname()[1]
        async with Server(redis_url, adapter="streams", **names, **{**FAST, **options}) as sio:
            publisher = Publisher(sio, made, ROOMS)
            publishing = asyncio.create_task(publisher.run(), name="publisher")
            try:
                await asyncio.gather(*(instance.start() for instance in fleet))
                made += [Client(port, ROOMS[number % len(ROOMS)], number=number) for number in range(clients)]
                await asyncio.gather(*(asyncio.wait_for(client.connected.wait(), 30) for client in made))
                publisher.running.set()
                yield Stage(fleet, made, publisher, port)
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)
                await asyncio.gather(*(client.aclose() for client in made))
                await asyncio.gather(*(instance.kill() for instance in fleet))


async def test_every_client_ends_with_every_event_in_order_once_while_instances_are_killed_and_connections_break(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with staged(own_valkey.url, unique) as stage:
        cutting = asyncio.create_task(stage.cut_at_random(), name="cutting")
        loop = asyncio.get_running_loop()
        ends_s, turn, killed = loop.time() + LENGTH_S, 0, 0
        while loop.time() < ends_s:
            await asyncio.sleep(KILL_EVERY_S)
            await stage.instances[turn % len(stage.instances)].replace()
            turn += 1
            killed += 1
        cutting.cancel()
        await stage.settle()
        assert stage.publisher.verdict() == {}
        assert killed >= 2
        assert sum(client.recovered for client in stage.clients) > len(stage.clients) / 2
