"""HTTP: areas and their alerts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request
from fastapi import Query as Param
from fastapi.responses import Response
from pydantic import AwareDatetime, BaseModel, Field

from harbor.accounts.sessions import Sessions
from harbor.areas.alerts import PAGE_MAX, Alerts, Query
from harbor.areas.area import checked_colour, checked_drawing, checked_name
from harbor.areas.areas import Areas
from harbor.areas.shape import ShapeError
from harbor.devices.registry import Registry
from harbor.live.broadcast import Broadcast
from harbor.problem import Problem
from harbor.requests import bearer, read_object
from harbor.sharing.grants import Grants

__all__ = ["alert_routes", "area_routes"]

T = TypeVar("T")
ID_MAX = 2**63 - 1
AreaId = Annotated[int, Path(ge=1, le=ID_MAX)]


class Asked(BaseModel):
    """The query of ``/api/alerts``. Times are RFC 3339 text with an offset, or seconds since 1970."""

    area: Annotated[int, Field(ge=1, le=ID_MAX)] | None = None
    vessel: Annotated[str, Field(max_length=64)] | None = None
    start: AwareDatetime | None = Field(default=None, alias="from")
    end: AwareDatetime | None = Field(default=None, alias="to")
    before: Annotated[int, Field(ge=1, le=ID_MAX)] | None = None
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = 50


def area_routes(sessions: Sessions, areas: Areas, broadcast: Broadcast) -> APIRouter:
    """``/api/areas``."""
    router = APIRouter(prefix="/api", tags=["areas"])

    def account_of(request: Request) -> int:
        return sessions.claims(bearer(request)).account_id

    @router.get("/areas")
    async def own(request: Request) -> dict[str, Any]:
        """The account's areas."""
        return {"areas": areas.of(account_of(request))}

    @router.post("/areas", status_code=201)
    async def draw(request: Request) -> dict[str, Any]:
        """Draw an area: ``{"name", "points": [[lat, lon], ...], "colour"?}``, 3 to 100 corners."""
        account_id = account_of(request)
        body = await read_object(request)
        area = await areas.draw(account_id, _checked(lambda: checked_drawing(body)))
        await broadcast.areas_changed(account_id)
        return area

    @router.patch("/areas/{area_id}")
    async def change(area_id: AreaId, request: Request) -> dict[str, Any]:
        """Rename it (``name``), or give it another ``colour``."""
        account_id = account_of(request)
        body = await read_object(request)
        name = _checked(lambda: checked_name(body["name"])) if "name" in body else None
        colour = _checked(lambda: checked_colour(body["colour"])) if "colour" in body else None
        area = await areas.change(account_id, area_id, name=name, colour=colour)
        await broadcast.areas_changed(account_id)
        return area

    @router.delete("/areas/{area_id}", status_code=204)
    async def delete(area_id: AreaId, request: Request) -> Response:
        """Delete it, and its alerts."""
        account_id = account_of(request)
        await areas.delete(account_id, area_id)
        await broadcast.areas_changed(account_id)
        return Response(status_code=204)

    return router


def alert_routes(sessions: Sessions, registry: Registry, grants: Grants, alerts: Alerts) -> APIRouter:
    """``/api/alerts``: of the account's areas, about the vessels that it may see."""
    router = APIRouter(prefix="/api", tags=["areas"])

    @router.get("/alerts")
    async def listed(request: Request, asked: Annotated[Asked, Param()]) -> dict[str, Any]:
        """Newest first. ``next`` is the ``before`` of the page after this one, null on the last."""
        account_id = sessions.claims(bearer(request)).account_id
        visible = [known.id for known in registry.all() if grants.may_see(account_id, known.id, known.account_id)]
        query = Query(
            area_id=asked.area,
            device=asked.vessel,
            start=asked.start,
            end=asked.end,
            before=asked.before,
            limit=asked.limit + 1,  # one more tells whether there is another page
        )
        found = await alerts.list(account_id, visible, query)
        page = found[: asked.limit]
        return {"alerts": page, "next": page[-1]["id"] if len(found) > len(page) else None}

    return router


def _checked(check: Callable[[], T]) -> T:
    try:
        return check()
    except ShapeError as error:
        raise Problem(422, error.code, str(error)) from error
