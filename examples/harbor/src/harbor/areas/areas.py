"""Areas: written to PostgreSQL, read by every instance from a replicated map.

An area belongs to the account that drew it; no other account sees it or gets its alerts. Invariants: a shape never
changes; once a call here has returned, every instance judges vessels by what it did (see `Mirror.publish`); every call
may be repeated, after an error too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, final

import psycopg
from psycopg.types.json import Jsonb

from flotta.fleet import Fleet
from flotta.rmap import JSON
from harbor.areas.area import Drawing
from harbor.areas.atlas import Area, Atlas
from harbor.areas.shape import Shape
from harbor.fence import Fence
from harbor.mirror import Mirror
from harbor.problem import Problem

__all__ = ["PER_ACCOUNT_MAX", "Areas"]

PER_ACCOUNT_MAX = 50


@final
class Areas:
    """The areas of all accounts."""

    def __init__(self, fleet: Fleet, fence: Fence) -> None:
        self._fleet = fleet
        self._values = fleet.map("harbor:areas", codec=JSON)
        self.mirror = Mirror(fleet, fence, self._values, _area_rows, number=4)
        self._atlas = Atlas()
        self._atlas_of: tuple[int, int] | None = None
        """The revision of the map that the atlas shows, and how often it had been loaded anew."""

    # --- reads, local ------------------------------------------------------------------------------------------------

    @property
    def atlas(self) -> Atlas:
        """All areas by place, as this instance knows them now."""
        now = (self._values.revision, self._values.stats.loads)
        if self._atlas_of != now:
            self._follow()
            self._atlas_of = now
        return self._atlas

    def about(self, area_id: int) -> dict[str, Any] | None:
        """The area as the page gets it, and ``owner``; None if there is none."""
        return self._values.get(str(area_id))

    def of(self, owner_id: int) -> list[dict[str, Any]]:
        """The account's areas, by name."""
        own = [shown(int(key), value) for key, value in self._values.items() if value["owner"] == owner_id]
        return sorted(own, key=lambda area: str(area["name"]).casefold())

    def _follow(self) -> None:
        values = self._values.snapshot()
        for area_id in [area.id for area in self._atlas.all() if str(area.id) not in values]:
            self._atlas.remove(area_id)
        for key, value in values.items():
            if self._atlas.get(int(key)) is None:  # an area's shape never changes, and no id is given twice
                self._atlas.put(Area(int(key), value["owner"], Shape.from_wire(value["points"])))

    # --- writes ------------------------------------------------------------------------------------------------------

    async def draw(self, owner_id: int, drawing: Drawing) -> dict[str, Any]:
        """Adds an area. The same one again is the same one. Raises `Problem`: 409 if another one has its name or the
        account has as many as it may."""
        async with self._fleet.postgres.connection() as connection:
            await connection.execute("SELECT 1 FROM accounts WHERE id = %s FOR UPDATE", (owner_id,))
            area_id = await _insert(connection, owner_id, drawing)
        await self.mirror.publish([str(area_id)])
        return {"id": area_id, "name": drawing.name, "colour": drawing.colour, "points": drawing.shape.to_wire()}

    async def change(self, owner_id: int, area_id: int, *, name: str | None, colour: str | None) -> dict[str, Any]:
        """Renames or recolours it; None leaves a thing as it is. Raises `Problem`: 404, or 409 for a taken name."""
        try:
            row = await self._fleet.postgres.fetch_one(
                """UPDATE areas SET name = coalesce(%s, name), colour = coalesce(%s, colour)
                   WHERE id = %s AND owner_id = %s RETURNING name, colour, points""",
                (name, colour, area_id, owner_id),
            )
        except psycopg.errors.UniqueViolation as error:
            raise _name_taken() from error
        if row is None:
            raise _no_such_area()
        await self.mirror.publish([str(area_id)])
        return {"id": area_id, "name": row[0], "colour": row[1], "points": row[2]}

    async def delete(self, owner_id: int, area_id: int) -> None:
        """Deletes it with its alerts; deleting twice is deleting once. Raises `Problem` 404 for another account's."""
        row = await self._fleet.postgres.fetch_one("SELECT owner_id FROM areas WHERE id = %s", (area_id,))
        if row is not None and row[0] != owner_id:
            raise _no_such_area()
        await self._fleet.postgres.execute("DELETE FROM areas WHERE id = %s AND owner_id = %s", (area_id, owner_id))
        await self.mirror.publish([str(area_id)])


async def _insert(connection: Any, owner_id: int, drawing: Drawing) -> int:
    """The id of the account's area of that name. The caller holds the lock of the account."""
    cursor = await connection.execute(
        "SELECT id, points FROM areas WHERE owner_id = %s AND name = %s", (owner_id, drawing.name)
    )
    known = await cursor.fetchone()
    if known is not None:
        if known[1] != drawing.shape.to_wire():
            raise _name_taken()
        await connection.execute("UPDATE areas SET colour = %s WHERE id = %s", (drawing.colour, known[0]))
        return int(known[0])
    cursor = await connection.execute("SELECT count(*) FROM areas WHERE owner_id = %s", (owner_id,))
    if (await cursor.fetchone())[0] >= PER_ACCOUNT_MAX:
        raise Problem(
            409, "too_many_areas", f"An account has at most {PER_ACCOUNT_MAX} areas. Please delete one first."
        )
    cursor = await connection.execute(
        "INSERT INTO areas (owner_id, name, colour, points) VALUES (%s, %s, %s, %s) RETURNING id",
        (owner_id, drawing.name, drawing.colour, Jsonb(drawing.shape.to_wire())),
    )
    return int((await cursor.fetchone())[0])


def shown(area_id: int, value: dict[str, Any]) -> dict[str, Any]:
    """An area as the page gets it."""
    return {"id": area_id, **{key: part for key, part in value.items() if key != "owner"}}


def _name_taken() -> Problem:
    return Problem(409, "name_taken", "You have another area of this name already.")


def _no_such_area() -> Problem:
    return Problem(404, "no_such_area", "You have no area with this id.")


async def _area_rows(connection: Any, keys: Collection[str] | None) -> dict[str, Any]:
    cursor = await connection.execute(
        """SELECT id, owner_id, name, colour, points FROM areas WHERE %(all)s OR id = ANY(%(keys)s::bigint[])""",
        {"all": keys is None, "keys": [int(key) for key in keys or ()]},
    )
    names = ("owner", "name", "colour", "points")
    return {str(row[0]): dict(zip(names, row[1:], strict=True)) for row in await cursor.fetchall()}
