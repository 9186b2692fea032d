"""How a pool behaves: every limit and time of it, with its default, checked at birth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

from flotta.errors import ConfigError

__all__ = ["PoolOptions", "is_number"]

_SOURCE = "PoolOptions"


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number: what all times and factors must be before they are compared."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class PoolOptions:
    """Times in seconds, sizes in bytes, limits in what their names say. All nodes of a pool should have the same.

    Raises ``ConfigError`` at birth if a value makes no sense.
    """

    client_only: bool = False
    """This node dispatches and enqueues; it never has a worker and never coordinates."""
    worker_ttl_s: float = 30.0
    """The lease of a worker. One that has not renewed it for so long is dead: its jobs and tasks run elsewhere."""
    ack_grace_s: float = 20.0
    """A job that its worker has not claimed within this time is offered to another worker."""
    dispatch_timeout_s: float = 40.0
    """How long ``dispatch`` waits until a worker has started the job."""
    stop_timeout_s: float = 30.0
    """How long ``stop`` waits until the job has ended."""
    close_timeout_s: float = 25.0
    """How long ``close`` waits for jobs to be handed on and for running tasks to end; then it cancels them."""
    shutdown_ttl_s: float = 120.0
    """How long ``shutdown`` waits for the workers everywhere; then it takes away what they have."""
    handover_timeout_s: float = 10.0
    """How long a job that should move may take to end after it was cancelled. One that takes longer stays."""
    handover_concurrency: int = 50
    """Jobs of one worker that are handed over at a time; all that are left in the second half of a ``close``."""
    rebalance_debounce_s: float = 0.5
    """The pause after workers came or went before the slots are distributed anew. A death is not debounced."""
    queue_max_per_worker: int = 1_000
    """Jobs that may wait to be claimed, times the number of live workers. More are refused at once."""
    tasks_waiting_max: int = 1_000_000
    """Tasks that may wait, be due later or wait for their key. More are refused at once."""
    inbox_max: int = 100_000
    """Notifications and doorbells that may wait for one worker. More notifications are refused at once."""
    payload_bytes_max: int = 1_048_576
    """The largest payload of a job, task, notification, checkpoint or result."""
    tasks_max: int = 100
    """Tasks that one worker runs at a time."""
    dead_max: int = 10_000
    """Dead letters that are kept, about; the oldest go first."""

    def __post_init__(self) -> None:
        """Check every value."""
        for name in (
            "worker_ttl_s",
            "ack_grace_s",
            "dispatch_timeout_s",
            "stop_timeout_s",
            "close_timeout_s",
            "shutdown_ttl_s",
            "handover_timeout_s",
        ):
            self._check(name, 0.0, "a finite number of seconds above 0")
        self._check("rebalance_debounce_s", -1e-9, "a finite number of seconds from 0 on")
        for name in (
            "handover_concurrency",
            "queue_max_per_worker",
            "tasks_waiting_max",
            "inbox_max",
            "payload_bytes_max",
            "tasks_max",
            "dead_max",
        ):
            self._check(name, 0, "a whole number from 1 on", whole=True)
        client_only: Any = self.client_only
        if not isinstance(client_only, bool):
            raise self._wrong("client_only", "True or False")
        if self.worker_ttl_s < 0.5:
            raise self._wrong("worker_ttl_s", "0.5 s or more: it is renewed five times in that time")

    def _check(self, name: str, above: float, allowed: str, *, whole: bool = False) -> None:
        value: Any = getattr(self, name)
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not above < value < math.inf:
            raise self._wrong(name, allowed)

    def _wrong(self, name: str, allowed: str) -> ConfigError:
        return ConfigError(name, getattr(self, name), allowed, source=_SOURCE)
