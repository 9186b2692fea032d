"""A checker for linearizability, after Wing and Gong (1993), with Lowe's memory of configurations.

A history is linearizable if its operations can be put in one order that respects real time (what ended before another
began stays before it) and in which each gives the reply that it gave. An operation whose outcome is unknown (its reply
was lost) may have happened at any time after its call, or never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["UNKNOWN", "Operation", "is_linearizable"]


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Any = _Unknown()
"""The reply of an operation whose reply was lost."""


@dataclass(frozen=True)
class Operation:
    """One call: what was asked, when, and what came back (``UNKNOWN``: nobody knows; ``end`` is then infinite)."""

    start: float
    end: float
    call: Hashable
    reply: Any

    def __post_init__(self) -> None:
        if self.reply is UNKNOWN:
            object.__setattr__(self, "end", math.inf)


def is_linearizable(
    history: Sequence[Operation], initial: Hashable, step: Callable[[Any, Any], tuple[Hashable, Any]]
) -> bool:
    """Whether some order explains ``history``. ``step(state, call)`` gives the next state and the reply."""
    operations = sorted(history, key=lambda operation: operation.start)
    everything = (1 << len(operations)) - 1
    optional = sum(1 << i for i, operation in enumerate(operations) if operation.reply is UNKNOWN)
    seen: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    while stack:
        done, state = stack.pop()
        if done | optional == everything:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        # Only what began before the earliest end among those left can come next.
        left = [(i, operation) for i, operation in enumerate(operations) if not done >> i & 1]
        first_end = min(operation.end for _, operation in left)
        for i, operation in left:
            if operation.start > first_end:
                break
            after, reply = step(state, operation.call)
            if operation.reply is UNKNOWN or operation.reply == reply:
                stack.append((done | 1 << i, after))
    return False
