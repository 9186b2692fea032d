"""A task as it travels: its record's fields, the options that the scripts read, how it failed. Pure.

Invariants: the scripts never look into what only the worker reads (``op``); it may gain fields, so that old and new
code share a pool.

The record ``task:<id>`` is a hash:

====== ==================================================================================================
field  meaning
====== ==================================================================================================
``s``  state, see ``TaskState``
``n``  name          ``p`` payload (emptied when it ends)         ``u`` queue
``q``  place in line: (9 - priority) x 2^49 + sequence number
``o``  worker        ``g`` fencing token of its last run
``a``  failures      ``l`` workers that died with it      ``m`` how many may (3)
``k``  its key for concurrency        ``v`` tasks of that key at a time        ``h`` 1: it holds a slot of its key
``j``  rate: ``<interval in us>:<burst>:<key>``           ``c`` 1: the run is charged to the rate
``y``  unique value  ``b`` tasks to be done before        ``d`` others wait for it     ``dl`` ``at`` then: delay, time
``r``  ms that its result is kept (600,000; 0: not at all)
``w``  nodes that wait for its end    ``x`` it was cancelled      ``un`` 1: some worker did not know it
``f``  1: something of the above is set
``z``  result, or how it failed       ``e`` how it failed last    ``pr`` progress
``op`` options for the worker (JSON)
====== ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, NamedTuple, final

import msgspec

from flotta.errors import WireError

__all__ = [
    "PRIORITY_STEP",
    "Failure",
    "Fetched",
    "Progress",
    "TaskInfo",
    "TaskState",
    "WorkerOptions",
    "parse_fetched",
    "parse_info",
]

PRIORITY_STEP: Final = 1 << 49
FETCHED_FIELDS: Final = 7


class TaskState(Enum):
    """Where a task is."""

    QUEUED = "queued"
    """It may run now."""
    DUE = "due"
    """It may run later: a delay, a retry, a reserved place in its rate."""
    WAITING = "waiting"
    """As many tasks of its key are there as may be."""
    BLOCKED = "blocked"
    """Tasks that it comes after are not done."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether it never changes again (but for a redrive)."""
        return self in _ENDED


_ENDED: Final = frozenset((TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED))


@final
class Failure(msgspec.Struct, frozen=True):
    """How a run failed."""

    type: str
    reason: str
    trace: str = ""
    attempts: int = 0
    name: str = ""

    @classmethod
    def decode(cls, data: bytes) -> Failure:
        """Raises ``WireError``."""
        try:
            return _FAILURE.decode(data)
        except msgspec.MsgspecError as error:
            raise WireError("failure of a task", str(error), data) from error

    def encode(self) -> bytes:
        """As it travels."""
        return _ENCODER.encode(self)


@final
class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far a task says it is."""

    fraction: float
    """0 to 1."""
    text: str = ""


@final
class WorkerOptions(msgspec.Struct, frozen=True, omit_defaults=True, rename={"timeout_s": "t", "headers": "h"}):
    """What one call says to its worker beside the payload."""

    timeout_s: float | None = None
    """Instead of the declared one; 0: none."""
    headers: dict[str, str] = {}

    def encode(self) -> str:
        """As it travels; empty if there is nothing to say. JSON, as the scripts' MessagePack has no byte strings."""
        return "" if self == _NO_OPTIONS else msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, data: bytes) -> WorkerOptions:
        """Raises ``WireError``."""
        if not data:
            return _NO_OPTIONS
        try:
            return _OPTIONS.decode(data)
        except msgspec.MsgspecError as error:
            raise WireError("options of a task", str(error), data) from error


_ENCODER: Final = msgspec.msgpack.Encoder()
_FAILURE: Final = msgspec.msgpack.Decoder(Failure)
_PROGRESS: Final = msgspec.msgpack.Decoder(Progress)
_OPTIONS: Final = msgspec.json.Decoder(WorkerOptions)
_NO_OPTIONS: Final = WorkerOptions()


class Fetched(NamedTuple):
    """A task that a worker was given."""

    id: bytes
    fence: bytes
    name: bytes
    payload: bytes
    failures: int
    losses: int
    options: bytes


def parse_fetched(flat: list[Any], fields: int = FETCHED_FIELDS) -> list[Fetched]:
    """The tasks of a script's flat answer, ``fields`` values for each."""
    return [
        Fetched(flat[i], flat[i + 1], flat[i + 2], flat[i + 3], int(flat[i + 4]), int(flat[i + 5]), flat[i + 6])
        for i in range(0, len(flat), fields)
    ]


@final
class TaskInfo(msgspec.Struct, frozen=True):
    """What is known of a task at this moment."""

    id: str
    state: TaskState
    name: str
    queue: str
    priority: int
    failures: int
    """Runs that failed."""
    losses: int
    """Workers that died while they ran it."""
    worker: str | None
    """Who runs it, or has run it last."""
    cancelling: bool
    """It was cancelled and still runs."""
    progress: Progress | None
    last_failure: Failure | None


def parse_info(id: str, fields: Mapping[bytes, bytes]) -> TaskInfo:  # noqa: A002 - it is its id
    """From all fields of a record. Raises ``WireError`` for a record that is none."""
    try:
        state = TaskState(fields[b"s"].decode())
        failure = (fields.get(b"z") if state is TaskState.FAILED else None) or fields.get(b"e")
        progress = fields.get(b"pr")
        return TaskInfo(
            id=id,
            state=state,
            name=fields[b"n"].decode(),
            queue=fields[b"u"].decode(),
            priority=9 - int(fields[b"q"]) // PRIORITY_STEP,
            failures=int(fields.get(b"a", b"0")),
            losses=int(fields.get(b"l", b"0")),
            worker=fields[b"o"].decode() if b"o" in fields else None,
            cancelling=state is TaskState.RUNNING and b"x" in fields,
            progress=_PROGRESS.decode(progress) if progress else None,
            last_failure=Failure.decode(failure) if failure else None,
        )
    except (KeyError, ValueError) as error:
        raise WireError("record of a task", f"{type(error).__name__}: {error}") from error
