"""What is sent to pages, wherever they are connected: each account has a room, in which all its sockets are.

Who may see a vessel is asked of the replicated map for every broadcast. Invariant: nothing waits between that question
and the broadcast's way out; `harbor.fence` relies on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from flotta.realtime import Server
from harbor.positions.fix import Fix, fixes_to_wire
from harbor.sharing.grants import Grants

__all__ = ["Broadcast", "room_of"]


def room_of(account_id: int) -> str:
    """The room of an account's sockets, on all instances."""
    return f"account:{account_id}"


@final
class Broadcast:
    """Sends to everyone who may see, and to nobody else."""

    def __init__(self, server: Server, grants: Grants) -> None:
        self._server = server
        self._grants = grants

    async def positions(self, owner_id: int, fixes: Sequence[Fix]) -> None:
        """Accepted fixes of one owner's vessels."""
        for group in self._groups(owner_id, {fix.device for fix in fixes}):
            await self._send("positions", fixes_to_wire(fix for fix in fixes if fix.device in group), owner_id, group)

    async def devices(self, owner_id: int, devices: Sequence[dict[str, Any]]) -> None:
        """Devices that were registered or described anew."""
        for group in self._groups(owner_id, {str(device["id"]) for device in devices}):
            await self._send("devices", [device for device in devices if device["id"] in group], owner_id, group)

    async def sharing_changed(self, viewer_id: int) -> None:
        """The viewer's pages load the whole picture again."""
        await self._server.emit("sharing", room=room_of(viewer_id))

    async def areas_changed(self, owner_id: int) -> None:
        """The owner's pages load its areas again."""
        await self._server.emit("areas", room=room_of(owner_id))

    async def alert(self, owner_id: int, area_owner_id: int, alert: dict[str, Any]) -> None:
        """To the pages of the area's owner, if it may see the vessel now. ``owner_id``: the vessel's."""
        if self._grants.may_see(area_owner_id, str(alert["device"]), owner_id):
            await self._server.emit("alert", alert, room=room_of(area_owner_id))

    def _groups(self, owner_id: int, device_ids: set[str]) -> list[set[str]]:
        """The devices, together where the same accounts may see them: mostly one group."""
        groups: dict[tuple[int, ...], set[str]] = {}
        for device_id in device_ids:
            groups.setdefault(self._grants.audience(device_id, owner_id), set()).add(device_id)
        return list(groups.values())

    async def _send(self, event: str, data: Any, owner_id: int, group: set[str]) -> None:
        """To the accounts that may see every device of the group now: since the groups were made, the sending of an
        earlier one may have waited."""
        audiences = [set(self._grants.audience(device_id, owner_id)) for device_id in group]
        rooms = [room_of(account_id) for account_id in sorted(set.intersection(*audiences))]
        await self._server.emit(event, data, room=rooms)
