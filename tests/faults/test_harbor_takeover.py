"""Harbor's geofences while its instances are killed: every crossing raises its alert, once, and none is invented.

``HARBOR_FENCES_STEPS`` (default 120) and ``HARBOR_FENCES_KILL_S`` (default 3) make it longer. ``HARBOR_CHAOS_SEED``
chooses the victims; it is printed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from flotta.postgres import EmbeddedPostgres
from harbor_stage import Stage, stage
from supervisor_service import wait_until

STEPS = int(os.environ.get("HARBOR_FENCES_STEPS", "120"))
KILL_S = float(os.environ.get("HARBOR_FENCES_KILL_S", "3"))
SEED = int(os.environ.get("HARBOR_CHAOS_SEED", str(time.time_ns() % 1_000_000)))
VESSELS = 60
STEP_S = 0.1
TTL_S = 1.5
NORTH_OF = 40.60
SQUARE = [[NORTH_OF, -74.10], [NORTH_OF, -74.00], [40.80, -74.00], [40.80, -74.10]]
WALK = [40.585, 40.592, 40.606, 40.613, 40.620, 40.613, 40.606, 40.592]
"""Of each vessel, over and over, each beginning elsewhere; a minute of told time from one to the next."""


def tracks() -> list[list[dict[str, Any]]]:
    """For each step the reports of all vessels."""
    start_s = time.time() - 60 * (STEPS + 10)
    return [
        [
            {"device": f"walker:{n}", "time": start_s + 60 * step, "lat": WALK[(step + n) % len(WALK)], "lon": -74.05}
            for n in range(VESSELS)
        ]
        for step in range(STEPS)
    ]


def crossings(steps: list[list[dict[str, Any]]]) -> set[tuple[str, str, int]]:
    """What must be raised, found by looking at each pair of neighbours: device, kind, time."""
    raised = set()
    for before, after in itertools.pairwise(steps):
        for here, there in zip(before, after, strict=True):
            if (here["lat"] > NORTH_OF) != (there["lat"] > NORTH_OF):
                kind = "enter" if there["lat"] > NORTH_OF else "leave"
                raised.add((there["device"], kind, round(there["time"] * 1_000)))
    return raised


async def sail(harbor: Stage, steps: list[list[dict[str, Any]]], token: str) -> None:
    """Reports step after step, repeating what is not answered."""
    from harbor.replay.client import Gateway

    async with Gateway(harbor.url, token) as gateway:
        await gateway.register([{"id": said["device"]} for said in steps[0]])
        for step in steps:
            await gateway.report(step)
            await asyncio.sleep(STEP_S)
        assert gateway.rejected == 0


async def kill_often(harbor: Stage, chance: random.Random) -> int:
    """Kills an instance that watches vessels, again and again, until it is cancelled; how many vessels lost theirs."""
    taken = 0
    try:
        while True:
            await asyncio.sleep(KILL_S)
            status = await asyncio.to_thread(harbor.status)
            watching = [one for one in status["instances"] if one["jobs"] and psutil.pid_exists(one["pid"])]
            if len(watching) >= 2:
                victim = chance.choice(watching)
                harbor.kill(victim["pid"])
                taken += victim["jobs"]
    except asyncio.CancelledError:
        return taken


@pytest.mark.faults
@pytest.mark.timeout(180 + STEPS)
async def test_every_crossing_raises_one_alert_while_instances_are_killed(
    tmp_path: Path, valkey_url: str, postgres_server: EmbeddedPostgres
) -> None:
    print(f"HARBOR_CHAOS_SEED={SEED}")
    steps = tracks()
    expected = crossings(steps)
    with stage(tmp_path, valkey_url, postgres_server, env={"HARBOR_WORKER_TTL_S": str(TTL_S)}) as harbor:
        await asyncio.to_thread(wait_until, lambda: len(harbor.instances()) == 3, "three instances")
        _, session = harbor.account("Owner")
        assert harbor.ask("POST", "/api/areas", {"name": "North", "points": SQUARE}, token=session).status_code == 201
        token = harbor.ask("POST", "/api/gateways", {"label": "walkers"}, token=session).json()["token"]
        killing = asyncio.create_task(kill_often(harbor, random.Random(SEED)))
        await sail(harbor, steps, token)
        killing.cancel()
        taken = await killing
        count = "SELECT count(*) FROM alerts"
        await asyncio.to_thread(wait_until, lambda: harbor.rows(count)[0][0] >= len(expected), "all are raised", 60)
        rows = harbor.rows("SELECT device_id, kind, round(extract(epoch FROM at) * 1000)::bigint FROM alerts")
    print(f"{len(rows)} alerts of {VESSELS} vessels, {taken} jobs were taken from the dead")
    assert taken > 0, "it was over before anything was killed: more steps are needed"
    assert len(rows) == len(set(rows)) == len(expected)
    assert set(rows) == expected
