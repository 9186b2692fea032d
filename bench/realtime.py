"""B5, B6 and B7: Socket.IO servers side by side, one server each, then three instances over one Redis.

``broadcast-1000`` and ``rooms-10`` (rooms of ten among 5,000 clients) are deliveries per second of **server CPU**,
``echo`` events with an acknowledgement per second of server CPU, each with the wall beside it: the load client shares
the machine, so wall time alone would measure it too. The servers have one core and the load another. ``fleet`` measures
how long a broadcast takes to the clients of other instances, ``crowd`` holds 15,000 clients on one instance and 45,000
on three.

``CLIENTS=1000 MEMBERS=5000 EVENTS=200 ROUNDS=5 IDLE=5000 CROWD=15000`` and
``ONLY=broadcast,rooms,echo,idle,connect,fleet,crowd`` narrow it down.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from _common import Result, Side, compete, is_installed, pin, print_versions, report, rounds_from, run, skip
from _realtime.crowd import hold_crowds
from _realtime.fleet import compare_fleets
from _realtime.load import ECHO, ECHO_BYTES, ENTERED_BYTES, TICK_BYTES, VESSEL, Peer, frame

CLIENTS = int(os.environ.get("CLIENTS", "1000"))
MEMBERS = int(os.environ.get("MEMBERS", "5000"))
EVENTS = int(os.environ.get("EVENTS", "200"))
IDLE = int(os.environ.get("IDLE", "5000"))
ONLY = set(os.environ.get("ONLY", "broadcast,rooms,echo,idle,connect,fleet,crowd").split(","))
ROOM_SIZE = 10
TURNS = 10
ECHOES = 20
"""Events that each client sends in one round of ``echo``, each when the one before is acknowledged."""

HERE = Path(__file__).parent / "_realtime"
NODE_MODULES = Path(__file__).parent.parent / "tests" / "interop" / "node" / "node_modules"


# One round of each contest: how many things were delivered. The next event is sent when everybody has the one before,
# so that no server can fold several into one write.


async def broadcast(peer: Peer) -> int:
    command = frame(b'42["go",' + VESSEL + b",1]")
    for number in range(1, EVENTS + 1):
        peer.clients[0].send(command)
        await peer.reach(number * len(peer.clients) * TICK_BYTES)
    return EVENTS * len(peer.clients)


async def enter_rooms(peer: Peer) -> None:
    peer.counter.reset()
    for number, client in enumerate(peer.clients):
        client.send(frame(b'421["enter","r%d"]' % (number // ROOM_SIZE)))
    await peer.reach(len(peer.clients) * ENTERED_BYTES)


async def to_rooms(peer: Peer) -> int:
    """Every room gets ``TURNS`` events, one after the other, a hundred rooms at a time."""
    rooms, sent = len(peer.clients) // ROOM_SIZE, 0
    for _ in range(TURNS):
        for number in range(rooms):
            peer.clients[number].send(frame(b'42["goroom",' + VESSEL + b',"r%d"]' % number))
            sent += 1
            if sent % 100 == 0:
                await peer.reach(sent * ROOM_SIZE * TICK_BYTES)
    await peer.reach(sent * ROOM_SIZE * TICK_BYTES)
    return sent * ROOM_SIZE


async def echo(peer: Peer) -> int:
    for number in range(1, ECHOES + 1):
        for client in peer.clients:
            client.send(ECHO)
        await peer.reach(number * len(peer.clients) * ECHO_BYTES)
    return ECHOES * len(peer.clients)


def peers() -> list[Peer]:
    """Those that can run here; the others are named."""
    found = [
        Peer("flotta", [sys.executable, str(HERE / "server_flotta.py")]),
        Peer("flotta-asgi", [sys.executable, str(HERE / "server_flotta.py")], {"BENCH_ASGI": "1"}),
    ]
    if is_installed("python-socketio", "socketio"):
        found.append(Peer("python-socketio", [sys.executable, str(HERE / "server_python_socketio.py")]))
    if shutil.which("node") and (NODE_MODULES / "socket.io").exists():
        found.append(Peer("node", ["node", str(HERE / "server_node.js")]))
    else:
        skip("node", "needs node, and npm ci in tests/interop/node")
    if is_installed("uws", "socketify"):
        found.append(Peer("uws", [sys.executable, str(HERE / "server_uws.py")]))
    return found


def print_all_versions() -> None:
    others: dict[str, str] = {}
    package = NODE_MODULES / "socket.io" / "package.json"
    if shutil.which("node") and package.exists():
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        others = {"Node": node.stdout.strip(), "socket.io": json.loads(package.read_text())["version"]}
    print_versions("flotta", "python-socketio", "socketify", "uvicorn", "websockets", "uvloop", **others)


async def contest(name: str, unit: str, servers: list[Peer], one_round: Callable[[Peer], Awaitable[int]]) -> None:
    """Measure by CPU and by the wall in the same rounds; beside them what no server can save: the kernel's part."""
    by_wall: dict[str, list[float]] = {peer.name: [] for peer in servers}
    in_kernel: dict[str, list[float]] = {peer.name: [] for peer in servers}

    def side(peer: Peer) -> Side:
        async def measure() -> float:
            peer.counter.reset()
            cpu_s, kernel_s, started_s = peer.cpu_s(), peer.kernel_s(), time.perf_counter()
            count = await one_round(peer)
            by_wall[peer.name].append(count / (time.perf_counter() - started_s))
            in_kernel[peer.name].append((peer.kernel_s() - kernel_s) / count)
            return count / max(peer.cpu_s() - cpu_s, 0.01)

        return measure

    by_cpu = await compete({peer.name: side(peer) for peer in servers}, rounds=rounds_from())
    report(name, by_cpu, unit=f"{unit}/cpu-s")
    kernel = _kept(in_kernel)
    costs = (f"{peer} {1e6 / by_cpu[peer].median:.2f} ({kernel[peer].median * 1e6:.2f})" for peer in by_cpu)
    print(f"      us of CPU for each (of them in the kernel): {'; '.join(costs)}", flush=True)
    report(f"{name}-wall", _kept(by_wall), unit=f"{unit}/s")


def _kept(rounds: dict[str, list[float]]) -> dict[str, Result]:
    """What was noted beside a contest, without its first round, which is thrown away there too."""
    return {name: Result(tuple(values[1:])) for name, values in rounds.items()}


async def compare_busy(servers: list[Peer]) -> None:
    try:
        for peer in servers:
            await peer.start()
            await peer.connect(CLIENTS)
        if "broadcast" in ONLY:
            await contest(f"broadcast-{CLIENTS}", "deliveries", servers, broadcast)
        if "echo" in ONLY:
            await contest("echo", "events", servers, echo)
    finally:
        for peer in servers:
            peer.stop()


async def compare_rooms(servers: list[Peer]) -> None:
    """Each server alone with its members: all of them together would be more files than a process may have."""

    def side(peer: Peer) -> Side:
        async def measure() -> float:
            try:
                await peer.start()
                await peer.connect(MEMBERS)
                await enter_rooms(peer)
                peer.counter.reset()
                cpu_s, started_s = peer.cpu_s(), time.perf_counter()
                count = await to_rooms(peer)
                by_wall[peer.name].append(count / (time.perf_counter() - started_s))
                return count / max(peer.cpu_s() - cpu_s, 0.01)
            finally:
                peer.stop()

        return measure

    by_wall: dict[str, list[float]] = {peer.name: [] for peer in servers}
    by_cpu = await compete({peer.name: side(peer) for peer in servers}, rounds=rounds_from())
    report(f"rooms-{ROOM_SIZE}", by_cpu, unit="deliveries/cpu-s")
    report(f"rooms-{ROOM_SIZE}-wall", _kept(by_wall), unit="deliveries/s")


async def compare_idle(servers: list[Peer]) -> None:
    rate: dict[str, list[float]] = {peer.name: [] for peer in servers}
    cost: dict[str, list[float]] = {peer.name: [] for peer in servers}

    def side(peer: Peer) -> Side:
        async def measure() -> float:
            try:
                await peer.start()
                await peer.connect(200)
                await asyncio.sleep(0.3)
                before_kib, cpu_s, started_s = peer.rss_kib(), peer.cpu_s(), time.perf_counter()
                await peer.connect(IDLE)
                rate[peer.name].append(IDLE / (time.perf_counter() - started_s))
                cost[peer.name].append(IDLE / max(peer.cpu_s() - cpu_s, 0.01))
                await asyncio.sleep(1.0)
                return (peer.rss_kib() - before_kib) / IDLE
            finally:
                peer.stop()

        return measure

    memory = await compete({peer.name: side(peer) for peer in servers}, rounds=rounds_from())
    if "idle" in ONLY:
        report("idle-memory", memory, unit="KiB/connection")
    if "connect" in ONLY:
        report("connect-rate", _kept(rate), unit="connects/s")
        report("connect-rate-cpu", _kept(cost), unit="connects/cpu-s")


async def main() -> None:
    print_all_versions()
    servers = peers()
    pin([])
    if ONLY & {"broadcast", "echo"}:
        await compare_busy(servers)
    if "rooms" in ONLY:
        await compare_rooms(servers)
    if ONLY & {"idle", "connect"}:
        await compare_idle(servers)
    if "fleet" in ONLY:
        await compare_fleets([peer for peer in servers if peer.name in {"flotta", "node", "python-socketio"}])
    if "crowd" in ONLY:
        await hold_crowds(next(peer for peer in servers if peer.name == "flotta"))


if __name__ == "__main__":
    run(main)
