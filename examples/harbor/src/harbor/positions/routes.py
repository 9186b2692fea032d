"""HTTP: reporting positions, and what may be seen of them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from harbor.accounts.sessions import Sessions
from harbor.config import HarborConfig
from harbor.devices.registry import Registry, Reporter
from harbor.positions.history import History
from harbor.positions.ingest import Ingest
from harbor.positions.latest import Latest
from harbor.problem import Problem
from harbor.requests import bearer, read_json
from harbor.sharing.grants import Grants

__all__ = ["report_routes", "view_routes"]


def report_routes(config: HarborConfig, registry: Registry, ingest: Ingest) -> APIRouter:
    """``/api/positions``: for devices and gateways."""
    router = APIRouter(prefix="/api", tags=["positions"])

    def reporter_of(request: Request) -> Reporter:
        reporter = registry.reporter(bearer(request))
        if reporter is None:
            raise Problem(401, "unknown_token", "No device or gateway has this token.")
        return reporter

    @router.post("/positions", status_code=202)
    async def one(request: Request) -> JSONResponse:
        """Report one position: ``{"time", "lat", "lon", "speed"?, "course"?, "heading"?, "device"?}``."""
        reporter = reporter_of(request)
        outcome = await ingest.take(reporter, [await read_json(request, bytes_max=config.body_bytes_max)])
        if outcome.refused:
            refusal = outcome.refused[0]
            raise Problem(422, refusal.code, refusal.message)
        return JSONResponse(outcome.as_json(), status_code=202)

    @router.post("/positions/batch", status_code=202)
    async def many(request: Request) -> JSONResponse:
        """Report many: ``{"positions": [...]}``. Each is judged by itself; those that are refused are listed."""
        reporter = reporter_of(request)
        body = await read_json(request, bytes_max=config.body_bytes_max)
        said = body.get("positions") if isinstance(body, dict) else None
        if not isinstance(said, list) or not 1 <= len(said) <= config.batch_max:
            raise Problem(422, "positions_wrong", f"positions is a list of 1 to {config.batch_max} positions.")
        outcome = await ingest.take(reporter, said)
        return JSONResponse(outcome.as_json(), status_code=202)

    return router


def view_routes(sessions: Sessions, registry: Registry, grants: Grants, latest: Latest, history: History) -> APIRouter:
    """``/api/vessels`` and ``/api/trails``: for signed-in accounts, who see what is theirs or shared with them."""
    router = APIRouter(prefix="/api", tags=["vessels"])

    def visible_to(request: Request) -> list[str]:
        account_id = sessions.claims(bearer(request)).account_id
        return [known.id for known in registry.all() if grants.may_see(account_id, known.id, known.account_id)]

    @router.get("/vessels")
    async def vessels(request: Request) -> JSONResponse:
        """Every vessel that the account may see, with its last known position."""
        visible = visible_to(request)
        fixes = await latest.of(visible) if visible else {}
        positions = [fix.as_tuple() for fix in fixes.values()]
        return JSONResponse({"devices": registry.about(visible), "positions": positions})

    @router.get("/trails")
    async def trails(request: Request) -> JSONResponse:
        """The last minutes of every visible vessel."""
        return JSONResponse({"trails": await history.trails(visible_to(request))})

    @router.get("/vessels/{device_id}/track")
    async def track(device_id: str, request: Request) -> JSONResponse:
        """The past hour of one vessel, up to its newest position."""
        account_id = sessions.claims(bearer(request)).account_id
        owner_id = registry.owner_of(device_id)
        if owner_id is None or not grants.may_see(account_id, device_id, owner_id):
            raise Problem(404, "no_such_vessel", "You see no vessel with this id.")
        return JSONResponse({"points": await history.track(device_id)})

    return router
