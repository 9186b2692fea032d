"""HTTP: sharing one's vessels, and ending it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from harbor.accounts.sessions import Sessions
from harbor.devices.registry import Registry
from harbor.live.broadcast import Broadcast
from harbor.problem import Problem
from harbor.requests import bearer, read_object, text_field
from harbor.sharing.grants import Grants

__all__ = ["routes"]


def routes(sessions: Sessions, registry: Registry, grants: Grants, broadcast: Broadcast) -> APIRouter:
    """``/api/shares``."""
    router = APIRouter(prefix="/api", tags=["sharing"])

    async def asked(request: Request) -> tuple[int, str, str | None]:
        owner_id = sessions.claims(bearer(request)).account_id
        body = await read_object(request)
        viewer = text_field(body, "viewer", length_max=254)
        device = body.get("device")
        if device is not None and (not isinstance(device, str) or registry.owner_of(device) != owner_id):
            raise Problem(404, "no_such_device", "You have no device with this id.")
        return owner_id, viewer, device

    @router.get("/shares")
    async def shares(request: Request) -> dict[str, Any]:
        """Who sees the account's vessels."""
        return {"shares": await grants.shares_of(sessions.claims(bearer(request)).account_id)}

    @router.post("/shares", status_code=201)
    async def share(request: Request) -> dict[str, Any]:
        """Let an account (``viewer``: its email) see all vessels, or one (``device``)."""
        owner_id, viewer, device = await asked(request)
        await broadcast.sharing_changed(await grants.grant(owner_id, viewer, device))
        return {"viewer": viewer, "device": device}

    @router.delete("/shares")
    async def revoke(request: Request) -> dict[str, Any]:
        """End it. When this has answered, the viewer gets nothing more, from any instance."""
        owner_id, viewer, device = await asked(request)
        await broadcast.sharing_changed(await grants.revoke(owner_id, viewer, device))
        return {"viewer": viewer, "device": device}

    return router
