"""Which instances are alive, judged by their beats. Pure: time comes in as a number.

Every instance changes its entry in a map once a second. Whoever reads judges by its own clock since it last saw the
entry change, so clocks that differ between hosts do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

__all__ = ["Alive"]

ALIVE_S = 3.5
FORGET_S = 60.0


@final
class Alive:
    """Sees the entries of all instances again and again."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Any, float]] = {}

    def look(self, entries: Mapping[str, Any], *, now_s: float) -> list[str]:
        """The instances whose entry changed not long ago, by name; call it at least every second."""
        for name, entry in entries.items():
            known = self._seen.get(name)
            if known is None or known[0] != entry:
                self._seen[name] = (entry, now_s)
        for name in self._seen.keys() - entries.keys():
            del self._seen[name]
        return sorted(name for name, (_, changed_s) in self._seen.items() if now_s - changed_s < ALIVE_S)

    def gone(self, *, now_s: float) -> list[str]:
        """Instances that have been silent for a minute: their entries may be removed."""
        return [name for name, (_, changed_s) in self._seen.items() if now_s - changed_s > FORGET_S]
