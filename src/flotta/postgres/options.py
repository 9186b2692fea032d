"""The options of a pool, checked at birth, and its statistics. Values only: nothing here waits or connects."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import final

from flotta.errors import ConfigError

__all__ = ["PoolOptions", "PoolStats"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """How a ``Pool`` behaves. Times are seconds; None turns a thing off where the type allows it."""

    size_max: int = 10
    """The most connections that ever exist at once, those being made included."""
    size_min: int = 2
    """As many are kept open even when idle; ``size_max`` if that is less."""
    idle_s: float = 30.0
    """A connection above ``size_min`` that nobody has used for so long is closed."""
    lifetime_s: float = 3600.0
    """A connection is replaced at this age, less up to a tenth by chance, so that they do not all end at once."""
    connect_timeout_s: float = 5.0
    """For each host that the URL names, name look-up, TLS and authentication included."""
    acquire_timeout_s: float = 10.0
    """How long a caller waits for a connection unless it says otherwise."""
    waiting_max: int = 200
    """The most callers that may wait at once; the next gets ``PoolFull``. 0: nobody waits."""
    retry_delay_s: float = 1.0
    """After a failed connect the next attempt follows so much later; doubled with every further failure."""
    retry_delay_max_s: float = 5.0
    """Where the doubling ends."""
    check_idle_s: float | None = 1.0
    """A connection idle for longer is asked for a sign of life before it is handed out. None: never."""
    check_timeout_s: float = 2.0
    """How long that sign, a rollback, or the end of a cancelled query may take before the connection is cut."""
    prepare_threshold: int | None = 5
    """Executions of one query before it becomes a prepared statement. None: never (PgBouncer below 1.21)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_s") and value is not None and not value > 0:
                raise ConfigError(f"PoolOptions.{field.name}", value, "more than 0 seconds", source="argument")
        check_sizes(self.size_min, self.size_max)
        if self.waiting_max < 0:
            raise ConfigError("PoolOptions.waiting_max", self.waiting_max, "0 or more", source="argument")
        if self.prepare_threshold is not None and self.prepare_threshold < 0:
            raise ConfigError(
                "PoolOptions.prepare_threshold", self.prepare_threshold, "0 or more, or None", source="argument"
            )
        if self.retry_delay_max_s < self.retry_delay_s:
            raise ConfigError(
                "PoolOptions.retry_delay_max_s",
                self.retry_delay_max_s,
                f"at least retry_delay_s ({self.retry_delay_s:g})",
                source="argument",
            )


def check_sizes(size_min: int, size_max: int) -> None:
    """Raise ``ConfigError`` unless a pool can have these sizes."""
    if size_max < 1:
        raise ConfigError("PoolOptions.size_max", size_max, "1 or more", source="argument")
    if size_min < 0:
        raise ConfigError("PoolOptions.size_min", size_min, "0 or more", source="argument")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A pool at one moment. The counters start at 0 with the pool and only grow."""

    size: int
    """Connections now, in whatever state: ``idle + in_use + connecting + in_care``."""
    size_max: int
    size_min: int
    idle: int
    in_use: int
    connecting: int
    """Places taken by connections that are being made."""
    in_care: int
    """Being checked or rolled back: neither idle nor lent."""
    waiting: int
    """Callers in the queue."""
    waiting_peak: int
    """The longest that the queue has been."""
    acquired: int
    """Connections handed out."""
    waited: int
    """Of these, the ones whose caller had to queue."""
    wait_s: float
    """Seconds that served callers have spent in the queue, summed."""
    timeouts: int
    """Callers that got none in time."""
    refused: int
    """Callers that got ``PoolFull``."""
    connects: int
    """Connections made."""
    failures: int
    """Attempts to connect that failed."""
    broken: int
    """Connections thrown away because they failed a check or came back unusable."""
    retired: int
    """Connections closed because of their age, for idleness or by ``resize``."""
    fault: str | None
    """Why the latest attempt to connect failed; None if it did not. Without secrets."""
