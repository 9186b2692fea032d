"""The geofences: a job of the pool per vessel that reports, which raises an alert when it enters or leaves an area.

Which vessels report is in Redis; every two seconds one instance plans a job for each of them, and none for those that
have been silent for long. The pool gives every job to one instance; the instance's tap brings it the fixes.

Invariants: an alert is stored before the state that knows of it is checkpointed; what a job does from one checkpoint is
always the same (`harbor.areas.crossing`). So a job that dies anywhere goes on elsewhere from its checkpoint, raises the
same crossings once more, and the unique key of the table keeps one of each. A vessel is judged only while this instance
knows who may see it: while the map of shares may be out of date, its job waits.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import psycopg
import structlog

from flotta.errors import PostgresError
from flotta.pool import Job, Plan, StopReason, WorkerPool
from harbor.areas.alerts import Alerts
from harbor.areas.areas import Areas
from harbor.areas.crossing import Crossing, Track, step
from harbor.devices.registry import Registry
from harbor.live.broadcast import Broadcast
from harbor.positions.fix import Fix
from harbor.positions.heard import Heard
from harbor.positions.tap import Follower, Place, Tap
from harbor.sharing.grants import Grants

__all__ = ["Geofences", "Seen"]

PLAN_S = 2.0
CHECKPOINT_S = 20.0
"""How often a job writes down where it is when nothing else makes it: so much is read again after a death."""
START_BACK_MS = 10_000
"""A new job begins so long before its vessel was first noted: its first fixes are in the stream before the note."""
LOSSES_MAX = 1_000
"""Every instance that dies with a job uses up one of its lives; a vessel's job must outlive many of them."""
RETRY_S_MIN, RETRY_S_MAX = 0.2, 5.0
STALE_S = 0.05

_log = structlog.get_logger("harbor.geofences")


@dataclass(frozen=True, slots=True)
class Seen:
    """A job's checkpoint: the vessel's state after all fixes of the events up to ``place``."""

    track: Track
    place: Place


@final
class Geofences:
    """The jobs of this instance, and this instance's part in planning them."""

    def __init__(
        self,
        pool: WorkerPool,
        *,
        registry: Registry,
        grants: Grants,
        areas: Areas,
        alerts: Alerts,
        heard: Heard,
        tap: Tap,
        broadcast: Broadcast,
    ) -> None:
        self._registry = registry
        self._grants = grants
        self._areas = areas
        self._alerts = alerts
        self._heard = heard
        self._tap = tap
        self._broadcast = broadcast
        self.running = 0
        """The vessels that this instance watches now."""
        self._job = pool.job(key="vessel:{device}", name="watch", crashes_max=LOSSES_MAX)(self._watch)
        pool.schedule(every_s=PLAN_S, name="vessels")(self._plan)

    async def _plan(self) -> Plan:
        reporting = await self._heard.reporting()
        return Plan(desired=[self._job.call(device, since_ms) for device, since_ms in reporting.items()])

    async def _watch(self, job: Job[Seen], device: str, since_ms: int) -> None:
        """Watches one vessel until the job is stopped or moved."""
        seen = job.state
        if seen is None:
            seen = Seen(await self._alerts.last_track(device), (max(0, since_ms - START_BACK_MS), 0))
        async with self._tap.following(device, after=seen.place) as follower:
            self.running += 1
            try:
                await _Vessel(self, job, device, follower, seen).watch()
            finally:
                self.running -= 1

    async def judge(self, device: str, track: Track, fixes: Sequence[Fix]) -> tuple[Track, list[Crossing]]:
        """The state after ``fixes``, and what was crossed."""
        while not self._grants.known:  # noqa: ASYNC110 - hundreds of jobs wait, and a glance at a map costs nothing
            await asyncio.sleep(STALE_S)
        owner_id = self._registry.owner_of(device)
        accounts = () if owner_id is None else self._grants.audience(device, owner_id)
        crossings: list[Crossing] = []
        for fix in fixes:
            track, crossed = step(track, fix, self._areas.atlas, accounts)
            crossings += crossed
        return track, crossings

    async def tell(self, device: str, crossings: Sequence[Crossing]) -> None:
        """Stores the alerts, however long the database is away, and shows them to who may see them."""
        owner_id = self._registry.owner_of(device)
        for alert in await self._store_stubbornly(crossings):
            area = self._areas.about(alert["area"])
            if area is not None and owner_id is not None:
                await self._broadcast.alert(area["owner"], alert)

    async def _store_stubbornly(self, crossings: Sequence[Crossing]) -> list[dict[str, Any]]:
        pause_s = RETRY_S_MIN
        while True:
            try:
                return await self._alerts.store(crossings)
            except (PostgresError, psycopg.OperationalError) as error:
                _log.warning("alerts wait for the database", alerts=len(crossings), error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(RETRY_S_MAX, pause_s * 2)


@final
class _Vessel:
    """One run of one job."""

    def __init__(self, fences: Geofences, job: Job[Seen], device: str, follower: Follower, seen: Seen) -> None:
        self._fences = fences
        self._job = job
        self._device = device
        self._follower = follower
        self._seen = seen
        self._kept_s = time.monotonic() - random.uniform(0, CHECKPOINT_S)  # noqa: S311 - so that jobs take turns

    async def watch(self) -> None:
        """Until it is cancelled. A vessel that moves to another worker takes along what it has seen."""
        try:
            while True:
                await self._look()
        except asyncio.CancelledError:
            if self._job.stop_reason is StopReason.HANDOVER:
                await self._job.checkpoint(self._seen)
            raise

    async def _look(self) -> None:
        left_s = self._kept_s + CHECKPOINT_S - time.monotonic()
        fixes = await self._follower.batch(max(0.0, left_s))
        track, crossings = await self._fences.judge(self._device, self._seen.track, fixes)
        if crossings:
            self._job.check()
            await self._fences.tell(self._device, crossings)
        self._seen = Seen(track, self._follower.place)
        if crossings or time.monotonic() - self._kept_s >= CHECKPOINT_S:
            await self._job.checkpoint(self._seen)
            self._kept_s = time.monotonic()
