"""Harbor, put together: ``flotta run harbor.app:app -n 3``.

This file owns the wiring and nothing else. Each part gets what it needs when it is made; ``app`` is the only global.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from flotta.errors import FlottaError
from flotta.fleet import Fleet
from harbor import web
from harbor.accounts import routes as account_routes
from harbor.accounts.sessions import Sessions
from harbor.config import HarborConfig
from harbor.devices import routes as device_routes
from harbor.devices.registry import Registry
from harbor.fence import Fence
from harbor.live.broadcast import Broadcast
from harbor.live.sockets import Sockets
from harbor.persister import Persister
from harbor.positions.history import History
from harbor.positions.ingest import Ingest
from harbor.positions.latest import Latest
from harbor.positions.routes import report_routes, view_routes
from harbor.problem import Problem, answer_problem, answer_unavailable
from harbor.sharing import routes as sharing_routes
from harbor.sharing.grants import Grants
from harbor.status.board import Board

__all__ = ["app", "create"]

HOME = Path(__file__).parents[2]
RECONCILE_S = 30.0


def create(config: HarborConfig) -> Any:
    """The application: HTTP, the page and Socket.IO on one port."""
    fleet = Fleet(service="harbor")
    fleet.migrations(HOME / "migrations", seeds=HOME / "seeds")
    server = fleet.realtime(payload_bytes_max=16_384)
    fence = Fence()
    registry = Registry(fleet, fence)
    grants = Grants(fleet, fence)
    sessions = Sessions(fleet, config)
    latest = Latest(fleet)
    broadcast = Broadcast(server, grants)
    ingest = Ingest(fleet, config, registry, latest, broadcast)
    persister = Persister(fleet, ingest.stream)
    board = Board(fleet, viewers=lambda: sockets.viewers, per_second=lambda: persister.per_second)
    sockets = Sockets(fleet, server, sessions, board.status)
    mirrors = (registry.devices_mirror, registry.credentials_mirror, grants.mirror)

    @fleet.on_start
    async def open_harbor() -> None:
        await fence.start(fleet.redis)
        if config.demo and config.demo_gateway_token is not None:
            await registry.admit_demo_gateway(config.demo_gateway_token)
        for mirror in mirrors:
            await mirror.reconcile()
        await latest.restore()

    @fleet.on_stop
    async def close_harbor() -> None:
        await board.leave()
        await fence.aclose()

    @fleet.background
    async def keep_mirrors() -> None:
        while True:
            await asyncio.sleep(RECONCILE_S)
            for mirror in mirrors:
                await mirror.reconcile()

    fleet.background(persister.run)
    fleet.background(board.beat)
    fleet.background(sockets.sweep)

    api = FastAPI(title="Harbor", version="0.1.0", lifespan=fleet.lifespan, docs_url=None, redoc_url=None)
    api.add_exception_handler(Problem, answer_problem)
    api.add_exception_handler(FlottaError, answer_unavailable)
    api.add_middleware(web.SecurityHeaders)
    api.include_router(account_routes.routes(sessions))
    api.include_router(device_routes.routes(config, sessions, registry, latest, broadcast))
    api.include_router(device_routes.gateway_routes(sessions, registry))
    api.include_router(report_routes(config, registry, ingest))
    api.include_router(view_routes(sessions, registry, grants, latest, History(fleet)))
    api.include_router(sharing_routes.routes(sessions, registry, grants, broadcast))
    api.include_router(web.routes())
    api.mount("/assets", web.assets())

    @api.get("/api/status")
    async def status() -> dict[str, Any]:
        """The fleet: its instances, viewers, stored positions."""
        return await board.status()

    @api.get("/api/config")
    async def page_config() -> dict[str, Any]:
        """What the page must know before anybody is signed in."""
        return {"demo": config.demo}

    return server.app(api)


app = create(HarborConfig.load(os.environ))
