"""What a link logs about its connection: the beginning and the end of an outage, not its attempts.

Owns: what is worth a line; ``LinkStats`` counts the rest. Invariants: an outage of hours is one warning for each
different reason and one line when it is over; a connection that comes and goes again at once belongs to the outage
before.
"""

from __future__ import annotations

from typing import Any, final

__all__ = ["OutageLog"]

_STEADY_S = 10.0


@final
class OutageLog:
    """The log of one link. Times are the event loop's."""

    def __init__(self, logger: Any, address: str) -> None:
        self._logger = logger
        self._address = address
        self._told: set[str] = set()
        self._is_down_told = False
        self._up_since_s = 0.0

    def lost(self, reason: str, now_s: float) -> None:
        """A connection that was up has ended."""
        if now_s - self._up_since_s >= _STEADY_S:
            self._told.clear()
        self._tell("redis link lost", reason)

    def refused(self, reason: str) -> None:
        """An attempt has failed."""
        self._tell("redis link cannot connect", reason)

    def up(self, now_s: float) -> None:
        """A connection is up."""
        self._up_since_s = now_s
        if self._is_down_told:
            self._is_down_told = False
            self._logger.info("redis link is up", address=self._address)

    def _tell(self, event: str, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            self._is_down_told = True
            self._logger.warning(event, address=self._address, reason=reason)
