"""The pause before a job that crashed runs again.

Invariant: the pause grows with each crash up to a limit, and a random part of it keeps many jobs that crashed together
(their database was away) from coming back in one instant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, final

from flotta.errors import ConfigError

__all__ = ["Backoff"]

_SOURCE = "Backoff"
_EXPONENT_MAX: Final = 1_000  # any larger one would overflow a float long after ``max_s`` was reached


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Backoff:
    """``first_s`` after the first crash, each pause ``factor`` times the one before, never more than ``max_s``; a
    random part of up to ``jitter`` (0 to 1) of it is taken off. Seconds.

    Raises ``ConfigError`` at birth if a value makes no sense.
    """

    first_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        self._require("first_s", lambda value: 0 <= value < math.inf, "a finite number of seconds from 0 on")
        self._require("factor", lambda value: 1 <= value < math.inf, "a finite number from 1 on")
        self._require("max_s", lambda value: self.first_s <= value < math.inf, "first_s or more, and finite")
        self._require("jitter", lambda value: 0 <= value <= 1, "a number from 0 to 1")

    def pause_s(self, crashes: int, chance: float) -> float:
        """Seconds to wait after crash number ``crashes`` (1 for the first); ``chance`` is a random number, 0 to 1."""
        exponent = min(max(crashes - 1, 0), _EXPONENT_MAX)
        try:
            whole_s = min(self.first_s * self.factor**exponent, self.max_s)
        except OverflowError:
            whole_s = self.max_s
        return whole_s * (1.0 - self.jitter * chance)

    def _require(self, name: str, is_right: Any, allowed: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_right(value):
            raise ConfigError(name, value, allowed, source=_SOURCE)
