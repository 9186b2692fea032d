"""A node: one process' place in a pool, from which it dispatches, and on which its workers are.

Owns the parts and the order in which they come and go: membership (leases), the inbox (bells and answers), the
dispatcher (who waits), the coordinator (its share of looking after the pool), workers. Invariants: a node joins once
and is closed once; closing takes a bounded time, also without Redis; nothing here grows with the jobs of other nodes.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterable
from enum import Enum
from typing import Any, Self, final

import structlog

from flotta.errors import Closed, ConfigError, FlottaError, NotRunning, PoolShutdown, RedisError, StateError
from flotta.pool.backoff import Backoff
from flotta.pool.chores import Chores
from flotta.pool.coordinator import Coordinator
from flotta.pool.inbox import Entry, Inbox
from flotta.pool.inspection import PoolWorker, list_jobs, list_workers
from flotta.pool.jobs.dispatching import Dispatcher
from flotta.pool.jobs.handle import JobHandle
from flotta.pool.jobs.handler import Handler, kind_of
from flotta.pool.jobs.peers import Peers
from flotta.pool.jobs.records import Counts as PoolCounts
from flotta.pool.jobs.records import JobInfo
from flotta.pool.jobs.runs import CRASHES_MAX, JobKind
from flotta.pool.jobs.store import JobStore
from flotta.pool.jobs.surroundings import Surroundings
from flotta.pool.keys import check_key, check_name
from flotta.pool.members.heartbeat import BeatNews, Lease
from flotta.pool.members.lease import Loss
from flotta.pool.members.membership import Membership
from flotta.pool.options import PoolOptions
from flotta.pool.schedules.clock import SERVER_CLOCK, Clock
from flotta.pool.schedules.scheduler import Producer, Schedule, job_of_pair
from flotta.pool.schedules.ticker import Ticker
from flotta.pool.schedules.timetable import Timetable
from flotta.pool.shutdown import LEAVE_S, PoolEnding
from flotta.pool.stats import Counts, NodeStats
from flotta.pool.tasks import TaskRegistry, TaskStore
from flotta.pool.taskside import NodeTasks, WorkerTasks
from flotta.pool.worker import Worker, WorkerState, host_name
from flotta.redis import Redis

__all__ = ["CRASHES_MAX", "JobHandle", "Node", "PoolWorker"]


class _State(Enum):
    NEW = "new"
    JOINED = "joined"
    CLOSING = "closing"
    CLOSED = "closed"


@final
class Node:
    """A node of the pool ``name``. ``Node.join`` makes and starts one; you owe it ``close``."""

    def __init__(
        self,
        name: str,
        redis: Redis,
        *,
        options: PoolOptions | None = None,
        service: str = "",
        logger: Any = None,
        clock: Clock = SERVER_CLOCK,
        owns_redis: bool = False,
    ) -> None:
        self.name = check_name("pool", name)
        self.options = options or PoolOptions()
        self.redis = redis
        self.id = f"{host_name()}-{os.getpid()}.{secrets.token_hex(6)}"
        self.service = service
        self.log = (logger or structlog.get_logger("flotta.pool")).bind(pool=name)
        self.counts = Counts()
        self.store = JobStore(redis, name, options=self.options)
        self.keys = self.store.keys
        self.membership = Membership(
            redis,
            self.keys,
            self.id,
            options=self.options,
            on_lost=self._on_lost,
            on_news=self._on_news,
            logger=self.log,
        )
        task_store = TaskStore(
            redis.link, self.keys, waiting_max=self.options.tasks_waiting_max, dead_max=self.options.dead_max
        )
        self.tasks = NodeTasks(task_store, self.id, payload_bytes_max=self.options.payload_bytes_max)
        self.coordinator = Coordinator(self.store, self.membership, reapers=(self.tasks.reap,), logger=self.log)
        self.timetable = Timetable(self.store, redis.link, clock=clock, logger=self.log)
        self._owns_redis = owns_redis
        self._state = _State.NEW
        self._inbox = Inbox(redis, name=f"pool-{self.name}", logger=self.log)
        self._dispatcher = Dispatcher(self.store, self.id, self.options, self.counts, self.log)
        self._workers: list[Worker] = []
        self._zombies: dict[str, asyncio.Task[None]] = {}
        self._chores = Chores(f"pool {name}", self.log, expected=(RedisError, Closed))
        self._shutting_down: asyncio.Task[None] | None = None
        self._ending = PoolEnding(self.store, redis.link)
        self._is_shutdown = False
        self._stops_the_pool = False
        self._ended = asyncio.Event()

    # --- life ---------------------------------------------------------------------------------------------------

    @classmethod
    async def join(
        cls,
        name: str,
        redis: Redis | str,
        *,
        options: PoolOptions | None = None,
        service: str = "",
        logger: Any = None,
        clock: Clock = SERVER_CLOCK,
        **single_options: Any,
    ) -> Self:
        """Join the pool ``name``. ``redis``: a client, or a URL (the node then owns its connection). ``options``, or
        its fields by name. ``clock``: for tests of tickers and schedules, one that is turned by hand.

        You owe it ``close``. Raises ``InvalidName``, ``ConfigError``, ``PoolShutdown`` while the pool is being stopped,
        and what a Redis call raises. Cancelling leaves nothing but, for one ttl, the node's name.
        """
        if single_options:
            options = PoolOptions(**single_options)
        given: Any = redis
        if not isinstance(given, str | Redis):
            raise ConfigError("redis", given, "a URL or a flotta.redis.Redis", source=f"pool {name}")
        client = Redis.from_url(redis, logger=logger) if isinstance(redis, str) else redis
        owns = isinstance(redis, str)
        node = cls(name, client, options=options, service=service, logger=logger, clock=clock, owns_redis=owns)
        try:
            await node.start()
        except BaseException:
            await node.close(timeout_s=1.0)
            raise
        return node

    async def start(self) -> None:
        """Join, as ``Node.join`` does for you. Again: harmless. Raises ``PoolShutdown`` while the pool is being
        stopped, ``Closed``, and what a Redis call raises. Failed or cancelled: you owe it ``close`` all the same."""
        if self._state is not _State.NEW:
            self._check_open()
            return
        await self.redis.connect()
        await self._ending.join(self.membership.start)
        if self.closed:  # meanwhile
            await self.membership.close()
            self._check_open()
        self._state = _State.JOINED
        self._inbox.open(self.keys.replies(self.id), self._take_replies, self._reconcile)
        self._inbox.start()
        if not self.options.client_only:
            self.coordinator.start()

    async def close(self, timeout_s: float | None = None) -> None:
        """Hand all jobs of this node's workers to others and leave. Again: harmless; it returns when the first has.

        Jobs that have not ended after ``timeout_s`` (None: ``close_timeout_s``) were cancelled and are given up: they
        may run elsewhere while they still run here, and ``stats.stuck`` counts them. Raises nothing for a lost
        connection. Cancelling leaves at once: every job is cancelled as fenced, and others take over. While the pool is
        being shut down the end of that is waited for instead, as long.
        """
        limit_s = self.options.close_timeout_s if timeout_s is None else timeout_s
        ending = self._shutting_down
        if not self.closed and ending is not None and ending is not asyncio.current_task():
            await asyncio.wait({ending}, timeout=limit_s)  # it ends the jobs in order, and closes
        if self.closed:
            await self._ended.wait()
            return
        was, self._state = self._state, _State.CLOSING
        self._dispatcher.close(PoolShutdown(self.name) if self._is_shutdown else Closed(f"node of pool {self.name!r}"))
        try:
            await self.timetable.close()
            if was is _State.JOINED:
                await asyncio.gather(*(self._leave(worker, limit_s) for worker in tuple(self._workers)))
        finally:
            await self._end()

    async def shutdown(self, timeout_s: float | None = None) -> None:
        """Stop the whole pool: every job ends for good, every node closes, and what the pool has in Redis is deleted.

        Jobs that have not ended after ``shutdown_ttl_s`` are taken from their workers. Takes at most ``timeout_s``
        (None: that time and a few seconds) and raises ``TimeoutError`` then; the others go on stopping. Raises
        ``StateError`` on a client-only node, and what a Redis call raises. Cancelling it: the shutdown goes on.
        """
        if self._state in (_State.CLOSING, _State.CLOSED):
            return
        if self.options.client_only:
            raise StateError("node", "a client-only node cannot stop the pool")
        self._check_open()
        limit_s = self.options.shutdown_ttl_s + 2 * LEAVE_S if timeout_s is None else timeout_s
        self._stops_the_pool = True
        async with asyncio.timeout(limit_s):
            await self.store.shutdown_begin(self.id)
            self._begin_shutdown()
            assert self._shutting_down is not None
            await asyncio.shield(self._shutting_down)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed, by ``close`` or by a shutdown of the pool."""
        return self._state in (_State.CLOSING, _State.CLOSED)

    # --- workers of this node -----------------------------------------------------------------------------------

    async def add_worker(
        self,
        handler: Handler,
        *,
        name: str | None = None,
        backoff: Backoff | None = None,
        crashes_reset_s: float = 600.0,
    ) -> Worker:
        """A worker that runs jobs dispatched by ``dispatch`` with ``handler``. It takes jobs at once.

        ``backoff``: the pauses after crashes; ``crashes_reset_s``: a job that ran so long is forgiven its crashes.
        Raises ``ConfigError`` for what is no handler, ``StateError`` on a client-only node, ``PoolShutdown``,
        ``Closed``, and what a Redis call raises. Cancelling: as in ``add_kinds``.
        """
        kind = kind_of(handler, backoff=backoff or Backoff(), crashes_reset_s=crashes_reset_s, logger=self.log)
        return await self.add_kinds({"": kind}, name=name)

    async def add_kinds(
        self,
        kinds: dict[str, JobKind],
        *,
        name: str | None = None,
        registry: TaskRegistry | None = None,
        queues: Iterable[str] | None = None,
    ) -> Worker:
        """A worker that runs jobs of ``kinds``, by their names, and the tasks of ``registry`` (of ``queues`` only;
        None: of all). Raises as ``add_worker``. Cancelling: it may be listed for one ttl, and takes no job."""
        self._check_works("workers")
        if self._is_shutdown:
            raise PoolShutdown(self.name)
        around = Surroundings(
            store=self.store,
            inbox=self._inbox,
            membership=self.membership,
            options=self.options,
            counts=self.counts,
            logger=self.log,
            kind_of=kinds.get,
            peers=Peers(self.redis.link, self.keys),
            tasks=WorkerTasks(
                self.tasks.store,
                registry or TaskRegistry(self.name),
                self.options,
                queues=None if queues is None else list(queues),
                logger=self.log,
            ),
            on_shutdown=self._begin_shutdown,
            zombies=self._zombies,
        )
        worker = Worker(
            name or f"{host_name()}-{os.getpid()}",
            self.membership,
            around,
            kinds=tuple(kinds),
            service=self.service,
            on_change=self.coordinator.poke,
        )
        await worker.join()
        if self.closed:  # meanwhile
            await worker.leave(0.0)
            self._check_open()
        self._workers.append(worker)
        return worker

    async def remove_worker(self, worker: Worker, *, timeout_s: float | None = None) -> None:
        """Hand the jobs of ``worker`` to others and take it away. ``timeout_s`` and cancelling: as for ``close``."""
        await self._leave(worker, self.options.close_timeout_s if timeout_s is None else timeout_s)

    @property
    def local_workers(self) -> tuple[Worker, ...]:
        """The workers of this node."""
        return tuple(worker for worker in self._workers if worker.state is not WorkerState.LEFT)

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def dispatch(
        self,
        key: str,
        payload: bytes = b"",
        *,
        kind: str = "",
        crashes_max: int = CRASHES_MAX,
        timeout_s: float | None = None,
        scheduler: str = "",
    ) -> JobHandle:
        """Give the job ``key`` to its worker; return when that has started it.

        ``timeout_s``: None is ``dispatch_timeout_s``. Raises ``JobExists``, ``QueueFull``, ``NoWorkers``,
        ``StartFailed`` (with what the handler said), ``DispatchTimeout`` (then it was withdrawn or told to stop),
        ``PoolShutdown``, ``PayloadTooLarge``, ``InvalidName``, ``Closed``, and what a Redis call raises. Cancelling it
        is harmless: the job may have been accepted and start.
        """
        self._check_joined()
        started = await self._dispatcher.dispatch(
            key, kind, payload, crashes_max=crashes_max, timeout_s=timeout_s, scheduler=scheduler
        )
        return JobHandle(self, key, started.fence, started.worker)

    async def dispatch_many(
        self, jobs: Iterable[tuple[str, bytes]], *, kind: str = "", crashes_max: int = CRASHES_MAX,
        timeout_s: float | None = None,
    ) -> list[JobHandle | FlottaError]:  # fmt: skip
        """``dispatch`` for many jobs (key, payload) at a time: for each, in their order, its handle or what
        ``dispatch`` would have raised. Cancelling: any number of them may have been accepted."""

        async def one(key: str, payload: bytes) -> JobHandle | FlottaError:
            try:
                return await self.dispatch(key, payload, kind=kind, crashes_max=crashes_max, timeout_s=timeout_s)
            except FlottaError as error:
                return error

        return list(await asyncio.gather(*(one(key, payload) for key, payload in jobs)))

    async def stop(self, key: str, *, timeout_s: float | None = None) -> None:
        """End the job ``key`` for good; return when it has ended.

        It is cancelled with ``StopReason.STOP``; one that nobody has claimed is just gone. ``timeout_s``: None is
        ``stop_timeout_s``. Raises ``NotRunning``, ``StopUnconfirmed`` (it stays marked as stopping and will run nowhere
        else), ``Closed`` if this node is closed first, and what a Redis call raises. The job is stopped all the
        same then, and when this is cancelled.
        """
        self._check_joined()
        await self._dispatcher.stop(check_key(key), timeout_s)

    async def notify(self, key: str, payload: bytes) -> None:
        """Send ``payload`` to the job ``key``. Notifications of one caller arrive in order, at least once while Redis
        keeps its data, also when the worker dies meanwhile.

        Returns when it is in the inbox of the job's worker. Raises ``NotRunning``, ``QueueFull`` (``inbox_max``),
        ``PayloadTooLarge``, ``Closed``, and what a Redis call raises; after ``AmbiguousOutcome``, or when this is
        cancelled, it may have been sent.
        """
        self._check_joined()
        await self.store.notify(check_key(key), payload)
        self.counts.notified += 1
        self.counts.busy.add(key)

    async def jobs(self) -> list[JobInfo]:
        """All jobs of the pool, as their records say, in no order. It reads every record; one that moves meanwhile may
        be missing. Raises ``Closed`` and what a Redis call raises. Cancelling is harmless."""
        self._check_joined()
        return await list_jobs(self.redis.link, self.store)

    async def job_info(self, key: str) -> JobInfo | None:
        """The job ``key`` as its record says; None if there is none. Raises ``InvalidName``; else as ``jobs``."""
        self._check_joined()
        return await self.store.read(check_key(key))

    async def payload(self, key: str) -> bytes:
        """The payload of the job ``key``. Raises ``NotRunning``, ``InvalidName``; else as ``jobs``."""
        self._check_joined()
        payload = await self.store.payload(check_key(key))
        if payload is None:
            raise NotRunning(self.name, key)
        return payload

    async def workers(self) -> list[PoolWorker]:
        """All workers of the pool, the oldest first. Raises ``Closed`` and what a Redis call raises. Cancelling is
        harmless."""
        self._check_joined()
        return await list_workers(self.redis.link, self.keys)

    async def pool_counts(self) -> PoolCounts:
        """How many jobs of the whole pool wait, how many workers and dead letters there are. Else as ``workers``."""
        self._check_joined()
        return await self.store.counts()

    @property
    def stats(self) -> NodeStats:
        """What has happened here since the node joined."""
        return self.counts.snapshot(
            running=sum(len(worker.tenure.runs) for worker in self._workers if worker.tenure is not None),
            workers=sum(worker.state is WorkerState.WORKING for worker in self._workers),
        )

    # --- by the clock -------------------------------------------------------------------------------------------

    async def ticker(self, name: str, *, every_s: float) -> Ticker:
        """The ticker ``name``: each of its ticks goes to one of the nodes that have it and wait for one.

        You owe it ``close``, which closing the node does, too. Raises ``StateError`` on a client-only node or if this
        one has it already, ``InvalidName``, ``ConfigError``, ``Closed``, and what a Redis call raises. Cancelled: it is
        closed here, and may be declared.
        """
        self._check_works("tickers")
        return await self.timetable.ticker(name, every_s=every_s)

    def schedule(self, name: str, producer: Producer, *, every_s: float) -> Schedule:
        """Start and stop jobs as ``producer`` plans, on one of the nodes that have this schedule at each tick.

        The jobs of its plans are pairs of key and payload, for workers of ``add_worker``. Raises ``StateError`` on a
        client-only node or if this one has it already, ``InvalidName``, ``ConfigError``.
        """
        self._check_works("schedules")
        return self.timetable.schedule(name, producer, every_s=every_s, resolve=job_of_pair)

    # --- inside -------------------------------------------------------------------------------------------------

    def _take_replies(self, entries: list[Entry]) -> None:
        for ring in self._dispatcher.take(entries):
            if ring.type == "result":
                self.tasks.results.deliver(ring.key, ring.state, ring.payload)
            elif ring.type == "rebalance":
                self.coordinator.poke()
            elif ring.type == "shutdown":
                self._begin_shutdown()

    def _reconcile(self) -> None:
        self._chores.start(self._dispatcher.recheck(), "recheck")
        self.tasks.recheck()

    def _on_lost(self, lease: Lease, loss: Loss) -> None:
        for worker in tuple(self._workers):
            worker.lost(lease, loss)

    def _on_news(self, news: BeatNews) -> None:
        if news.is_over:  # shut down without this node: nobody has waited for it
            self._stops_the_pool = False
            for worker in tuple(self._workers):
                worker.abandon()
        if news.is_over or news.shutdown is not None:
            self._begin_shutdown()
        if not news.was_present:  # it was taken for gone: answers may have gone with its replies
            self._reconcile()
        for worker in self._workers:
            if worker.tenure is not None:
                worker.tenure.see_epoch(news.epoch)

    async def _leave(self, worker: Worker, timeout_s: float) -> None:
        self._give_up(worker, await worker.leave(timeout_s))

    def _give_up(self, worker: Worker, keys: list[str]) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        if keys:
            self.counts.stuck += len(keys)
            self.log.error("jobs did not end in time and were given up", worker=worker.name, jobs=keys[:20])

    def _begin_shutdown(self) -> None:
        if self._shutting_down is None and not self.closed:
            self._is_shutdown = True
            self._shutting_down = self._chores.start(self._shut_down_here(), "shutdown")

    async def _shut_down_here(self) -> None:
        """End every job of this node, see the end of all others, and close; the last one removes what is left."""
        workers, limit_s = tuple(self._workers), self.options.shutdown_ttl_s
        left = await asyncio.gather(*(worker.stop(limit_s) for worker in workers))
        for worker, keys in zip(workers, left, strict=True):
            self._give_up(worker, keys)
        await self._ending.see_jobs_end()
        if self._stops_the_pool:
            await self._ending.wait_for_the_others()
        await self.close()

    async def _end(self) -> None:
        try:
            self._chores.cancel()
            for worker in self._workers:
                worker.abandon()
            await self.coordinator.stop()
            await self.tasks.aclose()
            await self._inbox.aclose()
            await self.membership.close()
            if self._is_shutdown:
                await self._ending.clear_away(must=self._stops_the_pool)
            if self._owns_redis:
                await self.redis.aclose()
        finally:
            self._state = _State.CLOSED
            self._ended.set()

    def _check_open(self) -> None:
        if self.closed:
            raise PoolShutdown(self.name) if self._is_shutdown else Closed(f"node of pool {self.name!r}")

    def _check_works(self, what: str) -> None:
        self._check_joined()
        if self.options.client_only:
            raise StateError("node", f"a client-only node has no {what}")

    def _check_joined(self) -> None:
        if self._state is not _State.JOINED:
            self._check_open()
            raise StateError("node", f"the node of pool {self.name!r} has not joined")
