"""What a job's function holds in its hands while it runs.

Owns nothing but the view: what is true of the job is in its record, what is true of this run in ``runs.py``.
Invariants: ``fence`` never changes during one run; once ``owned`` is False it stays so, and every write of this run is
refused.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast, final, overload

import msgspec

from flotta.errors import Fenced, PayloadTooLarge, WireError
from flotta.pool.jobs.mailbox import Mailbox, Notification, Notifications

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Job", "JobPort", "StopReason"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    S = TypeVarWithDefault("S", default=Any)
else:  # `default=` is Python 3.13's; a bare `Job` is a `Job[Any]` for type checkers all the same
    S = TypeVar("S")

_encoder: Final = msgspec.msgpack.Encoder()


class StopReason(Enum):
    """Why a job is cancelled. It is set before the cancellation arrives."""

    STOP = "stop"
    """Somebody stopped it: it will not run again."""
    HANDOVER = "handover"
    """It moves to another worker: what is checkpointed now is what it goes on with there."""
    SHUTDOWN = "shutdown"
    """The whole pool is being stopped: it will not run again."""
    FENCED = "fenced"
    """This worker has lost it: another may run it already. Nothing it writes counts any more."""


class JobPort(Protocol):
    """What a job needs of its worker."""

    pool: str
    worker: str
    payload_bytes_max: int

    def owns(self, key: str, fence: int) -> bool:
        """Whether this worker may still act for the job, by the local clock."""

    async def checkpoint(self, key: str, fence: int, data: bytes) -> None:
        """Persist ``data``. Raises ``Fenced``."""

    def ready(self, key: str, fence: int) -> None:
        """The job is ready: tell its dispatcher."""


@final
class Job(Generic[S]):
    """One run of a job. ``S`` is the type of its checkpoints; declare it with ``state=`` to get it back typed."""

    __slots__ = (
        "_checkpoint",
        "_mailbox",
        "_port",
        "_state",
        "_state_type",
        "crashes",
        "fence",
        "key",
        "kind",
        "losses",
        "payload",
        "stop_reason",
        "worker",
    )

    def __init__(
        self,
        key: str,
        payload: bytes,
        *,
        fence: int,
        kind: str,
        crashes: int,
        losses: int,
        checkpoint: bytes | None,
        state_type: Any,
        mailbox: Mailbox,
        port: JobPort,
    ) -> None:
        self.key = key
        """The key of the job: at most one job of the pool has it."""
        self.payload = payload
        """As it was dispatched: raw bytes."""
        self.fence = fence
        """The fencing token: give it to every store that the job writes to, and let that store refuse smaller ones."""
        self.kind = kind
        """The name under which its function was declared; empty for a handler object."""
        self.crashes = crashes
        """How often it has crashed since it last ran well for a while."""
        self.losses = losses
        """How often its worker died while it ran."""
        self.worker = port.worker
        """The id of the worker that runs it."""
        self.stop_reason: StopReason | None = None
        """Why it is being cancelled; None while it is not."""
        self._mailbox = mailbox
        self._port = port
        self._state_type = state_type
        self._checkpoint = checkpoint  # not decoded yet
        self._state: S | None = None

    def __repr__(self) -> str:
        return f"Job({self.key!r}, fence={self.fence}, attempt={self.attempt})"

    @property
    def attempt(self) -> int:
        """1 for the first run, one more after each crash and after each death of its worker."""
        return self.crashes + self.losses + 1

    @property
    def state(self) -> S | None:
        """The last checkpoint, of this run or of one before it; None if there is none.

        Raises ``WireError`` if it does not fit the declared type (it was written by other code).
        """
        raw = self._checkpoint
        if raw is not None:
            try:
                self._state = cast("S", msgspec.msgpack.decode(raw, type=self._state_type))
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise WireError(f"the checkpoint of job {self.key!r}", str(error), raw) from error
            self._checkpoint = None
        return self._state

    @property
    def owned(self) -> bool:
        """Whether this worker still owns the job, by its own clock: no I/O. False also before the job is cancelled for
        it, for instance when the event loop was blocked for longer than the worker's time to live."""
        return self._port.owns(self.key, self.fence)

    def check(self) -> None:
        """Raise ``Fenced`` unless ``owned``. Call it before a write that no fencing token protects."""
        if not self.owned:
            raise Fenced(self._port.pool, self.key, self.fence)

    async def checkpoint(self, state: S) -> None:
        """Keep ``state``: a later run, here or elsewhere, finds it in ``state``. It replaces the one before it.

        Allowed while the job is being stopped or handed over. Raises ``Fenced`` if this worker does not own the job any
        more, ``PayloadTooLarge``, ``TypeError`` for what msgpack cannot hold, and what ``Link.call`` raises.
        Cancelling it: it may have been kept.
        """
        data = _encoder.encode(state)
        limit = self._port.payload_bytes_max
        if len(data) > limit:
            raise PayloadTooLarge(f"checkpoint of job {self.key!r}", len(data), limit, option="payload_bytes_max")
        await self._port.checkpoint(self.key, self.fence, data)
        self._checkpoint, self._state = None, state

    def ready(self) -> None:
        """Say that the job has started: ``dispatch`` returns now. For jobs declared with ``ready="explicit"``; without
        it, or a second time, it does nothing."""
        self._port.ready(self.key, self.fence)

    @overload
    def notifications(self, every_s: None = None) -> AsyncIterator[Notification]: ...
    @overload
    def notifications(self, every_s: float) -> AsyncIterator[Notification | None]: ...
    def notifications(self, every_s: float | None = None) -> AsyncIterator[Any]:
        """The notifications sent to the job, in order, for ever; and None every ``every_s`` seconds.

        One counts as handled when the next is asked for: if the job crashes, moves or dies before, it comes again.
        Cancelling loses none.
        """
        return Notifications(self._mailbox, every_s)
