"""Every exception that Flotta raises.

::

    FlottaError
    ├── ConfigError                a setting, argument or file is wrong (also ValueError)
    ├── InvalidName                a name breaks the rule of its kind (also ValueError)
    ├── WireError                  bytes from outside are not what the protocol says (also ValueError)
    ├── PayloadTooLarge            an event, job or task is larger than its stream or pool allows (also ValueError)
    ├── StateError                 (also RuntimeError)
    │   ├── NotStarted             used before it was started
    │   └── Closed                 used after it was closed
    ├── EmbeddedServerError        an embedded Redis or PostgreSQL could not be run
    ├── RedisError
    │   ├── CommandError           the server answered with an error: the command was refused
    │   ├── NotApplied             the command has certainly not run
    │   │   ├── LinkUnavailable    no connection in time, or the server refuses every command
    │   │   └── LinkBusy           too many commands in flight for too long
    │   ├── AmbiguousOutcome       written, its reply lost: it may have run
    │   └── ServerTooOld           the server lacks what Flotta needs
    ├── MapError
    │   ├── NotAnInteger           incr on a value that is no integer
    │   └── MapTimeout             something has not arrived here in time (also TimeoutError)
    ├── StreamError
    │   └── StreamFull             the backlog that some sink still needs has reached its maximum
    ├── PostgresError
    │   ├── DatabaseUnavailable    no connection could be made
    │   ├── PoolTimeout            no connection became free in time
    │   └── PoolFull               too many callers already wait: answer 503
    ├── MigrationError
    │   ├── MigrationFailed        a step ended with an error; the database is as it was before it
    │   ├── MigrationMismatch      the files contradict each other or what the database has recorded; nothing was run
    │   ├── DirectConnectionNeeded the URL leads through a pooler that shares sessions
    │   ├── MigrationTimeout       another instance did not finish in time
    │   └── SeedChanged            a seed that was applied has other contents now
    ├── FleetError
    │   ├── StartTimeout           a step of the start did not end in time
    │   ├── StopTimeout            a part did not stop in time and was abandoned
    │   ├── LifespanFailed         the application refused to start or failed to stop
    │   ├── AppLoadError           the application could not be found or imported
    │   └── CannotListen           the address to serve on cannot be had
    ├── RealtimeError
    │   ├── PacketError            an Engine.IO or Socket.IO packet breaks its protocol (also WireError)
    │   ├── ConnectRefused         a handler refuses a connection (raise it in ``connect``)
    │   │   ├── AccessExpired      what the client showed is valid no longer
    │   │   ├── AccessRevoked      the user's access was revoked after it was granted
    │   │   └── UserFull           the user has as many connections as one may have
    │   ├── UnknownClient          a session id that was never a client of this instance
    │   ├── AckTimeout             the other side did not acknowledge in time
    │   └── ClusterTimeout         not every server answered in time; ``answers`` holds what came
    └── WorkerPoolError
        ├── PoolShutdown           the pool is being stopped everywhere
        ├── QueueFull              as much waits as may wait: nothing was accepted
        ├── JobError
        │   ├── JobExists          a job with this key is there already
        │   ├── NoWorkers          no live worker could take the job: it was not accepted
        │   ├── StartFailed        the job ended before it was ready
        │   ├── DispatchTimeout    no worker has started the job in time (also TimeoutError)
        │   ├── StopUnconfirmed    the job has not ended in time; it stays marked as stopping (also TimeoutError)
        │   ├── NotRunning         there is no job with this key
        │   └── Fenced             this worker does not own the job or task any more
        └── TaskError
            ├── TaskFailed         the task has failed for good
            ├── TaskCancelled      the task was cancelled before it was done
            ├── ResultTimeout      the task is not done yet (also TimeoutError)
            └── NoResult           nothing is known of the task: unknown, expired, or its result is not kept

Each carries its facts as attributes; the sentence is for people. Driver errors are mapped to these once, where the
driver is called, with ``from``.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

__all__ = [
    "AccessExpired",
    "AccessRevoked",
    "AckTimeout",
    "AmbiguousOutcome",
    "AppLoadError",
    "CannotListen",
    "Closed",
    "ClusterTimeout",
    "CommandError",
    "ConfigError",
    "ConnectRefused",
    "DatabaseUnavailable",
    "DirectConnectionNeeded",
    "DispatchTimeout",
    "EmbeddedServerError",
    "Fenced",
    "FleetError",
    "FlottaError",
    "InvalidName",
    "JobError",
    "JobExists",
    "LifespanFailed",
    "LinkBusy",
    "LinkUnavailable",
    "MapError",
    "MapTimeout",
    "MigrationError",
    "MigrationFailed",
    "MigrationMismatch",
    "MigrationTimeout",
    "NoResult",
    "NoWorkers",
    "NotAnInteger",
    "NotApplied",
    "NotRunning",
    "NotStarted",
    "Outcome",
    "PacketError",
    "PayloadTooLarge",
    "PoolFull",
    "PoolShutdown",
    "PoolTimeout",
    "PostgresError",
    "QueueFull",
    "RealtimeError",
    "RedisError",
    "ResultTimeout",
    "SeedChanged",
    "ServerTooOld",
    "StartFailed",
    "StartTimeout",
    "StateError",
    "StopTimeout",
    "StopUnconfirmed",
    "StreamError",
    "StreamFull",
    "TaskCancelled",
    "TaskError",
    "TaskFailed",
    "UnknownClient",
    "UserFull",
    "WireError",
    "WorkerPoolError",
]


class FlottaError(Exception):
    """The root: catch it to catch everything that Flotta itself raises."""


class ConfigError(FlottaError, ValueError):
    """A setting is wrong. ``variable`` names it, ``value`` is what was found, ``allowed`` says what may stand there."""

    def __init__(self, variable: str, value: object, allowed: str, *, source: str = "environment") -> None:
        self.variable = variable
        self.value = value
        self.allowed = allowed
        self.source = source
        shown = "is not set" if value is None else f"is {value!r}"
        super().__init__(f"{variable} ({source}) {shown}; allowed: {allowed}")


class InvalidName(FlottaError, ValueError):
    """``name`` is no valid name of its ``kind``; ``rule`` says what one looks like."""

    def __init__(self, kind: str, name: object, rule: str) -> None:
        self.kind = kind
        self.name = name
        self.rule = rule
        super().__init__(f"{name!r} is no valid {kind} name: {rule}")


class WireError(FlottaError, ValueError):
    """Bytes from outside break the format that ``what`` names. ``data`` holds at most their first 64 bytes."""

    def __init__(self, what: str, reason: str, data: bytes | str = b"") -> None:
        self.what = what
        self.reason = reason
        self.data = data[:64]
        super().__init__(f"{what}: {reason}" + (f" in {self.data!r}" if data else ""))


class PayloadTooLarge(FlottaError, ValueError):
    """``what`` (an event, job or task) has ``size`` bytes; ``size_max`` is the most that ``option`` allows."""

    def __init__(self, what: str, size: int, size_max: int, *, option: str) -> None:
        self.what = what
        self.size = size
        self.size_max = size_max
        self.option = option
        super().__init__(f"{what}: {size:,} bytes, {option} is {size_max:,}")


class StateError(FlottaError, RuntimeError):
    """The object is not in a state that allows this. ``what`` names the object."""

    def __init__(self, what: str, message: str) -> None:
        self.what = what
        super().__init__(message)


class NotStarted(StateError):
    """Used before it was started."""

    def __init__(self, what: str, cure: str = "start it first") -> None:
        super().__init__(what, f"{what} has not started: {cure}")


class Closed(StateError):
    """Used after it was closed."""

    def __init__(self, what: str) -> None:
        super().__init__(what, f"{what} is closed")


class EmbeddedServerError(FlottaError):
    """An embedded server could not be started or has ended. ``output`` is the end of what it printed."""

    def __init__(self, server: str, reason: str, output: str = "") -> None:
        self.server = server
        self.reason = reason
        self.output = output
        super().__init__(f"embedded {server}: {reason}" + (f"\n{output}" if output else ""))


# --- Redis -----------------------------------------------------------------------------------------------------------


class Outcome(Enum):
    """What is known about a command that failed."""

    APP = "app"
    """The server answered: the command was refused, asking again gives the same."""
    NOT_APPLIED = "not_applied"
    """It has certainly not run: asking again, also elsewhere, is safe."""
    AMBIGUOUS = "ambiguous"
    """It was written and its reply is lost: it may have run."""


class RedisError(FlottaError):
    """A Redis command failed. ``command`` is its name (never its arguments), ``outcome`` what is known."""

    outcome: Outcome = Outcome.APP

    def __init__(self, message: str, *, command: str = "") -> None:
        self.command = command
        super().__init__(f"{command}: {message}" if command else message)


class CommandError(RedisError):
    """The server answered with an error. ``code`` is its first word (``WRONGTYPE``), ``text`` the whole answer."""

    def __init__(self, text: str, *, command: str = "", outcome: Outcome = Outcome.APP) -> None:
        self.code = text.partition(" ")[0]
        self.text = text
        self.outcome = outcome
        super().__init__(text, command=command)


class NotApplied(RedisError):
    """The command has certainly not run."""

    outcome = Outcome.NOT_APPLIED


class LinkUnavailable(NotApplied):
    """No connection in time, or the server refuses this one (authentication, TLS, ``maxclients``). ``address`` says
    where (never with a password), ``reason`` why."""

    def __init__(self, address: str, reason: str, *, command: str = "") -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"no connection to {address}: {reason}", command=command)


class LinkBusy(NotApplied):
    """``in_flight`` commands already wait for their replies and none ended in time."""

    def __init__(self, in_flight: int, waited_s: float, *, command: str = "") -> None:
        self.in_flight = in_flight
        self.waited_s = waited_s
        found = f"no place after {waited_s:g} s" if waited_s > 0 else "and waiting_max more wait"
        cure = "make fewer calls at a time or raise in_flight_max or waiting_max"
        super().__init__(f"{in_flight} commands in flight, {found}: {cure}", command=command)


class AmbiguousOutcome(RedisError):
    """The command was written and its reply is lost (``reason``): it may have run."""

    outcome = Outcome.AMBIGUOUS

    def __init__(self, reason: str, *, command: str = "") -> None:
        self.reason = reason
        super().__init__(f"written, but its reply is lost ({reason}): it may have run", command=command)


class ServerTooOld(RedisError):
    """The server is ``version``; Flotta needs ``needed``, or ``cure``."""

    def __init__(self, version: str, needed: str, *, cure: str = "") -> None:
        self.version = version
        self.needed = needed
        self.cure = cure
        found = f"the Redis server is {version}, {needed} or newer is needed"
        super().__init__(f"{found}; or {cure}" if cure else found)


# --- Maps and streams ------------------------------------------------------------------------------------------------


class MapError(FlottaError):
    """A replicated map refuses an operation. ``map_name`` says which map."""

    def __init__(self, map_name: str, message: str) -> None:
        self.map_name = map_name
        super().__init__(f"map {map_name!r}: {message}")


class NotAnInteger(MapError):
    """``incr`` on ``key``, whose value is no 64-bit integer."""

    def __init__(self, map_name: str, key: str) -> None:
        self.key = key
        super().__init__(map_name, f"the value of {key!r} is no 64-bit integer")


class MapTimeout(MapError, TimeoutError):
    """Something has not arrived at this copy within ``waited_s`` seconds. A write that it waited for is in Redis."""

    def __init__(self, map_name: str, waited_s: float, what: str) -> None:
        self.waited_s = waited_s
        super().__init__(map_name, f"{what} after {waited_s:g} s")


class StreamError(FlottaError):
    """A stream, reader or sink refuses an operation. ``stream_name`` says which stream."""

    def __init__(self, stream_name: str, message: str) -> None:
        self.stream_name = stream_name
        super().__init__(f"stream {stream_name!r}: {message}")


class StreamFull(StreamError):
    """``length`` events that some sink still needs are kept; ``backlog_max`` is the most that may be."""

    def __init__(self, stream_name: str, length: int, backlog_max: int) -> None:
        self.length = length
        self.backlog_max = backlog_max
        super().__init__(
            stream_name,
            f"{length:,} events wait for their sinks, backlog_max is {backlog_max:,}: "
            'make the sinks faster, remove the ones that nobody runs, or choose overflow="drop"',
        )


# --- PostgreSQL and migrations ---------------------------------------------------------------------------------------


class PostgresError(FlottaError):
    """The connection pool cannot serve."""


class DatabaseUnavailable(PostgresError):
    """No connection to ``address`` (shown without a password) could be made: ``reason``, with its cure where one is
    known. ``lasting``: trying again will not help (wrong password, no such database)."""

    def __init__(self, address: str, reason: str, *, lasting: bool = False) -> None:
        self.address = address
        self.reason = reason
        self.lasting = lasting
        super().__init__(f"no connection to PostgreSQL at {address}: {reason}")


class PoolTimeout(PostgresError):
    """No connection became free within ``waited_s`` seconds; ``size`` are open, ``size_max`` is the limit."""

    def __init__(self, waited_s: float, size: int, size_max: int) -> None:
        self.waited_s = waited_s
        self.size = size
        self.size_max = size_max
        super().__init__(f"no PostgreSQL connection became free in {waited_s:g} s ({size} of {size_max} open)")


class PoolFull(PostgresError):
    """``waiting`` callers already wait for a connection. Answer 503."""

    def __init__(self, waiting: int, waiting_max: int) -> None:
        self.waiting = waiting
        self.waiting_max = waiting_max
        super().__init__(f"{waiting} callers already wait for a PostgreSQL connection (at most {waiting_max})")


class MigrationError(FlottaError):
    """The schema could not be brought up to date."""


class MigrationFailed(MigrationError):
    """``step`` ended with ``reason``. ``rolled_back``: the database is as it was before the step; otherwise the step
    ran outside a transaction, or its commit got no answer, and the ledger tells at the next start."""

    def __init__(self, step: str, reason: str, *, rolled_back: bool = True) -> None:
        self.step = step
        self.reason = reason
        self.rolled_back = rolled_back
        super().__init__(f"migration {step} failed" + (" and was rolled back" if rolled_back else "") + f": {reason}")


class MigrationMismatch(MigrationError):
    """The file or step ``what`` contradicts the others, or what the database has recorded. Nothing was run."""

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what}: {reason}")


class DirectConnectionNeeded(MigrationError):
    """``address`` leads through a pooler that gives every transaction another session: a lock cannot be held there."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"{address} is a connection pooler in transaction or statement mode (PgBouncer?), where no session lock "
            "can be held: give the migrations a URL of PostgreSQL itself"
        )


class MigrationTimeout(MigrationError):
    """After ``waited_s`` seconds the schema is still not ready; ``holder`` says who migrates, if known."""

    def __init__(self, waited_s: float, holder: str | None) -> None:
        self.waited_s = waited_s
        self.holder = holder
        super().__init__(
            f"the schema is not ready after {waited_s:g} s" + (f" (waiting on {holder})" if holder else "")
        )


class SeedChanged(MigrationError):
    """Seed ``name`` was applied with other contents. Give the new contents a new name."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"seed {name!r} was applied with other contents: give the new contents a new name")


# --- Fleet and server ------------------------------------------------------------------------------------------------


class FleetError(FlottaError):
    """An instance could not be brought up or down."""


class StartTimeout(FleetError):
    """``step`` of the start did not end within ``waited_s`` seconds; what had started was stopped again."""

    def __init__(self, step: str, waited_s: float) -> None:
        self.step = step
        self.waited_s = waited_s
        super().__init__(f"starting {step} took longer than {waited_s:g} s (FLOTTA_START_TIMEOUT_S)")


class StopTimeout(FleetError):
    """``part`` did not stop within the ``waited_s`` seconds it had; it was abandoned."""

    def __init__(self, part: str, waited_s: float) -> None:
        self.part = part
        self.waited_s = waited_s
        super().__init__(f"stopping {part} took longer than {waited_s:.3g} s; it was abandoned")


class LifespanFailed(FleetError):
    """The application ended its ``phase`` (startup or shutdown) with ``reason``."""

    def __init__(self, phase: str, reason: str) -> None:
        self.phase = phase
        self.reason = reason
        super().__init__(f"application {phase} failed: {reason}")


class AppLoadError(FleetError):
    """``app`` (``module:attribute``) gives no application: ``reason``; ``cure`` says what to do. If the application's
    own code failed while it was imported, that exception is the ``__cause__``."""

    def __init__(self, app: str, reason: str, cure: str) -> None:
        self.app = app
        self.reason = reason
        self.cure = cure
        super().__init__(f"cannot load {app!r}: {reason}. {cure}")


class CannotListen(FleetError):
    """No socket can listen on ``address``: ``reason``. ``cure`` says what to do."""

    def __init__(self, address: str, reason: str, cure: str) -> None:
        self.address = address
        self.reason = reason
        self.cure = cure
        super().__init__(f"cannot listen on {address}: {reason}. {cure}")


# --- Realtime --------------------------------------------------------------------------------------------------------


class RealtimeError(FlottaError):
    """The realtime server refuses an operation."""


class PacketError(WireError, RealtimeError):
    """A packet breaks Engine.IO 4 or Socket.IO 5. The connection that sent it ends; others are untouched."""


class ConnectRefused(RealtimeError):
    """Raise it in a ``connect`` handler: the client's ``connect_error`` gets ``message`` and ``data``."""

    def __init__(self, message: str = "not authorized", data: Any = None) -> None:
        self.message = message
        self.data = data
        super().__init__(message)


class AccessExpired(ConnectRefused):
    """The access of ``user`` ended at ``expired_at`` (Unix seconds)."""

    def __init__(self, user: str, expired_at: float) -> None:
        self.user = user
        self.expired_at = expired_at
        super().__init__("access expired")


class AccessRevoked(ConnectRefused):
    """The access of ``user`` was revoked after this client got it."""

    def __init__(self, user: str) -> None:
        self.user = user
        super().__init__("access revoked")


class UserFull(ConnectRefused):
    """``user`` has ``connections_max`` connections already."""

    def __init__(self, user: str, connections_max: int) -> None:
        self.user = user
        self.connections_max = connections_max
        super().__init__("too many connections")


class UnknownClient(RealtimeError):
    """``sid`` was never a client of this instance in ``namespace``: it is another namespace's, another instance's, or
    nobody's."""

    def __init__(self, sid: object, namespace: str, *, found_in: str | None = None) -> None:
        self.sid = sid
        self.namespace = namespace
        self.found_in = found_in
        """The namespace in which it is a client of this instance."""
        why = f": it is in {found_in!r}: say namespace=" if found_in is not None else ", and never was"
        super().__init__(f"{sid!r} is no client of this instance in namespace {namespace!r}{why}")


class AckTimeout(RealtimeError):
    """``event`` was not acknowledged within ``waited_s`` seconds. ``gone``: its client has left, or was never there."""

    def __init__(self, event: str, waited_s: float, *, gone: bool = False) -> None:
        self.event = event
        self.waited_s = waited_s
        self.gone = gone
        why = "its client has left, or its session id is nobody's" if gone else f"nothing came within {waited_s:g} s"
        super().__init__(f"{event!r} was not acknowledged: {why}")


class ClusterTimeout(RealtimeError, TimeoutError):
    """Of ``expected`` servers (or clients) only ``answered`` answered ``request`` within ``waited_s`` seconds.

    ``answers`` holds what came in time.
    """

    def __init__(self, request: str, *, expected: int, answered: int, waited_s: float, answers: list[Any]) -> None:
        self.request = request
        self.expected = expected
        self.answered = answered
        self.waited_s = waited_s
        self.answers = answers
        super().__init__(f"{request}: {answered} of {expected} answered within {waited_s:g} s")


# --- Worker pools ----------------------------------------------------------------------------------------------------


class WorkerPoolError(FlottaError):
    """A worker pool refuses an operation. ``pool`` names it."""

    def __init__(self, pool: str, message: str) -> None:
        self.pool = pool
        super().__init__(f"pool {pool!r}: {message}")


class PoolShutdown(WorkerPoolError):
    """The pool is being stopped everywhere, or was stopped while this call waited."""

    def __init__(self, pool: str) -> None:
        super().__init__(pool, "it is shutting down, or was shut down: nothing is accepted")


class QueueFull(WorkerPoolError):
    """``queued`` jobs, tasks or notifications (``what``) wait already; ``limit`` is the most that may. Nothing was
    accepted and nothing was dropped."""

    def __init__(self, pool: str, queued: int, limit: int, *, what: str = "jobs") -> None:
        self.queued = queued
        self.limit = limit
        self.what = what
        super().__init__(
            pool, f"{queued:,} {what} wait already, the limit is {limit:,}: try again later, or add workers"
        )


class JobError(WorkerPoolError):
    """Something about the job ``key``."""

    def __init__(self, pool: str, key: str, message: str) -> None:
        self.key = key
        super().__init__(pool, f"job {key!r}: {message}")


class JobExists(JobError):
    """A job with this key is there already: queued, running, waiting after a crash, or stopping."""

    def __init__(self, pool: str, key: str) -> None:
        super().__init__(pool, key, "it exists already")


class NoWorkers(JobError):
    """No live worker could take the job. It was not accepted."""

    def __init__(self, pool: str, key: str) -> None:
        super().__init__(pool, key, "no worker is there to take it (start one: pool.work() or node.add_worker())")


class StartFailed(JobError):
    """The job ended before it was ready; its record is gone. ``reason`` is what the handler said."""

    def __init__(self, pool: str, key: str, reason: str) -> None:
        self.reason = reason
        super().__init__(pool, key, f"it did not start: {reason}")


class DispatchTimeout(JobError, TimeoutError):
    """No worker has started the job within ``waited_s`` seconds. ``withdrawn`` True: it was still queued and is gone,
    it will not start; False: a worker was starting it and has been told to stop it."""

    def __init__(self, pool: str, key: str, waited_s: float, *, withdrawn: bool) -> None:
        self.waited_s = waited_s
        self.withdrawn = withdrawn
        after = "it was withdrawn and will not start" if withdrawn else "its worker was told to stop it"
        super().__init__(pool, key, f"not started after {waited_s:g} s; {after}")


class StopUnconfirmed(JobError, TimeoutError):
    """The job has not ended within ``waited_s`` seconds. It stays marked as stopping: it will not run anywhere else."""

    def __init__(self, pool: str, key: str, waited_s: float) -> None:
        self.waited_s = waited_s
        super().__init__(pool, key, f"told to stop, not ended after {waited_s:g} s; it stays marked as stopping")


class NotRunning(JobError):
    """There is no job with this key."""

    def __init__(self, pool: str, key: str) -> None:
        super().__init__(pool, key, "there is none")


class Fenced(JobError):
    """This worker does not own the job or task (``key``) any more: its lease has ended or another owner has a higher
    fencing token than ``fence``. Whatever still runs must stop writing."""

    def __init__(self, pool: str, key: str, fence: int) -> None:
        self.fence = fence
        super().__init__(pool, key, f"the fencing token {fence} is not its owner's any more")


class TaskError(WorkerPoolError):
    """Something about the task ``id``."""

    def __init__(self, pool: str, id: str, message: str) -> None:  # noqa: A002 - it is its id
        self.id = id
        super().__init__(pool, f"task {id!r}: {message}")


class TaskFailed(TaskError):
    """The task ``name`` has failed for good after ``attempts``. ``error_type`` and ``reason`` say what it raised, and
    ``trace`` where (text)."""

    def __init__(
        self,
        pool: str,
        id: str,  # noqa: A002
        *,
        name: str,
        attempts: int,
        error_type: str,
        reason: str,
        trace: str = "",
    ) -> None:
        self.name = name
        self.attempts = attempts
        self.error_type = error_type
        self.reason = reason
        self.trace = trace
        super().__init__(
            pool, id, f"{name} failed after {attempts} attempt{'s' * (attempts != 1)}: {error_type}: {reason}"
        )


class TaskCancelled(TaskError):
    """The task was cancelled before it was done."""

    def __init__(self, pool: str, id: str) -> None:  # noqa: A002
        super().__init__(pool, id, "it was cancelled")


class ResultTimeout(TaskError, TimeoutError):
    """The task is not done after ``waited_s`` seconds. It goes on."""

    def __init__(self, pool: str, id: str, waited_s: float) -> None:  # noqa: A002
        self.waited_s = waited_s
        super().__init__(pool, id, f"not done after {waited_s:g} s; it goes on")


class NoResult(TaskError):
    """Nothing is known of the task: it never was, its result has expired, or results of its kind are not kept."""

    def __init__(self, pool: str, id: str) -> None:  # noqa: A002
        super().__init__(pool, id, "nothing is known of it: wrong id, or its result has expired or is not kept")
