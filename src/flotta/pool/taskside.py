"""The place of short tasks in a node and its workers: which runner belongs to which lease.

Owns the runner of each tenure. Invariant: a runner lives as long as the lease of its worker: it begins when the worker
has joined, is fenced in the step in which the lease is lost, and drains before the worker leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, final

from flotta.pool.options import PoolOptions
from flotta.pool.tasks import Results, RunnerStats, TaskClient, TaskRegistry, TaskRunner, TaskStore
from flotta.pool.wire import Bell

__all__ = ["NodeTasks", "WorkerTasks"]


@final
class WorkerTasks:
    """The tasks of one worker. ``begin`` for each lease; ``fence`` or ``drain`` ends what it began."""

    def __init__(
        self,
        store: TaskStore,
        registry: TaskRegistry,
        options: PoolOptions,
        *,
        queues: Sequence[str] | None,
        logger: Any,
    ) -> None:
        self._store = store
        self._registry = registry
        self._options = options
        self._queues = queues
        self._log = logger
        self._runner: TaskRunner | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks that it knows."""
        return tuple(self._registry.names)

    @property
    def running(self) -> int:
        """Tasks that run now."""
        return 0 if self._runner is None else self._runner.running

    @property
    def stats(self) -> RunnerStats | None:
        """Of the runner under the lease that it has now."""
        return None if self._runner is None else self._runner.stats

    def begin(self, worker: str) -> None:
        """The worker has a lease under this id."""
        if not self.names:
            return
        self._runner = TaskRunner(
            self._store,
            self._registry,
            worker,
            tasks_max=self._options.tasks_max,
            queues=self._queues,
            payload_bytes_max=self._options.payload_bytes_max,
            audit_s=self._options.worker_ttl_s / 3,
            logger=self._log,
        )
        self._runner.start()

    def hear(self, bell: Bell) -> None:
        """``wake`` or ``cancel`` rang."""
        if self._runner is None:
            return
        if bell.type == "cancel":
            self._runner.cancel(bell.key, bell.fence)
        else:
            self._runner.wake()

    def audit(self) -> None:
        """Bells may have been lost."""
        if self._runner is not None:
            self._runner.audit()

    def fence(self) -> None:
        """The lease is lost."""
        if self._runner is not None:
            self._runner.fence()
            self._runner = None

    def stop_taking(self) -> None:
        """The worker leaves: fetch no more."""
        if self._runner is not None:
            self._runner.stop_taking()

    async def drain(self, timeout_s: float) -> None:
        """Let what runs end within ``timeout_s``, give the rest back."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.drain(timeout_s)


@final
class NodeTasks:
    """What every node has of tasks: it can enqueue, wait for results, and take back what the dead held."""

    def __init__(self, store: TaskStore, node: str, *, payload_bytes_max: int) -> None:
        self.store = store
        self.results = Results(store, node)
        self.client = TaskClient(store, self.results, payload_bytes_max=payload_bytes_max)

    async def reap(self, worker: str, *, blame: bool, limit: int) -> int:
        """What the coordinator calls: how many tasks are left of a worker without a lease."""
        return max(0, await self.store.reap(worker, blame=blame, limit=limit))

    def recheck(self) -> None:
        """Answers may have been lost."""
        asyncio.get_running_loop().call_soon(self.results.recheck)

    async def aclose(self) -> None:
        """Nobody waits for a result any more."""
        await self.client.aclose()
