"""Trails on Harbor's pages while instances are killed: every accepted position, in order, once; nothing is loaded anew.

Official clients, some as the page opens them, some with the library's defaults (polling, then an upgrade), behind one
port that chooses the instance. Each time the instance that serves one of them is killed. ``HARBOR_TRAILS_KILLS``
(default 3) makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from flotta.postgres import EmbeddedPostgres
from harbor_stage import Stage, stage
from realtime_fixtures import NodePeer, node, node_modules, start_node, until
from supervisor_service import wait_until

__all__ = ["node", "node_modules", "start_node"]

KILLS = int(os.environ.get("HARBOR_TRAILS_KILLS", "3"))
SEED = int(os.environ.get("HARBOR_CHAOS_SEED", str(time.time_ns() % 1_000_000)))
GATEWAYS = 4
VESSELS = 5
"""Of each gateway."""
STEP_S = 0.05
STEPS_BETWEEN = 10
QUICK_S = 8.0
WAIT_S = 40.0
TOLD_STEP_S = 10
PAGE = {"transports": ["websocket", "polling"], "tryAllTransports": True, "reconnectionDelay": 150}
"""As web/src/live.ts opens its connection."""
DEFAULTS = {"reconnectionDelay": 150}
PAGES = [f"page {n}" for n in range(4)]
CLIENTS = {**dict.fromkeys(PAGES, PAGE), **{f"default {n}": DEFAULTS for n in range(2)}}


class Feed:
    """Ships of one gateway, each batch a step of all of them; says what was accepted."""

    def __init__(self, harbor: Stage, token: str, number: int) -> None:
        self.devices = [f"liner:{number}:{n}" for n in range(VESSELS)]
        self.accepted: list[int] = []
        """The told times in ms; each is of every vessel."""
        self.repeated = 0
        self._harbor = harbor
        self._token = token
        self._stopping = asyncio.Event()

    async def sail(self) -> None:
        """Until `stop`."""
        from harbor.replay.client import Gateway

        start_s = int(time.time()) - 5 * 86_400
        async with Gateway(self._harbor.url, self._token) as gateway:
            await gateway.register([{"id": device} for device in self.devices])
            while not self._stopping.is_set():
                time_s = start_s + TOLD_STEP_S * len(self.accepted)
                lat = 40.5 + 1e-4 * (len(self.accepted) % 1_000)
                await gateway.report([{"device": d, "time": time_s, "lat": lat, "lon": -74.0} for d in self.devices])
                self.accepted.append(time_s * 1_000)
                await asyncio.sleep(STEP_S)
            self.repeated = gateway.repeated
            assert gateway.rejected == 0

    async def told(self, steps: int) -> None:
        """Return when so many more steps have been accepted."""
        steps += len(self.accepted)
        await until(lambda: len(self.accepted) >= steps, WAIT_S)

    def stop(self) -> None:
        self._stopping.set()


def reports(node: NodePeer, name: str) -> list[list[Any]]:
    """Every position that a client got, as it came."""
    return [fix for batch, *_ in node.events(name, "positions") for fix in batch]


def trail(came: Iterable[list[Any]], device: str) -> list[int]:
    """The times of a trail, as the page makes it (web/src/store.ts): what is not newer is left out."""
    times: list[int] = []
    for fix in came:
        if fix[0] == device and (not times or fix[1] > times[-1]):
            times.append(fix[1])
    return times


def served_by(node: NodePeer, name: str) -> int:
    """Of a page; a session that begins by polling moves to where its upgrade comes in, and is not told."""
    return int(node.events(name, "hello")[-1][0]["pid"])


def all_there(harbor: Stage) -> bool:
    return sum(map(psutil.pid_exists, harbor.instances().values())) == 3  # the board forgets in 3.5 s


def settled(harbor: Stage, node: NodePeer) -> list[str]:
    """When all instances are there: the pages whose instance has been for so long that its end is no quick crash. After
    five of those the supervisor would give up, as it should."""
    uptimes_s = {one["pid"]: one["uptime_s"] for one in harbor.status()["instances"]}
    return [name for name in PAGES if uptimes_s.get(served_by(node, name), 0) > QUICK_S] if all_there(harbor) else []


async def kill_one_that_serves(harbor: Stage, node: NodePeer, chance: random.Random) -> None:
    """Returns when the client is back."""
    name = chance.choice(await asyncio.to_thread(wait_until, lambda: settled(harbor, node), "three instances", 40))
    losses, hellos = len(node.seen(name, "disconnect")), len(node.events(name, "hello"))
    victim = served_by(node, name)
    harbor.kill(victim)
    await until(lambda: len(node.seen(name, "disconnect")) > losses, WAIT_S)  # so it was true what hello said
    await until(lambda: len(node.events(name, "hello")) > hellos, WAIT_S)
    assert served_by(node, name) != victim


@pytest.mark.faults
@pytest.mark.timeout(120 + 20 * KILLS)
async def test_a_killed_instance_leaves_no_gap_in_a_trail(
    tmp_path: Path, own_valkey: Any, postgres_server: EmbeddedPostgres, node: NodePeer
) -> None:
    print(f"HARBOR_CHAOS_SEED={SEED}")
    chance = random.Random(SEED)
    with stage(tmp_path, own_valkey.url, postgres_server) as harbor:
        await asyncio.to_thread(wait_until, lambda: all_there(harbor), "three instances", 40)
        _, owner = harbor.account("Owner")
        email, viewer = harbor.account("Viewer")
        assert harbor.ask("POST", "/api/shares", {"viewer": email}, token=owner).status_code == 201
        token = harbor.ask("POST", "/api/gateways", {"label": "liners"}, token=owner).json()["token"]
        for number, (name, options) in enumerate(CLIENTS.items()):
            auth = {"token": viewer if number % 2 else owner}
            await node.connect(name, urlsplit(harbor.url).port or 0, auth=auth, **options)
            await node.wait_event(name, "hello")
        feeds = [Feed(harbor, token, number) for number in range(GATEWAYS)]
        sailing = asyncio.gather(*(feed.sail() for feed in feeds))
        await until(lambda: all(reports(node, name) for name in CLIENTS), WAIT_S)
        for _ in range(KILLS):
            await asyncio.gather(*(feed.told(STEPS_BETWEEN) for feed in feeds))
            await kill_one_that_serves(harbor, node, chance)
        await asyncio.gather(*(feed.told(STEPS_BETWEEN) for feed in feeds))
        for feed in feeds:
            feed.stop()
        await sailing
        lasts = {(feed.devices[-1], feed.accepted[-1]) for feed in feeds}
        await until(lambda: all(lasts <= {(fix[0], fix[1]) for fix in reports(node, name)} for name in CLIENTS), WAIT_S)
    repeated = sum(feed.repeated for feed in feeds)
    for name in CLIENTS:
        came = reports(node, name)
        for feed in feeds:
            for device in feed.devices:
                assert trail(came, device) == feed.accepted, (name, device)
        positions = sum(VESSELS * len(feed.accepted) for feed in feeds)
        assert len(came) - positions <= VESSELS * repeated, "told twice without a reason"
        offsets = [tuple(map(int, args[-1].split("-"))) for args in node.events(name, "positions")]
        assert offsets == sorted(set(offsets)), f"{name}: an event came twice, or out of order"
        connects = node.seen(name, "connect")
        assert all(recovered for _, _, recovered in connects[1:]), f"{name} had to begin anew: {connects}"
        assert len(node.events(name, "hello")) == len(connects), f"{name}: an old hello was told again"
    returns = sum(len(node.seen(name, "connect")) - 1 for name in CLIENTS)
    print(f"{positions} positions, {repeated} requests repeated, {returns} times a client came back")
    assert returns >= KILLS
