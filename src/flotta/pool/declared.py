"""Jobs as decorated functions: how a call becomes a job, and a job a call.

Owns what is checked when a function is declared. Invariants: everything that can be known then is checked then; the
arguments travel typed (``signature.py``), so old and new code may share a pool; the key is made of the arguments alone,
so every caller makes the same one.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Concatenate, Final, Generic, Literal, ParamSpec, final

from flotta.errors import ConfigError, NotStarted
from flotta.pool.backoff import Backoff
from flotta.pool.jobs.job import Job
from flotta.pool.jobs.runs import JobKind
from flotta.pool.keys import check_name
from flotta.pool.node import CRASHES_MAX, JobHandle, Node
from flotta.pool.options import is_number
from flotta.pool.schedules.scheduler import PlannedJob
from flotta.pool.signature import Signature

__all__ = ["DeclaredJob", "JobDecorator", "JobOptions", "Ready"]

P = ParamSpec("P")
Ready = Literal["claimed", "explicit"]

_SOURCE: Final = "job"
_BACKOFF: Final = Backoff()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class JobOptions:
    """How jobs of one function run. Raises ``ConfigError`` at birth."""

    key: str
    """Format string over the function's parameters: the key of a job. At most one job of the pool has it."""
    name: str | None = None
    """The kind under which it travels; None: the function's name. Rename the function and give the old name here."""
    ready: Ready = "claimed"
    """When it counts as started: when a worker has it, or when the function has called ``job.ready()``."""
    crashes_max: int = CRASHES_MAX
    """Crashes and lost workers that it survives; one more and it is a dead letter. 0: none."""
    backoff: Backoff = _BACKOFF
    """The pauses before it runs again after a crash."""
    crashes_reset_s: float = 600.0
    """After so many seconds without one its crashes are forgotten."""
    state: Any = None
    """The type of its checkpoints; None: the ``S`` of ``Job[S]``, or anything that MessagePack holds."""
    dispatch_timeout_s: float | None = None
    """How long ``dispatch`` waits for the start; None: ``PoolOptions.dispatch_timeout_s``."""

    def __post_init__(self) -> None:
        ready: Any = self.ready
        if self.key == "":
            raise ConfigError(
                "key", self.key, 'a format string over the parameters, such as "vessel:{mmsi}"', source=_SOURCE
            )
        if ready not in ("claimed", "explicit"):
            raise ConfigError("ready", self.ready, '"claimed" or "explicit"', source=_SOURCE)
        crashes_max: Any = self.crashes_max
        if not isinstance(crashes_max, int) or isinstance(crashes_max, bool) or crashes_max < 0:
            raise ConfigError("crashes_max", self.crashes_max, "a whole number from 0 on", source=_SOURCE)
        backoff: Any = self.backoff
        if not isinstance(backoff, Backoff):
            raise ConfigError("backoff", backoff, "a Backoff, such as Backoff(first_s=5)", source=_SOURCE)
        self._check_seconds("crashes_reset_s", self.crashes_reset_s)
        if self.dispatch_timeout_s is not None:
            self._check_seconds("dispatch_timeout_s", self.dispatch_timeout_s)

    def _check_seconds(self, name: str, value: float) -> None:
        if not (is_number(value) and value > 0):
            raise ConfigError(name, value, "a finite number of seconds above 0", source=_SOURCE)


@final
class DeclaredJob(Generic[P]):
    """A function that runs as a job. Made by ``@pool.job``. Calling it runs the function here, for tests."""

    def __init__(
        self,
        fn: Callable[..., Awaitable[None]],
        options: JobOptions,
        node: Callable[[], Node],
        *,
        localns: Mapping[str, Any] | None = None,
    ) -> None:
        name = getattr(fn, "__name__", repr(fn))
        if not inspect.iscoroutinefunction(fn):
            raise ConfigError("function", name, "an async function: a job lives in the event loop", source=_SOURCE)
        self.fn = fn
        self.options_ = options
        self.name = check_name("job", options.name or name)
        self._node = node
        self.signature = Signature.of(fn, skip=_skipped(fn), localns=localns)
        self._key = self.signature.template(options.key)
        self.__doc__ = fn.__doc__

    def __repr__(self) -> str:
        return f"DeclaredJob({self.name!r}, key={self.options_.key!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[None]:
        """The function itself."""
        return self.fn(*args, **kwargs)

    def options(self, *, crashes_max: int | None = None, dispatch_timeout_s: float | None = None) -> DeclaredJob[P]:
        """This job with other options for its dispatches; None: as before. Raises ``ConfigError``."""
        given = {"crashes_max": crashes_max, "dispatch_timeout_s": dispatch_timeout_s}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        changed = DeclaredJob.__new__(DeclaredJob)
        changed.__dict__.update(self.__dict__, options_=replace(self.options_, **changes))
        return changed

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of the job that these arguments make. Raises ``TypeError`` for arguments that do not fit."""
        return self._key(args, kwargs)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> PlannedJob:
        """The job that these arguments make, for a ``Plan``. Raises ``TypeError`` for arguments that do not fit."""
        payload = self.signature.encode(args, kwargs)
        return PlannedJob(self._key(args, kwargs), self.name, payload, self.options_.crashes_max)

    async def dispatch(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle:
        """Give the job to its worker; return when that has started it.

        The keyword ``timeout_s`` (unless the function has a parameter of that name) is how long to wait, as in
        ``options(dispatch_timeout_s=...)``. Raises what ``Node.dispatch`` raises, ``TypeError`` for arguments that do
        not fit, and ``NotStarted``. Cancelling it is harmless: the job may have been accepted and start.
        """
        if "timeout_s" in kwargs and "timeout_s" not in self.signature.parameters:
            given: Any = kwargs.pop("timeout_s")
            return await self.options(dispatch_timeout_s=given).dispatch(*args, **kwargs)
        job = self.call(*args, **kwargs)
        return await self._node().dispatch(
            job.key, job.payload,
            kind=job.kind, crashes_max=job.crashes_max, timeout_s=self.options_.dispatch_timeout_s,
        )  # fmt: skip

    def as_kind(self) -> JobKind:
        """How a worker runs it."""
        options = self.options_
        injected = tuple(self.signature.injected)

        async def run(job: Job[Any]) -> None:
            arguments = self.signature.decode(job.payload)
            arguments.update(dict.fromkeys(injected, job))
            await self.fn(**arguments)

        return JobKind(
            name=self.name,
            run=run,
            explicit=options.ready == "explicit",
            backoff=options.backoff,
            crashes_reset_s=options.crashes_reset_s,
            state_type=self._state_type(),
        )

    def _state_type(self) -> Any:
        if self.options_.state is not None:
            return self.options_.state
        for annotation in self.signature.injected.values():
            for argument in typing.get_args(annotation):
                return Any if isinstance(argument, typing.TypeVar) or argument is type(None) else argument
        return Any


@final
class JobDecorator:
    """What ``pool.job(...)`` gives."""

    def __init__(self, declare: Callable[[Callable[..., Awaitable[None]]], DeclaredJob[Any]]) -> None:
        self._declare = declare

    def __call__(self, fn: Callable[Concatenate[Job[Any], P], Awaitable[None]]) -> DeclaredJob[P]:
        """Declare ``fn``."""
        return self._declare(fn)


def not_started(pool: str) -> NotStarted:
    """Said by whatever needs the node before it is there."""
    return NotStarted(f"pool {pool!r}", "use `async with pool.running(...)`, or await pool.start(...)")


def _skipped(fn: Callable[..., Any]) -> tuple[type | str, ...]:
    """What does not travel: the parameter annotated ``Job``, or a first one called ``job`` without annotation."""
    first = next(iter(inspect.signature(fn).parameters.values()), None)
    if first is not None and first.name == "job" and first.annotation is inspect.Parameter.empty:
        return (Job, "job")
    return (Job,)
