"""A table of PostgreSQL kept in a replicated map, so that every instance reads it without a query.

PostgreSQL is the record, the map is what is read. Invariants: the map's values come only from committed rows, read
under one advisory lock per mirror, so the last writer has read the newest rows; `publish` returns when every instance
has taken the change over (see `Fence`). A map that lost its data is filled again by `reconcile`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, final

from flotta.fleet import Fleet
from flotta.rmap import Map
from harbor.fence import Fence

__all__ = ["Mirror", "Rows"]

Rows = Callable[[Any, Collection[str] | None], Awaitable[dict[str, Any]]]
"""``rows(connection, keys)``: the values by key; ``keys`` None means all. A key that has no rows is left out."""

LOCK_SPACE = 0x48415242  # "HARB": keeps Harbor's advisory locks apart from others'
WRITES_MAX = 500


@final
class Mirror:
    """One table in one map. ``number`` tells the locks of mirrors apart."""

    def __init__(self, fleet: Fleet, fence: Fence, values: Map[Any], rows: Rows, *, number: int) -> None:
        self._fleet = fleet
        self._fence = fence
        self._rows = rows
        self._number = number
        self.values = values

    async def publish(self, keys: Collection[str]) -> None:
        """Writes the committed rows of ``keys`` into the map. Returns when every instance reads them.

        Call it after the commit, and again if it raised (what the parts raise, or `Problem` 503): it may be repeated.
        """
        async with self._fleet.postgres.connection() as connection:
            await self._lock(connection)
            rows = await self._rows(connection, keys)
            await self._write({key: rows.get(key) for key in keys})
        await self._fence.wait()

    async def reconcile(self) -> int:
        """Makes the map equal to the table; the number of entries that differed."""
        async with self._fleet.postgres.connection() as connection:
            await self._lock(connection)
            rows = await self._rows(connection, None)
            known = self.values.snapshot()
            wrong = {key: value for key, value in rows.items() if known.get(key) != value}
            wrong |= dict.fromkeys(known.keys() - rows.keys())
            await self._write(wrong)
        return len(wrong)

    async def _lock(self, connection: Any) -> None:
        await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK_SPACE, self._number))

    async def _write(self, values: dict[str, Any]) -> None:
        """None removes. In bounded groups: the writes of one group travel together."""
        items = list(values.items())
        for start in range(0, len(items), WRITES_MAX):
            group = items[start : start + WRITES_MAX]
            await asyncio.gather(*(self._write_one(key, value) for key, value in group))

    async def _write_one(self, key: str, value: Any) -> None:
        if value is None:
            await self.values.delete(key)
        else:
            await self.values.set(key, value)
