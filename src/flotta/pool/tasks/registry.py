"""The tasks of a pool as its code declares them.

Owns the names, the middleware and the hooks. Invariants: a name is declared once; the order of middleware is the order
of its declaration, the first outermost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, final, overload

from flotta.errors import Closed, ConfigError, NotStarted
from flotta.pool.tasks.client import IdSource, TaskClient
from flotta.pool.tasks.context import TaskContext
from flotta.pool.tasks.declaration import RESULT_TTL_S, WORKER_LOSSES_MAX, CallOptions, Declaration
from flotta.pool.tasks.options import PerKey, Rate, Retry
from flotta.pool.tasks.task import Task

__all__ = ["CallNext", "EnqueueHook", "Enqueuing", "Middleware", "TaskDecorator", "TaskRegistry"]

P = ParamSpec("P")
R = TypeVar("R")
CallNext = Callable[[], Awaitable[Any]]
Middleware = Callable[[TaskContext, CallNext], Awaitable[Any]]


@final
@dataclass(frozen=True, slots=True)
class Enqueuing:
    """A call that enters the pool, as the hooks of ``on_enqueue`` see it. What they put into ``headers`` travels."""

    name: str
    id: str
    headers: dict[str, str]


EnqueueHook = Callable[[Enqueuing], None]


@final
class TaskDecorator:
    """What ``task(...)`` gives: types both kinds of function, with and without a leading ``TaskContext``."""

    def __init__(self, declare: Callable[[Callable[..., Any]], Task[Any, Any]]) -> None:
        self._declare = declare

    @overload
    def __call__(self, fn: Callable[Concatenate[TaskContext, P], Awaitable[R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[TaskContext, P], R]) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, fn: Callable[..., Any]) -> Task[Any, Any]:
        """Declare ``fn``."""
        return self._declare(fn)


@final
class TaskRegistry:
    """The tasks of one pool. Declaring does no I/O."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._declared: dict[bytes, Declaration] = {}
        self._client: TaskClient | None = None
        self._closed = False
        self._hooks: list[EnqueueHook] = []
        self.middleware: list[Middleware] = []
        self.new_id = IdSource()

    def task(
        self,
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
        """Declare a function as a task: ``async`` ones run in the loop, ``def`` ones in threads.

        ``name``: under which it travels (default: the function's; rename the function and give the old name here).
        ``queue``: workers may serve some queues only. ``priority``: 0 to 9, 9 first. ``retry``: None fails at the first
        exception. ``timeout_s``: a run that takes longer is cancelled and has failed. ``unique``: a template; while a
        task with the same value has not ended, enqueueing gives that one. ``result_ttl_s``: how long its end can be
        asked for; None or 0: not at all. ``worker_losses_max``: so many workers may die while they run it; one more
        and it goes to the dead letters (0: it runs at most once). ``localns``: names for its annotations.

        Raises ``ConfigError`` and ``InvalidName``, when the function is given.
        """

        def declare(fn: Callable[..., Any]) -> Task[Any, Any]:
            declared = Declaration(
                fn, name=name, queue=queue, priority=priority, retry=retry, timeout_s=timeout_s, unique=unique,
                concurrency=concurrency, rate=rate, result_ttl_s=result_ttl_s, worker_losses_max=worker_losses_max,
                localns=localns,
            )  # fmt: skip
            return self._add(declared)

        return TaskDecorator(declare)

    def _add(self, declared: Declaration) -> Task[Any, Any]:
        key = declared.name.encode()
        if key in self._declared:
            raise ConfigError("name", declared.name, "a name that no other task of the pool has", source="task")
        self._declared[key] = declared
        return Task(declared, self)

    def add_middleware(self, middleware: Middleware) -> Middleware:
        """Run ``async def middleware(context, call_next)`` around every task; a decorator. It returns what ``await
        call_next()`` gives, or something else; what it raises fails the task."""
        self.middleware.append(middleware)
        return middleware

    def on_enqueue(self, hook: EnqueueHook) -> EnqueueHook:
        """Let ``hook(enqueuing)`` see every call before it is encoded; a decorator. What it raises the caller gets."""
        self._hooks.append(hook)
        return hook

    # --- what tasks and workers ask -----------------------------------------------------------------------------

    @property
    def names(self) -> Iterable[str]:
        """Of all tasks."""
        return [declared.name for declared in self._declared.values()]

    @property
    def queues(self) -> list[str]:
        """Of all tasks, each once."""
        return list(dict.fromkeys(declared.queue for declared in self._declared.values()))

    def find(self, name: bytes) -> Declaration | None:
        """What is declared under this name."""
        return self._declared.get(name)

    def bind(self, client: TaskClient | None, *, closed: bool = False) -> None:
        """From now on enqueueing goes through ``client``; None: it is not started (any more, if ``closed``)."""
        self._client = client
        self._closed = closed

    def client(self) -> TaskClient:
        """Raises ``NotStarted`` and ``Closed``."""
        if self._closed:
            raise Closed(f"pool {self._pool!r}")
        if self._client is None:
            raise NotStarted(f"pool {self._pool!r}", "use `async with pool.running(...)`, or await pool.start(...)")
        return self._client

    def on_call(self, name: str, id: str, options: CallOptions) -> CallOptions:  # noqa: A002 - it is its id
        """What the hooks make of a call's options."""
        if not self._hooks:
            return options
        enqueuing = Enqueuing(name, id, dict(options.headers))
        for hook in self._hooks:
            hook(enqueuing)
        return options.merged({"headers": enqueuing.headers}) if enqueuing.headers else options
