"""``flotta run`` with clients that stay: instances end one after the other, and everybody is back without a herd.

``FLOTTA_TEST_ROLL_CLIENTS=1000`` makes it a thousand; the short form runs always.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from realtime_fixtures import until
from supervisor_service import Service, service

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

CLIENTS = int(os.environ.get("FLOTTA_TEST_ROLL_CLIENTS", "90"))
POLLING = CLIENTS // 5
INSTANCES = 3
ROLLED = INSTANCES if CLIENTS > 90 else 2
RATE = CLIENTS / INSTANCES / 2
"""Clients that an instance sends away per second: its share takes two seconds."""

APP = f"""
import asyncio, os
from flotta import Fleet

fleet = Fleet()
prefix = os.environ["PREFIX"]
sio = fleet.realtime(transports=("polling", "websocket"), drain_clients_per_s={RATE}, channel_prefix=prefix)

@sio.event
async def connect(sid, environ, auth):
    if auth.get("slow"):
        print("connecting", flush=True)
        await asyncio.sleep(60)

async def plain(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await fleet.start()
            else:
                await fleet.stop()
            await send({{"type": message["type"] + ".complete"}})
            if message["type"] == "lifespan.shutdown":
                return
    await send({{"type": "http.response.start", "status": 404, "headers": []}})
    await send({{"type": "http.response.body", "body": b""}})

app = sio.app(plain)
"""


class Crowd:
    """Clients that come back by themselves, after the official client's pause: half a second, give or take a half."""

    def __init__(self, base: str) -> None:
        self._base = base
        self.inside: dict[int, str] = {}
        """The session of each client that has joined."""
        self.ends: list[tuple[float, str, int]] = []
        """When, on which instance, with which close code (0: a polling client's close packet)."""
        self.failures: Counter[str] = Counter()

    def _ended(self, number: int, code: int) -> None:
        sid = self.inside.pop(number, None)
        if sid is not None:
            self.ends.append((asyncio.get_running_loop().time(), sid[:4], code))

    async def stay(self, number: int, *, polling: bool) -> None:
        while True:
            try:
                await (self._poll(number) if polling else self._listen(number))
            except (OSError, InvalidHandshake, httpx.TransportError, TimeoutError) as error:
                self.failures[_name(error)] += 1
                self._ended(number, -1)
            await asyncio.sleep(0.5 * random.uniform(0.5, 1.5))

    async def _listen(self, number: int) -> None:
        async with ws_connect(f"{self._base.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket") as socket:
            opened = json.loads(str(await socket.recv())[1:])
            await socket.send("40{}")
            try:
                while True:
                    message = await socket.recv()
                    if message == "2":
                        await socket.send("3")
                    elif str(message).startswith("40"):
                        self.inside[number] = opened["sid"]
            except ConnectionClosed as closed:
                self._ended(number, closed.rcvd.code if closed.rcvd else -1)

    async def _poll(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self._base, timeout=40) as http:
            opened = await http.get("/socket.io/?EIO=4&transport=polling")
            if opened.status_code != 200:
                self.failures[str(opened.status_code)] += 1
                return
            sid = json.loads(opened.text[1:])["sid"]
            url = f"/socket.io/?EIO=4&transport=polling&sid={sid}"
            await http.post(url, content="40{}")
            while True:
                got = await http.get(url)
                packets = got.text.split("\x1e")
                if got.status_code != 200 or "1" in packets:
                    self._ended(number, 0 if got.status_code == 200 else got.status_code)
                    return
                if any(packet.startswith("40") for packet in packets):
                    self.inside[number] = sid
                if "2" in packets:
                    await http.post(url, content="3")


def _name(error: Exception) -> str:
    return str(error.response.status_code) if isinstance(error, InvalidStatus) else type(error).__name__


@asynccontextmanager
async def crowd(base: str) -> AsyncIterator[Crowd]:
    found = Crowd(base)
    tasks = [asyncio.create_task(found.stay(n, polling=n < POLLING)) for n in range(CLIENTS)]
    try:
        await until(lambda: len(found.inside) == CLIENTS, 60)
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _workers(running: Service) -> list[int]:
    found = psutil.Process(running.process.pid).children(recursive=True)
    return [child.pid for child in found if "flotta.server" in child.cmdline()]


def _most_in(times: list[float], window_s: float) -> int:
    """The most that happens within any such window."""
    times = sorted(times)
    return max((sum(1 for at in times if begin <= at < begin + window_s) for begin in times), default=0)


async def test_rolling_restart_brings_everybody_back_and_no_herd(tmp_path: Path, valkey_url: str, unique: str) -> None:
    env = {"REDIS_URL": valkey_url, "PREFIX": unique, "FLOTTA_DRAIN_S": "8"}
    with service(tmp_path, "-n", str(INSTANCES), app=APP, env=env) as running:
        base = await asyncio.to_thread(running.url)
        async with crowd(base) as clients:
            old = set(_workers(running))
            assert len(old) == INSTANCES
            rolled = sorted(old)[:ROLLED]
            for pid in rolled:
                lines = len(running.lines)
                os.kill(pid, signal.SIGTERM)
                await asyncio.to_thread(running.wait_line, "ready in", 30, after=lines)
                await until(lambda pid=pid: not psutil.pid_exists(pid), 30)  # type: ignore[misc]
                await until(lambda: len(clients.inside) == CLIENTS, 30)
            assert not set(rolled) & set(_workers(running))
            # Each end was the drain's: 1012, or for a polling client a close packet (or, between two GETs, a 400).
            assert {code for _, _, code in clients.ends} <= {1012, 0, 400}
            assert clients.failures.total() <= CLIENTS / 10, clients.failures
            by_instance = Counter(instance for _, instance, _ in clients.ends)
            for instance, count in by_instance.items():
                times = [at for at, where, _ in clients.ends if where == instance]
                if count < CLIENTS / INSTANCES / 3:
                    continue  # the last to be restarted may hold few
                assert max(times) - min(times) > 0.5 * count / RATE
                assert _most_in(times, 0.2) <= max(0.5 * count, 5)
            running.signal(signal.SIGTERM)
            assert await asyncio.to_thread(running.wait) == 0


async def test_stop_among_connects_ends_with_0_and_refuses_nobody_it_took_in(
    tmp_path: Path, valkey_url: str, unique: str
) -> None:
    env = {"REDIS_URL": valkey_url, "PREFIX": unique, "FLOTTA_DRAIN_S": "3"}
    with service(tmp_path, "-n", "2", app=APP, env=env) as running:
        base = await asyncio.to_thread(running.url)
        found = Crowd(base)
        tasks = [asyncio.create_task(found.stay(n, polling=n < POLLING)) for n in range(CLIENTS)]
        await until(lambda: len(found.inside) >= CLIENTS / 4, 30)
        running.signal(signal.SIGTERM)
        code = await asyncio.to_thread(running.wait)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert code == 0
        assert {end for _, _, end in found.ends} <= {1012, 0, 400, -1}
        assert sum(end == 1012 for _, _, end in found.ends) > 0


async def test_second_signal_ends_what_a_handler_holds_up(tmp_path: Path, valkey_url: str, unique: str) -> None:
    env = {"REDIS_URL": valkey_url, "PREFIX": unique, "FLOTTA_DRAIN_S": "60"}
    with service(tmp_path, "-n", "1", app=APP, env=env) as running:
        base = await asyncio.to_thread(running.url)
        async with ws_connect(f"{base.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket") as socket:
            await socket.recv()
            await socket.send('40{"slow":true}')
            await asyncio.to_thread(running.wait_line, "connecting")
            running.signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(socket.recv(), 20)
            assert running.process.poll() is None  # the handler still runs
            running.signal(signal.SIGINT)  # a second SIGTERM within a second is an echo of the first
            assert await asyncio.to_thread(running.wait, 10) == 1
