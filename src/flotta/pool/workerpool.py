"""A pool as a service declares it: its jobs, tasks and schedules, and this process' part in running them.

Owns the declarations and one node. Invariants: declaring does no I/O; what is declared when the worker joins is what it
runs; ``start``, ``work`` and ``close`` may be called twice; a pool has one life, and closing it hands on what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar, final

from flotta.errors import Closed, ConfigError, StateError
from flotta.pool.backoff import Backoff
from flotta.pool.deadletters import DeadLetters
from flotta.pool.declared import DeclaredJob, JobDecorator, JobOptions, Ready, not_started
from flotta.pool.jobs.records import JobInfo
from flotta.pool.keys import check_name
from flotta.pool.node import CRASHES_MAX, Node, PoolWorker
from flotta.pool.options import PoolOptions
from flotta.pool.schedules.clock import SERVER_CLOCK, Clock
from flotta.pool.schedules.cron import Cron, Every, Recurrence
from flotta.pool.schedules.recurring import LATE_MAX_S, Recurring
from flotta.pool.schedules.scheduler import PlannedJob, Producer
from flotta.pool.schedules.ticker import Ticker, to_ms
from flotta.pool.stats import NodeStats
from flotta.pool.tasks import PerKey, Rate, Retry, Task, TaskCall, TaskHandle, TaskRegistry
from flotta.pool.tasks.declaration import RESULT_TTL_S, WORKER_LOSSES_MAX
from flotta.pool.tasks.registry import EnqueueHook, Middleware, TaskDecorator
from flotta.pool.worker import Worker
from flotta.redis import Redis

__all__ = ["WorkerPool"]

T = TypeVar("T", bound=Task[..., Any])
F = TypeVar("F", bound=Callable[..., Any])


@final
class WorkerPool:
    """The pool ``name``. Making it does no I/O.

    ``clock``: for the schedules of tests.
    """

    def __init__(
        self,
        name: str,
        *,
        options: PoolOptions | None = None,
        service: str = "",
        logger: Any = None,
        clock: Clock = SERVER_CLOCK,
    ) -> None:
        self.name = check_name("pool", name)
        given: Any = options
        if given is not None and not isinstance(given, PoolOptions):
            raise ConfigError("options", given, "PoolOptions(...), or None", source="WorkerPool")
        self.options = options or PoolOptions()
        self.service = service
        self._logger = logger
        self._clock = clock
        self._registry = TaskRegistry(name)
        self._jobs: dict[str, DeclaredJob[Any]] = {}
        self._recurring: list[Recurring] = []
        self._schedules: list[tuple[str, float, Producer]] = []
        self._node: Node | None = None
        self._worker: Worker | None = None
        self._closed = False
        self._joining = asyncio.Lock()

    # --- declaring ----------------------------------------------------------------------------------------------

    def job(
        self,
        *,
        key: str,
        name: str | None = None,
        ready: Ready = "claimed",
        crashes_max: int = CRASHES_MAX,
        backoff: Backoff | None = None,
        crashes_reset_s: float = 600.0,
        state: Any = None,
        dispatch_timeout_s: float | None = None,
        localns: Mapping[str, Any] | None = None,
    ) -> JobDecorator:
        """Declare an ``async`` function as a job: ``async def watch(job: Job[State], mmsi: int) -> None``.

        The options are those of ``JobOptions``. Raises ``ConfigError`` when the function is given.
        """
        options = JobOptions(
            key=key, name=name, ready=ready, crashes_max=crashes_max, backoff=backoff or Backoff(),
            crashes_reset_s=crashes_reset_s, state=state, dispatch_timeout_s=dispatch_timeout_s,
        )  # fmt: skip

        def declare(fn: Callable[..., Awaitable[None]]) -> DeclaredJob[Any]:
            self._check_declarable()
            declared: DeclaredJob[Any] = DeclaredJob(fn, options, self._require_node, localns=localns)
            if declared.name in self._jobs:
                raise ConfigError("name", declared.name, "a name that no other job of the pool has", source="job")
            self._jobs[declared.name] = declared
            return declared

        return JobDecorator(declare)

    def task(
        self,
        bare: None = None,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 5,
        retry: Retry | None = None,
        timeout_s: float | None = None,
        unique: str | None = None,
        concurrency: PerKey | None = None,
        rate: Rate | None = None,
        result_ttl_s: float | None = RESULT_TTL_S,
        worker_losses_max: int = WORKER_LOSSES_MAX,
        localns: Mapping[str, Any] | None = None,
    ) -> TaskDecorator:
        """Declare a function as a short task. See ``TaskRegistry.task``."""
        function: Any = bare
        if function is not None:  # @pool.task without brackets
            function = getattr(function, "__name__", repr(function))
            raise ConfigError("@pool.task", function, "@pool.task(...), with brackets", source="WorkerPool")
        self._check_declarable()
        return self._registry.task(
            name=name, queue=queue, priority=priority, retry=retry, timeout_s=timeout_s, unique=unique,
            concurrency=concurrency, rate=rate, result_ttl_s=result_ttl_s, worker_losses_max=worker_losses_max,
            localns=localns,
        )  # fmt: skip

    def middleware(self, middleware: Middleware) -> Middleware:
        """Run ``async def middleware(context, call_next)`` around every task; a decorator."""
        return self._registry.add_middleware(middleware)

    def on_enqueue(self, hook: EnqueueHook) -> EnqueueHook:
        """Let ``hook(enqueuing)`` see every task that is enqueued from here; a decorator."""
        return self._registry.on_enqueue(hook)

    def cron(self, expression: str, *, tz: str = "UTC", late_max_s: float | None = LATE_MAX_S) -> Callable[[T], T]:
        """Decorator above ``@pool.task``: enqueue the task, without arguments, at the times of a cron expression.

        ``tz``: an IANA time zone. ``late_max_s``: a time missed by more is left out; None: never.
        Raises ``ConfigError``.
        """
        return self._comes_round(Cron(expression, tz), late_max_s)

    def every(self, seconds: float, *, late_max_s: float | None = LATE_MAX_S) -> Callable[[T], T]:
        """Decorator above ``@pool.task``: enqueue the task, without arguments, every ``seconds`` seconds."""
        return self._comes_round(Every(seconds), late_max_s)

    def _comes_round(self, times: Recurrence, late_max_s: float | None) -> Callable[[T], T]:
        def declare(task: T) -> T:
            self._check_declarable()
            self._recurring.append(Recurring.of(task, times, late_max_s=late_max_s))
            return task

        return declare

    def schedule(self, *, every_s: float, name: str | None = None) -> Callable[[F], F]:
        """Decorator: every ``every_s`` seconds one node calls the function, which returns a ``Plan`` of jobs, and
        makes it so. It runs on working nodes. ``name``: None is the function's."""

        def declare(producer: F) -> F:
            self._check_declarable()
            to_ms(every_s)
            schedule = check_name("scheduler", name or str(getattr(producer, "__name__", "schedule")))
            self._schedules.append((schedule, every_s, producer))
            return producer

        return declare

    def _check_declarable(self) -> None:
        if self._worker is not None:
            raise StateError(
                f"pool {self.name!r}",
                f"the worker of pool {self.name!r} has joined: declare jobs and tasks before that",
            )

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self, redis: Redis | str, *, work: bool = False) -> None:
        """Join the pool: from here on jobs can be dispatched and tasks enqueued. ``work``: and add this worker.

        Again: harmless. You owe it ``close``. Raises what ``Node.join`` raises, and ``Closed`` after ``close``.
        Cancelling is as there; it may be called again.
        """
        async with self._joining:
            self._check_open()
            if self._node is None:
                await self._join(redis)
        if work and not self.options.client_only:
            await self.work()

    async def _join(self, redis: Redis | str) -> None:
        node = await Node.join(
            self.name, redis, options=self.options, service=self.service, logger=self._logger, clock=self._clock
        )
        if self._closed:  # meanwhile: nobody else knows of this node
            await node.close()
            self._check_open()
        self._node = node
        self._registry.bind(node.tasks.client)

    async def work(self, *, queues: Iterable[str] | None = None, name: str | None = None) -> Worker:
        """Add this process' worker: it runs the declared jobs and tasks. ``queues``: tasks of these only.

        Again: harmless. Raises what ``Node.add_worker`` raises, ``NotStarted`` and ``Closed``. Cancelling is as there;
        it may be called again.
        """
        node = self._require_node()
        async with self._joining:
            self._check_open()
            if self._worker is None:
                self._worker = await self.equip(node, queues=queues, name=name)
            return self._worker

    async def equip(self, node: Node, *, queues: Iterable[str] | None = None, name: str | None = None) -> Worker:
        """Add a worker with what is declared here to ``node``, also to one that is not this pool's. Each call adds one.

        ``queues``, ``name``: as for ``work``. Raises and is cancelled as ``Node.add_kinds``.
        """
        kinds = {kind: declared.as_kind() for kind, declared in self._jobs.items()}
        worker = await node.add_kinds(kinds, name=name, registry=self._registry, queues=queues)
        node.timetable.recur(self._recurring)
        for schedule, every_s, producer in self._schedules:
            node.timetable.schedule(schedule, producer, every_s=every_s, resolve=self._resolve)
        return worker

    async def stop_working(self, timeout_s: float | None = None) -> None:
        """Hand this process' jobs to others and give its tasks back, and stay: dispatching and enqueueing go on.

        Its schedules end here, too. Again, or before ``work``: harmless. ``timeout_s``: None is ``close_timeout_s``.
        Raises nothing for a lost connection. Cancelling, once its schedules have ended: every job here is cancelled as
        fenced, and others take over.
        """
        if self._node is None or self._node.closed:
            return
        await self._node.timetable.close()
        worker = self._worker
        if worker is not None and worker in self._node.local_workers:
            await self._node.remove_worker(worker, timeout_s=timeout_s)

    async def close(self, timeout_s: float | None = None) -> None:
        """Hand this process' jobs to others, give its tasks back, leave. Again, or before ``start``: harmless.

        ``timeout_s``: None is ``close_timeout_s``. Raises nothing for a lost connection. Cancelling leaves at once:
        every job here is cancelled as fenced. See ``Node.close``.
        """
        self._closed = True
        self._registry.bind(None, closed=True)
        if self._node is not None:
            await self._node.close(timeout_s)

    async def shutdown(self, timeout_s: float | None = None) -> None:
        """Stop the pool on every node; returns when all of it is gone. See ``Node.shutdown`` for ``timeout_s``, what it
        raises (and ``NotStarted``), and cancelling: the shutdown goes on."""
        node = self._require_node()
        await node.shutdown(timeout_s)
        self._closed = True
        self._registry.bind(None, closed=True)

    def renew(self, *, options: PoolOptions, clock: Clock = SERVER_CLOCK) -> None:
        """Forget a life that has ended, for tests that start the declared pool of a service many times.

        Raises ``StateError`` while it lives.
        """
        if self.started:
            raise StateError(f"pool {self.name!r}", f"pool {self.name!r} runs: close it first")
        self.options, self._clock = options, clock
        self._node = self._worker = None
        self._closed = False
        self._registry.bind(None)

    @asynccontextmanager
    async def running(self, redis: Redis | str) -> AsyncIterator[WorkerPool]:
        """``start`` with ``work``, and ``close`` at the end."""
        try:
            await self.start(redis, work=True)
            yield self
        finally:
            await self.close()

    @property
    def node(self) -> Node:
        """The node of this process. Raises ``NotStarted``."""
        return self._require_node()

    @property
    def started(self) -> bool:
        """Whether jobs can be dispatched and tasks enqueued."""
        return self._node is not None and not self._node.closed

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues of the declared tasks."""
        return tuple(self._registry.queues)

    @property
    def worker(self) -> Worker | None:
        """The worker of this process, once ``work`` was called."""
        return self._worker

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def jobs(self) -> list[JobInfo]:
        """As ``Node.jobs``."""
        return await self._require_node().jobs()

    async def job_info(self, key: str) -> JobInfo | None:
        """As ``Node.job_info``."""
        return await self._require_node().job_info(key)

    async def payload(self, key: str) -> bytes:
        """As ``Node.payload``."""
        return await self._require_node().payload(key)

    async def stop(self, key: str, *, timeout_s: float | None = None) -> None:
        """As ``Node.stop``."""
        await self._require_node().stop(key, timeout_s=timeout_s)

    async def notify(self, key: str, payload: bytes) -> None:
        """As ``Node.notify``."""
        await self._require_node().notify(key, payload)

    async def workers(self) -> list[PoolWorker]:
        """As ``Node.workers``."""
        return await self._require_node().workers()

    @property
    def stats(self) -> NodeStats:
        """As ``Node.stats``."""
        return self._require_node().stats

    # --- tasks, tickers -----------------------------------------------------------------------------------------

    async def enqueue_many(self, calls: Iterable[TaskCall[Any]]) -> list[TaskHandle[Any]]:
        """Enqueue ``task.call(...)`` many times, in their order, in few round trips.

        Raises as ``Task.enqueue`` for the first that is refused; some after it may have been accepted. Enqueueing the
        same calls again is safe: they are the same tasks. Cancelling: some may have been accepted.
        """
        return await self._require_node().tasks.client.enqueue_many(calls)

    @property
    def dead_letters(self) -> DeadLetters:
        """The jobs and tasks that were given up: ``walk``, ``redrive``, ``delete``."""
        node = self._require_node()
        return DeadLetters(node.redis.link, node.store, node.tasks.store)

    async def ticker(self, name: str, *, every_s: float) -> Ticker:
        """As ``Node.ticker``."""
        return await self._require_node().ticker(name, every_s=every_s)

    # --- inside -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"pool {self.name!r}")

    def _require_node(self) -> Node:
        if self._node is None:
            raise not_started(self.name)
        return self._node

    def _resolve(self, wanted: Any) -> PlannedJob:
        """What a plan may hold: ``watch.call(...)``. Raises ``ConfigError``."""
        if isinstance(wanted, PlannedJob):
            return wanted
        raise ConfigError("plan", wanted, "calls of declared jobs, such as watch.call(1)", source="schedule")
