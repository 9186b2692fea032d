"""How a map behaves: every time and limit of it, with its default. Owns the checks: a wrong value stops at birth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from flotta.errors import ConfigError
from flotta.rmap.replica import PENDING_MAX

__all__ = ["MapOptions", "check_ttl"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class MapOptions:
    """Times in seconds. Raises ConfigError at birth if a value makes no sense."""

    load_timeout_s: float = 30.0
    """The most that one reading of the whole map may take."""
    wait_timeout_s: float = 10.0
    """How long ``set_and_wait`` waits for its write to come back, unless the call says otherwise."""
    check_interval_s: float | None = 30.0
    """How often the revision is compared with that in Redis (jittered). It notices what no message tells: FLUSHALL, a
    hash deleted by hand, a last message lost. None: never."""
    reload_delay_min_s: float = 0.05
    """The pause before reading the map again after a failure; it doubles (jittered) with each in a row ..."""
    reload_delay_max_s: float = 2.0
    """... up to this."""
    pending_max: int = PENDING_MAX
    """Messages kept while the map is read; with more it is read again."""

    def __post_init__(self) -> None:
        for name in ("load_timeout_s", "wait_timeout_s", "reload_delay_min_s", "reload_delay_max_s"):
            _check_seconds(name, getattr(self, name), "MapOptions")
        if self.check_interval_s is not None:
            _check_seconds("check_interval_s", self.check_interval_s, "MapOptions")
        if self.reload_delay_max_s < self.reload_delay_min_s:
            raise ConfigError(
                "reload_delay_max_s", self.reload_delay_max_s, "reload_delay_min_s or more", source="MapOptions"
            )
        if self.pending_max < 1:
            raise ConfigError("pending_max", self.pending_max, "a whole number from 1 on", source="MapOptions")


def _check_seconds(name: str, value: object, source: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(name, value, "a finite number of seconds above 0", source=source)


def check_ttl(ttl_s: float | None, *, sliding: bool) -> int:
    """A time to live in whole milliseconds; 0 for none. Raises ConfigError."""
    if ttl_s is None:
        if sliding:
            raise ConfigError("sliding", sliding, "False without ttl_s", source="Map")
        return 0
    _check_seconds("ttl_s", ttl_s, "Map")
    return max(1, round(ttl_s * 1000))
