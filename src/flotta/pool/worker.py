"""A worker of this process: what the user holds while leases come and go.

Owns its tenures, one at a time. Invariants: a worker id is used for one lease; when that is lost everything under it is
cancelled in the same turn of the loop, and the worker joins anew, under a new id, by itself; after ``leave`` it never
does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final, final

from flotta.errors import Closed, PoolShutdown, RedisError
from flotta.pool.jobs.runs import RunState
from flotta.pool.jobs.surroundings import Surroundings
from flotta.pool.jobs.tenure import Tenure
from flotta.pool.members.heartbeat import Lease
from flotta.pool.members.lease import Loss
from flotta.pool.members.membership import Membership, WorkerInfo

__all__ = ["Worker", "WorkerState", "host_name"]

_RETRY_MIN_S: Final = 0.1
_RETRY_MAX_S: Final = 2.0
_PLACING_S: Final = 2.0


class WorkerState(Enum):
    """What a worker does."""

    JOINING = "joining"
    """It has no lease: just made, or it lost one and joins anew."""
    WORKING = "working"
    LEAVING = "leaving"
    """It hands its jobs over."""
    LEFT = "left"


@final
class Worker:
    """Made by ``Node.add_worker``."""

    def __init__(
        self,
        name: str,
        membership: Membership,
        around: Surroundings,
        *,
        kinds: tuple[str, ...],
        service: str,
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.state = WorkerState.JOINING
        self._membership = membership
        self._around = around
        self._kinds = kinds
        self._service = service
        self._on_change = on_change
        self._tenure: Tenure | None = None
        self._rejoining: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    def __repr__(self) -> str:
        return f"Worker({self.id or self.name!r}, {self.state.value})"

    @property
    def id(self) -> str:
        """Its id under the lease that it has now; empty while it has none. It changes when a lease was lost."""
        return "" if self._tenure is None else self._tenure.worker

    @property
    def jobs(self) -> list[str]:
        """Keys of the jobs that run here, or wait here after a crash."""
        if self._tenure is None:
            return []
        return [run.key for run in self._tenure.runs if run.state is not RunState.CLAIMING]

    @property
    def tenure(self) -> Tenure | None:
        """What it does under its lease; None while it has none. For the parts of a node."""
        return self._tenure

    async def join(self) -> None:
        """Get a lease and begin. Raises ``PoolShutdown`` and what a Redis call raises. Cancelling: it may be listed for
        one ttl, and takes no job."""
        info = WorkerInfo(
            node=self._membership.node,
            name=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            service=self._service,
            since_ms=time.time_ns() // 1_000_000,
            kinds=self._kinds,
            tasks=self._around.tasks.names,
        )
        lease = await self._membership.join_worker(info)
        if self.state is not WorkerState.JOINING:
            await self._membership.left(lease.worker)
            return
        self._tenure = Tenure(lease, self._around)
        self.state = WorkerState.WORKING
        self._on_change()

    def lost(self, lease: Lease, loss: Loss) -> None:
        """The lease is lost: cancel everything, join anew. One that is not this worker's now: no change."""
        tenure = self._tenure
        if tenure is None or tenure.lease is not lease:
            return
        self._tenure = None
        self._around.counts.leases_lost += 1
        tenure.fence(loss)
        if self.state is WorkerState.WORKING:
            self.state = WorkerState.JOINING
            self._rejoining = asyncio.get_running_loop().create_task(self._rejoin(), name=f"pool rejoin {self.name}")

    async def leave(self, timeout_s: float) -> list[str]:
        """Hand every job over and leave; gives the keys of jobs that have not ended within ``timeout_s``.

        Those were cancelled; they are taken back at once and may run elsewhere while they still run here. Again, or
        without a lease: harmless; while it leaves already that is waited for. Raises nothing for a lost connection.
        Cancelled: every job is cancelled as fenced, and the lease ends by its time.
        """
        return await self._go(timeout_s, self._drain)

    async def stop(self, timeout_s: float) -> list[str]:
        """End every job for good (the pool is shutting down) and leave. ``timeout_s``, what it gives, errors and being
        cancelled: as for ``leave``."""
        return await self._go(timeout_s, self._stop_all)

    def abandon(self) -> None:
        """Cut everything short: the jobs are cancelled as fenced, nobody renews the lease. Again, or after ``leave``:
        harmless."""
        tenure, self._tenure = self._tenure, None
        self.state = WorkerState.LEFT
        if self._rejoining is not None:
            self._rejoining.cancel()
        if tenure is not None:
            tenure.give_up()
            self._membership.let_go(tenure.worker)
        self._gone.set()

    async def _go(self, timeout_s: float, empty: Callable[[Tenure, float], Awaitable[list[str]]]) -> list[str]:
        if self.state in (WorkerState.LEAVING, WorkerState.LEFT):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._gone.wait()
            return []
        self.state = WorkerState.LEAVING
        left: list[str] = []
        try:
            await self._stop_rejoining()
            if self._tenure is not None:
                tenure = self._tenure
                left = await empty(tenure, timeout_s)
                await self._end(tenure)
        finally:
            self.abandon()
        return left

    async def _stop_all(self, tenure: Tenure, timeout_s: float) -> list[str]:
        tenure.stop_all()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(tenure.emptied(), self._around.tasks.drain(timeout_s))
        except TimeoutError:
            return [run.key for run in tenure.runs]
        return []

    async def _drain(self, tenure: Tenure, timeout_s: float) -> list[str]:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        self._around.tasks.stop_taking()
        try:
            await self._membership.leaving(tenure.worker)
            self._on_change()
            # Jobs follow the new table, so wait for it; if nobody coordinates they are parked instead.
            await self._membership.unplaced(tenure.worker, min(_PLACING_S, timeout_s / 2))
        except (RedisError, Closed) as error:
            self._around.logger.warning("a worker leaves without Redis", worker=tenure.worker, error=str(error))
        left_s = max(0.0, deadline_s - loop.time())
        left, _ = await asyncio.gather(tenure.hand_over_all(left_s), self._around.tasks.drain(left_s))
        return left

    async def _end(self, tenure: Tenure) -> None:
        self._around.inbox.trim_now()
        tenure.give_up()
        self._tenure = None
        try:
            await self._membership.left(tenure.worker)
        except (RedisError, Closed) as error:
            self._around.logger.warning("a worker's lease ends by its time", worker=tenure.worker, error=str(error))
        self._on_change()

    async def _stop_rejoining(self) -> None:
        task, self._rejoining = self._rejoining, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        with contextlib.suppress(RedisError, Closed):  # it may have been in the middle of a join
            await self._membership.give_back_unheard()

    async def _rejoin(self) -> None:
        pause_s = _RETRY_MIN_S
        while self.state is WorkerState.JOINING:
            try:
                await self.join()
            except (PoolShutdown, Closed):
                self.abandon()
            except RedisError as error:
                self._around.logger.debug("a worker cannot join anew yet", name=self.name, error=str(error))
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause_s = min(2 * pause_s, _RETRY_MAX_S)


def host_name() -> str:
    """The name of this machine, as far as ids may hold it."""
    name = "".join(char if re.match(r"[A-Za-z0-9._-]", char) else "-" for char in socket.gethostname())
    return name[:40] or "host"
