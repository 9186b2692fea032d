"""The parts of one instance of Harbor, each made with what it needs, and the order in which they open and close.

The fleet starts Redis, PostgreSQL, the migrations, maps, stream, pool and realtime server before ``_open`` runs, and
stops them after ``_close``. The pool works from ready on: a job never sees a map that ``_open`` has not filled.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import final

from flotta.fleet import Fleet
from flotta.pool import PoolOptions
from harbor.accounts.sessions import Sessions
from harbor.areas.alerts import Alerts
from harbor.areas.areas import Areas
from harbor.areas.watch import Geofences
from harbor.config import HarborConfig
from harbor.devices.registry import Registry
from harbor.fence import Fence
from harbor.live.broadcast import Broadcast
from harbor.live.sockets import Sockets
from harbor.persister import Persister
from harbor.positions.heard import Heard
from harbor.positions.history import History
from harbor.positions.ingest import Ingest
from harbor.positions.latest import Latest
from harbor.positions.tap import Tap
from harbor.sharing.grants import Grants
from harbor.status.board import Board

__all__ = ["Harbor"]

HOME = Path(__file__).parents[2]
RECONCILE_S = 30.0
MESSAGE_BYTES_MAX = 16_384
RECOVERY_S = 60.0
"""How long a page may be away and miss nothing; after that it loads the picture anew."""
STREAM_EVENTS_MAX = 250_000
"""By the formula of the reference 60 s need 215 s of events. A request is an event, so that is 1,160 requests a second;
a position takes some 90 bytes, so 5,000 of them a second are 100 MB."""
CONNECTIONS_MAX = 10_000
MESSAGES_PER_S_MAX = 20.0
JOBS_WAITING_MAX = 10_000
"""Times the number of instances: so many vessels may begin to report at once."""


@final
class Harbor:
    """One instance."""

    def __init__(self, config: HarborConfig) -> None:
        self.config = config
        self.fleet = fleet = Fleet(service="harbor")
        fleet.migrations(HOME / "migrations", seeds=HOME / "seeds")
        self.server = fleet.realtime(
            adapter="streams",
            stream_maxlen=STREAM_EVENTS_MAX,
            recovery_s=RECOVERY_S,
            payload_bytes_max=MESSAGE_BYTES_MAX,
            connections_max=CONNECTIONS_MAX,
            messages_per_s_max=MESSAGES_PER_S_MAX,
        )
        self.fence = Fence()
        self.registry = Registry(fleet, self.fence)
        self.grants = Grants(fleet, self.fence)
        self.areas = Areas(fleet, self.fence)
        self.alerts = Alerts(fleet)
        self.sessions = Sessions(fleet, config)
        self.latest = Latest(fleet)
        self.history = History(fleet)
        self.broadcast = Broadcast(self.server, self.registry, self.grants)
        self.heard = Heard(fleet, silent_s=config.silent_s)
        self.ingest = Ingest(
            fleet,
            config,
            registry=self.registry,
            latest=self.latest,
            heard=self.heard,
            broadcast=self.broadcast,
        )
        self.persister = Persister(fleet, self.ingest.stream, ack_grace_s=config.ack_grace_s)
        self.tap = Tap(self.ingest.stream)
        options = PoolOptions(worker_ttl_s=config.worker_ttl_s, queue_max_per_worker=JOBS_WAITING_MAX)
        self.geofences = Geofences(
            fleet.pool("harbor", options=options),
            registry=self.registry,
            grants=self.grants,
            areas=self.areas,
            alerts=self.alerts,
            heard=self.heard,
            tap=self.tap,
            broadcast=self.broadcast,
        )
        self.board = Board(
            fleet,
            per_second=lambda: self.persister.per_second,
            jobs=lambda: self.geofences.running,
            viewers=lambda: self.server.stats.people.sockets,
        )
        self.sockets = Sockets(fleet, self.server, self.sessions, self.board)
        registry = self.registry
        self._mirrors = (registry.devices_mirror, registry.credentials_mirror, self.grants.mirror, self.areas.mirror)
        fleet.on_start(self._open)
        fleet.on_stop(self._close)
        for task in (self.persister.run, self.tap.run, self.board.beat, self.broadcast.heal, self._keep_mirrors):
            fleet.background(task)

    async def _open(self) -> None:
        await self.fence.start(self.fleet.redis)
        if self.config.demo and self.config.demo_gateway_token is not None:
            await self.registry.admit_demo_gateway(self.config.demo_gateway_token)
        for mirror in self._mirrors:
            await mirror.reconcile()
        await self.latest.restore()

    async def _close(self) -> None:
        await self.board.leave()
        await self.fence.aclose()

    async def _keep_mirrors(self) -> None:
        """Maps that lost their data, or missed a change whose writer died, are put right. Runs for ever."""
        while True:
            await asyncio.sleep(RECONCILE_S)
            for mirror in self._mirrors:
                await mirror.reconcile()
