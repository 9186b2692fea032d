"""A node among the others: how it and its workers join, show that they live, drain and leave.

Owns the node's presence and the leases of its workers. Invariants:

* A worker id is used once. A worker whose lease was lost never works again; the node joins a new one.
* Nothing is trusted longer than the lease's machine says (``lease.py``), counted from the start of an attempt.
* Joining and leaving ring the coordinator; if there is none, whoever joins becomes it (``coordinator.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import msgspec
import structlog

from flotta.errors import FlottaError, PoolShutdown, StateError, WireError
from flotta.pool.keys import PoolKeys, check_name
from flotta.pool.members.boottime import boottime_s
from flotta.pool.members.heartbeat import BeatNews, Heartbeat, Lease, stream_life_ms
from flotta.pool.members.lease import Loss
from flotta.pool.members.scripts import JOIN_NODE, JOIN_WORKER, LEAVING, LEFT, PLACED, TABLE
from flotta.pool.options import PoolOptions
from flotta.redis import Redis

__all__ = ["Membership", "Table", "WorkerInfo", "new_worker_id"]

_GOODBYE_S: Final = 1.0
"""What is not said in this time need not be said: leases end by themselves."""
_PLACED_POLL_MIN_S: Final = 0.002
_PLACED_POLL_MAX_S: Final = 0.1


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerInfo:
    """What a worker says about itself to the others. ``since_ms``: unix time."""

    node: str
    name: str
    host: str
    pid: int
    service: str
    since_ms: int
    kinds: tuple[str, ...] = ()
    """Kinds of jobs that it knows."""
    tasks: tuple[str, ...] = ()
    """Names of tasks that it knows."""

    def encode(self) -> bytes:
        """As it is kept in the hash ``workers``."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> WorkerInfo:
        """The other way; fields of a newer version are ignored. Raises ``WireError``."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise WireError("the facts of a worker", str(error), data) from error


@final
@dataclass(frozen=True, slots=True)
class Table:
    """The slot table at one moment: ``owners`` maps slots to worker ids (some may have died since)."""

    epoch: int
    owners: Mapping[int, str]


def new_worker_id(name: str) -> str:
    """An id that no worker had before: the start of ``name``, then 64 random bits."""
    return f"{name[:80]}.{secrets.token_hex(8)}"


@final
class Membership:
    """The membership of the node ``node`` (an id of this process alone, never used before) in the pool ``keys.name``.

    ``on_lost(lease, why)`` is called on the main loop, once, when a worker's lease is lost: cancel all its work; join a
    new worker if work should go on. ``on_news`` is called after every confirmed beat (every fifth of a ttl).
    """

    def __init__(
        self,
        redis: Redis,
        keys: PoolKeys,
        node: str,
        *,
        options: PoolOptions,
        on_lost: Callable[[Lease, Loss], None],
        on_news: Callable[[BeatNews], None] | None = None,
        logger: Any = None,
    ) -> None:
        self.keys = keys
        self.node = check_name("node", node)
        self.options = options
        self.epoch = 0
        """Of the slot table, as last heard."""
        self.shutdown: str | None = None
        """The node that shuts the pool down, as last heard."""
        self.redis = redis
        self._on_lost = on_lost
        self._on_news = on_news
        self._logger = logger or structlog.get_logger("flotta.pool")
        self._ttl_ms = int(options.worker_ttl_s * 1000)
        self._life_ms = stream_life_ms(options.worker_ttl_s)
        self._leases: dict[str, Lease] = {}
        self._unheard: set[str] = set()  # worker ids whose joining had no answer: they may have a lease
        self._changed = asyncio.Event()
        self._heard = asyncio.Event()
        self._joined = False
        self.heartbeat = Heartbeat(
            redis, keys, node, ttl_s=options.worker_ttl_s, on_news=self._take_news, logger=self._logger
        )

    # --- the node -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the node present (its replies stream exists then) and begin to beat. You owe it ``close``.

        Raises ``PoolShutdown`` and what a Redis call raises; then nothing has begun. Cancelled: the node may be present
        for one ttl.
        """
        life = await self._run(JOIN_NODE, self.node, self._ttl_ms, self._life_ms)
        if life == b"SHUTDOWN":
            raise PoolShutdown(self.keys.name)
        self.heartbeat.life = life.decode()
        self.heartbeat.start()
        self._joined = True

    async def close(self) -> None:
        """Stop beating and leave. Workers that have not left lose their leases at the next look of the coordinator.

        Again, or before ``start``: harmless. Raises nothing for a lost connection.
        """
        with contextlib.suppress(FlottaError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                for worker in (*self._leases, *self._unheard):
                    await self.left(worker)
        await self.heartbeat.stop()
        if not self._joined:
            return
        self._joined = False
        forget = [("ZREM", self.keys.nodes, self.node), ("UNLINK", self.keys.replies(self.node))]
        with contextlib.suppress(FlottaError):
            await self.redis.link.call_many(forget, timeout_s=_GOODBYE_S)

    # --- workers --------------------------------------------------------------------------------------------------

    @property
    def life(self) -> str:
        """The life of the pool that this node is in: another one begins after a shutdown."""
        return self.heartbeat.life

    @property
    def leases(self) -> Mapping[str, Lease]:
        """The leases that this node holds, by worker id."""
        return self._leases

    async def join_worker(self, info: WorkerInfo, *, worker: str | None = None) -> Lease:
        """Join a worker (under a new id made from ``info.name``): its inbox exists then, and its lease is renewed.

        It has no slots yet: see ``placed``. You owe it ``left``. Raises ``PoolShutdown``, ``StateError`` if the id was
        used before, and what a Redis call raises. Cancelled: the worker may be there for one ttl.
        """
        worker = check_name("worker", worker or new_worker_id(info.name))
        try:
            started_s, answer = await self._ask_to_join(worker, info.encode())
        except BaseException:
            self._unheard.add(worker)
            raise
        if answer == b"SHUTDOWN":
            raise PoolShutdown(self.keys.name)
        if answer != b"OK":
            raise StateError(f"worker {worker}", f"the worker id {worker!r} was used before: ids are used once")
        lease = self.heartbeat.hold(worker, started_s, self._lose)
        self._leases[worker] = lease
        return lease

    async def _ask_to_join(self, worker: str, facts: bytes) -> tuple[float, bytes]:
        """The answer of ``join_worker``, and when the attempt began that has it."""
        while True:
            heard, started_s = self._heard, boottime_s()
            answer = await self._run(JOIN_WORKER, self.node, worker, facts, self._ttl_ms, self._life_ms, self.life)
            if answer != b"LIFE":
                return started_s, answer
            await heard.wait()  # the data was lost, or the pool has ended: the next beat tells

    async def placed(self, worker: str, timeout_s: float) -> bool:
        """Wait until the table gives ``worker`` slots; False if it does not within ``timeout_s``, or its lease ends."""
        return await self._wait_placed(worker, timeout_s, wanted=True)

    async def unplaced(self, worker: str, timeout_s: float) -> bool:
        """After ``leaving``: wait until the table gives ``worker`` no slots any more, or there is no other worker that
        could have them; False if it still does after ``timeout_s``."""
        return await self._wait_placed(worker, timeout_s, wanted=False)

    async def leaving(self, worker: str) -> bool:
        """Ask for the worker's slots to be given to others. Its lease goes on. False: it has no lease any more."""
        return bool(await self._run(LEAVING, worker))

    async def left(self, worker: str) -> int:
        """Give the lease back; gives how many jobs and tasks the worker leaves behind (they are reaped at once).

        The lease is not trusted from the start of this call on. Raises what a Redis call raises: then the lease ends by
        its ttl.
        """
        self._leases.pop(worker, None)
        self.heartbeat.release(worker)
        left = int(await self._run(LEFT, worker))
        self._unheard.discard(worker)
        return left

    async def give_back_unheard(self) -> None:
        """Give back the leases of joins whose answer was not heard: nobody holds them. Raises as ``left``."""
        for worker in tuple(self._unheard):
            await self.left(worker)

    def let_go(self, worker: str) -> None:
        """Renew the lease no more: it is not trusted from now on and ends by its ttl. ``close`` gives it back."""
        self.heartbeat.release(worker)

    # --- the table ------------------------------------------------------------------------------------------------

    def table_changed(self) -> None:
        """The doorbell ``table`` rang in the inbox of a worker: whoever waits for the table looks at once."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def table(self) -> Table:
        """The whole slot table."""
        epoch, flat = await self._run(TABLE, "")
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return Table(epoch, {int(slot): worker.decode() for slot, worker in pairs})

    async def slots_of(self, worker: str) -> tuple[int, frozenset[int]]:
        """The epoch of the table, and the slots that it gives to ``worker``."""
        epoch, slots = await self._run(TABLE, worker)
        return epoch, frozenset(map(int, slots))

    # --- inside ---------------------------------------------------------------------------------------------------

    async def _run(self, script: Any, *args: Any) -> Any:
        return await script(self.redis.link, keys=[self.keys.meta], args=args)

    async def _wait_placed(self, worker: str, timeout_s: float, *, wanted: bool) -> bool:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        pause_s = _PLACED_POLL_MIN_S
        while True:
            changed = self._changed
            self.epoch, placed, lives, others = await self._run(PLACED, worker)
            if bool(placed) is wanted or not (wanted or others):
                return True
            left_s = deadline_s - loop.time()
            if left_s <= 0 or (wanted and not lives):
                return False
            try:
                async with asyncio.timeout(min(pause_s, left_s)):  # wait_for of 3.11 may swallow a cancellation
                    await changed.wait()
            except TimeoutError:
                pause_s = min(2 * pause_s, _PLACED_POLL_MAX_S)

    def _lose(self, lease: Lease, loss: Loss) -> None:
        self._leases.pop(lease.worker, None)
        self._logger.warning("a worker has lost its lease", pool=self.keys.name, worker=lease.worker, reason=loss.value)
        self._on_lost(lease, loss)

    def _take_news(self, news: BeatNews) -> None:
        if news.epoch != self.epoch:
            self.epoch = news.epoch
            self.table_changed()
        self.shutdown = news.shutdown
        self._heard.set()
        self._heard = asyncio.Event()
        if self._on_news is not None:
            self._on_news(news)
