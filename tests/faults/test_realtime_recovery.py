"""The proof of recovery: whatever dies, every client ends with every event that was for it, in order, once.

Three instances behind one port, clients that break off at random, instances killed one after the other. The short form
runs with the other tests; ``FLOTTA_RECOVERY_S=120 FLOTTA_RECOVERY_CLIENTS=500`` makes it long.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from flotta.realtime import Server
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import NodePeer, node, node_modules, start_node, until
from realtime_recovery_stage import Client, Instance, Publisher

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.faults

LENGTH_S = float(os.environ.get("FLOTTA_RECOVERY_S", "8"))
CLIENTS = int(os.environ.get("FLOTTA_RECOVERY_CLIENTS", "100"))
KILL_EVERY_S = float(os.environ.get("FLOTTA_RECOVERY_KILL_S", "2.5"))
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


@pytest.mark.timeout(60 + 4 * LENGTH_S)
async def test_every_client_ends_with_every_event_in_order_once_while_instances_are_killed_and_connections_break(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with staged(own_valkey.url, unique) as stage:
        cutting = asyncio.create_task(stage.cut_at_random(), name="cutting")
        loop = asyncio.get_running_loop()
        ends_s, killed = loop.time() + LENGTH_S, 0
        while loop.time() < ends_s or killed < 2:  # a start takes seconds on a busy machine
            await asyncio.sleep(KILL_EVERY_S)
            await stage.instances[killed % len(stage.instances)].replace()
            killed += 1
        cutting.cancel()
        await stage.settle()
        assert stage.publisher.verdict() == {}
        assert sum(client.recovered for client in stage.clients) > len(stage.clients) / 2


async def test_official_clients_recover_from_kills_too(node: NodePeer, own_valkey: EmbeddedRedis, unique: str) -> None:
    async with staged(own_valkey.url, unique, clients=5) as stage:
        names = [f"js{number}" for number in range(20)]
        for number, name in enumerate(names):
            await node.connect(name, stage.port, auth={"room": ROOMS[number % len(ROOMS)]})
        first = dict(stage.publisher.sent)
        for instance in stage.instances:
            node_cuts = random.sample(names, 3)
            await asyncio.gather(instance.replace(), *(node.do("cut", name=name) for name in node_cuts))
            await until(
                lambda: all(len(node.seen(name, "connect")) > len(node.seen(name, "disconnect")) for name in names)
            )
        await stage.settle()
        last = stage.publisher.sent["all"] - 1
        await until(lambda: all(_numbers(node, name, "all")[-1:] == [last] for name in names))
        for number, name in enumerate(names):
            room = ROOMS[number % len(ROOMS)]
            for event, earliest in (("all", first["all"]), (room, first.get(room, 0))):
                got = _numbers(node, name, event)
                assert got == list(range(got[0], stage.publisher.sent[event])), (name, event)
                assert got[0] <= earliest + 1
            assert all(connect[2] for connect in node.seen(name, "connect")[1:]), name
        assert sum(len(node.seen(name, "connect")) - 1 for name in names) >= len(names)
        for name in names:
            await node.do("close", name=name)


def _numbers(node: NodePeer, name: str, event: str) -> list[int]:
    return [args[0] for args in node.events(name, event)]


async def test_redis_is_killed_and_comes_back_while_an_instance_dies_and_connections_break(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with staged(own_valkey.url, unique, clients=60) as stage:
        publisher = stage.publisher
        await until(lambda: publisher.sent["all"] >= 20)
        for turn in range(2):
            publisher.running.clear()  # what is published while Redis is away reaches nobody else, and is counted
            await publisher.sio._core.adapter.settled()  # type: ignore[union-attr]
            own_valkey.kill()
            await stage.instances[turn].kill()
            for client in stage.clients[::3]:
                client.cut()
            await asyncio.sleep(0.5)  # the clients run into instances that have no Redis
            starting = asyncio.create_task(stage.instances[turn].start())
            await own_valkey.start()
            await starting
            await until(lambda: publisher.sio.stats.adapter.connected, 20)  # type: ignore[union-attr]
            sent = publisher.sent["all"]
            publisher.running.set()
            await until(lambda sent=sent: publisher.sent["all"] >= sent + 20)
        await stage.settle()
        assert publisher.verdict() == {}
        assert publisher.sio.stats.adapter.gaps == 0  # type: ignore[union-attr]


async def test_clients_of_a_stopped_instance_go_elsewhere_and_it_finds_itself_without_them(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    """SIGSTOP: the kernel keeps the connections open, so the clients notice by the silence, and the instance, when it
    goes on, holds sockets whose sessions others have claimed."""
    async with staged(own_valkey.url, unique, clients=60, recovery_s=2.0) as stage:
        await until(lambda: stage.publisher.sent["all"] >= 20)
        stopped = stage.instances[0].process
        stopped.send_signal(signal.SIGSTOP)
        try:
            for client in stage.clients:  # official ones give up after ping_interval_s + ping_timeout_s
                client.cut()
            await until(lambda: all(client.connected.is_set() for client in stage.clients), 20)
            sent = stage.publisher.sent["all"]
            await until(lambda: stage.publisher.sent["all"] >= sent + 80, 20)  # longer than the window
        finally:
            stopped.send_signal(signal.SIGCONT)
        await stage.settle()
        assert stage.publisher.verdict() == {}
        found = await stage.publisher.sio.fetch_sockets()
        assert sorted(socket.id for socket in found) == sorted(client.sid or "" for client in stage.clients)


async def test_an_instance_whose_event_loop_stands_still_loses_nobody_an_event(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with staged(own_valkey.url, unique, clients=60, ping_timeout_s=20.0) as stage:
        for turn in range(6):
            await stage.clients[turn].send("stall", 1.0)
            for client in random.sample(stage.clients, 20):
                client.cut()
            sent = stage.publisher.sent["all"]
            await until(lambda sent=sent: stage.publisher.sent["all"] >= sent + 10)
        await stage.settle()
        assert stage.publisher.verdict() == {}


async def test_clients_whose_events_are_gone_are_told_so(own_valkey: EmbeddedRedis, unique: str) -> None:
    """The stream holds fewer events than are sent while they are away. What they get afterwards has no hole either."""
    async with staged(own_valkey.url, unique, clients=10, stream_maxlen=200) as stage:
        publisher = stage.publisher
        await until(lambda: publisher.sent["all"] >= 20)
        await asyncio.gather(*(instance.kill() for instance in stage.instances))  # nobody has them in memory
        had = {client.number: len(client.got["all"]) for client in stage.clients}
        publisher.running.clear()
        for _ in range(1_000):
            await publisher.sio.emit("all", publisher.sent["all"])
            publisher.sent["all"] += 1
        await asyncio.gather(*(instance.start() for instance in stage.instances))
        await until(lambda: all(client.fresh and client.connected.is_set() for client in stage.clients), 20)
        await publisher.sio.emit("all", publisher.sent["all"])
        publisher.sent["all"] += 1
        last = publisher.sent["all"] - 1
        await until(lambda: all(client.got["all"][-1] == last for client in stage.clients))
        for client in stage.clients:
            got = client.got["all"]
            assert (client.fresh, client.recovered) == (1, 0)
            assert got[: had[client.number]] == list(range(had[client.number]))
            rest = got[had[client.number] :]
            assert rest == list(range(rest[0], publisher.sent["all"]))
