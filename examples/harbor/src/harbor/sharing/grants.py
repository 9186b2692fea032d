"""Who may see which vessel: shares in PostgreSQL, read for every page that a broadcast goes to from a replicated map.

The map's keys are ``fleet:<owner>`` (all vessels of an account) and ``device:<id>`` (one vessel), its values the
viewers' account ids. Invariants: when `revoke` returns, no instance shows the viewer anything of it any more; while the
map may be out of date, only owners see their vessels.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, final

from flotta.fleet import Fleet
from flotta.rmap import JSON
from harbor.fence import Fence
from harbor.mirror import Mirror
from harbor.problem import Problem

__all__ = ["Grants"]


@final
class Grants:
    """The shares of all accounts."""

    def __init__(self, fleet: Fleet, fence: Fence) -> None:
        self._fleet = fleet
        self._viewers = fleet.map("harbor:sharing", codec=JSON)
        self.mirror = Mirror(fleet, fence, self._viewers, _share_rows, number=3)

    @property
    def known(self) -> bool:
        """Whether this instance knows who may see what; False while shares may have changed unheard."""
        return not self._viewers.stale

    def may_see(self, account_id: int, device_id: str, owner_id: int) -> bool:
        return self.may_see_fleet(account_id, owner_id) or self._is_viewer(account_id, _key(owner_id, device_id))

    def may_see_fleet(self, account_id: int, owner_id: int) -> bool:
        """Whether the account may see every vessel of the owner."""
        return account_id == owner_id or self._is_viewer(account_id, _key(owner_id, None))

    def shared_alone(self, device_id: str) -> bool:
        """Whether somebody may see this vessel who need not see the rest of its fleet."""
        return bool(self._viewers_of(f"device:{device_id}"))

    def audience(self, device_id: str, owner_id: int) -> tuple[int, ...]:
        """The accounts that may see the vessel, as far as this instance has heard, in a fixed order: whom to address.
        Who gets it is for `may_see` to say."""
        viewers = {owner_id, *self._viewers_of(_key(owner_id, None)), *self._viewers_of(_key(owner_id, device_id))}
        return tuple(sorted(viewers))

    def _viewers_of(self, key: str) -> Collection[int]:
        return self._viewers.get(key, ())

    def _is_viewer(self, account_id: int, key: str) -> bool:
        return self.known and account_id in self._viewers_of(key)

    async def shares_of(self, owner_id: int) -> list[dict[str, Any]]:
        rows = await self._fleet.postgres.fetch(
            """SELECT email, device_id FROM shares JOIN accounts ON accounts.id = viewer_id
               WHERE owner_id = %s ORDER BY shares.created_at, email""",
            (owner_id,),
        )
        return [{"viewer": row[0], "device": row[1]} for row in rows]

    async def grant(self, owner_id: int, viewer_email: str, device_id: str | None) -> int:
        """Lets an account look; its id. Granting twice is granting once. Raises `Problem` 404."""
        viewer_id = await self._account_id(viewer_email)
        if viewer_id == owner_id:
            raise Problem(422, "own_account", "You see your own vessels anyway.")
        await self._fleet.postgres.execute(
            "INSERT INTO shares (owner_id, viewer_id, device_id) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (owner_id, viewer_id, device_id),
        )
        await self.mirror.publish([_key(owner_id, device_id)])
        return viewer_id

    async def revoke(self, owner_id: int, viewer_email: str, device_id: str | None) -> int:
        """Ends it, everywhere, before it returns; the viewer's id. Revoking twice is revoking once. After an error call
        it again. Raises `Problem` 404, or 503 if an instance has not confirmed."""
        viewer_id = await self._account_id(viewer_email)
        await self._fleet.postgres.execute(
            "DELETE FROM shares WHERE owner_id = %s AND viewer_id = %s AND device_id IS NOT DISTINCT FROM %s",
            (owner_id, viewer_id, device_id),
        )
        await self.mirror.publish([_key(owner_id, device_id)])
        return viewer_id

    async def _account_id(self, email: str) -> int:
        row = await self._fleet.postgres.fetch_one("SELECT id FROM accounts WHERE email = %s", (email.lower(),))
        if row is None:
            raise Problem(404, "no_such_account", "There is no account with this email.")
        return int(row[0])


def _key(owner_id: int, device_id: str | None) -> str:
    return f"fleet:{owner_id}" if device_id is None else f"device:{device_id}"


async def _share_rows(connection: Any, keys: Collection[str] | None) -> dict[str, Any]:
    cursor = await connection.execute(
        """SELECT key, array_agg(viewer_id ORDER BY viewer_id) FROM (
               SELECT coalesce('device:' || device_id, 'fleet:' || owner_id) AS key, viewer_id FROM shares) AS keyed
           WHERE %(all)s OR key = ANY(%(keys)s) GROUP BY key""",
        {"all": keys is None, "keys": list(keys or ())},
    )
    return {row[0]: row[1] for row in await cursor.fetchall()}
