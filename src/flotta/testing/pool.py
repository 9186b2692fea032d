"""A worker pool on a stage: declared as the service declares it, with a server, workers and times of a test.

Owns the server (unless one is given), a client-only node for the test itself, and the nodes of the workers, each behind
a proxy of its own. Invariants: the declarations are the service's own, nothing is copied or replaced; Redis is real; a
worker that is killed or paused is so by its connections, as a machine is that loses its network: what the others see is
what they would see of a dead or hanging process. After the stage the pool is as it was declared, ready for the next.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final, Self, final

from flotta.pool import JobInfo, JobState, Node, Worker, WorkerPool
from flotta.pool.deadletters import DeadLetter
from flotta.pool.inspection import PoolView
from flotta.pool.schedules.clock import SERVER_CLOCK
from flotta.redis import LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing.clock import FakeClock
from flotta.testing.faults import FaultProxy

__all__ = ["PoolStage", "StageWorker"]

_SHORT: Final[dict[str, Any]] = {
    "worker_ttl_s": 1.0,
    "ack_grace_s": 1.0,
    "dispatch_timeout_s": 5.0,
    "stop_timeout_s": 5.0,
    "close_timeout_s": 2.0,
    "shutdown_ttl_s": 5.0,
    "handover_timeout_s": 1.0,
    "rebalance_debounce_s": 0.02,
}
_POLL_S: Final = 0.01
_LINK: Final = LinkOptions(connect_timeout_s=1.0, command_timeout_s=2.0, reconnect_max_s=0.2)


@final
class StageWorker:
    """One worker on the stage, as a process of its own would be. Made by ``PoolStage.add_worker``."""

    def __init__(self, name: str, node: Node, worker: Worker, redis: Redis, proxy: FaultProxy) -> None:
        self.name = name
        self._node = node
        self._worker = worker
        self._redis = redis
        self._proxy = proxy
        self._killed = False

    def __repr__(self) -> str:
        return f"StageWorker({self.name!r})"

    @property
    def running(self) -> set[str]:
        """The keys of the jobs that run here, by its own account: it may have lost them and not know it yet."""
        return set(self._worker.jobs)

    async def kill(self) -> None:
        """It loses the network for good: the others take over after the worker's time to live, and it cancels what it
        runs at about the same moment, by its own clock (``StopReason.FENCED``)."""
        self._killed = True
        await self._proxy.refuse()

    def pause(self) -> None:
        """Nothing of it reaches Redis and nothing reaches it, until ``resume``. Longer than the time to live: others
        take over, and what it then still writes is refused."""
        self._proxy.pause()

    def resume(self) -> None:
        """The end of ``pause``: everything held back arrives. A worker whose lease is lost joins anew."""
        self._proxy.resume()

    async def leave(self) -> None:
        """It leaves as a process does that is stopped: its jobs are handed over."""
        await self._node.close()

    async def aclose(self) -> None:
        """Leave, in any state. Again: harmless."""
        self._proxy.resume()
        await self._node.close(0.1 if self._killed else None)
        await self._redis.aclose()
        await self._proxy.aclose()


@final
class PoolStage:
    """``async with PoolStage(pool) as stage``: the declared ``pool`` works, on a real server, with short times.

    ``workers``: how many there are at the beginning. ``url``: a server that is there already, of which it uses a
    namespace of its own; None starts one (needs ``flotta[embedded]``). ``clock``: what tickers, schedules and cron
    tasks go by. ``options``: fields of ``PoolOptions`` that should be other than the pool's and the stage's short ones.

    Raises ``StateError`` if the pool runs, ``ConfigError``, ``EmbeddedServerError``, and what joining raises.
    """

    def __init__(
        self,
        pool: WorkerPool,
        *,
        workers: int = 1,
        url: str | None = None,
        clock: FakeClock | None = None,
        **options: Any,
    ) -> None:
        self.pool = pool
        self.workers: list[StageWorker] = []
        self.clock = clock
        self._count = workers
        self._url = url
        self._declared = pool.options
        self._options = replace(pool.options, **{**_SHORT, **options})
        self._namespace = f"stage-{secrets.token_hex(4)}:"
        self._stack = AsyncExitStack()
        self._view: PoolView | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._url is None:
                self._url = (await stack.enter_async_context(EmbeddedRedis())).url
            self.pool.renew(options=replace(self._options, client_only=True), clock=self._clock)
            stack.callback(self.pool.renew, options=self._declared)
            redis = await stack.enter_async_context(self._client(self._url))
            await self.pool.start(redis)
            stack.push_async_callback(self.pool.close)
            self._view = PoolView(redis, self.pool.name)
            self._stack = stack
            for _ in range(self._count):
                await self.add_worker()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self.workers.clear()

    # --- workers ------------------------------------------------------------------------------------------------

    async def add_worker(self, name: str | None = None) -> StageWorker:
        """One more worker, with a node and a connection of its own; it ends with the stage. ``name``: None is
        ``worker-<number>``. Raises what joining raises. Cancelling: it may be listed for one ttl, and takes no job."""
        called = name or f"worker-{len(self.workers) + 1}"
        assert self._url is not None, "the stage has not begun"
        proxy = FaultProxy(self._url)
        await proxy.start()
        redis = self._client(proxy.url)
        node = await Node.join(
            self.pool.name, redis, options=replace(self._options, client_only=False), clock=self._clock
        )
        worker = StageWorker(called, node, await self.pool.equip(node, name=called), redis, proxy)
        self._stack.push_async_callback(worker.aclose)
        self.workers.append(worker)
        return worker

    async def running(self, *keys: str, timeout_s: float = 10.0) -> None:
        """Return when each of the jobs ``keys`` runs on a worker that has it by Redis' account, too. Raises
        ``TimeoutError`` after ``timeout_s`` seconds, and what a Redis call raises. Cancelling is harmless."""

        async def there() -> bool:
            jobs = {job.key for job in await self.jobs() if job.state is JobState.RUNNING}
            return jobs.issuperset(keys) and set().union(*(worker.running for worker in self.workers)).issuperset(keys)

        await self.until(there, timeout_s=timeout_s)

    async def drained(self, timeout_s: float = 10.0, *, due: bool = False) -> None:
        """Return when no task waits or runs and no job is still to start. Tasks that are due later (delays, retries)
        are waited for only with ``due``. Raises ``TimeoutError`` after ``timeout_s`` seconds, and what a Redis call
        raises. Cancelling is harmless."""

        async def empty() -> bool:
            figures, summary = await self.view.task_figures(self.pool.queues), await self.view.summary()
            later = 0 if due else figures.due
            return figures.totals.get("waiting", 0) - later <= 0 and figures.running == 0 and summary.queued == 0

        await self.until(empty, timeout_s=timeout_s)

    async def until(self, condition: Callable[[], Awaitable[object] | object], *, timeout_s: float = 10.0) -> None:
        """Return when ``condition()``, which may be awaitable, is true; it is asked every 10 ms. Raises
        ``TimeoutError`` after ``timeout_s`` seconds, and what ``condition`` raises. Cancelling is harmless."""
        async with asyncio.timeout(timeout_s):
            while True:
                found = condition()
                if await found if isinstance(found, Awaitable) else found:
                    return
                await asyncio.sleep(_POLL_S)

    # --- what there is ------------------------------------------------------------------------------------------

    @property
    def view(self) -> PoolView:
        """The pool from outside: summary, workers, tasks, timers."""
        assert self._view is not None, "the stage has not begun"
        return self._view

    async def jobs(self) -> list[JobInfo]:
        """All jobs, sorted by their keys. Raises what a Redis call raises. Cancelling is harmless."""
        return sorted([job async for job in self.view.jobs()], key=lambda job: job.key)

    async def dead_letters(self) -> list[DeadLetter]:
        """What was given up, the newest first. Raises what a Redis call raises. Cancelling is harmless."""
        return [letter async for letter in self.view.dead_letters.walk()]

    @property
    def _clock(self) -> Any:
        return SERVER_CLOCK if self.clock is None else self.clock

    def _client(self, url: str) -> Redis:
        return Redis.from_url(url, namespace=self._namespace, options=_LINK)
