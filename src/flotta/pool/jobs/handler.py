"""Jobs as an object with ``start``, ``stop`` and, if it wants them, notifications: the form that Go Pulse has.

Owns how such an object becomes a job's function. Invariants: ``stop`` is awaited exactly once for each ``start`` that
returned, whatever ended the job here, also a hand-over; a start that raises is never stopped. The job is started when
``start`` has returned; it then runs until it is stopped, handed over or shut down.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import structlog

from flotta.errors import ConfigError
from flotta.pool.backoff import Backoff
from flotta.pool.jobs.job import Job
from flotta.pool.jobs.runs import JobKind

__all__ = ["Handler", "NotificationHandler", "kind_of", "run_handler"]


class Handler(Protocol):
    """What ``Node.add_worker`` takes."""

    async def start(self, job: Job[Any]) -> None:
        """Start the job and return: what it does meanwhile is the handler's own. If it raises, ``dispatch`` raises
        ``StartFailed`` with its message; if the job had started before (elsewhere), that counts as a crash.

        It may be cancelled before it has returned (the job is stopped, moves or is lost): then ``stop`` is not called.
        """

    async def stop(self, job: Job[Any]) -> None:
        """End what ``start`` began; ``job.stop_reason`` says why. ``job.checkpoint`` is still allowed, but for
        ``FENCED``. What it raises is logged, unless the job was lost, and changes nothing. It is cancelled only where
        the close of the node is out of time, or the job is lost meanwhile.
        """


@runtime_checkable
class NotificationHandler(Protocol):
    """What a handler has, too, if it wants notifications."""

    async def notify(self, job: Job[Any], payload: bytes) -> None:
        """One notification; they come one after the other, in order. If it raises, that is logged and the job goes
        on. Cancelled with the job: the notification is not done, and comes again where the job goes on. Without this
        method they are dropped."""


def kind_of(handler: Handler, *, backoff: Backoff, crashes_reset_s: float, logger: Any = None) -> JobKind:
    """How a worker runs jobs with ``handler``. Raises ``ConfigError`` for what is none."""
    given: Any = handler
    methods = (getattr(given, name, None) for name in ("start", "stop"))
    if isinstance(given, type) or not all(callable(method) for method in methods):
        raise ConfigError(
            "handler", given, "an object with async methods start(job) and stop(job)", source="add_worker"
        )

    async def run(job: Job[Any]) -> None:
        await run_handler(handler, job, logger)

    return JobKind(name="", run=run, explicit=True, backoff=backoff, crashes_reset_s=crashes_reset_s)


async def run_handler(handler: Handler, job: Job[Any], logger: Any = None) -> None:
    """Run ``job`` with ``handler`` until it is cancelled. Cancelling stops it."""
    await handler.start(job)
    job.ready()
    try:
        listener = handler if isinstance(handler, NotificationHandler) else None
        async for note in job.notifications():  # also those that nobody wants: unread, they would fill the inbox
            if listener is not None and note is not None:
                await _notify(listener, job, note.payload, logger)
    finally:
        await handler.stop(job)


async def _notify(handler: NotificationHandler, job: Job[Any], payload: bytes, logger: Any) -> None:
    try:
        await handler.notify(job, payload)
    except Exception:
        log = logger or structlog.get_logger("flotta.pool")
        log.exception("a handler failed to take a notification", job=job.key)
