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

__all__ = ["Handling", "Job", "Lane"]

# A handler may raise anything; it is logged with its traceback. CancelledError too: it may have awaited a task that
# somebody else cancelled, and that must not end the work of its client.
_ANY_FAILURE = (Exception, asyncio.CancelledError)

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
class Handling:
    """The handlers by name, and the tasks of those that are async. It is the `Work` of a drain."""

    def __init__(self, *, backlog_max: int, logger: Any) -> None:
        self.handlers: dict[str, Handler] = {}
        self.failed = 0
        """Handlers that raised."""
        self._backlog_max = backlog_max
        self._log = logger
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Clients whose handlers run now."""
        return len(self._tasks)

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
        except _ANY_FAILURE as error:  # a sync handler cannot be the one that is cancelled
            self._failure(lane, job, error)
            return None
        if inspect.isawaitable(result):
            return self._finish(lane, job, result)
        self._judge(lane, job, result=result)
        return None

    async def _finish(self, lane: Lane, job: Job, awaitable: Any) -> None:
        try:
            self._judge(lane, job, result=await awaitable)
        except _ANY_FAILURE as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
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

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no handler runs, at most ``timeout_s``. False: some still do."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            return False
        return True

    async def cancel_all(self) -> None:
        """Cancel every handler and wait for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
