"""When a lease may be trusted, when a node should beat, and what counts as an outage. Pure: decides, never waits.

Owns the local half of a worker's lease. Invariants (river's rule: a lease counts from when its attempt *started*):

* A lease is trusted only before ``start of a confirmed attempt + ttl - margin``. The server counts its ttl from a
  moment that cannot lie before the start of the attempt, so its lease ends later than the trust.
* What is lost is lost: no event brings a lost lease back, also not a confirmation that was on its way.
* A loop that has not turned for a whole ttl loses the lease, however well the beats get through.
* A loss is reported exactly once, as the answer to the event that brought it.

Times are seconds of one clock that never goes back and also counts while the machine sleeps (``boottime.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, final

__all__ = ["LeaseMachine", "LeaseState", "LeaseTimes", "Loss", "Rhythm"]

_MARGIN_S_MAX: Final = 1.0


class LeaseState(Enum):
    """HELD, or ended for good in one of two ways."""

    HELD = "held"
    LOST = "lost"
    LEFT = "left"


class Loss(Enum):
    """Why a lease was lost."""

    EXPIRED = "no beat was confirmed in time"
    REFUSED = "Redis says that it has ended"
    BLOCKED = "the event loop has not turned for a whole ttl"

    @property
    def lets_go(self) -> bool:
        """Whether the server may still hold the lease, so that it should be told to end it."""
        return self is not Loss.REFUSED


@final
@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """What follows from the ttl of a lease."""

    ttl_s: float

    @property
    def margin_s(self) -> float:
        """The trust ends so much before the lease can: clocks drift, and what was begun in trust needs to arrive."""
        return min(_MARGIN_S_MAX, self.ttl_s / 10)

    @property
    def period_s(self) -> float:
        """From one beat to the next: four may fail."""
        return self.ttl_s / 5

    @property
    def retry_s(self) -> float:
        """From the start of a beat that failed to the next."""
        return self.ttl_s / 20


@final
class LeaseMachine:
    """The lease of one worker. ``started_s``: when the attempt to join began."""

    __slots__ = ("_turned_s", "loss", "state", "times", "trusted_until_s")

    def __init__(self, times: LeaseTimes, started_s: float, *, turned_s: float | None = None) -> None:
        self.times = times
        self.state = LeaseState.HELD
        self.loss: Loss | None = None
        self.trusted_until_s = self._trust_from(started_s)
        self._turned_s = started_s if turned_s is None else turned_s

    def trusted(self, now_s: float) -> bool:
        """Whether what the lease covers may be used and written at this moment."""
        return now_s < self.trusted_until_s and self.state is LeaseState.HELD

    def beat_confirmed(self, started_s: float, now_s: float) -> Loss | None:
        """The server has renewed the lease in an attempt that began at ``started_s``."""
        loss = self.tick(now_s)
        if self.state is LeaseState.HELD:
            self.trusted_until_s = max(self.trusted_until_s, self._trust_from(started_s))
        return loss

    def beat_lost(self) -> Loss | None:
        """The server says that the lease has ended."""
        return self._lose(Loss.REFUSED)

    def loop_turned(self, now_s: float) -> Loss | None:
        """The main loop has run a callback. If it comes too late, it is too late."""
        loss = self.tick(now_s)
        self._turned_s = max(self._turned_s, now_s)
        return loss

    def left(self) -> None:
        """The worker has given the lease back. Again, or after a loss: harmless."""
        if self.state is LeaseState.HELD:
            self.state = LeaseState.LEFT

    def tick(self, now_s: float) -> Loss | None:
        """Time has passed."""
        if now_s - self._turned_s >= self.times.ttl_s:
            return self._lose(Loss.BLOCKED)
        if now_s >= self.trusted_until_s:
            return self._lose(Loss.EXPIRED)
        return None

    def _trust_from(self, started_s: float) -> float:
        return started_s + self.times.ttl_s - self.times.margin_s

    def _lose(self, loss: Loss) -> Loss | None:
        if self.state is not LeaseState.HELD:
            return None
        self.state, self.loss = LeaseState.LOST, loss
        return loss


@final
class Rhythm:
    """When a node should beat next, and whether it had an outage lately.

    An outage is a gap between two confirmed beats that is longer than a period and a third of a ttl, whoever caused
    it: Redis, the network, or this process that was held up. Who had one cannot tell a dead worker from one that Redis
    did not hear, and blames nobody for dying (``blameless``).
    """

    __slots__ = ("_confirmed_s", "_failed", "_outage_s", "_started_s", "times")

    def __init__(self, times: LeaseTimes, started_s: float) -> None:
        self.times = times
        self._started_s = self._confirmed_s = started_s
        self._failed = False
        self._outage_s: float | None = None

    def due_s(self) -> float:
        """When the next beat should start."""
        return self._started_s + (self.times.retry_s if self._failed else self.times.period_s)

    def beat_started(self, now_s: float) -> None:
        """An attempt begins. There is at most one at a time."""
        self._started_s = now_s

    def beat_failed(self) -> None:
        """It had no answer, or an error."""
        self._failed = True

    def beat_confirmed(self, now_s: float) -> None:
        """The attempt that began last was answered."""
        if self._is_gap(self._started_s):
            self._outage_s = now_s
        self._failed = False
        self._confirmed_s = self._started_s

    def blameless(self, now_s: float) -> bool:
        """Whether there is an outage now, or the last one ended within two ttl."""
        if self._is_gap(now_s):
            return True
        return self._outage_s is not None and now_s - self._outage_s < 2 * self.times.ttl_s

    def gap_s(self, now_s: float) -> float:
        """For how long this node was not heard, if there is an outage now; else 0."""
        return now_s - self._confirmed_s if self._is_gap(now_s) else 0.0

    def _is_gap(self, until_s: float) -> bool:
        return until_s - self._confirmed_s > self.times.period_s + self.times.ttl_s / 3
