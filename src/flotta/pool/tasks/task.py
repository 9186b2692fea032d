"""A declared task: what its callers hold."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, final

from flotta.errors import ConfigError
from flotta.pool.tasks.client import TaskCall, TaskClient, TaskHandle
from flotta.pool.tasks.declaration import NOTHING, CallOptions, Declaration
from flotta.pool.tasks.store import Item

__all__ = ["Task"]

P = ParamSpec("P")
R = TypeVar("R")


class Enqueuer(Protocol):
    """What a task needs of the registry that it is declared in."""

    def client(self) -> TaskClient:
        """Raises ``NotStarted``."""

    def new_id(self) -> str:
        """An id that nobody else has."""

    def on_call(self, name: str, id: str, options: CallOptions) -> CallOptions:  # noqa: A002 - it is its id
        """What the hooks make of a call's options."""


@final
class Task(Generic[P, R]):
    """A function that workers of the fleet run. Calling it runs it here, as if it were not a task.

    ``enqueue`` accepts one run of it, ``options(...)`` gives the same task with other options for its calls.
    """

    def __init__(self, declaration: Declaration, enqueuer: Enqueuer, options: CallOptions = NOTHING) -> None:
        self.declaration = declaration
        self._enqueuer = enqueuer
        self._options = options
        functools.update_wrapper(self, declaration.fn, updated=())

    @property
    def name(self) -> str:
        """The name under which it travels."""
        return self.declaration.name

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The function itself, run here: what it returns (a coroutine, if it is ``async``)."""
        return self.declaration.fn(*args, **kwargs)

    def options(
        self,
        *,
        delay_s: float | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        id: str | None = None,  # noqa: A002 - it is its id
        unique: str | None = None,
        timeout_s: float | None = None,
        result_ttl_s: float | None = None,
        after: Sequence[TaskHandle[Any] | str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Task[P, R]:
        """This task with other options for its calls; None: as before.

        ``delay_s`` or ``at`` (with a time zone): not before then. ``priority``: 0 to 9, 9 first. ``id``: enqueueing an
        id that is there already gives the task that is there. ``unique``: the value itself, no template.
        ``timeout_s`` 0: none. ``result_ttl_s`` 0: the result is not kept. ``after``: begins when those tasks are done,
        and is cancelled when one of them fails or is cancelled. ``headers``: what ``TaskContext.headers`` shows.

        Raises ``ConfigError`` and ``InvalidName``.
        """
        given: dict[str, Any] = {
            "delay_s": delay_s, "at": at, "priority": priority, "queue": queue, "id": id, "unique": unique,
            "timeout_s": timeout_s, "result_ttl_s": result_ttl_s,
        }  # fmt: skip
        changes = {name: value for name, value in given.items() if value is not None}
        given_after: Any = after
        if isinstance(given_after, str | TaskHandle):
            raise ConfigError("after", after, "a list of handles or ids: after=[handle]", source="task")
        if after:
            changes["after"] = tuple(task.id if isinstance(task, TaskHandle) else task for task in after)
        if headers is not None:
            changes["headers"] = {**self._options.headers, **headers}
        return Task(self.declaration, self._enqueuer, self._options.merged(changes))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> TaskCall[R]:
        """One call that is not enqueued yet, for ``enqueue_many``.

        Raises ``TypeError`` for arguments that do not fit, ``InvalidName`` for a key or unique value too long.
        """
        declared, enqueuer = self.declaration, self._enqueuer
        options = self._options
        task_id = options.id or enqueuer.new_id()
        options = enqueuer.on_call(declared.name, task_id, options)
        item = Item(
            task_id,
            declared.name,
            declared.signature.encode(args, kwargs),
            options.queue or declared.queue,
            declared.priority if options.priority is None else options.priority,
            declared.options(options, args, kwargs),
            options.id is None,
        )
        return TaskCall(item, declared.result)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Accept one run. Everything that is enqueued in one turn of the loop leaves together.

        Raises ``QueueFull``, ``PoolShutdown``, ``PayloadTooLarge``, ``NoResult`` (a task of ``after`` is unknown),
        ``NotStarted``, ``TypeError`` (arguments that do not fit) and what ``Link.call`` raises. Cancelling: it may have
        been accepted.
        """
        return await self._enqueuer.client().enqueue(self.call(*args, **kwargs))

    def handle(self, id: str) -> TaskHandle[R]:  # noqa: A002 - it is its id
        """The handle of a run whose id you know. No I/O. Raises ``NotStarted``."""
        return self._enqueuer.client().handle(id, self.declaration.result)
