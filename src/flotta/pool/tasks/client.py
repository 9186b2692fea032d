"""Enqueueing, and what can be asked about tasks: the half of tasks that every node has.

Owns what an answer means to its caller. Invariant: what is refused raises; what is accepted gives a handle.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar, final

from flotta.errors import NoResult, PayloadTooLarge, ResultTimeout, TaskCancelled, TaskFailed, WorkerPoolError
from flotta.pool.tasks.records import Failure, TaskInfo, TaskState
from flotta.pool.tasks.results import Results
from flotta.pool.tasks.store import Answer, Item, TaskStore

__all__ = ["TaskCall", "TaskClient", "TaskHandle"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class ResultDecoder(Protocol):
    """What turns the bytes of a result into the value."""

    def decode(self, data: bytes) -> Any:
        """Raises ``WireError``."""


@final
class TaskCall(Generic[R]):
    """One call of a task that was not enqueued yet, made by ``Task.call``. Enqueued again, it is still one task."""

    __slots__ = ("_sent", "decoder", "item")

    def __init__(self, item: Item, decoder: ResultDecoder) -> None:
        self.item = item
        self._sent = False
        self.decoder = decoder

    def send(self) -> Item:
        """What travels. From the second time on the server has to look whether the task is there."""
        item = self.item._replace(fresh=False) if self._sent else self.item
        self._sent = True
        return item

    @property
    def id(self) -> str:
        """The id that the task has or will have."""
        return self.item.id


@final
class IdSource:
    """Ids that nobody else makes: 64 random bits for each source and process, then a count."""

    __slots__ = ("_count", "_pid", "_prefix")

    def __init__(self) -> None:
        self._pid = 0

    def __call__(self) -> str:
        if self._pid != os.getpid():  # a fork must not go on with its parent's
            self._pid = os.getpid()
            self._prefix = secrets.token_hex(8)
            self._count = itertools.count()
        return f"{self._prefix}{next(self._count):06x}"


@final
class TaskHandle(Generic[R]):
    """One task that was accepted. ``is_new`` False: it was there already (``unique``, or the same id)."""

    __slots__ = ("_client", "_decoder", "id", "is_new")

    def __init__(self, client: TaskClient, decoder: ResultDecoder, id: str, *, is_new: bool) -> None:  # noqa: A002
        self._client = client
        self._decoder = decoder
        self.id = id
        self.is_new = is_new

    def __repr__(self) -> str:
        return f"TaskHandle({self.id!r})"

    async def result(self, timeout_s: float | None = None) -> R:
        """What the task returned, once it has ended.

        Raises ``TaskFailed``, ``TaskCancelled``, ``ResultTimeout`` after ``timeout_s`` seconds (None: waits as long as
        it takes), ``NoResult`` if nothing is known of it (any more), ``Closed``, ``WireError`` and what ``Link.call``
        raises.
        Cancelling is harmless to the task.
        """
        return self._decoder.decode(await self._client.result(self.id, timeout_s))  # type: ignore[no-any-return]

    async def status(self) -> TaskInfo:
        """What is known of it now. Raises ``NoResult`` if that is nothing, and what ``Link.call`` raises. Cancelling is
        harmless."""
        return await self._client.status(self.id)

    async def cancel(self) -> TaskState:
        """Cancel it. One that has not begun never will; one that runs is cancelled by its worker and not run again.

        Returns its state then: CANCELLED, RUNNING (its worker was told), or how it had ended. Raises ``NoResult``
        and what ``Link.call`` raises; after that, or when this is cancelled, it may have been cancelled.
        """
        return await self._client.cancel(self.id)


@final
class TaskClient:
    """The tasks of a pool as one node sees them. You owe ``aclose``."""

    def __init__(self, store: TaskStore, results: Results, *, payload_bytes_max: int) -> None:
        self.store = store
        self.results = results
        self._payload_bytes_max = payload_bytes_max

    async def enqueue(self, call: TaskCall[R]) -> TaskHandle[R]:
        """Accept the task. Raises ``QueueFull``, ``PoolShutdown``, ``PayloadTooLarge``, ``NoResult`` (a task that it
        should come after is unknown), and what ``Link.call`` raises. Cancelling: it may have been accepted."""
        item = self._checked(call)
        return self._handle(call, await self.store.enqueue(item))

    async def enqueue_many(self, calls: Iterable[TaskCall[Any]]) -> list[TaskHandle[Any]]:
        """Accept many, in their order, in few round trips.

        Raises as `enqueue` for the first that is refused; some after it may have been accepted. Enqueueing the same
        calls again is safe: they are the same tasks. Cancelling: some may have been accepted.
        """
        called = list(calls)
        answers = await self.store.enqueue_all([self._checked(call) for call in called])
        handles = [self._handle(call, found) for call, found in zip(called, answers, strict=False)]
        assert len(handles) == len(called)  # there are fewer answers only behind a refusal, and that has raised
        return handles

    def handle(self, id: str, decoder: ResultDecoder) -> TaskHandle[Any]:  # noqa: A002 - it is its id
        """The handle of a task whose id you know. No I/O."""
        return TaskHandle(self, decoder, id, is_new=False)

    async def result(self, id: str, timeout_s: float | None) -> bytes:  # noqa: A002
        """The result of a task as it travelled; see ``TaskHandle.result``."""
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                state, value = await self.results.ended(id)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ResultTimeout(self.store.pool, id, timeout_s or 0.0) from None
        return self._value(id, state, value)

    async def status(self, id: str) -> TaskInfo:  # noqa: A002
        """See ``TaskHandle.status``."""
        info = await self.store.info(id)
        if info is None:
            raise NoResult(self.store.pool, id)
        return info

    async def cancel(self, id: str) -> TaskState:  # noqa: A002
        """See ``TaskHandle.cancel``."""
        state = await self.store.cancel(id)
        if state is None:
            raise NoResult(self.store.pool, id)
        return state

    async def aclose(self) -> None:
        """End every wait for a result: it raises ``Closed``. Again: harmless."""
        await self.results.aclose()

    def _handle(self, call: TaskCall[R], found: Answer) -> TaskHandle[R]:
        if isinstance(found, WorkerPoolError):
            raise found
        if found is None:
            return TaskHandle(self, call.decoder, call.id, is_new=True)
        return TaskHandle(self, call.decoder, found, is_new=False)

    def _checked(self, call: TaskCall[Any]) -> Item:
        given: Any = call
        if not isinstance(given, TaskCall):
            raise TypeError(f"enqueue_many takes calls, task.call(...), not {type(given).__name__}")
        item = call.send()
        size = len(item.payload) + len(item.options)
        if size > self._payload_bytes_max:
            raise PayloadTooLarge(f"task {item.name!r}", size, self._payload_bytes_max, option="payload_bytes_max")
        return item

    def _value(self, id: str, state: TaskState | None, value: bytes) -> bytes:  # noqa: A002
        if state is TaskState.CANCELLED:
            raise TaskCancelled(self.store.pool, id)
        if state is TaskState.FAILED:
            failure = Failure.decode(value)
            raise TaskFailed(
                self.store.pool,
                id,
                name=failure.name,
                attempts=failure.attempts,
                error_type=failure.type,
                reason=failure.reason,
                trace=failure.trace,
            )
        if state is None or not value:
            raise NoResult(self.store.pool, id)
        return value
