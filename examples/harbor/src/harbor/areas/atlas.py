"""All areas of all accounts, so ordered that the few around a place are found at once. Pure, in memory.

A grid of cells of a twentieth of a degree (some 5 km) names the areas whose boxes touch each cell; an area that would
fill very many cells is looked at for every place instead. So hundreds of areas cost a position one look-up and the test
of those few whose boxes hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

from harbor.areas.shape import Place, Shape

__all__ = ["Area", "Atlas"]

CELL = 50_000
"""The side of a cell in millionths of a degree."""
CELLS_MAX = 400


@dataclass(frozen=True, slots=True)
class Area:
    """An area as the jobs know it. Its shape never changes: who draws anew makes another area."""

    id: int
    owner_id: int
    shape: Shape


@final
class Atlas:
    """Areas by id and by place."""

    def __init__(self, areas: Iterable[Area] = ()) -> None:
        self._areas: dict[int, Area] = {}
        self._cells: dict[tuple[int, int], set[int]] = {}
        self._wide: set[int] = set()
        for area in areas:
            self.put(area)

    def __len__(self) -> int:
        return len(self._areas)

    def get(self, area_id: int) -> Area | None:
        return self._areas.get(area_id)

    def all(self) -> Iterator[Area]:
        return iter(self._areas.values())

    def put(self, area: Area) -> None:
        """Adds it, or takes it for the one of the same id."""
        if self._areas.get(area.id) == area:
            return
        self.remove(area.id)
        self._areas[area.id] = area
        if _cell_count(area.shape) > CELLS_MAX:
            self._wide.add(area.id)
            return
        for cell in _cells_of(area.shape):
            self._cells.setdefault(cell, set()).add(area.id)

    def remove(self, area_id: int) -> None:
        """Without it from now on. One that is not there: no change."""
        area = self._areas.pop(area_id, None)
        if area is None:
            return
        if area_id in self._wide:
            self._wide.remove(area_id)
            return
        for cell in _cells_of(area.shape):
            here = self._cells[cell]
            here.remove(area_id)
            if not here:
                del self._cells[cell]

    def at(self, place: Place) -> list[Area]:
        """The areas in which the place lies, in the order of their ids."""
        near = self._cells.get((place[0] // CELL, place[1] // CELL), set()) | self._wide
        return [area for area_id in sorted(near) if (area := self._areas[area_id]).shape.contains(place)]


def _cells_of(shape: Shape) -> Iterator[tuple[int, int]]:
    for row in range(shape.south // CELL, shape.north // CELL + 1):
        for column in range(shape.west // CELL, shape.east // CELL + 1):
            yield row, column


def _cell_count(shape: Shape) -> int:
    return (shape.north // CELL - shape.south // CELL + 1) * (shape.east // CELL - shape.west // CELL + 1)
