"""Official clients behind balancers that are not sticky, while instances are killed and stopped, and Redis restarts or
has no memory left.

Whatever happens to a connection, within one nothing is lost, doubled or reordered in either direction; nobody is told
that its session is unknown while the instance that holds it lives; everybody is back and answered afterwards; and when
all have left, nothing of them is kept. ``FLOTTA_TEST_ROVERS=200 FLOTTA_TEST_ROVING_S=60`` makes it long, with more ways
to fail.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from realtime_balanced import round_robin
from realtime_fixtures import node_modules, node_script

__all__ = ["node_modules"]

pytestmark = [pytest.mark.node, pytest.mark.timeout(400)]

CLIENTS = int(os.environ.get("FLOTTA_TEST_ROVERS", "40"))
LENGTH_S = float(os.environ.get("FLOTTA_TEST_ROVING_S", "4"))
SEED = int(os.environ.get("FLOTTA_TEST_SEED", "1"))
STOP_S = 3.0
FULL_S = 10.5
"""Longer than leases last that cannot be written."""
PROGRAM = Path(__file__).parent.parent / "realtime_roved_instance.py"
UNKNOWN = '"code":1'
CASES: list[tuple[str, str, tuple[str, ...]]] = [
    ("nginx", "classic", ("kill", "stop")),
    ("shared", "sharded", ("redis", "kill")),
]
if LENGTH_S >= 30:
    CASES += [
        ("nginx", "classic", ("stop",)),
        ("nginx", "streams", ("kill", "stop")),
        ("shared", "sharded", ("kill", "stop")),
        ("shared", "classic", ("redis", "stop")),
        ("nginx", "sharded", ("memory",)),
        ("shared", "streams", ("memory", "kill")),
    ]


class Place:
    """One place in the fleet: a process, and the next one after it was killed."""

    def __init__(self, listening: socket.socket, arguments: tuple[str, ...], *, shared: bool) -> None:
        self.port = listening.getsockname()[1]
        self.process: asyncio.subprocess.Process
        self._name = ""
        self.came: Counter[str] = Counter()
        self.gone: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.killed_at_s: dict[str, float] = {}
        """Until when (Unix seconds) the instance with that name lived."""
        self.states: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._listening: socket.socket | None = listening
        self._shared = shared
        self._arguments = arguments
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when it serves."""
        listening = self._listening or socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(PROGRAM), str(listening.fileno()), *self._arguments),
            pass_fds=[listening.fileno()],
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        if not self._shared:  # or the kernel would take connections for it when it is killed
            listening.close()
            self._listening = None
        ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read(ready))
        await asyncio.wait_for(ready.wait(), 30)

    async def _read(self, ready: asyncio.Event) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode().rstrip()
            if text.startswith("ready "):
                self._name = text[6:]
                self.killed_at_s[self._name] = math.inf
                ready.set()
            elif text.startswith("+ "):
                self.came[text[2:]] += 1
            elif text.startswith("- "):
                self.gone[text[2:].split(" ")[0]] += 1
            elif text.startswith('{"sizes"'):
                self.states.put_nowait(json.loads(text))
            elif text.startswith("! ") or "Traceback" in text:
                self.wrong.append(text)

    async def kill(self) -> None:
        """As the kernel does it."""
        if self.process.returncode is None:
            self.killed_at_s[self._name] = time.time()
            self.process.kill()
        await self.process.wait()
        if self._reading is not None:
            await self._reading

    async def state(self) -> dict[str, Any]:
        """What it keeps now."""
        self.process.send_signal(signal.SIGUSR1)
        return await asyncio.wait_for(self.states.get(), 20)


class Rovers:
    """A Node process with the clients; see rovers.js."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(await asyncio.wait_for(self._process.stdout.readline(), 90)))

    async def report(self, word: str = "report") -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")
        return await self.line()

    async def settled(self) -> dict[str, Any]:
        """Nobody asks or leaves any more; the report when everybody is in and answered, or too late."""
        report, ends_s = await self.report("quiet"), time.monotonic() + 60
        while (report["connected"] < CLIENTS or report["waiting"]) and time.monotonic() < ends_s:
            await asyncio.sleep(0.1)
            report = await self.report()
        return report


@asynccontextmanager
async def _rovers(port: int) -> AsyncIterator[Rovers]:
    polling = websocket = CLIENTS // 5
    upgrading = CLIENTS - polling - websocket
    counts = upgrading, polling, websocket, upgrading // 2
    async with node_script("rovers.js", f"http://127.0.0.1:{port}", *counts) as process:
        yield Rovers(process)


@asynccontextmanager
async def _fleet(folder: Path, how: str, *arguments: str) -> AsyncIterator[tuple[list[Place], int]]:
    """Three instances behind nginx, or on one socket; and the port."""
    async with AsyncExitStack() as stack:
        places: list[Place] = []
        one = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024)) if how == "shared" else None
        for _ in range(3):
            listening = one or socket.create_server(("127.0.0.1", 0), backlog=1024)
            places.append(Place(listening, arguments, shared=one is not None))
            stack.push_async_callback(places[-1].kill)
            await places[-1].start()
        if one is None:
            port = await stack.enter_async_context(round_robin(folder, [place.port for place in places]))
        else:
            port = one.getsockname()[1]
        yield places, port


async def _harm(places: list[Place], valkey: EmbeddedRedis, what: str, chance: random.Random) -> None:
    place = chance.choice(places)
    if what == "kill":
        await place.kill()
        await asyncio.sleep(chance.random())
        await place.start()
    elif what == "stop":
        place.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(STOP_S)
        place.process.send_signal(signal.SIGCONT)
    elif what == "memory":
        async with Redis.from_url(valkey.url) as redis:
            await redis.config_set("maxmemory", 1)
            await asyncio.sleep(FULL_S)
            await redis.config_set("maxmemory", 0)
    else:
        await valkey.restart()
    await asyncio.sleep(0.5 + 2 * chance.random())  # the length of the calm between two harms


async def _left(places: list[Place]) -> list[dict[str, Any]]:
    """What the instances keep when everybody has left, as soon as it is nothing, or too late."""
    ends_s = time.monotonic() + 20
    while True:
        states = [await place.state() for place in places]
        if not any(state["sizes"] or state["connections"] for state in states) or time.monotonic() > ends_s:
            return states
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(("how", "adapter", "harms"), CASES)
async def test_nobody_is_stuck_or_misled_while_instances_and_redis_fail(
    node_modules: Path,
    own_valkey: EmbeddedRedis,
    unique: str,
    tmp_path: Path,
    how: str,
    adapter: str,
    harms: tuple[str, ...],
) -> None:
    chance, done = random.Random(SEED), Counter[str]()
    async with _fleet(tmp_path, how, own_valkey.url, unique, adapter) as (places, port), _rovers(port) as rovers:
        assert (await rovers.line())["ready"] == CLIENTS
        ends_s = time.monotonic() + LENGTH_S
        while time.monotonic() < ends_s or len(done) < len(harms):
            what = harms[done.total() % len(harms)]
            await _harm(places, own_valkey, what, chance)
            done[what] += 1
        report = await rovers.settled()
        states = [await place.state() for place in places]
        await rovers.report("leave")
        left = await _left(places)
    print(how, adapter, dict(done), {name: value for name, value in report.items() if isinstance(value, int)})
    print(*Counter((one["what"], one["text"][:90]) for one in report["errors"]).most_common(), sep="\n")
    lossy = "redis" in harms or ("memory" in harms and adapter == "streams")
    _check_clients(report, places, adapter, lossy=lossy)
    _check_instances(places, states, left, all_told=not {"kill", "redis"}.intersection(harms))


def _check_clients(report: dict[str, Any], places: list[Place], adapter: str, *, lossy: bool) -> None:
    """``lossy``: what is emitted while Redis does not take it is lost for the others; and while Redis is away, whoever
    waits for another instance is sent away."""
    assert (report["connected"], report["waiting"], report["lost"]) == (CLIENTS, 0, [])
    accepted = {"told"} if lossy else set()
    if adapter == "streams":  # an event is delivered when it has come back from the stream, an answer at once
        accepted.add("answer before event")
    assert [(fault["what"], fault["detail"]) for fault in report["faults"] if fault["what"] not in accepted] == []
    assert report["answered"] > 0
    assert report["wasAsked"] > 0
    if lossy:
        return
    assert report["gaps"] == []
    killed_at_s = {name: at_s for place in places for name, at_s in place.killed_at_s.items()}
    # The session of one that upgrades ends with the instance where its WebSocket is, whoever holds it.
    unknown = [error for error in report["errors"] if UNKNOWN in error["text"] and error["name"].startswith("p")]
    assert [error for error in unknown if error["at"] / 1000 < killed_at_s[(error["engine"] or "")[:4]]] == []


def _check_instances(places: list[Place], states: list[Any], left: list[Any], *, all_told: bool) -> None:
    """``all_told``: every ``disconnect`` handler has run."""
    assert [line for place in places for line in place.wrong] == []
    assert sum(state["relay"]["moved_here"] for state in states) > 0
    for state in left:
        assert (state["sizes"], state["connections"], state["sockets"], state["failed"]) == ({}, 0, 0, 0)
        assert [name for name in state["tasks"] if name.startswith(("relayed", "relay prepare", "handlers"))] == []
    came = sum((place.came for place in places), Counter[str]())
    gone = sum((place.gone for place in places), Counter[str]())
    assert gone <= came
    if all_told:
        assert gone == came
