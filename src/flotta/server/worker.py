"""The life of one worker process.

Order: settings, logs, application, lifespan (which starts the fleet; for WSGI the worker does), sockets, ready; then on
the first SIGTERM: not ready, listener closed, requests and realtime clients drained, lifespan ended (background tasks,
PostgreSQL, Redis), exit 0. A second signal or the end of the drain cancels what is left: exit 1. A start that fails is
told with its reason: exit 3.

Invariants: the process ends within ``stop_s`` of the first signal even when the event loop is blocked for good, since a
timer thread ends it; whoever reads the status channel always learns the last state.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, final

import structlog
import uvicorn

from flotta.errors import AppLoadError, ConfigError, FlottaError, LifespanFailed
from flotta.fleet import Fleet, FleetState, in_loop_of, registered, use_settings
from flotta.instance import Instance
from flotta.server.config import ServeConfig
from flotta.server.drain import Drain
from flotta.server.fleet_metrics import FleetCollector
from flotta.server.gate import Gate, Reply
from flotta.server.lifespan import Lifespan
from flotta.server.loading import LoadedApp, load_app, shadowed
from flotta.server.logs import configure_logs
from flotta.server.metrics import Metrics, WorkerCollector, realtime_connections
from flotta.server.signals import StoppedEarly, StopSignals
from flotta.server.sockets import listening_sockets, shown_address
from flotta.server.status import StatusChannel
from flotta.server.watchdog import LoopWatchdog, stack_of
from flotta.settings import FILE_NAME, Redactor, Settings

__all__ = ["EXIT_FORCED", "EXIT_OK", "EXIT_START_FAILED", "serve"]

EXIT_OK: Final = 0
EXIT_FORCED: Final = 1
EXIT_START_FAILED: Final = 3

TICK_S: Final = 0.1
STATS_EVERY_TICKS: Final = 10
HARD_STOP_MARGIN_S: Final = 1.0
"""After ``stop_s`` the timer thread waits so long for the loop to do it in order."""


def serve(config: ServeConfig) -> int:
    """Serves until SIGTERM or SIGINT, in this process and thread (the main one), and returns the exit code: 0 ended
    gracefully, 1 had to be forced, 3 did not start. Never raises for a fault of the application or its settings: they
    are logged and told on the status channel. Configures logging for the whole process."""
    return _Worker(config).run()


@final
class _Worker:
    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._settings = Settings()
        self._status = StatusChannel(config.status_fd, lambda: self._signals.ask("the supervisor is gone"))
        self._signals = StopSignals(supervised=config.status_fd is not None, on_overdue=self._overdue)
        self._log: Any = structlog.get_logger("flotta.server")
        self._own_fleets: list[Fleet] = []
        self._forced = False
        self._ready_told = False
        self._not_found_told: set[str] = set()

    def run(self) -> int:
        self._status.state("starting")
        configure_logs(form="auto", level="info", redact=Redactor())
        try:
            with self._signals:
                self._prepare()
                with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                    runner.run(self._main())
        except StoppedEarly:
            self._log.info("stopped before it had started")
        except Exception as error:  # noqa: BLE001 - the edge of the process: told, then it ends
            return self._failed(error)
        code = EXIT_FORCED if self._forced else EXIT_OK
        self._log.info("worker stopped", code=code)
        self._status.state("stopped", code=code)
        return code

    # --- start -------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """All that needs no event loop: settings, logs, the application's import."""
        self._settings = settings = self._load_settings()
        context = {"service": settings.service}
        if settings.instance is not None:
            context["instance"] = settings.instance
        configure_logs(form=settings.log_format, level=settings.log_level, redact=settings.redactor(), context=context)
        use_settings(settings)
        self._signals.overdue_s = settings.stop_s + HARD_STOP_MARGIN_S
        self._sockets = listening_sockets(self._config)
        loaded = load_app(self._config)
        self._app = self._asgi(loaded)
        self._ws = _ws_class()
        self._lifespan = Lifespan(self._app) if loaded.interface == "asgi" else None
        self._gate = Gate(
            self._app,
            self,
            health_path=settings.health_path,
            metrics_path=settings.metrics_path,
            metrics_token=settings.metrics_token,
            log=self._log,
        )
        for path in shadowed(loaded.app, self._gate.own_paths):
            self._log.warning("the application's own route is hidden by Flotta's", path=path, cure=_MOVE)

    def _load_settings(self) -> Settings:
        file = Path(self._config.app_dir) / FILE_NAME
        settings = Settings.load(file=file if file.exists() else None)
        if self._config.instance is not None:
            settings = replace(settings, instance=self._config.instance)
        if self._config.drain_s is not None:
            margin_s = settings.stop_s - settings.drain_s
            settings = replace(settings, drain_s=self._config.drain_s, stop_s=self._config.drain_s + margin_s)
        return settings

    def _instance_id(self) -> str:
        """The same as that of every fleet here that was not given settings of its own."""
        settings = self._settings
        return Instance.here(service=settings.service, region=settings.region, id=settings.instance).id

    def _asgi(self, loaded: LoadedApp) -> Any:
        """The application as ASGI; a WSGI one in threads, with the realtime servers of its fleets in front."""
        if loaded.interface == "asgi":
            return loaded.app
        from a2wsgi import WSGIMiddleware  # noqa: PLC0415 - only for WSGI

        app: Any = WSGIMiddleware(loaded.app, workers=self._settings.wsgi_threads)
        for fleet in registered():
            for server in fleet.realtime_servers:
                app = server.app(app)
        return app

    async def _main(self) -> None:
        self._signals.attach(asyncio.get_running_loop())
        self._watchdog = LoopWatchdog(self._settings.loop_lag_warn_s, self._log)
        self._fleet_metrics = FleetCollector()
        worker_metrics = WorkerCollector(self._gate, self._watchdog)
        self._metrics = Metrics([self._gate.requests, worker_metrics, self._fleet_metrics], self._instance_id())
        self._watchdog.start()
        start = asyncio.create_task(self._start(), name="start")
        stop = asyncio.create_task(self._signals.stop.wait(), name="wait for the signal to stop")
        try:
            await asyncio.wait([start, stop], return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                start.cancel()
                await asyncio.wait([start])
            if start.cancelled():
                return
            start.result()
            await self._until_asked(stop)
            await self._stop()
        finally:
            stop.cancel()
            self._watchdog.close()

    async def _start(self) -> None:
        """Brings everything up; what it has brought up it takes down again if it cannot go on."""
        try:
            await self._start_fleets()
            self._server = uvicorn.Server(self._uvicorn_config())
            self._server.config.load()
            self._server.lifespan = _NoLifespan(self._lifespan.state if self._lifespan is not None else {})
            await self._server.on_tick(0)
            await self._server.startup(sockets=self._sockets)
        except BaseException:
            await self._stop_fleets(self._settings.stop_s - self._settings.drain_s)
            raise
        self._status.state("started")
        self._ticking = asyncio.create_task(self._tick(), name="tick")

    async def _start_fleets(self) -> None:
        if self._lifespan is not None:
            await self._lifespan.startup()
        for fleet in registered():
            if fleet.state is not FleetState.NEW:
                continue
            if self._lifespan is not None and self._lifespan.supported:
                self._log.warning("a Fleet was made and not started: give the application lifespan=fleet.lifespan")
                continue
            self._own_fleets.append(fleet)
            await fleet.start()

    def _uvicorn_config(self) -> uvicorn.Config:
        config = self._config
        return uvicorn.Config(
            self._gate,
            host=config.host,
            port=config.port,
            uds=config.uds,
            http="httptools",
            ws=self._ws,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=config.access_log,
            forwarded_allow_ips=config.forwarded_allow_ips,
            root_path=config.root_path,
            ssl_certfile=config.ssl_certfile,
            ssl_keyfile=config.ssl_keyfile,
            ssl_keyfile_password=config.ssl_keyfile_password,
            timeout_keep_alive=math.ceil(config.keep_alive_s),
            server_header=False,
        )

    # --- serving -----------------------------------------------------------------------------------------------------

    async def _until_asked(self, stop: asyncio.Task[Any]) -> None:
        """Returns when the drain is to begin: somebody asks for it, or what tells others about us has failed."""
        await asyncio.wait([stop, self._ticking], return_when=asyncio.FIRST_COMPLETED)
        if self._ticking.done():
            self._forced = True
            self._log.error("the worker ends: it can no longer tell how it is", exc_info=self._ticking.exception())

    async def _tick(self) -> None:
        """Ten times a second: uvicorn's Date header, until ready whether it is; once a second statistics."""
        for count in itertools.count():
            await self._server.on_tick(count)
            if not self._ready_told and not self._signals.asked:
                await self._tell_if_ready()
            if count % STATS_EVERY_TICKS == 0:
                self._status.stats(self._stats())
            await asyncio.sleep(TICK_S)

    async def _tell_if_ready(self) -> None:
        reasons = await self._not_ready()
        if not reasons and not self._signals.asked:
            self._ready_told = True
            self._status.state("ready", address=shown_address(self._config, self._sockets))
            self._log.info("ready", address=shown_address(self._config, self._sockets))

    def _stats(self) -> dict[str, Any]:
        requests = self._gate.requests
        realtime = realtime_connections()
        return {
            "requests": requests.total,
            "in_flight": requests.in_flight,
            "connections": len(self._server.server_state.connections),
            "websocket_connections": self._gate.websockets + realtime,
            "loop_lag_ms": round(self._watchdog.take_lag_max() * 1000, 1),
            "ready": self._ready_told and not self._signals.asked,
        }

    async def _not_ready(self) -> list[str]:
        """Why new work may not come here; empty when it may."""
        if self._signals.asked:
            return ["draining"]
        found = [await in_loop_of(f, f.readiness()) for f in registered() if f.state is not FleetState.NEW]
        return [reason for readiness in found for reason in readiness.reasons]

    async def health(self) -> Reply:
        healths = [await in_loop_of(f, f.health()) for f in registered() if f.state is not FleetState.NEW]
        error = "; ".join(h.error for h in healths if h.error) or None
        checks = {
            check.name: {"ok": check.error is None, "latency_ms": round(check.latency_s * 1000, 2)}
            for health in healths
            for check in health.checks
        }
        if error is not None:
            return _json(503, {"status": "unhealthy", "error": error, "checks": checks})
        return _json(200, {"status": "healthy", "checks": checks})

    def not_found(self, path: str) -> None:
        """Realtime servers never answer 404: whoever gets it at the path of one asks an application without it, and
        whoever gets it at the path that clients have by default means one that is elsewhere."""
        paths = sorted({server.options.path for fleet in registered() for server in fleet.realtime_servers})
        asked = path.rstrip("/")
        if asked in paths:
            told = "realtime clients get 404: their server is in another application"
            cure = "run what its app(...) gave: app = sio.app(api)"
        elif paths and asked.endswith("/socket.io"):
            told = "realtime clients get 404: no server is at their path"
            cure = f"give both one path: io(url, {{ path }}) and fleet.realtime(path=...); served is {', '.join(paths)}"
        else:
            return
        if told not in self._not_found_told:
            self._not_found_told.add(told)
            self._log.warning(told, path=path, cure=cure)

    def live(self) -> Reply:
        return _json(200, {"status": "live"})

    async def ready(self) -> Reply:
        reasons = await self._not_ready()
        if reasons:
            return _json(503, {"status": "not ready", "reasons": reasons})
        return _json(200, {"status": "ready"})

    async def metrics(self, accept: str) -> Reply:
        await self._fleet_metrics.prepare()
        content_type, body = self._metrics.text(accept)
        return 200, content_type, body

    # --- stop --------------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.stop_s
        self._log.info("draining", reason=self._signals.reason, drain_s=self._settings.drain_s)
        self._gate.draining = True
        drain = Drain(self._server, self._server.config.http_protocol_class)
        await drain.close_listeners()
        self._status.state("draining")
        realtime = [fleet.drain for fleet in registered() if fleet.loop is loop]
        cancelled = await drain.run(self._settings.drain_s, realtime, self._signals.force)
        if cancelled:
            self._forced = True
            self._log.warning("requests cancelled: the drain is over", requests=cancelled)
        await self._stop_fleets(deadline - loop.time())
        self._ticking.cancel()

    async def _stop_fleets(self, timeout_s: float) -> None:
        """Ends the lifespan and the fleets that this worker started. What goes wrong makes the exit a forced one."""
        stops: list[Coroutine[Any, Any, None]] = []
        if self._lifespan is not None:
            stops.append(self._lifespan.shutdown())
        stops += [fleet.stop(timeout_s) for fleet in reversed(self._own_fleets)]
        stops += [
            fleet.stop(timeout_s) for fleet in registered() if fleet.loop not in (None, asyncio.get_running_loop())
        ]
        deadline = asyncio.get_running_loop().time() + timeout_s
        for stop in stops:
            await self._stop_one(stop, deadline - asyncio.get_running_loop().time())

    async def _stop_one(self, stop: Coroutine[Any, Any, None], timeout_s: float) -> None:
        task = asyncio.create_task(stop, name="stop")
        force = asyncio.create_task(self._signals.force.wait(), name="wait for a second signal")
        await asyncio.wait([task, force], timeout=max(timeout_s, 0.1), return_when=asyncio.FIRST_COMPLETED)
        force.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=1.0)
            self._forced = True
            self._log.error("the application did not stop in time and was abandoned", waited_s=round(timeout_s, 1))
        elif task.cancelled() or (error := task.exception()) is None:
            return
        else:
            self._forced = True
            self._log.error("the application did not stop cleanly", exc_info=error)

    def _overdue(self) -> None:
        """In the timer thread: the loop did not end the process in time."""
        self._log.error("forced: the event loop did not end in time", where=stack_of(threading.main_thread().ident))
        self._status.state("stopped", code=EXIT_FORCED)
        sys.stderr.flush()
        os._exit(EXIT_FORCED)

    def _failed(self, error: Exception) -> int:
        """Logs and tells why the start failed: our own errors by their sentence, others with their traceback."""
        cause = error.__cause__ if isinstance(error, AppLoadError | LifespanFailed) else error
        shown = cause if isinstance(cause, Exception) and not isinstance(cause, FlottaError | OSError) else None
        self._log.error("start failed", reason=str(error), exc_info=shown)
        redact = self._settings.redactor()
        self._status.state(
            "failed",
            reason=redact(str(error)),
            traceback="" if shown is None else redact("".join(traceback.format_exception(shown))),
            hopeless=isinstance(error, ConfigError | AppLoadError) or isinstance(cause, ConfigError),
        )
        return EXIT_START_FAILED


_MOVE: Final = "FLOTTA_HEALTH_PATH and FLOTTA_METRICS_PATH move Flotta's paths or turn them off"


class _NoLifespan:
    """Stands where uvicorn expects a lifespan: ours has run already."""

    should_exit = False

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    async def startup(self) -> None:
        """Done before."""

    async def shutdown(self) -> None:
        """Done after."""


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - absent on some platforms
    except ImportError:
        return None
    return uvloop.new_event_loop


def _ws_class() -> Any:
    """The protocol that serves Socket.IO natively and everything else as uvicorn does. Where the application, which
    has been imported, uses no realtime part, uvicorn's own: what is not used is not imported."""
    if "flotta.realtime" not in sys.modules:
        return "websockets-sansio"
    from flotta.realtime.transports.native import ws_protocol_class  # noqa: PLC0415

    return ws_protocol_class()


def _json(status: int, body: dict[str, Any]) -> Reply:
    return status, "application/json", json.dumps(body).encode()
