"""Devices and credentials: written to PostgreSQL, read by every instance from replicated maps.

Invariants: a token is shown once, when it is made, and only its SHA-256 is kept; a device belongs to one account for
ever; once a call here has returned, every instance knows what it did (see `Mirror.publish`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

from flotta.fleet import Fleet
from flotta.rmap import JSON
from harbor.devices.device import Device
from harbor.fence import Fence
from harbor.mirror import Mirror
from harbor.problem import Problem

__all__ = ["Known", "Registry", "Reporter"]

DEMO_OWNER = "fleet@harbor.example"
DEMO_TOKENS_MAX = 8
_DEVICE_PREFIX, _GATEWAY_PREFIX = "hd_", "hg_"


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who a token stands for: a device, or (``device_id`` None) a gateway of the account."""

    account_id: int
    device_id: str | None


@dataclass(frozen=True, slots=True)
class Known:
    """A device as the map has it."""

    id: str
    account_id: int
    about: dict[str, Any]


@final
class Registry:
    """Devices and the tokens that report for them."""

    def __init__(self, fleet: Fleet, fence: Fence) -> None:
        self._fleet = fleet
        self._devices = fleet.map("harbor:devices", codec=JSON)
        self._credentials = fleet.map("harbor:credentials", codec=JSON)
        self.devices_mirror = Mirror(fleet, fence, self._devices, _device_rows, number=1)
        self.credentials_mirror = Mirror(fleet, fence, self._credentials, _credential_rows, number=2)

    # --- reads, local ------------------------------------------------------------------------------------------------

    def reporter(self, token: str) -> Reporter | None:
        """Whose token it is; None for an unknown or revoked one."""
        value = self._credentials.get(_hash(token))
        return None if value is None else Reporter(account_id=value["account"], device_id=value["device"])

    def owner_of(self, device_id: str) -> int | None:
        value = self._devices.get(device_id)
        return None if value is None else int(value["account"])

    def all(self) -> list[Known]:
        """Every device of every account."""
        return [Known(id=key, account_id=value["account"], about=value) for key, value in self._devices.items()]

    def about(self, device_ids: Collection[str]) -> list[dict[str, Any]]:
        """What a page shows of these devices."""
        return [shown(device_id, value) for device_id in device_ids if (value := self._devices.get(device_id))]

    # --- writes ------------------------------------------------------------------------------------------------------

    async def register(self, account_id: int, devices: Sequence[Device]) -> list[str]:
        """Adds or describes anew. Gives the ids that belong to another account, which are left alone."""
        taken = []
        async with self._fleet.postgres.connection() as connection:
            for device in sorted(devices, key=lambda device: device.id):  # one order: no deadlock between two callers
                cursor = await connection.execute(_UPSERT, {**device.as_json(), "account": account_id})
                if cursor.rowcount == 0:
                    taken.append(device.id)
        await self.devices_mirror.publish([device.id for device in devices if device.id not in taken])
        return taken

    async def new_device_token(self, account_id: int, device_id: str) -> str:
        """A token for the device; earlier ones end. Raises `Problem` 404 for a device that is not the account's."""
        if self.owner_of(device_id) != account_id:
            raise Problem(404, "no_such_device", "You have no device with this id.")
        token = _DEVICE_PREFIX + secrets.token_urlsafe(32)
        async with self._fleet.postgres.connection() as connection:
            cursor = await connection.execute(
                "DELETE FROM credentials WHERE device_id = %s RETURNING token_hash", (device_id,)
            )
            ended = [str(row[0]) for row in await cursor.fetchall()]
            await connection.execute(_INSERT_CREDENTIAL, (_hash(token), account_id, device_id, ""))
        await self.credentials_mirror.publish([*ended, _hash(token)])
        return token

    async def new_gateway_token(self, account_id: int, label: str, token: str | None = None) -> str:
        """A token that reports for all devices of the account."""
        token = token or _GATEWAY_PREFIX + secrets.token_urlsafe(32)
        await self._fleet.postgres.execute(_INSERT_CREDENTIAL, (_hash(token), account_id, None, label))
        await self.credentials_mirror.publish([_hash(token)])
        return token

    async def end_gateway_tokens(self, account_id: int) -> int:
        """Ends every gateway token of the account; how many there were."""
        rows = await self._fleet.postgres.fetch(
            "DELETE FROM credentials WHERE account_id = %s AND device_id IS NULL RETURNING token_hash", (account_id,)
        )
        await self.credentials_mirror.publish([str(row[0]) for row in rows])
        return len(rows)

    async def admit_demo_gateway(self, token: str) -> None:
        """Lets the demonstration's own token report for the demo fleet; all instances call it. The tokens of earlier
        starts end, but for the newest: two demonstrations may run on one folder, each on a port of its own."""
        await self._fleet.postgres.execute(
            """INSERT INTO credentials (token_hash, account_id, label)
               SELECT %s, id, 'demonstration' FROM accounts WHERE email = %s ON CONFLICT DO NOTHING""",
            (_hash(token), DEMO_OWNER),
        )
        await self._fleet.postgres.execute(
            """DELETE FROM credentials WHERE id IN (
                   SELECT credentials.id FROM credentials JOIN accounts ON accounts.id = account_id
                   WHERE email = %s AND device_id IS NULL ORDER BY credentials.id DESC OFFSET %s)""",
            (DEMO_OWNER, DEMO_TOKENS_MAX),
        )


_UPSERT = """
INSERT INTO devices (id, account_id, name, kind, callsign, length_m, width_m)
VALUES (%(id)s, %(account)s, %(name)s, %(kind)s, %(callsign)s, %(length_m)s, %(width_m)s)
ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, kind = EXCLUDED.kind, callsign = EXCLUDED.callsign,
    length_m = EXCLUDED.length_m, width_m = EXCLUDED.width_m
WHERE devices.account_id = EXCLUDED.account_id
"""
_INSERT_CREDENTIAL = "INSERT INTO credentials (token_hash, account_id, device_id, label) VALUES (%s, %s, %s, %s)"


def shown(device_id: str, value: dict[str, Any]) -> dict[str, Any]:
    """A device as the page gets it."""
    return {"id": device_id, **{key: part for key, part in value.items() if key != "account"}}


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


async def _device_rows(connection: Any, keys: Collection[str] | None) -> dict[str, Any]:
    cursor = await connection.execute(
        """SELECT devices.id, account_id, devices.name, kind, callsign, length_m, width_m, accounts.name
           FROM devices JOIN accounts ON accounts.id = account_id
           WHERE %(all)s OR devices.id = ANY(%(keys)s)""",
        {"all": keys is None, "keys": list(keys or ())},
    )
    names = ("account", "name", "kind", "callsign", "length_m", "width_m", "owner")
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in await cursor.fetchall()}


async def _credential_rows(connection: Any, keys: Collection[str] | None) -> dict[str, Any]:
    cursor = await connection.execute(
        "SELECT token_hash, account_id, device_id FROM credentials WHERE %(all)s OR token_hash = ANY(%(keys)s)",
        {"all": keys is None, "keys": list(keys or ())},
    )
    return {row[0]: {"account": row[1], "device": row[2]} for row in await cursor.fetchall()}
