"""Whose tokens are worth nothing up to when, as far as this process has heard: for while Redis is away, and for giving
it back to a Redis that has lost its data. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

__all__ = ["Revocations"]

REVOCATIONS_MAX: Final = 10_000


@final
class Revocations:
    """At most `REVOCATIONS_MAX`; the oldest is forgotten for the next. Times are Unix seconds."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float]] = {}  # user -> (tokens up to, remembered until)

    def add(self, user: str, until_s: float, keep_until_s: float) -> None:
        """What was revoked stays revoked."""
        known_s, kept_s = self._known.pop(user, (0.0, 0.0))
        if len(self._known) >= REVOCATIONS_MAX:
            del self._known[next(iter(self._known))]
        self._known[user] = (max(known_s, until_s), max(kept_s, keep_until_s))

    def covers(self, user: str, issued_at: float, now_s: float) -> bool:
        """Whether a token of then is worth nothing now."""
        until_s, kept_s = self._known.get(user, (0.0, 0.0))
        return until_s >= issued_at and kept_s > now_s

    def valid(self, now_s: float) -> Iterator[tuple[str, float, float]]:
        """(user, tokens up to, remembered for so many seconds more) of each that counts."""
        for user, (until_s, kept_s) in list(self._known.items()):
            if kept_s > now_s:
                yield user, until_s, kept_s - now_s
