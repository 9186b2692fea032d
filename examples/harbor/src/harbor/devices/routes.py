"""HTTP: registering devices, tokens for devices and gateways."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from harbor.accounts.sessions import Sessions
from harbor.config import HarborConfig
from harbor.devices.device import Device, DeviceError, checked_device
from harbor.devices.registry import Registry
from harbor.live.broadcast import Broadcast
from harbor.positions.latest import Latest
from harbor.problem import Problem
from harbor.requests import bearer, read_object, text_field

__all__ = ["gateway_routes", "routes"]


def routes(
    config: HarborConfig, sessions: Sessions, registry: Registry, latest: Latest, broadcast: Broadcast
) -> APIRouter:
    """``/api/devices``."""
    router = APIRouter(prefix="/api", tags=["devices"])

    def account_of(request: Request) -> int:
        """A session, or a gateway's token: both may describe the account's devices."""
        token = bearer(request)
        reporter = registry.reporter(token)
        if reporter is None:
            return sessions.claims(token).account_id
        if reporter.device_id is not None:
            raise Problem(403, "only_positions", "A device's token reports positions and nothing else.")
        return reporter.account_id

    @router.get("/devices")
    async def own(request: Request) -> dict[str, Any]:
        """The account's devices, each with the time of its newest position."""
        account_id = account_of(request)
        own_ids = [known.id for known in registry.all() if known.account_id == account_id]
        fixes = await latest.of(own_ids)
        devices = registry.about(own_ids)
        for device in devices:
            fix = fixes.get(device["id"])
            device["last_ms"] = None if fix is None else fix.time_ms
        return {"devices": devices}

    @router.post("/devices", status_code=201)
    async def register(request: Request) -> dict[str, Any]:
        """Register one device. The answer holds its token, which is never shown again."""
        account_id = account_of(request)
        device = _checked(await read_object(request))
        owner_id = registry.owner_of(device.id)
        if owner_id is not None or await registry.register(account_id, [device]):
            raise _taken(device.id, own=owner_id == account_id)
        token = await registry.new_device_token(account_id, device.id)
        await broadcast.devices(account_id, registry.about([device.id]))
        return {"device": device.as_json(), "token": token}

    @router.put("/devices")
    async def describe(request: Request) -> dict[str, Any]:
        """Register or describe many devices (``{"devices": [...]}``), for gateways and bulk use; gives no tokens."""
        account_id = account_of(request)
        body = await read_object(request, bytes_max=config.body_bytes_max)
        said = body.get("devices")
        if not isinstance(said, list) or not 1 <= len(said) <= config.batch_max:
            raise Problem(422, "devices_wrong", f"devices is a list of 1 to {config.batch_max} devices.")
        devices = {device.id: device for device in map(_checked, said)}
        taken = await registry.register(account_id, list(devices.values()))
        ids = [device_id for device_id in devices if device_id not in taken]
        await broadcast.devices(account_id, registry.about(ids))
        return {"registered": len(ids), "taken": taken}

    @router.post("/devices/{device_id}/token", status_code=201)
    async def renew_token(device_id: str, request: Request) -> dict[str, str]:
        """A new token for a device. Earlier ones end at once."""
        return {"token": await registry.new_device_token(account_of(request), device_id)}

    return router


def gateway_routes(sessions: Sessions, registry: Registry) -> APIRouter:
    """``/api/gateways``."""
    router = APIRouter(prefix="/api", tags=["devices"])

    @router.post("/gateways", status_code=201)
    async def new_gateway(request: Request) -> dict[str, str]:
        """A token for a gateway, which reports for all devices of the account."""
        account_id = sessions.claims(bearer(request)).account_id
        body = await read_object(request)
        return {
            "token": await registry.new_gateway_token(account_id, text_field(body, "label", length_max=80, default=""))
        }

    @router.delete("/gateways")
    async def end_gateways(request: Request) -> dict[str, int]:
        """Ends all gateway tokens of the account at once."""
        return {"ended": await registry.end_gateway_tokens(sessions.claims(bearer(request)).account_id)}

    return router


def _taken(device_id: str, *, own: bool) -> Problem:
    """Who has the device already may have lost the answer that held its token."""
    if own:
        words = f"You have this device already: POST /api/devices/{device_id}/token gives a new token."
        return Problem(409, "id_taken", words)
    return Problem(409, "id_taken", "There is a device with this id already.")


def _checked(said: object) -> Device:
    try:
        return checked_device(said)
    except DeviceError as error:
        raise Problem(422, error.code, str(error)) from error
