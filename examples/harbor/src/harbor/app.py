"""Harbor's web application: ``flotta run harbor.app:app -n 3``.

This file owns the routes' wiring and nothing else; ``app`` is the only global. The parts are in ``parts.py``.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from flotta.errors import FlottaError
from harbor import web
from harbor.accounts.routes import routes as account_routes
from harbor.areas.routes import alert_routes, area_routes
from harbor.config import HarborConfig
from harbor.devices.routes import gateway_routes
from harbor.devices.routes import routes as device_routes
from harbor.parts import Harbor
from harbor.positions.routes import report_routes, view_routes
from harbor.problem import Problem, answer_http, answer_invalid, answer_problem, answer_unavailable
from harbor.sharing.routes import routes as sharing_routes

__all__ = ["app", "create"]


def create(config: HarborConfig) -> Any:
    """The application: HTTP, the page and Socket.IO on one port."""
    harbor = Harbor(config)
    sessions, registry, grants = harbor.sessions, harbor.registry, harbor.grants
    latest, broadcast = harbor.latest, harbor.broadcast
    api = FastAPI(title="Harbor", version="0.1.0", lifespan=harbor.fleet.lifespan, docs_url=None, redoc_url=None)
    api.add_exception_handler(Problem, answer_problem)
    api.add_exception_handler(HTTPException, answer_http)
    api.add_exception_handler(RequestValidationError, answer_invalid)
    api.add_exception_handler(FlottaError, answer_unavailable)
    api.add_middleware(web.SecurityHeaders)
    api.include_router(account_routes(sessions))
    api.include_router(device_routes(config, sessions, registry, latest, broadcast))
    api.include_router(gateway_routes(sessions, registry))
    api.include_router(report_routes(config, registry, harbor.ingest))
    api.include_router(view_routes(sessions, registry, grants, latest, harbor.history))
    api.include_router(sharing_routes(sessions, registry, grants, broadcast))
    api.include_router(area_routes(sessions, harbor.areas, broadcast))
    api.include_router(alert_routes(sessions, registry, grants, harbor.alerts))
    api.include_router(_fleet_routes(harbor))
    api.include_router(web.routes())
    api.mount("/assets", web.assets())
    return harbor.server.app(api)


def _fleet_routes(harbor: Harbor) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["fleet"])

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """The fleet: its instances, viewers, stored positions."""
        return await harbor.board.status()

    @router.get("/flowing")
    async def flowing(instances: int = 1) -> dict[str, Any]:
        """200 when that many instances serve and positions are being stored, else 503: what a start can wait for."""
        now = await harbor.board.status()
        flows = now["positions_per_second"] and now["positions_stored"]
        if len(now["instances"]) < instances or not flows:
            raise Problem(503, "not_flowing", "Not all instances serve yet, or no positions are being stored.")
        return now

    @router.get("/config")
    async def page_config() -> dict[str, Any]:
        """What the page must know before anybody is signed in."""
        return {"demo": harbor.config.demo}

    return router


app = create(HarborConfig.load(os.environ))
