"""Positions through Harbor while its instances are killed: every accepted one is in PostgreSQL exactly once.

``HARBOR_CHAOS_POSITIONS`` (default 30,000), ``HARBOR_CHAOS_PER_S`` (as fast as it goes) and ``HARBOR_CHAOS_KILL_S``
(default 1.5) make it longer: 200,000 positions at 2,000 a second with a kill every 10 s is the promise.
``HARBOR_CHAOS_SEED`` chooses the victims; it is printed.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import psutil
import pytest

from flotta.postgres import EmbeddedPostgres
from harbor_stage import Stage, stage
from supervisor_service import wait_until

POSITIONS = int(os.environ.get("HARBOR_CHAOS_POSITIONS", "30000"))
KILL_S = float(os.environ.get("HARBOR_CHAOS_KILL_S", "1.5"))
PER_S = float(os.environ.get("HARBOR_CHAOS_PER_S", "inf"))
SEED = int(os.environ.get("HARBOR_CHAOS_SEED", str(time.time_ns() % 1_000_000)))
BATCH = 100
SENDERS = 4


def copies(count: int) -> list[dict[str, object]]:
    """The recorded tracks, multiplied into copies with device ids of their own until there are enough."""
    from harbor.replay.recording import read_recording

    reports = read_recording().reports
    start_s = time.time() - 2 * 3_600
    positions: list[dict[str, object]] = []
    for number in range(count):
        copy, index = divmod(number, len(reports))
        report = reports[index]
        positions.append(
            {
                "device": f"{report.device}:{copy}",
                "time": start_s + report.at_s,
                "lat": report.lat,
                "lon": report.lon,
                "speed": report.speed_kn,
            }
        )
    return positions


async def send_all(harbor: Stage, positions: list[dict[str, object]], token: str) -> tuple[int, int]:
    """Sends each sender's share in order, repeating until answered; accepted and repeated requests."""
    from harbor.replay.client import Gateway

    async def send(share: list[dict[str, object]], gateway: Gateway) -> None:
        began_s = time.monotonic()
        for start in range(0, len(share), BATCH):
            await gateway.report(share[start : start + BATCH])
            due_s = began_s + start * SENDERS / PER_S
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    shares: list[list[dict[str, object]]] = [[] for _ in range(SENDERS)]
    for position in positions:  # a device's reports stay with one sender, in order
        shares[hash(position["device"]) % SENDERS].append(position)
    async with Gateway(harbor.url, token) as gateway:
        await gateway.register([{"id": device} for device in sorted({str(p["device"]) for p in positions})])
        await asyncio.gather(*(send(share, gateway) for share in shares))
        assert gateway.rejected == 0
        return gateway.accepted + gateway.duplicates, gateway.repeated


async def kill_often(harbor: Stage, seed: int) -> int:
    """Kills one of the instances every ``KILL_S`` seconds, when all are there; until it is cancelled."""
    chance, killed = random.Random(seed), 0
    try:
        while True:
            await asyncio.sleep(KILL_S)
            alive = await asyncio.to_thread(harbor.instances)
            present = [pid for pid in sorted(alive.values()) if psutil.pid_exists(pid)]  # the board forgets in 3.5 s
            if len(present) == 3:
                harbor.kill(chance.choice(present))
                killed += 1
    except asyncio.CancelledError:
        return killed


@pytest.mark.faults
@pytest.mark.timeout(180 + POSITIONS // 100)
async def test_every_accepted_position_is_stored_exactly_once_while_instances_are_killed(
    tmp_path: Path, valkey_url: str, postgres_server: EmbeddedPostgres
) -> None:
    print(f"HARBOR_CHAOS_SEED={SEED}")
    positions = copies(POSITIONS)
    with stage(tmp_path, valkey_url, postgres_server) as harbor:
        await asyncio.to_thread(wait_until, lambda: len(harbor.instances()) == 3, "three instances")
        killing = asyncio.create_task(kill_often(harbor, SEED))
        began_s = time.monotonic()
        answered, repeated = await send_all(harbor, positions, harbor.token)
        took_s = time.monotonic() - began_s
        killing.cancel()
        killed = await killing
        distinct = len({(p["device"], round(float(str(p["time"])) * 1_000)) for p in positions})
        count = "SELECT count(*) FROM positions"
        await asyncio.to_thread(wait_until, lambda: harbor.rows(count)[0][0] >= distinct, "all are stored", 60)
        print(f"{POSITIONS} positions in {took_s:.1f} s, {killed} instances killed, {repeated} requests repeated")
        assert killed > 0, "it was over before anything was killed: more positions are needed"
        assert answered == POSITIONS
        assert harbor.rows(count)[0][0] == distinct
        assert harbor.rows("SELECT sum(stored) FROM persisted")[0][0] == distinct
        dead = await asyncio.to_thread(harbor.dead_letters)
        assert dead == 0
