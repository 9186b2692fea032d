"""Runs the handlers of raw Engine.IO clients: one after the other per client, bounded, owned.

What a client sends while its handler runs waits; when ``backlog_max`` messages do, its connection is not read until
half of them are done. The ``connect`` handler is the first in line and ``disconnect`` the last.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol, TypeAlias, final

from flotta.errors import ConnectRefused
from flotta.realtime.engine.running import ANY_FAILURE, Running, let_cancelling_through

__all__ = ["Handling", "Job", "Lane"]

Handler: TypeAlias = Callable[..., Any]


class Job(NamedTuple):
    """One call of a handler."""

    name: str
    args: tuple[Any, ...]


class Lane(Protocol):
    """The client that handlers run for."""

    sid: str
    jobs: deque[Job] | None
    """What waits while a handler runs; None: none does."""
    held: bool
    """It is not read, because too much waits."""
    refused: bool
    """Its ``connect`` handler said no: nothing more is handled."""

    def pause(self) -> None:
        """Read no further."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...

    def refuse(self) -> None:
        """End the connection."""
        ...


@final
class Handling(Running):
    """The handlers by name, and the tasks of those that are async."""

    def __init__(self, *, backlog_max: int, logger: Any) -> None:
        super().__init__()
        self.handlers: dict[str, Handler] = {}
        self.failed = 0
        """Handlers that raised."""
        self._backlog_max = backlog_max
        self._log = logger

    def begin(self, lane: Lane, job: Job) -> None:
        """Run the first handler of a client that was made with ``jobs`` set: what came meanwhile follows."""
        waiting = lane.jobs
        lane.jobs = None
        self.submit(lane, job)
        while waiting:
            self.submit(lane, waiting.popleft())

    def submit(self, lane: Lane, job: Job) -> None:
        """Run the handler now, or when its turn comes."""
        if lane.jobs is None:
            lane.jobs = deque()
            rest = self._next(lane, job)
            if rest is not None:
                task = asyncio.get_running_loop().create_task(self._work(lane, rest), name=f"handlers {lane.sid}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return
        lane.jobs.append(job)
        if len(lane.jobs) >= self._backlog_max and not lane.held:
            lane.held = True
            lane.pause()

    def _next(self, lane: Lane, job: Job | None) -> Coroutine[Any, Any, None] | None:
        """Call handlers, beginning with that of ``job``, until one is left to await. None: nothing waits any more."""
        while job is not None:
            rest = self._call(lane, job)
            if rest is not None:
                return rest
            job = self._take(lane)
        lane.jobs = None
        return None

    def _take(self, lane: Lane) -> Job | None:
        """What is next in line; who is held may go on when half of the line is done."""
        assert lane.jobs is not None
        job = lane.jobs.popleft() if lane.jobs else None
        if lane.held and len(lane.jobs) <= self._backlog_max // 2:
            lane.held = False
            lane.resume()
        return job

    async def _work(self, lane: Lane, rest: Coroutine[Any, Any, None] | None) -> None:
        while rest is not None:
            await rest
            rest = self._next(lane, self._take(lane))

    def _call(self, lane: Lane, job: Job) -> Coroutine[Any, Any, None] | None:
        """Call one handler. None: it was sync and is done; else what is left to await."""
        handler = self.handlers.get(job.name)
        if handler is None or lane.refused:
            return None
        try:
            result = handler(lane.sid, *job.args)
        except ANY_FAILURE as error:  # a sync handler cannot be the one that is cancelled
            self._failure(lane, job, error)
            return None
        if inspect.isawaitable(result):
            return self._finish(lane, job, result)
        self._judge(lane, job, result=result)
        return None

    async def _finish(self, lane: Lane, job: Job, awaitable: Any) -> None:
        try:
            self._judge(lane, job, result=await awaitable)
        except ANY_FAILURE as error:
            let_cancelling_through(error)
            self._failure(lane, job, error)

    def _failure(self, lane: Lane, job: Job, error: BaseException) -> None:
        if not (job.name == "connect" and isinstance(error, ConnectRefused)):
            self.failed += 1
            self._log.error("handler failed", realtime_event=job.name, sid=lane.sid, exc_info=error)
        if job.name == "connect":
            self._judge(lane, job, result=False)

    def _judge(self, lane: Lane, job: Job, *, result: object) -> None:
        if job.name == "connect" and result is False:
            lane.refused = True
            lane.refuse()
