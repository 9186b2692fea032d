"""How fast one client may send: a bucket of tokens that holds one second's worth."""

from __future__ import annotations

from typing import final

__all__ = ["Rate"]


@final
class Rate:
    """One client's bucket. At least one token fits, so that rates below one per second work too."""

    __slots__ = ("_at_s", "_per_s", "_tokens")

    def __init__(self, per_s: float, now_s: float) -> None:
        self._per_s = per_s
        self._tokens = max(per_s, 1.0)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Take a token. False: there is none."""
        self._tokens = min(max(self._per_s, 1.0), self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
