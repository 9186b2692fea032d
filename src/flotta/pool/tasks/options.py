"""How a task is retried, held apart from others of its key, and slowed down. Checked when it is declared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, final

from flotta.errors import ConfigError
from flotta.pool.backoff import Backoff

__all__ = ["PerKey", "Rate", "Retry"]

Exceptions = tuple[type[BaseException], ...]
_US: Final = 1_000_000


def _require(source: str, name: str, value: Any, is_right: Callable[[Any], bool], allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_right(value):
        raise ConfigError(name, value, allowed, source=source)


@final
@dataclass(frozen=True, slots=True)
class Retry:
    """Run a task that raised again, up to ``retries`` times, each pause of ``backoff`` longer than the one before.

    Only exceptions of the types ``on`` and of none of ``unless`` count; others fail the task at once. Without a
    ``Retry`` every exception does. A worker that died is no failure of the task: see ``worker_losses_max``.
    """

    retries: int = 3
    backoff: Backoff = field(default=Backoff(first_s=1.0, factor=2.0, max_s=600.0, jitter=0.5), kw_only=True)
    on: Exceptions = field(default=(Exception,), kw_only=True)
    unless: Exceptions = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        """Check every value. Raises ``ConfigError``."""
        whole = "a whole number from 0 on"
        _require("Retry", "retries", self.retries, lambda value: isinstance(value, int) and value >= 0, whole)
        for name in ("on", "unless"):
            types = getattr(self, name)
            if not isinstance(types, tuple) or not all(isinstance(t, type) and issubclass(t, Exception) for t in types):
                raise ConfigError(name, types, "a tuple of exception types", source="Retry")

    def allows(self, error: BaseException, failures: int) -> bool:
        """Whether a task that has failed ``failures`` times, this one included, runs again."""
        return failures <= self.retries and isinstance(error, self.on) and not isinstance(error, self.unless)


@final
@dataclass(frozen=True, slots=True)
class PerKey:
    """At most ``limit`` tasks of one ``key`` (a template such as ``"{tenant}"``) run at a time, in the whole fleet.

    With a limit of 1 they also run in the order in which they were enqueued, retries included: a task that waits for
    its retry keeps the others waiting. ``group``: tasks that share it share their keys (default: each task its own).
    """

    key: str
    limit: int = 1
    group: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check every value. Raises ``ConfigError``."""
        whole = "a whole number from 1 on"
        _require("PerKey", "limit", self.limit, lambda value: isinstance(value, int) and value >= 1, whole)


@final
@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``count`` runs begin in ``per_s`` seconds, in the whole fleet, evenly spaced; if there
    is a ``key`` (a template), of each of its values. Retries are runs, too.

    ``burst``: so many may begin at once after a quiet time (then ``count + burst - 1`` fit into one period).
    ``group``: tasks that share it share the rate (default: each task its own).
    """

    count: int
    per_s: float = 1.0
    key: str = field(default="", kw_only=True)
    burst: int = field(default=1, kw_only=True)
    group: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check every value. Raises ``ConfigError``."""
        whole = "a whole number from 1 on"
        for name in ("count", "burst"):
            _require("Rate", name, getattr(self, name), lambda value: isinstance(value, int) and value >= 1, whole)
        _require("Rate", "per_s", self.per_s, lambda v: 0 < v < math.inf, "a finite number of seconds above 0")

    @property
    def interval_us(self) -> int:
        """Microseconds between two runs."""
        return max(1, round(self.per_s * _US / self.count))
