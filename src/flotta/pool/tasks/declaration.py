"""What is declared about a task, and what one call of it becomes on the wire.

Owns the templates and the options that the scripts read. Invariants: a declaration is checked when it is made; a call
that says nothing beyond its declaration costs no encoding but that of its payload.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, final

import msgspec

from flotta.errors import ConfigError, InvalidName
from flotta.pool.keys import check_name
from flotta.pool.options import is_number
from flotta.pool.signature import Signature
from flotta.pool.tasks.context import TaskContext
from flotta.pool.tasks.depends import Depends, Needs
from flotta.pool.tasks.options import PerKey, Rate, Retry
from flotta.pool.tasks.records import WorkerOptions

__all__ = ["NOTHING", "CallOptions", "Declaration"]

T = TypeVar("T")
Fill = Callable[[tuple[Any, ...], Mapping[str, Any]], str]
RESULT_TTL_S: Final = 600.0
WORKER_LOSSES_MAX: Final = 3
_SOURCE: Final = "task"
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_ID: Final = re.compile(r"[!-+\--~]{1,200}")  # printable ASCII without the comma
_TEXT_BYTES_MAX: Final = 500


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class CallOptions:
    """What one call says instead of its declaration. None: nothing."""

    delay_s: float | None = None
    at: datetime | None = None
    priority: int | None = None
    queue: str | None = None
    id: str | None = None
    unique: str | None = None
    timeout_s: float | None = None
    result_ttl_s: float | None = None
    after: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every value. Raises ``ConfigError`` and ``InvalidName``."""
        for name in ("delay_s", "timeout_s", "result_ttl_s"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value >= 0):
                raise ConfigError(name, value, "a finite number of seconds from 0 on", source=_SOURCE)
        if self.delay_s is not None and self.at is not None:
            raise ConfigError("at", self.at, "a delay_s or an at, not both", source=_SOURCE)
        if self.at is not None and self.at.tzinfo is None:
            raise ConfigError("at", self.at, "a time with a time zone", source=_SOURCE)
        for item in self.headers.items():
            if not all(isinstance(text, str) for text in item):
                raise ConfigError("headers", dict([item]), "text -> text", source=_SOURCE)
        if self.priority is not None:
            check_priority(self.priority)
        if self.queue is not None:
            check_name("queue", self.queue)
        for task_id in (*self.after, *(() if self.id is None else (self.id,))):
            if _ID.fullmatch(task_id) is None:
                raise InvalidName("task id", task_id, "1 to 200 printable ASCII characters without space and comma")

    def merged(self, changes: Mapping[str, Any]) -> CallOptions:
        """With some of them changed."""
        return replace(self, **changes)


NOTHING: Final = CallOptions()
"""A call that says nothing beyond its declaration."""


@final
class Declaration:
    """One task as its code declares it. Immutable."""

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None,
        queue: str,
        priority: int,
        retry: Retry | None,
        timeout_s: float | None,
        unique: str | None,
        concurrency: PerKey | None,
        rate: Rate | None,
        result_ttl_s: float | None,
        worker_losses_max: int,
        localns: Mapping[str, Any] | None = None,
    ) -> None:
        self.fn = fn
        self.name = check_name("task", name or str(getattr(fn, "__name__", "")))
        self.queue = check_name("queue", queue)
        self.priority = check_priority(priority)
        self.retry = _of_kind("retry", retry, Retry, "a Retry, such as Retry(5), or None")
        self.timeout_s = timeout_s
        self.concurrency = _of_kind("concurrency", concurrency, PerKey, 'a PerKey, such as PerKey("{tenant}"), or None')
        self.rate = _of_kind("rate", rate, Rate, "a Rate, such as Rate(100), or None")
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(fn)) or inspect.iscoroutinefunction(fn)
        self.signature = Signature.of(fn, skip=(TaskContext, Depends), localns=localns)
        self.needs = Needs(self.name, self.signature.injected, localns)
        self.is_plain = self.is_async and not self.needs and timeout_s is None
        """Whether running it is awaiting it with its arguments."""
        self.result = self.signature.result
        self._result_ttl_ms = _result_ttl_ms(result_ttl_s)
        self._losses_max = _losses_max(worker_losses_max)
        if timeout_s is not None and not (is_number(timeout_s) and timeout_s > 0):
            raise ConfigError("timeout_s", timeout_s, "a finite number of seconds above 0, or None", source=_SOURCE)
        self._unique = self._template(unique)
        self._key = self._template(concurrency.key if concurrency else None)
        self._rate_key = self._template(rate.key if rate else None)
        self._plain = self._static_options()

    def _template(self, text: str | None) -> Fill | None:
        return None if text is None else self.signature.template(text)

    def _static_options(self) -> bytes | None:
        """The options of every call that says nothing itself; None if they depend on its arguments."""
        if self._unique is None and self._key is None and self._rate_key is None:
            return _pack(self._scripted(NOTHING, (), {}))
        return None

    def options(self, call: CallOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """What the scripts should know of this call (MessagePack map; empty: nothing). Raises ``InvalidName`` for a
        unique value or key that is too long."""
        if call is NOTHING and self._plain is not None:
            return self._plain
        return _pack(self._scripted(call, args, kwargs))

    def _scripted(self, call: CallOptions, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        worker = WorkerOptions(timeout_s=call.timeout_s, headers=dict(call.headers)).encode()
        ttl_ms = self._result_ttl_ms if call.result_ttl_s is None else _result_ttl_ms(call.result_ttl_s)
        found: dict[str, Any] = {
            "d": None if call.delay_s is None else round(call.delay_s * 1000),
            "a": None if call.at is None else round(call.at.astimezone(UTC).timestamp() * 1000),
            "f": list(dict.fromkeys(call.after)) or None,
            "r": ttl_ms,
            "m": self._losses_max,
            "o": worker or None,
        }
        if call.unique is not None:
            found["y"] = _text("unique value", f"{self.name}:{call.unique}")
        elif self._unique is not None:
            found["y"] = _text("unique value", f"{self.name}:{self._unique(args, kwargs)}")
        if self.concurrency is not None and self._key is not None:
            group = self.concurrency.group or self.name
            found["k"] = _text("key", f"{group}:{self._key(args, kwargs)}")
            found["v"] = self.concurrency.limit
        if self.rate is not None and self._rate_key is not None:
            key = _text("rate key", f"{self.rate.group or self.name}:{self._rate_key(args, kwargs)}")
            found["j"] = f"{self.rate.interval_us}:{self.rate.burst}:{key}"
        return {name: value for name, value in found.items() if value is not None}


def check_priority(priority: int) -> int:
    """``priority``, if a task may have it. Raises ``ConfigError``."""
    if priority not in range(10) or isinstance(priority, bool):
        raise ConfigError("priority", priority, "a whole number from 0 to 9, 9 first", source=_SOURCE)
    return priority


def _result_ttl_ms(ttl_s: float | None) -> int | None:
    """None: what the scripts take for granted; 0: not kept."""
    if ttl_s is None:
        return 0
    if not (is_number(ttl_s) and ttl_s >= 0):
        raise ConfigError("result_ttl_s", ttl_s, "a finite number of seconds from 0 on, or None", source=_SOURCE)
    return None if ttl_s == RESULT_TTL_S else math.ceil(ttl_s * 1000)


def _losses_max(losses_max: int) -> int | None:
    given: Any = losses_max
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise ConfigError("worker_losses_max", losses_max, "a whole number from 0 on", source=_SOURCE)
    return None if losses_max == WORKER_LOSSES_MAX else losses_max


def _of_kind(name: str, value: T | None, kind: type[T], allowed: str) -> T | None:
    if value is not None and not isinstance(value, kind):
        raise ConfigError(name, value, allowed, source=_SOURCE)
    return value


def _pack(options: dict[str, Any]) -> bytes:
    return _ENCODE(options) if options else b""


def _text(kind: str, text: str) -> str:
    if len(text.encode()) > _TEXT_BYTES_MAX:
        raise InvalidName(kind, text[:80] + "...", f"at most {_TEXT_BYTES_MAX} bytes in UTF-8")
    return text
