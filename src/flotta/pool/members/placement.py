"""Which worker has which slots: load-capped rendezvous hashing over the table as it is. Pure: decides, never waits.

Owns ``place``. The load of a worker is the weight of its slots. A slot weighs its jobs, plus its share of 100 jobs for
each worker that are spread evenly over all slots: so few jobs, whose number per worker is chance, hardly move anything,
empty slots are spread, too, and the more jobs there are, the more exactly they are what is balanced.

Laws (``tests/property/test_pool_placement.py``):

* Afterwards every slot has exactly one owner, and it is one of ``workers`` (if there are any).
* A slot whose owner stays moves only if some worker was further than ``TOLERANCE`` from the mean load (one that joins
  has none at all). Then it moves from a more to a less loaded worker, and both end strictly between the two loads.
* So a leaver moves only its own slots, as long as nobody who stays is that far from the *new* mean afterwards.
* A second call at once moves nothing.
* Deterministic: no chance, no clock, no order of a set, whole numbers only.

Why rendezvous and not jump or ring hashing: the id of a worker is never used again, so there are no positions to keep;
and all scores of a worker come out of one call of an extendable hash function.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Final, final

from flotta.pool.keys import SLOTS, slot_of

__all__ = ["TOLERANCE", "deviation", "place", "scores_of", "slot_of"]

TOLERANCE: Final = 0.06
"""A worker whose load is further from the mean makes slots move although nobody has joined or left. At 1,000 jobs a
worker the jobs are within 10 % of their mean then."""
_TARGET: Final = 0.03
"""So near to the mean an overloaded worker gets: not just to the edge, where the next job would make it move again."""
_PRIOR_JOBS: Final = 100
_COLUMNS: Final = 256


def scores_of(worker: str, slots: int = SLOTS) -> array[int]:
    """The rendezvous scores of ``worker``, one for each slot."""
    scores = array("I")
    scores.frombytes(hashlib.shake_128(worker.encode()).digest(scores.itemsize * slots))
    if sys.byteorder == "big":
        scores.byteswap()
    return scores


def place(
    table: Mapping[int, str], workers: Sequence[str], jobs: Mapping[int, int], *, slots: int = SLOTS
) -> dict[int, str]:
    """The changes (slot to worker) that ``table`` needs, now that ``workers`` may have slots; ``{}``: none.

    ``jobs``: how many jobs each slot has; absent: none. Without workers nothing changes.
    """
    if not workers:
        return {}
    placing = _Placing(table, sorted(set(workers)), jobs, slots)
    placing.fill()
    placing.level()
    placed = ((slot, placing.workers[to]) for slot, to in placing.moved.items())
    return {slot: worker for slot, worker in placed if table.get(slot) != worker}  # some went to and fro


def deviation(
    table: Mapping[int, str], workers: Sequence[str], jobs: Mapping[int, int], *, slots: int = SLOTS
) -> float:
    """How far the load of the worst worker is from the mean, as a share of the mean. Infinite: a slot has no owner."""
    if not workers:
        return 0.0
    placing = _Placing(table, sorted(set(workers)), jobs, slots)
    if placing.orphans:
        return float("inf")
    mean = placing.total / len(placing.workers)
    return max(abs(load - mean) for load in placing.loads) / mean


@final
class _Placing:
    """One computation. Workers are numbers here, in the order of their ids.

    All weights are multiplied by the number of slots and that of workers, so that also the mean is a whole number.
    """

    def __init__(self, table: Mapping[int, str], workers: list[str], jobs: Mapping[int, int], slots: int) -> None:
        self.workers = workers
        self.slots = slots
        self.moved: dict[int, int] = {}
        count = len(workers)
        self.weights = [(jobs.get(slot, 0) * slots + _PRIOR_JOBS * count) * count for slot in range(slots)]
        self.total = sum(self.weights)
        self.mean = self.total // count
        self.low = self.mean - int(self.mean * TOLERANCE)
        self.high = self.mean + int(self.mean * TOLERANCE)
        self.near = self.mean + int(self.mean * _TARGET)
        numbers = {worker: number for number, worker in enumerate(workers)}
        self.owners = [numbers.get(table.get(slot, "")) for slot in range(slots)]
        self.orphans = [slot for slot, owner in enumerate(self.owners) if owner is None]
        self.loads = [0] * count
        for slot, owner in enumerate(self.owners):
            if owner is not None:
                self.loads[owner] += self.weights[slot]
        self._scores: dict[int, array[int]] = {}

    def scores(self, worker: int) -> array[int]:
        """Its scores, computed when first needed."""
        scores = self._scores.get(worker)
        if scores is None:
            scores = self._scores[worker] = scores_of(self.workers[worker], self.slots)
        return scores

    def has_room(self, worker: int, weight: int) -> bool:
        """Whether ``weight`` more would take the worker nearer to the mean, or at least not further away."""
        return 2 * (self.mean - self.loads[worker]) >= weight

    def can_give(self, worker: int, weight: int) -> bool:
        """Whether ``weight`` less would take the worker nearer to the mean."""
        return 2 * (self.loads[worker] - self.mean) > weight

    def move(self, slot: int, to: int) -> None:
        """Give ``slot`` to the worker ``to``."""
        owner = self.owners[slot]
        if owner is not None:
            self.loads[owner] -= self.weights[slot]
        self.loads[to] += self.weights[slot]
        self.owners[slot] = self.moved[slot] = to

    # --- slots without an owner -----------------------------------------------------------------------------------

    def fill(self) -> None:
        """Each slot without an owner goes to the highest score among those who have room for it; if nobody has, to the
        least loaded. Really heavy ones come first, while there is room; the others by number, so that everybody gets
        light and less light ones."""
        heavy = self.mean // 16
        weights = self.weights
        orphans = sorted(self.orphans, key=lambda slot: (-weights[slot] if weights[slot] > heavy else 0, slot))
        if not orphans:
            return
        lightest = min(weights[slot] for slot in orphans)
        for first in range(0, len(orphans), _COLUMNS):
            part = orphans[first : first + _COLUMNS]
            roomy = [worker for worker in range(len(self.workers)) if self.has_room(worker, lightest)]
            for slot, column in zip(part, self._columns(part, roomy), strict=True):
                self.move(slot, self._best(slot, roomy, column))

    def _columns(self, slots: list[int], workers: list[int]) -> list[tuple[int, ...]]:
        """The scores of ``workers`` by slot: transposed piece by piece, since a thousand workers have four million."""
        if not workers:
            return [()] * len(slots)
        pick = itemgetter(*slots, slots[0])  # twice the first: one index alone would give no tuple
        return list(zip(*(pick(self.scores(worker)) for worker in workers), strict=True))[:-1]

    def _best(self, slot: int, roomy: list[int], column: tuple[int, ...]) -> int:
        weight = self.weights[slot]
        if column and self.has_room(best := roomy[column.index(max(column))], weight):
            return best
        fitting = [pair for pair in zip(column, roomy, strict=True) if self.has_room(pair[1], weight)]
        if fitting:
            return max(fitting)[1]
        return min(
            range(len(self.workers)), key=lambda worker: (self.loads[worker], -self.scores(worker)[slot], worker)
        )

    # --- workers with too little or too much ----------------------------------------------------------------------

    def level(self) -> None:
        """Who has too little takes, who has too much gives, until nothing moves."""
        while True:
            before = list(self.owners)
            takers = self._beyond(lambda load: load < self.low)
            for worker in takers:
                self._take(worker, takers)
            for worker in self._beyond(lambda load: load > self.high):
                self._give(worker)
            if before == self.owners:
                return

    def _beyond(self, is_beyond: Callable[[int], bool]) -> list[int]:
        found = [worker for worker, load in enumerate(self.loads) if is_beyond(load)]
        return sorted(found, key=lambda worker: (-abs(self.loads[worker] - self.mean), worker))

    def _take(self, worker: int, takers: list[int]) -> None:
        """The slots in which it scores highest: of who was above the mean; still short, of the most loaded."""
        scores = self.scores(worker)
        rich = {other for other, load in enumerate(self.loads) if load > self.mean}.difference(takers)
        theirs = [slot for slot, owner in enumerate(self.owners) if owner in rich]
        for slot in sorted(theirs, key=scores.__getitem__, reverse=True):
            if not self.has_room(worker, 1):
                return
            owner, weight = self.owners[slot], self.weights[slot]
            if owner is not None and self.can_give(owner, weight) and self.has_room(worker, weight):
                self.move(slot, worker)
        while self.loads[worker] < self.low:
            richest = max(range(len(self.loads)), key=lambda other: (self.loads[other], other))
            gap = self.loads[richest] - self.loads[worker]
            fitting = [slot for slot in self._slots_of(richest) if self.weights[slot] < gap]
            if not fitting:
                return
            self.move(max(fitting, key=scores.__getitem__), worker)

    def _give(self, worker: int) -> None:
        """The slots in which it scores lowest, to who scores highest of those who have room, until it is near the mean;
        while it is still overloaded, to the least loaded."""
        scores = self.scores(worker)
        poor = [other for other, load in enumerate(self.loads) if load < self.mean]
        for slot in sorted(self._slots_of(worker), key=scores.__getitem__):
            weight = self.weights[slot]
            if self.loads[worker] <= self.near:
                return
            fitting = [other for other in poor if self.has_room(other, weight)]
            if fitting and self.can_give(worker, weight):
                self.move(slot, max(fitting, key=lambda other: (self.scores(other)[slot], other)))
        while self.loads[worker] > self.high:
            poorest = min(range(len(self.loads)), key=lambda other: (self.loads[other], other))
            gap = self.loads[worker] - self.loads[poorest]
            fitting = [slot for slot in self._slots_of(worker) if self.weights[slot] < gap]
            if not fitting:
                return
            self.move(min(fitting, key=scores.__getitem__), poorest)

    def _slots_of(self, worker: int) -> list[int]:
        return [slot for slot, owner in enumerate(self.owners) if owner == worker]
