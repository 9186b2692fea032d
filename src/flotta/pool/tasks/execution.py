"""One run of one task in this process: from its payload to its verdict.

Owns how a run ends. Invariants:

* Every run that is not abandoned has one verdict; one that was fenced off has none.
* A run that is cancelled because its worker stops is given back: that is no failure, and no attempt.
* A function in a thread cannot be stopped: it is told (``context.cancelled``), and its outcome counts when it comes.
* Whatever a function raises ends its run and nothing else: also ``SystemExit``, also what cannot be printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from enum import Enum
from typing import Any, Final, final

from flotta.errors import PayloadTooLarge
from flotta.pool.tasks.context import CURRENT, RetryTask, TaskContext
from flotta.pool.tasks.declaration import Declaration
from flotta.pool.tasks.options import Retry
from flotta.pool.tasks.records import Failure, Fetched, WorkerOptions
from flotta.pool.tasks.registry import CallNext, Middleware, TaskRegistry
from flotta.pool.tasks.store import Finished, TaskStore, Verdict
from flotta.pool.traces import describe_place, exc_info_of, format_trace

__all__ = ["Ending", "Executing", "Run"]

_REASON_CHARS_MAX: Final = 2_000
_TRACE_CHARS_MAX: Final = 8_000
_DEFAULT_RETRY: Final = Retry()


class Ending(Enum):
    """Why a run was cancelled from outside."""

    CANCELLED = "cancelled"
    DRAIN = "drain"
    FENCED = "fenced"


@final
class Executing:
    """What all runs of a worker share."""

    __slots__ = ("finished", "log", "loop", "payload_bytes_max", "pool", "registry", "store", "threads", "worker")

    def __init__(
        self,
        store: TaskStore,
        registry: TaskRegistry,
        worker: str,
        finished: Callable[[Run, Finished | None], None],
        *,
        threads: Executor,
        payload_bytes_max: int,
        logger: Any,
    ) -> None:
        self.store = store
        self.pool = store.pool
        self.registry = registry
        self.worker = worker
        self.finished = finished
        self.threads = threads
        self.payload_bytes_max = payload_bytes_max
        self.log = logger
        self.loop: asyncio.AbstractEventLoop
        """Where they run; known when the worker starts."""


@final
class Run:
    """One run. ``execute`` is its whole life; ``cancel`` ends it early."""

    __slots__ = (
        "_abandons_thread", "_begun", "_context", "_declared", "_ending", "_fetched", "_options", "_shared", "_task",
    )  # fmt: skip

    def __init__(self, shared: Executing, declared: Declaration, fetched: Fetched) -> None:
        self._shared = shared
        self._declared = declared
        self._fetched = fetched
        self._options: WorkerOptions | None = None
        self._context: TaskContext | None = None
        self._ending: Ending | None = None
        self._begun = False
        self._abandons_thread = False
        self._task: asyncio.Task[None] | None = None

    @property
    def fence(self) -> bytes:
        """The fencing token: what tells it from other runs of the same task."""
        return self._fetched.fence

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        self._task = loop.create_task(self._execute(), name=self._declared.name)

    def cancel(self, ending: Ending) -> None:
        """End it. FENCED is final: nothing is reported. CANCELLED again: no change. With FENCED, and with DRAIN for the
        second time, a function in a thread is abandoned."""
        if ending is Ending.CANCELLED and self._ending is not None:
            return
        self._abandons_thread = ending is Ending.FENCED or self._ending is ending
        if self._ending is not Ending.FENCED:
            self._ending = ending
        if self._context is not None:
            self._context.cancelled = True
        if self._task is not None and self._begun:  # a task that is cancelled before its first step never runs at all
            self._task.cancel()

    def context(self) -> TaskContext:
        """Made when somebody asks for it."""
        if self._context is None:
            fetched, shared = self._fetched, self._shared
            self._context = TaskContext(
                pool=shared.pool,
                worker=shared.worker,
                id=fetched.id.decode(),
                name=self._declared.name,
                attempt=self._attempts,
                fence=int(fetched.fence),
                headers=self._worker_options().headers,
                loop=shared.loop,
                report=lambda data: shared.store.progress(shared.worker, fetched.id, fetched.fence, data),
            )
        return self._context

    @property
    def _attempts(self) -> int:
        return self._fetched.failures + self._fetched.losses + 1

    def _worker_options(self) -> WorkerOptions:
        if self._options is None:
            self._options = WorkerOptions.decode(self._fetched.options)
        return self._options

    # --- its life -----------------------------------------------------------------------------------------------

    async def _execute(self) -> None:
        """One path for the plain case (an ``async`` function and its arguments), because that is most of the time."""
        declared, fetched, shared = self._declared, self._fetched, self._shared
        finished: Finished | None = None
        is_functions = False  # whether what is raised comes from the function, not from what travels
        self._begun = True
        try:
            self._check_ending()
            CURRENT.set(self.context)
            arguments = declared.signature.decode(fetched.payload)
            if declared.is_plain and not fetched.options and not shared.registry.middleware:
                is_functions = True
                value = await declared.fn(**arguments)
            else:
                options = self._worker_options()
                is_functions = True
                value = await self._call(arguments, options.timeout_s)
            is_functions = False
            data = self._encode(value)
            finished = Finished(fetched.id, fetched.fence, Verdict.DONE, data, 0)
        except asyncio.CancelledError as error:
            finished = self._on_cancelled(error)
        except (KeyboardInterrupt, GeneratorExit):  # this process ends: others take over
            raise
        except BaseException as error:  # noqa: BLE001 - a task may raise anything; it is reported
            finished = self._on_error(error, may_retry=is_functions)
        finally:
            shared.finished(self, None if self._ending is Ending.FENCED else finished)

    def _check_ending(self) -> None:
        if self._ending is not None:
            raise asyncio.CancelledError

    def _encode(self, value: object) -> bytes:
        data = self._declared.result.encode(value)
        if len(data) > self._shared.payload_bytes_max:
            what = f"result of task {self._declared.name!r}"
            raise PayloadTooLarge(what, len(data), self._shared.payload_bytes_max, option="payload_bytes_max")
        return data

    async def _call(self, arguments: Mapping[str, Any], timeout_s: float | None) -> Any:
        if timeout_s is None:
            timeout_s = self._declared.timeout_s
        if not timeout_s:
            return await self._wrapped(arguments)
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                return await self._wrapped(arguments)
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(f"not done after {timeout_s:g} s") from None
            raise

    async def _wrapped(self, arguments: Mapping[str, Any]) -> Any:
        call: CallNext = lambda: self._provided(arguments)  # noqa: E731 - the innermost of a chain
        for middleware in reversed(self._shared.registry.middleware):
            call = _around(middleware, self.context(), call)
        return await call()

    async def _provided(self, arguments: Mapping[str, Any]) -> Any:
        declared = self._declared
        if not declared.needs:
            return await self._invoke(arguments)
        raised: BaseException | None = None
        value: Any = None
        async with AsyncExitStack() as stack:
            try:
                provided = await declared.needs.provide(stack, self.context())
                value = await self._invoke({**arguments, **provided})
            except BaseException as error:
                raised = error
                raise
        if raised is not None:  # a generator swallowed it
            raise raised
        return value

    async def _invoke(self, arguments: Mapping[str, Any]) -> Any:
        declared = self._declared
        if declared.is_async:
            return await declared.fn(**arguments)
        run_in_context = contextvars.copy_context().run

        def call() -> Any:
            try:
                return run_in_context(declared.fn, **arguments)
            except StopIteration as error:  # no future can hold it: who waits for it would wait for ever
                raise RuntimeError("the function raised StopIteration") from error

        thread = asyncio.get_running_loop().run_in_executor(self._shared.threads, call)
        while True:
            try:
                return await asyncio.shield(thread)
            except asyncio.CancelledError:  # however often: its time may be over, and it may be cancelled as well
                self.context().cancelled = True
                if thread.done() and not thread.cancelled():
                    return thread.result()
                if thread.cancelled() or self._abandons_thread:
                    raise

    # --- its end ------------------------------------------------------------------------------------------------

    def _on_cancelled(self, error: asyncio.CancelledError) -> Finished:
        if self._ending is Ending.CANCELLED:
            return self._ended(Verdict.CANCELLED, b"")
        if self._ending is Ending.DRAIN:
            return self._ended(Verdict.BACK, b"")
        return self._on_error(error, may_retry=True)  # the task's own: something that it awaited was cancelled

    def _on_error(self, error: BaseException, *, may_retry: bool) -> Finished:
        if self._ending is Ending.DRAIN:
            return self._ended(Verdict.BACK, b"")
        pause_s = self._pause_s(error, self._fetched.failures + 1) if may_retry else None
        failure = self._failure(error).encode()
        if self._ending is None:
            with contextlib.suppress(Exception):  # a logger that cannot print it must not cost the task its verdict
                self._tell(error, pause_s)
        if pause_s is None:
            return self._ended(Verdict.FAILED, failure)
        return self._ended(Verdict.RETRY, failure, pause_s)

    def _pause_s(self, error: BaseException, failures: int) -> float | None:
        """Seconds until it runs again; None: it does not."""
        if isinstance(error, RetryTask):
            retry = self._declared.retry or _DEFAULT_RETRY
            if failures > retry.retries:
                return None
            if error.after_s is not None:
                return error.after_s
        else:
            declared = self._declared.retry
            if declared is None or not declared.allows(error, failures):
                return None
            retry = declared
        return retry.backoff.pause_s(failures, random.random())  # noqa: S311 - jitter, no secret

    def _tell(self, error: BaseException, pause_s: float | None) -> None:
        """Log it, unless the task itself asked for another run."""
        shared = self._shared
        facts = {"task": self._declared.name, "id": self._fetched.id.decode(), "attempt": self._attempts}
        if pause_s is not None and isinstance(error, RetryTask):
            return
        reason = f"{type(error).__name__}: {_say(error)}"
        if pause_s is not None:
            place = describe_place(error)
            shared.log.warning("a task failed and runs again", pool=shared.pool, **facts, error=reason, at=place)
        elif len(reason) < _REASON_CHARS_MAX:
            shared.log.error("a task is a dead letter now", pool=shared.pool, **facts, exc_info=exc_info_of(error))
        else:  # to print megabytes would hold up the loop
            place = describe_place(error)
            shared.log.error("a task is a dead letter now", pool=shared.pool, **facts, error=reason, at=place)

    def _ended(self, verdict: bytes, value: bytes, delay_s: float = 0.0) -> Finished:
        return Finished(self._fetched.id, self._fetched.fence, verdict, value, round(delay_s * 1000))

    def _failure(self, error: BaseException) -> Failure:
        trace = _encodable(format_trace(error)[-_TRACE_CHARS_MAX:])
        kind = type(error).__qualname__
        return Failure(kind, _say(error), trace, self._attempts, self._declared.name)


def _say(error: BaseException) -> str:
    """Its text, cut; one whose text cannot be made says so."""
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001 - a user's __str__
        text = f"its text cannot be made: {type(second).__name__}"
    return _encodable(text[:_REASON_CHARS_MAX])


def _encodable(text: str) -> str:
    """File names that are no UTF-8 bring lone surrogates with them, which do not travel."""
    return text.encode("utf-8", "backslashreplace").decode()


def _around(middleware: Middleware, context: TaskContext, call_next: CallNext) -> CallNext:
    async def call() -> Any:
        return await middleware(context, call_next)

    return call
