"""What a service says that its fleet has: maps, streams, pools, realtime servers, migrations, background tasks, hooks.

Owns the declarations and no part of their life. Invariants: declaring does no I/O; a part that is not declared is not
imported; the same name declared again with the same options is the same handle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from flotta.errors import StateError
from flotta.fleet._background import Background, BackgroundTask
from flotta.fleet._declared import Declared
from flotta.fleet._lifecycle import FleetState, Hook, name_of
from flotta.fleet._schema import Schema

if TYPE_CHECKING:
    from flotta.pool import PoolOptions, WorkerPool
    from flotta.realtime import Server, ServerOptions
    from flotta.realtime.adapters import Adapter
    from flotta.realtime.options import AdapterName
    from flotta.rmap import Codec, Map, MapOptions
    from flotta.streaming import Stream
    from flotta.streaming.retention import Overflow, Retain

__all__ = ["Declarations"]

H = TypeVar("H", bound=Hook)
B = TypeVar("B", bound=Callable[[], Awaitable[object]])
V = TypeVar("V")


class Declarations:
    """The first half of `Fleet`: what it has."""

    def __init__(self, log: Any, logger: Any | None) -> None:
        self._logger = logger
        self._log: Any = log
        self._state = FleetState.NEW
        self._maps: Declared[Map[Any]] = Declared("map")
        self._streams: Declared[Stream[Any]] = Declared("stream")
        self._pools: Declared[WorkerPool] = Declared("pool")
        self._servers: list[Server] = []
        self._migrations: list[Schema] = []
        self._start_hooks: list[Hook] = []
        self._stop_hooks: list[Hook] = []
        self._background = Background(log)

    @property
    def maps(self) -> tuple[Map[Any], ...]:
        return self._maps.handles

    @property
    def streams(self) -> tuple[Stream[Any], ...]:
        return self._streams.handles

    @property
    def pools(self) -> tuple[WorkerPool, ...]:
        return self._pools.handles

    @property
    def realtime_servers(self) -> tuple[Server, ...]:
        return tuple(self._servers)

    @property
    def background_tasks(self) -> tuple[BackgroundTask, ...]:
        return tuple(self._background.tasks)

    # --- what it has -------------------------------------------------------------------------------------------------

    @overload
    def map(
        self,
        name: str,
        *,
        codec: Codec[V],
        ttl_s: float | None = None,
        sliding: bool = False,
        options: MapOptions | None = None,
    ) -> Map[V]: ...
    @overload
    def map(
        self,
        name: str,
        *,
        codec: None = None,
        ttl_s: float | None = None,
        sliding: bool = False,
        options: MapOptions | None = None,
    ) -> Map[str]: ...

    def map(
        self,
        name: str,
        *,
        codec: Codec[Any] | None = None,
        ttl_s: float | None = None,
        sliding: bool = False,
        options: MapOptions | None = None,
    ) -> Map[Any]:
        """The replicated map ``name``, joined when the fleet starts; the options are those of `flotta.rmap.Map`. No
        ``codec``: text. Asking twice gives the same handle. Raises `StateError` once the fleet runs (use
        ``Map.join(name, fleet.redis)``) and `ConfigError` if the map was declared with other options."""
        from flotta.rmap import Map  # noqa: PLC0415 - a part that is not used is not imported

        given = {"codec": codec, "ttl_s": ttl_s, "sliding": sliding, "options": options}
        known = self._maps.find(name, given)
        if known is not None:
            return known
        self._check_declarable(f"map {name!r}", "declare it before, or use Map.join(name, fleet.redis)")
        handle: Map[Any] = Map(name, codec=codec, ttl_s=ttl_s, sliding=sliding, options=options, logger=self._logger)
        return self._maps.add(name, given, handle)

    @overload
    def stream(
        self,
        name: str,
        *,
        codec: Codec[V],
        maxlen: int = 10_000,
        retain: Retain = "until_acked",
        backlog_max: int = 1_000_000,
        overflow: Overflow = "raise",
        ttl_s: float | None = None,
        sliding: bool = False,
        event_bytes_max: int = 1024 * 1024,
    ) -> Stream[V]: ...
    @overload
    def stream(
        self,
        name: str,
        *,
        codec: None = None,
        maxlen: int = 10_000,
        retain: Retain = "until_acked",
        backlog_max: int = 1_000_000,
        overflow: Overflow = "raise",
        ttl_s: float | None = None,
        sliding: bool = False,
        event_bytes_max: int = 1024 * 1024,
    ) -> Stream[bytes]: ...

    def stream(
        self,
        name: str,
        *,
        codec: Codec[Any] | None = None,
        maxlen: int = 10_000,
        retain: Retain = "until_acked",
        backlog_max: int = 1_000_000,
        overflow: Overflow = "raise",
        ttl_s: float | None = None,
        sliding: bool = False,
        event_bytes_max: int = 1024 * 1024,
    ) -> Stream[Any]:
        """The stream ``name``, opened when the fleet starts; the options are those of `flotta.streaming.Stream`. No
        ``codec``: bytes. The rest is as for `map`."""
        from flotta.streaming import BYTES, Stream  # noqa: PLC0415

        given: dict[str, Any] = {
            "codec": BYTES if codec is None else codec,
            "maxlen": maxlen,
            "retain": retain,
            "backlog_max": backlog_max,
            "overflow": overflow,
            "ttl_s": ttl_s,
            "sliding": sliding,
            "event_bytes_max": event_bytes_max,
        }
        known = self._streams.find(name, given)
        if known is not None:
            return known
        self._check_declarable(f"stream {name!r}", "declare it before, or use Stream.open(name, fleet.redis)")
        return self._streams.add(name, given, Stream(name, logger=self._logger, **given))

    def pool(
        self, name: str, *, options: PoolOptions | None = None, client_only: bool = False, **single_options: Any
    ) -> WorkerPool:
        """The worker pool ``name``: declare its jobs, tasks and schedules on it. It joins when the fleet starts, works
        from ready until the drain (``client_only``: it only dispatches and enqueues), and hands its jobs on then.

        ``options``: a `flotta.pool.PoolOptions`, or its fields by name; without any, the pool that was declared before.
        The rest is as for `map`."""
        from flotta.pool import PoolOptions, WorkerPool  # noqa: PLC0415

        chosen = options if options is not None else PoolOptions(**single_options)
        chosen = replace(chosen, client_only=True) if client_only else chosen
        says_nothing = options is None and not client_only and not single_options
        given = asdict(chosen)
        known = self._pools.find(name, {} if says_nothing else given)
        if known is not None:
            return known
        self._check_declarable(
            f"pool {name!r}", "declare it before, or use WorkerPool(name) and pool.start(fleet.redis)"
        )
        return self._pools.add(name, given, WorkerPool(name, options=chosen, logger=self._logger))

    def realtime(
        self,
        *,
        options: ServerOptions | None = None,
        adapter: AdapterName | Adapter | None = None,
        **single_options: Any,
    ) -> Server:
        """A Socket.IO server whose broadcasts reach the clients of all instances. The options are those of
        `flotta.realtime.Server`: a `ServerOptions`, or its fields by name; ``adapter`` (``"classic"``, ``"sharded"``,
        ``"streams"``) is one of them. Mount it with ``server.app(app)``; a WSGI application gets it by itself."""
        from flotta.realtime import Server  # noqa: PLC0415

        self._check_declarable("a realtime server", "make it before the fleet starts")
        server = Server(options=options, adapter=adapter, logger=self._logger, **single_options)
        self._servers.append(server)
        return server

    def migrations(
        self,
        folder: Path | str,
        *,
        seeds: Path | str | None = None,
        application: str | None = None,
        wait_timeout_s: float = 300.0,
        lock_timeout_s: float | None = None,
    ) -> None:
        """Brings the schema up to date while the fleet starts: one instance migrates, the others wait. The options are
        those of `flotta.migrations.Migrations`; ``application`` is the service's name if not given."""
        self._check_declarable("migrations", "declare them before the fleet starts")
        options = {"wait_timeout_s": wait_timeout_s, "lock_timeout_s": lock_timeout_s}
        self._migrations.append(Schema(Path(folder), None if seeds is None else Path(seeds), application, options))

    @overload
    def background(self, fn: B) -> B: ...
    @overload
    def background(self, *, name: str | None = None) -> Callable[[B], B]: ...

    def background(self, fn: B | None = None, *, name: str | None = None) -> B | Callable[[B], B]:
        """Decorator: ``fn`` (``async``, no arguments) runs in this instance from ready until the drain, where it is
        cancelled and waited for. If it raises it is logged and started again after a back-off; if it returns it is
        done. Also allowed while the fleet runs."""

        def register(run: B) -> B:
            self._background.add(name or name_of(run), run)
            return run

        return register if fn is None else register(fn)

    def on_start(self, fn: H) -> H:
        """Decorator: ``fn`` (no arguments, plain or ``async``) runs when all parts are up, before the instance is
        ready. If it raises, the start fails."""
        self._start_hooks.append(fn)
        return fn

    def on_stop(self, fn: H) -> H:
        """Decorator: ``fn`` (no arguments, plain or ``async``) runs after the drain, while PostgreSQL and Redis are
        still there. The last registered runs first."""
        self._stop_hooks.append(fn)
        return fn

    def _check_declarable(self, what: str, cure: str) -> None:
        if self._state not in (FleetState.NEW, FleetState.STOPPED):
            raise StateError("fleet", f"{what}: the fleet is {self._state.value} already; {cure}")
