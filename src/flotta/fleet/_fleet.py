"""The fleet of this process: declares the parts, starts and stops them in order.

Making a `Fleet` costs nothing and does no I/O; parts that are not declared (`_declaring.py`) are not imported. Order of
the start: Redis, PostgreSQL, migrations, maps, streams, pools join, realtime, ``on_start`` hooks, pools work,
background tasks. Order of the stop: no new work, realtime clients drained while pools hand on what they run, background
tasks, ``on_stop`` hooks, realtime, pools leave, streams, maps, PostgreSQL, Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, final

import structlog

from flotta.errors import NotStarted, StateError
from flotta.fleet._connections import Connections
from flotta.fleet._declaring import Declarations
from flotta.fleet._health import Health, Readiness, run_checks, run_required
from flotta.fleet._lifecycle import FleetState, Step, Steps, check_move, raise_all, start_hook, stop_hook
from flotta.fleet._registry import in_loop_of, process_settings, register, registered
from flotta.fleet._schema import Schema
from flotta.fleet._sync import SyncFleet
from flotta.instance import Instance
from flotta.settings import Settings

if TYPE_CHECKING:
    from flotta.pool import WorkerPool
    from flotta.postgres import Pool
    from flotta.realtime import Server
    from flotta.redis import Redis
    from flotta.rmap import Map
    from flotta.streaming import Stream

__all__ = ["Fleet"]

DRAIN_MARGIN_S: Final = 0.5
"""What pools and background tasks leave, at least, to the parts that stop after them."""


@final
class Fleet(Declarations):
    """The parts of one service instance, started and stopped together.

    ``settings`` None: read from the environment and ``flotta.toml`` when the fleet starts. ``service`` overrides the
    name of the service. ``logger``: a structlog logger for the fleet and its parts; None: structlog's own.

    Declare parts (`map`, `stream`, `pool`, `realtime`, `migrations`, `background`, `on_start`, `on_stop`) before the
    start; then ``async with fleet:``, or ``FastAPI(lifespan=fleet.lifespan)``, or let `flotta run` start it for a WSGI
    application.
    """

    _current: ClassVar[Fleet | None] = None

    def __init__(
        self, settings: Settings | None = None, *, service: str | None = None, logger: Any | None = None
    ) -> None:
        super().__init__(logger if logger is not None else structlog.get_logger("flotta.fleet"), logger)
        self._given_settings = settings
        self._service = service
        self._settings: Settings | None = settings
        self._instance: Instance | None = None
        self._connections = Connections(self._log, logger)
        self._used_up = False
        self._steps = Steps()
        self._unwinding: asyncio.Future[list[Exception]] | None = None
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain_deadline = 0.0
        self._sync: SyncFleet | None = None
        register(self)

    # --- what it is --------------------------------------------------------------------------------------------------

    @classmethod
    def current(cls) -> Fleet | None:
        """The fleet of this process that started last and still runs; None if none runs."""
        return cls._current

    @property
    def state(self) -> FleetState:
        return self._state

    @property
    def running(self) -> bool:
        """Whether its parts can be used: started, perhaps draining."""
        return self._state in (FleetState.STARTED, FleetState.DRAINING)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop in which the fleet runs; None when it does not."""
        return self._loop

    @property
    def settings(self) -> Settings:
        """Raises `NotStarted` before the start, unless the settings were given."""
        if self._settings is None:
            raise self._not_started("its settings")
        return self._settings

    @property
    def instance(self) -> Instance:
        """Raises `NotStarted` before the start."""
        if self._instance is None:
            raise self._not_started("its instance")
        return self._instance

    @property
    def redis(self) -> Redis:
        """The Redis client. Raises `NotStarted` before the start and after the stop."""
        if self._connections.redis is None:
            raise self._not_started("its Redis client")
        return self._connections.redis

    @property
    def postgres(self) -> Pool:
        """The PostgreSQL pool. Raises `ConfigError` naming ``DATABASE_URL`` if none is configured, `NotStarted` before
        the start and after the stop."""
        if self._connections.postgres is None:
            if self._state in (FleetState.STARTING, FleetState.STARTED, FleetState.DRAINING):
                self.settings.require_postgres()
            raise self._not_started("its PostgreSQL pool")
        return self._connections.postgres

    @property
    def has_postgres(self) -> bool:
        """Whether there is a pool now."""
        return self._connections.postgres is not None

    @property
    def sync(self) -> SyncFleet:
        """The same parts for threads and plain scripts: every call waits for its result."""
        if self._sync is None:
            self._sync = SyncFleet(self)
        return self._sync

    # --- start and stop ----------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Starts everything in order. A fleet that already runs is left alone. If a step fails, or the caller is
        cancelled, what had started is stopped again before this raises. Maps, streams and realtime servers have one
        life, and so has a fleet that had started them.

        Raises `StateError` for a second life, `ConfigError`, `StartTimeout`, and what the parts raise, with the step's
        name as a note.
        """
        async with self._lock:
            if self.running:
                return self
            if self._used_up:
                raise StateError("fleet", "its maps, streams and realtime servers have been closed: make a new Fleet")
            self._settings = settings = self._load_settings()
            self._move(FleetState.STARTING)
            self._loop = asyncio.get_running_loop()
            self._instance = Instance.here(service=settings.service, region=settings.region, id=settings.instance)
            try:
                for step in self._plan(settings, self._instance):
                    await self._steps.start(step, settings.start_timeout_s)
            except BaseException:
                self._move(FleetState.STOPPING)
                await self._unwind(self._loop.time() + settings.stop_s - settings.drain_s)
                raise
            self._move(FleetState.STARTED)
            Fleet._current = self
            self._log.info("fleet started", service=self.instance.service, instance=self.instance.id)
        return self

    async def drain(self, timeout_s: float | None = None) -> None:
        """Takes no new work: readiness ends, realtime clients are told to reconnect elsewhere. Returns when they are
        gone or after ``timeout_s`` (None: the drain of the settings). A fleet that does not run is left alone.
        Cancelling it leaves the fleet draining. `stop` drains by itself."""
        if self._state is not FleetState.STARTED:
            return
        limit_s = self.settings.drain_s if timeout_s is None else timeout_s
        self._move(FleetState.DRAINING)
        self._drain_deadline = asyncio.get_running_loop().time() + limit_s
        drains = [asyncio.create_task(server.drain(limit_s), name="drain realtime") for server in self._servers]
        drains += [
            asyncio.create_task(_stop_working(pool, limit_s), name=f"drain pool {pool.name}") for pool in self.pools
        ]
        if not drains:
            return
        done, pending = await asyncio.wait(drains, timeout=limit_s)
        for task in pending:
            task.cancel()
        for task in done:
            if (error := task.exception()) is not None:
                self._log.error("a part did not drain", part=task.get_name(), exc_info=error)

    async def stop(self, timeout_s: float | None = None) -> None:
        """Drains and stops everything, in order, within ``timeout_s`` seconds (None: ``FLOTTA_STOP_S``). Stopping
        twice, or before the start, does nothing. May be awaited from another event loop than the fleet's own.
        Cancelling it leaves what has not stopped yet to stop by itself.

        Raises `StopTimeout` for a part that had to be abandoned, or what a part raised while it stopped; several come
        in an `ExceptionGroup`. Everything else has stopped even then.
        """
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            await in_loop_of(self, self.stop(timeout_s))
            return
        async with self._lock:
            if self._state in (FleetState.NEW, FleetState.STOPPED):
                return
            loop = asyncio.get_running_loop()
            deadline = loop.time() + (self.settings.stop_s if timeout_s is None else timeout_s)
            await self.drain(min(self.settings.drain_s, max(deadline - loop.time() - DRAIN_MARGIN_S, 0)))
            self._move(FleetState.STOPPING)
            errors = await self._unwind(deadline)
        self._log.info("fleet stopped", errors=len(errors))
        raise_all(errors)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """The lifespan of a Starlette or FastAPI application: ``FastAPI(lifespan=fleet.lifespan)``."""
        async with self:
            yield

    # --- how it is ---------------------------------------------------------------------------------------------------

    async def health(self, timeout_s: float | None = None) -> Health:
        """Asks Redis and PostgreSQL now; takes at most ``timeout_s`` (None: ``FLOTTA_HEALTH_TIMEOUT_S``)."""
        if not self.running:
            return Health(checks=(), error=f"the fleet is {self._state.value}")
        limit_s = self.settings.health_timeout_s if timeout_s is None else timeout_s
        checks = await run_checks(self._connections.checks(limit_s), limit_s, self.settings.redactor())
        return Health(checks=checks, error="; ".join(c.error for c in checks if c.error) or None)

    async def readiness(self) -> Readiness:
        """Whether new work may come here: started, schema ready, not draining, pools open, and whatever
        ``FLOTTA_READY_REQUIRES`` names answering now."""
        if self._state is not FleetState.STARTED:
            return Readiness(reasons=(f"the fleet is {self._state.value}",))
        limit_s = self.settings.health_timeout_s
        checks = self._connections.checks(limit_s)
        return await run_required(checks, self.settings.ready_requires, limit_s, self.settings.redactor())

    def _load_settings(self) -> Settings:
        settings = self._given_settings or process_settings() or Settings.load()
        return settings if self._service is None else replace(settings, service=self._service)

    def _plan(self, settings: Settings, instance: Instance) -> list[Step]:
        """All steps in the order of the start. PostgreSQL stops before Redis, since Redis starts before it."""
        connections = self._connections
        plan = [Step("Redis", partial(connections.open_redis, settings, instance), connections.close_redis)]
        if settings.database_url is not None or self._migrations:
            opening = partial(connections.open_postgres, settings, instance)
            plan.append(Step("PostgreSQL", opening, connections.close_postgres))
        plan += [
            Step(f"migrations in {schema.folder}", partial(self._migrate, schema), None, bounded=False)
            for schema in self._migrations
        ]
        plan += [self._part("map", handle.name, handle) for handle in self.maps]
        plan += [self._part("stream", handle.name, handle) for handle in self.streams]
        plan += [self._pool(handle) for handle in self.pools]
        plan += [self._part("realtime", str(n), handle) for n, handle in enumerate(self._servers)]
        plan += [stop_hook(fn) for fn in self._stop_hooks]
        plan += [start_hook(fn) for fn in self._start_hooks]
        plan += [self._work(handle) for handle in self.pools if not handle.options.client_only]
        plan.append(
            Step(
                "background tasks",
                self._background.start,
                self._background.stop,
                time_limit=self._drain_time,
                lasting=self._background.lasting,
            )
        )
        return plan

    def _part(self, kind: str, name: str, handle: Map[Any] | Stream[Any] | Server) -> Step:
        async def close(_left_s: float) -> None:
            self._used_up = True
            await handle.aclose()

        return Step(f"{kind} {name}", lambda: handle.start(self.redis), close)

    def _pool(self, handle: WorkerPool) -> Step:
        async def join() -> None:
            handle.service = handle.service or self.instance.service
            await handle.start(self.redis)

        async def leave(left_s: float) -> None:
            self._used_up = True
            await handle.close(max(left_s - DRAIN_MARGIN_S, 0))

        return Step(f"pool {handle.name}", join, leave)

    def _work(self, handle: WorkerPool) -> Step:
        start, stop = lambda: handle.work(name=self.instance.id), partial(_stop_working, handle)
        return Step(f"work of pool {handle.name}", start, stop, time_limit=self._drain_time)

    def _drain_time(self, left_s: float) -> float:
        """Pools and background tasks may use what is left of the drain, and at least a second."""
        drain_left_s = self._drain_deadline - asyncio.get_running_loop().time()
        return min(max(drain_left_s, 1.0), left_s - DRAIN_MARGIN_S)

    async def _migrate(self, schema: Schema) -> None:
        report = await schema.bring_up(self.settings.database_direct_url or self.postgres, self.instance, self._logger)
        self._log.info("schema ready", version=report.version, applied=report.applied, seeded=report.seeded)

    async def _unwind(self, deadline: float) -> list[Exception]:
        """Stops what has started. Shielded: a second cancellation must not leave half of it open unseen."""
        self._unwinding = asyncio.ensure_future(self._steps.stop(deadline))  # kept: the loop alone would not hold it
        try:
            return await asyncio.shield(self._unwinding)
        finally:
            self._move(FleetState.STOPPED)
            self._loop = None
            if Fleet._current is self:
                Fleet._current = next((f for f in reversed(registered()) if f.state is FleetState.STARTED), None)

    def _move(self, state: FleetState) -> None:
        self._state = check_move(self._state, state)

    def _not_started(self, what: str) -> NotStarted:
        return NotStarted("the fleet", f"{what} exists while it runs (async with fleet: ..., lifespan, or fleet.sync)")


async def _stop_working(pool: WorkerPool, left_s: float) -> None:
    await pool.stop_working(max(left_s - DRAIN_MARGIN_S, 0))
