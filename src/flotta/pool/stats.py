"""What a pool has done in this process: counts, the time that dispatches took, and the keys that stand out.

Invariants: counting costs no I/O and no memory that grows: buckets are fixed, and of keys only the most frequent are
kept. Figures of the whole pool are asked of Redis (``Node.pool_stats``), not added up from processes.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final, final

__all__ = ["LATENCY_BUCKETS_S", "Counts", "Frequent", "Histogram", "NodeStats"]

LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
"""Upper bounds of the buckets of the dispatch latency, in seconds; one more holds everything above."""
_KEYS_MAX: Final = 128
_FAILING_MIN: Final = 3
_BUSY_SHARE_MIN: Final = 0.1


@final
class Histogram:
    """How many values fell below each of ``LATENCY_BUCKETS_S``, their number and their sum in seconds."""

    __slots__ = ("buckets", "count", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self.count = 0
        self.sum_s = 0.0

    def add(self, value_s: float) -> None:
        """One more value."""
        self.buckets[bisect_left(LATENCY_BUCKETS_S, value_s)] += 1
        self.count += 1
        self.sum_s += value_s


@final
class Frequent:
    """The keys that occur most often, about: the space-saving algorithm of Metwally, Agrawal and El Abbadi (2005).

    A key whose share of all occurrences is above 1 / ``limit`` is always there; a count may be too high by the smallest
    one, never too low.
    """

    __slots__ = ("_by_count", "_counts", "_least", "limit", "total")

    def __init__(self, limit: int = _KEYS_MAX) -> None:
        self.limit = limit
        self.total = 0
        self._counts: dict[str, int] = {}
        self._by_count: dict[int, dict[str, None]] = {}  # so that one of the rarest is found without a search
        self._least = 1

    def add(self, key: str) -> None:
        """One more occurrence."""
        self.total += 1
        counts, by_count = self._counts, self._by_count
        count = counts.get(key, 0)
        if not count:
            if len(counts) < self.limit:
                self._least = 1
            else:
                count = self._least
                rarest = next(iter(by_count[count]))
                del counts[rarest], by_count[count][rarest]
        else:
            del by_count[count][key]
        counts[key] = count + 1
        by_count.setdefault(count + 1, {})[key] = None
        if count and not by_count[count]:
            del by_count[count]
            if count == self._least:
                self._least = count + 1  # where this key is now

    def top(self, count: int = 10, *, share_min: float = 0.0) -> list[tuple[str, int]]:
        """The most frequent keys with their counts, of at least ``share_min`` (0 to 1) of all occurrences each."""
        least = share_min * self.total
        ranked = sorted(self._counts.items(), key=lambda item: -item[1])
        return [(key, number) for key, number in ranked[:count] if number >= least]


@final
@dataclass(slots=True)
class Counts:
    """What is being counted. Only the parts of a node write here."""

    dispatched: int = 0
    refused: int = 0
    claimed: int = 0
    started: int = 0
    failed: int = 0
    finished: int = 0
    stopped: int = 0
    crashed: int = 0
    dead: int = 0
    moved: int = 0
    stayed: int = 0
    declined: int = 0
    fenced: int = 0
    stuck: int = 0
    leases_lost: int = 0
    notified: int = 0
    noted: int = 0
    latency: Histogram = field(default_factory=Histogram)
    failing: Frequent = field(default_factory=Frequent)
    busy: Frequent = field(default_factory=Frequent)

    def snapshot(self, *, running: int, workers: int) -> NodeStats:
        """All of it as of now."""
        return NodeStats(
            running=running,
            workers=workers,
            dispatched=self.dispatched,
            refused=self.refused,
            started=self.started,
            failed=self.failed,
            finished=self.finished,
            stopped=self.stopped,
            crashed=self.crashed,
            dead=self.dead,
            moved=self.moved,
            stayed=self.stayed,
            declined=self.declined,
            fenced=self.fenced,
            stuck=self.stuck,
            leases_lost=self.leases_lost,
            notified=self.notified,
            noted=self.noted,
            latency_buckets=tuple(self.latency.buckets),
            latency_count=self.latency.count,
            latency_sum_s=self.latency.sum_s,
            failing_keys=tuple((key, number) for key, number in self.failing.top() if number >= _FAILING_MIN),
            busy_keys=tuple(self.busy.top(share_min=_BUSY_SHARE_MIN)),
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStats:
    """Counts of this process since its node joined. ``running`` and ``workers`` are as of now."""

    running: int
    """Jobs that run here, or wait here after a crash."""
    workers: int
    dispatched: int
    """Dispatches from here that a worker has started."""
    refused: int
    """Dispatches from here that raised."""
    started: int
    """Runs begun here: first ones, later attempts and ones taken over."""
    failed: int
    """Jobs that ended here before they were ready."""
    finished: int
    """Jobs that returned here."""
    stopped: int
    """Jobs that ended here because they were stopped."""
    crashed: int
    dead: int
    """Jobs that became dead letters here."""
    moved: int
    """Jobs handed over from here."""
    stayed: int
    """Jobs that did not end in time to be handed over and stayed."""
    declined: int
    """Jobs given back because nothing here knows their kind."""
    fenced: int
    """Runs that this process lost: somebody else may have the job."""
    stuck: int
    """Jobs that had not ended when their time to stop was over."""
    leases_lost: int
    notified: int
    """Notifications sent from here."""
    noted: int
    """Notifications that reached jobs here."""
    latency_buckets: tuple[int, ...]
    """Dispatches by the time until the job had started: below each of ``LATENCY_BUCKETS_S``, and above."""
    latency_count: int
    latency_sum_s: float
    failing_keys: tuple[tuple[str, int], ...]
    """Keys whose jobs crash or fail to start again and again here (3 times or more), the worst first."""
    busy_keys: tuple[tuple[str, int], ...]
    """Keys that make up 10 % or more of the dispatches and notifications from here, the busiest first."""
