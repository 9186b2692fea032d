"""Who is due next, for deadlines that all lie the same time ahead: one queue instead of a timer per session.

Because every `put` adds the same ``delay_s`` to a clock that does not go back, the order of insertion is the order of
the deadlines, and every operation is O(1).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, TypeVar, final

__all__ = ["Wheel"]

K = TypeVar("K", bound=Hashable)


@final
class Wheel(Generic[K]):
    """Keys, each due ``delay_s`` after it was put in last."""

    __slots__ = ("_due_s", "delay_s")

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self._due_s: dict[K, float] = {}

    def put(self, key: K, now_s: float) -> None:
        """Make ``key`` due ``delay_s`` from now; an earlier deadline of it is forgotten."""
        self._due_s.pop(key, None)
        self._due_s[key] = now_s + self.delay_s

    def drop(self, key: K) -> None:
        """Forget ``key``; unknown keys are fine."""
        self._due_s.pop(key, None)

    def take_due(self, now_s: float) -> list[K]:
        """Take out every key that is due, the oldest first."""
        due: list[K] = []
        for key, due_s in self._due_s.items():
            if due_s > now_s:
                break
            due.append(key)
        for key in due:
            del self._due_s[key]
        return due

    def first(self) -> K | None:
        """The key that is due first; None if there is none."""
        return next(iter(self._due_s), None)

    def next_due_s(self) -> float:
        """When the first key is due; infinity if there is none."""
        return next(iter(self._due_s.values()), math.inf)

    def __len__(self) -> int:
        return len(self._due_s)
