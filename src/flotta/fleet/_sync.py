"""The fleet for code that cannot await: WSGI threads and plain scripts.

Every call is carried into the event loop in which the fleet runs and waits for its result. Under `flotta run` that is
the worker's own loop. Where no loop runs the fleet (``flask run``, gunicorn, a script), the first call starts it in a
thread of its own, which ends with the process.

Invariants: no part is ever touched from two threads; a context manager is entered and left by one task (a
connection's transaction stays whole); a call from the loop's own thread, which would wait for itself, is refused.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar, final

from flotta.errors import StateError

if TYPE_CHECKING:
    from flotta.fleet._fleet import Fleet

__all__ = ["SyncFleet", "SyncProxy"]

T = TypeVar("T")


@final
class SyncFleet:
    """What `Fleet` has, with every ``await`` done. Safe to use from any number of threads."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lock = threading.Lock()
        self._thread: _LoopThread | None = None

    @property
    def redis(self) -> SyncProxy:
        """The Redis client: ``fleet.sync.redis.get("key")``."""
        return self._part(lambda: self._fleet.redis)

    @property
    def postgres(self) -> SyncProxy:
        """The pool: ``with fleet.sync.postgres.connection() as connection: connection.execute(...)``."""
        return self._part(lambda: self._fleet.postgres)

    def map(self, name: str, **options: Any) -> SyncProxy:
        """As `Fleet.map`. May be called while a module is imported: the map is joined when the fleet starts."""
        handle = self._fleet.map(name, **options)
        return SyncProxy(self, lambda: handle)

    def stream(self, name: str, **options: Any) -> SyncProxy:
        """As `Fleet.stream`."""
        handle = self._fleet.stream(name, **options)
        return SyncProxy(self, lambda: handle)

    def pool(self, name: str, **options: Any) -> SyncProxy:
        """As `Fleet.pool`, for its jobs from outside: ``fleet.sync.pool("orders").stop(key)``. To dispatch and enqueue,
        take what was declared: ``fleet.sync.of(watch).dispatch(1)``."""
        handle = self._fleet.pool(name, **options)
        return SyncProxy(self, lambda: handle)

    def of(self, part: object) -> SyncProxy:
        """The synchronous face of any part: of the server that `Fleet.realtime` gave, of a declared job or task."""
        return SyncProxy(self, lambda: part)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Runs ``coroutine`` in the fleet's loop and returns its result. After ``timeout_s`` it is cancelled and
        `TimeoutError` raised; None waits for as long as it takes."""
        try:
            loop = self._ensure_loop()
        except BaseException:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result(timeout_s)
        except (concurrent.futures.TimeoutError, KeyboardInterrupt):
            future.cancel()
            raise

    def start(self) -> Self:
        """Starts the fleet now instead of at the first use. A running fleet is left alone."""
        self._ensure_loop()
        return self

    def stop(self) -> None:
        """Stops the fleet if this facade started it; one that a server or ``async with`` started is theirs to stop."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread.pid == os.getpid():
            thread.close(self._fleet)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _part(self, get: Callable[[], object]) -> SyncProxy:
        self._ensure_loop()
        return SyncProxy(self, get)

    def _ensure_loop(self) -> asyncio.AbstractEventLoop:
        """The loop in which the fleet runs; starts one if there is none."""
        # Before the lock: the thread that starts the fleet holds it until the hooks, which run in the loop, are done.
        self._refuse_own_loop(self._fleet.loop)
        with self._lock:
            loop = self._fleet.loop
            if self._thread is not None and self._thread.pid != os.getpid():
                raise StateError("fleet.sync", "the fleet was started before the process forked: start it in the child")
            if loop is None:
                self._thread = _LoopThread.start(self._fleet)
                loop = self._thread.loop
        self._refuse_own_loop(loop)
        return loop

    def _refuse_own_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if loop is not None and _running_loop() is loop:
            raise StateError("fleet.sync", "called in the event loop's own thread, it would wait for itself: use await")


class _LoopThread:
    """A thread with an event loop, for a process that has none."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        # A daemon, or the interpreter would wait for it before it calls atexit, where it is stopped.
        self._thread = threading.Thread(target=self._run, name="flotta loop", daemon=True)
        self._closed = False

    @classmethod
    def start(cls, fleet: Fleet) -> _LoopThread:
        self = cls()
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(fleet.start(), self.loop).result()
        except BaseException:
            self._end()
            raise
        atexit.register(self.close, fleet)
        return self

    def close(self, fleet: Fleet) -> None:
        if self._closed or self.pid != os.getpid():
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            asyncio.run_coroutine_threadsafe(fleet.stop(), self.loop).result()
        finally:
            self._end()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())


@final
class SyncProxy:
    """An asynchronous object seen from a thread. Methods that would be awaited return their result; what they return
    is wrapped again if it has anything to await; ``with`` and ``for`` stand for ``async with`` and ``async for``."""

    __slots__ = ("_get", "_held", "_sync")

    def __init__(self, sync: SyncFleet, get: Callable[[], object]) -> None:
        self._sync = sync
        self._get = get
        self._held: _HeldContext | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not inspect.isroutine(getattr(type(self._get()), name, None)):
            value = self._in_loop(lambda: getattr(self._get(), name))
            if not callable(value):
                return _wrap(self._sync, value)

        def call(*args: Any, **kwargs: Any) -> Any:
            passed = tuple(map(_unwrap, args))
            return _wrap(self._sync, self._in_loop(lambda: getattr(self._get(), name)(*passed, **kwargs)))

        return call

    def __enter__(self) -> Any:
        """``async with``, for what has it: a connection, a sink, a pipeline. Entered once at a time."""
        assert self._held is None, "entered twice"
        self._held = _HeldContext(self._sync, self._get())
        return self._held.enter()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        held, self._held = self._held, None
        assert held is not None, "left before it was entered"
        return held.leave(error)

    def __getitem__(self, key: Any) -> Any:
        return self._in_loop(lambda: self._get()[key])  # type: ignore[index]

    def __contains__(self, key: Any) -> bool:
        return bool(self._in_loop(lambda: key in self._get()))  # type: ignore[operator]

    def __len__(self) -> int:
        return int(self._in_loop(lambda: len(self._get())))  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        target = self._get()
        if not hasattr(target, "__aiter__"):
            return iter(self._in_loop(lambda: list(target)))  # type: ignore[call-overload]
        return self._iterate(target)

    def _iterate(self, target: Any) -> Iterator[Any]:
        iterator = self._in_loop(lambda: aiter(target))
        while True:
            try:
                item = self._in_loop(lambda: anext(iterator))
            except StopAsyncIteration:
                return
            yield _wrap(self._sync, item)

    def _in_loop(self, ask: Callable[[], Any]) -> Any:
        return self._sync.run(_settle(ask))


@final
class _HeldContext:
    """An asynchronous context manager: one task enters it, holds it, and leaves it."""

    def __init__(self, sync: SyncFleet, manager: Any) -> None:
        self._sync = sync
        self._manager = manager
        self._leave: asyncio.Future[BaseException | None] | None = None
        self._holder: concurrent.futures.Future[bool] | None = None

    def enter(self) -> Any:
        entered: concurrent.futures.Future[Any] = concurrent.futures.Future()
        loop = self._sync._ensure_loop()  # noqa: SLF001 - same module
        self._holder = asyncio.run_coroutine_threadsafe(self._hold(entered), loop)
        self._holder.add_done_callback(lambda done: _fail_entering(entered, done))
        return _wrap(self._sync, entered.result())

    def leave(self, error: BaseException | None) -> bool:
        leave, holder = self._leave, self._holder
        assert leave is not None, "left before it was entered"
        assert holder is not None, "left before it was entered"
        leave.get_loop().call_soon_threadsafe(leave.set_result, error)
        try:
            return holder.result()
        except BaseException as raised:
            if raised is error:
                return False
            raise

    async def _hold(self, entered: concurrent.futures.Future[Any]) -> bool:
        """True if the manager swallowed the exception with which it was left."""
        leave = self._leave = asyncio.get_running_loop().create_future()
        async with self._manager as value:
            entered.set_result(value)
            error = await leave
            if error is not None:
                raise error
        return error is not None


def _fail_entering(entered: concurrent.futures.Future[Any], done: concurrent.futures.Future[bool]) -> None:
    if entered.done():
        return
    if done.cancelled():
        entered.cancel()
    elif (error := done.exception()) is not None:
        entered.set_exception(error)


async def _settle(ask: Callable[[], Any]) -> Any:
    result = ask()
    if inspect.isawaitable(result) and not hasattr(result, "__aenter__"):
        return await result
    return result


def _wrap(sync: SyncFleet, value: Any) -> Any:
    """``value`` itself, unless its type has something to await, which a thread cannot do."""
    return SyncProxy(sync, lambda: value) if _must_await(type(value)) else value


def _unwrap(value: Any) -> Any:
    return value._get() if isinstance(value, SyncProxy) else value  # noqa: SLF001 - same module


_must_await_cache: dict[type[Any], bool] = {}


def _must_await(kind: type[Any]) -> bool:
    known = _must_await_cache.get(kind)
    if known is None:
        known = _must_await_cache[kind] = _has_awaitables(kind)
    return known


def _has_awaitables(kind: type[Any]) -> bool:
    if hasattr(kind, "__aenter__") or hasattr(kind, "__aiter__"):
        return True
    members = (member for base in kind.__mro__ for name, member in vars(base).items() if not name.startswith("__"))
    return any(inspect.iscoroutinefunction(member) for member in members)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
