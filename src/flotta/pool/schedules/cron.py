"""Cron expressions and plain intervals: when one comes round next. Pure: the time comes in, the next time goes out.

Invariants: what comes out is later than what came in; the same input gives the same output on every node, so that nodes
agree on the next time without talking. Times travel as milliseconds since 1970 UTC; the time zone only decides which of
them an expression means.

Daylight saving follows Debian's cron (cronsim's rule): an expression with a fixed hour and minute (``30 2 * * *``) runs
once a day, also on the day whose clock skips that time (then right after the gap) or has it twice (then the first).
One with a ``*`` in its hours or minutes (``*/15 * * * *``) goes by real time, so it neither stops nor repeats itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from flotta.errors import ConfigError

__all__ = ["Cron", "Every", "Recurrence"]

_ALLOWED: Final = (
    "five fields (minute hour day-of-month month day-of-week), or six with seconds first, or @hourly, @daily, @weekly, "
    "@monthly, @yearly: '*/5 * * * *', '0 2 * * MON-FRI', '30 8 L * *'"
)
_SHORT: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
EVERY_S_MIN: Final = 0.1
EVERY_S_MAX: Final = 366 * 24 * 3600.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_STEPS_MAX: Final = 200
"""Times that may lie before the one asked for: those of one repeated hour, at most one a minute."""


class Recurrence(Protocol):
    """Something that comes round. ``str`` of it names it: two with the same name come round at the same times."""

    def next_ms(self, after_ms: int) -> int | None:
        """The first time after ``after_ms``, in milliseconds since 1970 UTC; None: never."""
        ...

    def last_ms(self, after_ms: int, until_ms: int) -> int | None:
        """The last time in (``after_ms``, ``until_ms``]; None: there is none."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Every:
    """Every ``seconds`` (0.1 to 366 days), at the multiples of it since 1970 UTC: nodes agree without talking, and so
    do restarts. Raises ``ConfigError`` at birth."""

    seconds: float

    def __post_init__(self) -> None:
        seconds: Any = self.seconds
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not EVERY_S_MIN <= seconds <= EVERY_S_MAX:
            raise ConfigError("seconds", seconds, f"{EVERY_S_MIN} to {EVERY_S_MAX:.0f} seconds", source="every")

    def __str__(self) -> str:
        return f"every {self._ms / 1000:.15g} s"

    def next_ms(self, after_ms: int) -> int | None:
        """As for `Recurrence`; never None."""
        return (after_ms // self._ms + 1) * self._ms

    def last_ms(self, after_ms: int, until_ms: int) -> int | None:
        """As for `Recurrence`."""
        last_ms = until_ms // self._ms * self._ms
        return last_ms if last_ms > after_ms else None

    @property
    def _ms(self) -> int:
        return round(self.seconds * 1000)


@final
@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone (an IANA name; default UTC).

    Raises ``ConfigError`` at birth if the expression cannot be read, never comes round, or the zone is unknown.
    """

    expression: str
    tz: str = "UTC"
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)
    _plain: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_plain", _SHORT.get(self.expression, self.expression))
        try:
            object.__setattr__(self, "_zone", ZoneInfo(self.tz))
        except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
            allowed = "an IANA time zone such as Europe/Rome (where the system has none: install the package tzdata)"
            raise ConfigError("tz", self.tz, allowed, source="cron") from error
        try:
            CronSim(self._plain, _EPOCH)
        except (CronSimError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError("expression", self.expression, f"{_ALLOWED} ({error})", source="cron") from error
        if self.next_ms(0) is None:
            raise ConfigError("expression", self.expression, "one that comes round within 50 years", source="cron")

    def __str__(self) -> str:
        return f"{self.expression} {self.tz}"

    def next_ms(self, after_ms: int) -> int | None:
        """The first time after ``after_ms``, in milliseconds since 1970 UTC; None: not within 50 years."""
        after = (_EPOCH + timedelta(milliseconds=after_ms)).astimezone(self._zone)
        times = CronSim(self._plain, after)
        for _ in range(_STEPS_MAX):
            found = next(times, None)
            if found is None:
                return None
            found_ms = (found.astimezone(UTC) - _EPOCH) // _MS
            if found_ms > after_ms:  # inside a repeated hour cronsim counts from its first turn
                return found_ms
        raise AssertionError(f"{self} does not get past {after}")

    def last_ms(self, after_ms: int, until_ms: int) -> int | None:
        """The last time in (``after_ms``, ``until_ms``]; None if there is none. For what was missed."""
        span_ms = 60_000
        while True:
            begin_ms = max(until_ms - span_ms, after_ms)
            last: int | None = None
            following = self.next_ms(begin_ms)
            while following is not None and following <= until_ms:
                last, following = following, self.next_ms(following)
            if last is not None or begin_ms == after_ms:
                return last
            span_ms *= 8
