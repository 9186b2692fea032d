"""Which reports are due when, round after round. Pure: time comes in as a number.

Every round plays the hour anew, an hour after the last one ended: within that hour any vessel can have sailed from
where it ended to where it began, so the jump back is no impossible speed. So the told times run faster than the clock,
at least twice as fast: they are the times of a calendar of the feed's own, which begins in the past and passes the
clock sooner or later. A service that takes this feed must allow times in the future (``HARBOR_FUTURE_MAX_DAYS``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import final

from harbor.replay.recording import Recording, Report

__all__ = ["Timeline"]

BREAK_S = 3_600.0


@final
class Timeline:
    """Plays ``recording`` at ``speed``; told times begin at ``start_s`` (seconds since 1970)."""

    def __init__(self, recording: Recording, *, speed: float, start_s: float) -> None:
        self._recording = recording
        self._speed = speed
        self._start_s = start_s
        self._times = [report.at_s for report in recording.reports]
        self._next = 0
        self._round = 0

    @property
    def round(self) -> int:
        """The number of the round that is being played, from 0."""
        return self._round

    def told_s(self, report: Report) -> float:
        """The time that a report of the current round tells."""
        return self._start_s + self._round * (self._recording.length_s + BREAK_S) + report.at_s

    def due(self, elapsed_s: float) -> Iterator[tuple[float, Report]]:
        """The reports that became due since the last call, with the times they tell. ``elapsed_s``: clock time since
        the beginning. The break between two rounds takes no clock time."""
        played_s = elapsed_s * self._speed
        while True:
            within_s = played_s - self._round * self._recording.length_s
            end = bisect_right(self._times, within_s)
            for report in self._recording.reports[self._next : end]:
                yield self.told_s(report), report
            self._next = max(self._next, end)
            if within_s < self._recording.length_s:
                return
            self._round += 1
            self._next = 0
