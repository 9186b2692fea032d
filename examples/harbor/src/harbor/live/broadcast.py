"""What is sent to pages, wherever they are connected: to the sockets of accounts, on all instances.

Whom a broadcast is addressed to is read from the replicated map of shares when it is sent. Between that and a page lie
the stream of the realtime server and, for a page that was away, up to a minute. So a filter asks again in the moment in
which it is written to a connection, on the instance that has the connection. Invariants:

- nothing of a vessel is written to an account that may not see it by the shares that this instance knows then;
- a broadcast holds one vessel, or vessels that are shared only with their whole fleet: a filter that keeps it back
  keeps back nothing that the account may see;
- while this instance does not know the shares (its connection to Redis was lost), only owners get anything; the pages
  from which something was kept back load the picture when it knows them again (`heal`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, final

from flotta.realtime import Server
from harbor.devices.registry import Registry
from harbor.positions.fix import Fix, fixes_to_wire
from harbor.sharing.grants import Grants

__all__ = ["Broadcast", "user_of"]

FLEET, VESSEL = "fleet", "vessel"
HEAL_S = 0.5


def user_of(account_id: int) -> str:
    """An account, as the realtime server names its user."""
    return str(account_id)


@final
class Broadcast:
    """Sends to everyone who may see, and to nobody else. Made before the server starts."""

    def __init__(self, server: Server, registry: Registry, grants: Grants) -> None:
        self._server = server
        self._registry = registry
        self._grants = grants
        self._kept_back: set[str] = set()
        server.may_see(FLEET)(self._may_see_fleet)
        server.may_see(VESSEL)(self._may_see_vessel)

    async def positions(self, owner_id: int, fixes: Sequence[Fix]) -> None:
        """Accepted fixes of one owner's vessels."""
        for group, may_see in self._groups({fix.device for fix in fixes}):
            data = fixes_to_wire(fix for fix in fixes if fix.device in group)
            await self._send("positions", data, owner_id, group, may_see)

    async def devices(self, owner_id: int, devices: Sequence[dict[str, Any]]) -> None:
        """Devices that were registered or described anew."""
        for group, may_see in self._groups({str(device["id"]) for device in devices}):
            data = [device for device in devices if device["id"] in group]
            await self._send("devices", data, owner_id, group, may_see)

    async def sharing_changed(self, viewer_id: int) -> None:
        """The viewer's pages load the whole picture again."""
        await self._server.emit("sharing", user=user_of(viewer_id))

    async def areas_changed(self, owner_id: int) -> None:
        """The owner's pages load its areas again."""
        await self._server.emit("areas", user=user_of(owner_id))

    async def alert(self, area_owner_id: int, alert: dict[str, Any]) -> None:
        """To the pages of the area's owner, if it may see the vessel then."""
        await self._server.emit("alert", alert, user=user_of(area_owner_id), may_see=VESSEL)

    async def heal(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(HEAL_S)
            if self._kept_back and self._grants.known:
                sids, self._kept_back = self._kept_back, set()
                await self._server.emit("sharing", to=sids, local=True)

    def _groups(self, device_ids: set[str]) -> list[tuple[set[str], str]]:
        """The devices that go together, and the filter for them: mostly one group."""
        alone = sorted(device_id for device_id in device_ids if self._grants.shared_alone(device_id))
        rest = device_ids.difference(alone)
        return [({device_id}, VESSEL) for device_id in alone] + ([(rest, FLEET)] if rest else [])

    async def _send(self, event: str, data: Any, owner_id: int, group: set[str], may_see: str) -> None:
        audience = self._grants.audience(next(iter(group)), owner_id)  # the same for each of the group
        await self._server.emit(event, data, user=[user_of(account_id) for account_id in audience], may_see=may_see)

    # --- asked of every recipient ------------------------------------------------------------------------------------

    def _may_see_fleet(self, sid: str, _session: Any, data: Any) -> bool:
        account_id, owner_id = self._account(sid), self._registry.owner_of(_vessel_of(data))
        return owner_id is not None and self._noted(sid, self._grants.may_see_fleet(account_id, owner_id))

    def _may_see_vessel(self, sid: str, _session: Any, data: Any) -> bool:
        device_id = _vessel_of(data)
        account_id, owner_id = self._account(sid), self._registry.owner_of(device_id)
        return owner_id is not None and self._noted(sid, self._grants.may_see(account_id, device_id, owner_id))

    def _noted(self, sid: str, allowed: bool) -> bool:  # noqa: FBT001 - an answer on its way
        if not allowed and not self._grants.known:
            self._kept_back.add(sid)
        return allowed

    def _account(self, sid: str) -> int:
        user = self._server.user_of(sid)
        return 0 if user is None else int(user)  # accounts are counted from 1


def _vessel_of(data: Any) -> str:
    """The vessel of a broadcast, or the first of several."""
    match data:
        case {"device": str(device)}:  # an alert
            return device
        case [{"id": str(device)}, *_] | [[str(device), *_], *_]:  # devices; fixes
            return device
    raise ValueError("a broadcast of no vessel")
