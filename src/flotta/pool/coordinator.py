"""One node at a time looks after the pool: who has which slots, what of the dead is taken back, what waits too long.

Owns the coordinator's lease and the loop in which every node tries for it. Invariants:

* Only the holder of the lease changes the table, and only on the epoch from which it computed the change; the script
  checks both, so a coordinator that was paused does no harm.
* Every step may be the last one: the next coordinator begins by looking at everything, and finishes what was begun.
  Nothing that matters is remembered here.
* First the slots of the dead go to the living, then what the dead had: so it follows the new table and is not parked.
* A death, and slots that nobody serves, are acted on at once; other joins and leaves when they have paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

import structlog

from flotta.errors import CommandError, FlottaError
from flotta.pool.jobs.states import BuryAnswer
from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import SLOTS
from flotta.pool.members.boottime import boottime_s
from flotta.pool.members.membership import Membership
from flotta.pool.members.placement import place
from flotta.pool.members.scripts import ASSIGN, BURY_NODES, COORDINATE, RESIGN, VIEW
from flotta.redis import Arg, Script

__all__ = ["Coordinator", "CoordinatorStats", "Reaper"]

_EXPIRED_MAX: Final = 100
_CALLS_PER_STEP_MAX: Final = 1_000
_DEBOUNCES_MAX: Final = 4
_LOOK_S_MAX: Final = 1.0
_REBALANCE_LOOK_S_MIN: Final = 1.0


class Reaper(Protocol):
    """Takes back what a worker without a lease had; gives how many items are left. ``blame``: its death counts against
    what it was running."""

    async def __call__(self, worker: str, *, blame: bool, limit: int) -> int: ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorStats:
    """What this node has done for the pool."""

    coordinates: bool
    """Whether it did at its last look."""
    tables: int
    """New slot tables."""
    slots_moved: int
    workers_reaped: int
    steps_failed: int


class _Deposed(Exception):
    """Another node has taken over in the middle of a step."""


@dataclass(slots=True)
class _Orders:
    """What the script ``coordinate`` says that there is to do."""

    members: int
    expired: dict[str, bool]
    """Workers without a lease, and whether they were leaving."""
    expired_nodes: list[bytes]
    queued: int
    parked: int
    shutdown: bool

    @classmethod
    def read(cls, reply: list[Any]) -> _Orders:
        members, expired, nodes, queued, parked, shutdown = reply
        leaving = zip(expired[::2], expired[1::2], strict=True)
        return cls(
            members, {worker.decode(): bool(was) for worker, was in leaving}, nodes, queued, parked, bool(shutdown)
        )


@dataclass(slots=True)
class _View:
    """Everything that a table is computed from, at one moment."""

    epoch: int
    able: list[str]
    """Workers that may have slots."""
    draining: list[str]
    """Workers with a lease that are leaving."""
    gone: list[str]
    """Workers without a lease of which something is left."""
    table: dict[int, str]
    jobs: dict[int, int]

    @classmethod
    def read(cls, reply: list[Any]) -> _View:
        epoch, able, draining, gone, slots, jobs = reply
        return cls(
            epoch,
            [worker.decode() for worker in able],
            [worker.decode() for worker in draining],
            [worker.decode() for worker in gone],
            {int(slot): worker.decode() for slot, worker in zip(slots[::2], slots[1::2], strict=True)},
            {int(slot): int(count) for slot, count in zip(jobs[::2], jobs[1::2], strict=True)},
        )

    def is_urgent(self) -> bool:
        """Whether some slot is served by nobody though somebody could."""
        served = {*self.able, *self.draining}
        return bool(self.able) and (len(self.table) < SLOTS or any(one not in served for one in self.table.values()))


@final
class Coordinator:
    """This node's part in looking after the pool. What a dead worker had is taken back by ``store``, then by each of
    ``reapers`` (the tasks')."""

    def __init__(
        self, store: JobStore, membership: Membership, *, reapers: Sequence[Reaper] = (), logger: Any = None
    ) -> None:
        self._store = store
        self._membership = membership
        self._reapers: tuple[Reaper, ...] = (self._reap_jobs, *reapers)
        self._logger = logger or structlog.get_logger("flotta.pool")
        options = membership.options
        self._lease_ms = max(int(options.worker_ttl_s * 500), 1)
        self._look_s = min(_LOOK_S_MAX, options.worker_ttl_s / 8)
        self._rebalance_look_s = max(_REBALANCE_LOOK_S_MIN, options.worker_ttl_s / 6)
        self._debounce_s = options.rebalance_debounce_s
        self._sweep_s = min(options.ack_grace_s / 4, 5.0)
        self._task: asyncio.Task[None] | None = None
        self._bell = asyncio.Event()
        self._coordinates = False
        self._refused = ""  # what was told of the last refusal
        self._members_seen: int | None = None  # None: look at everything
        # Since when changes among the members wait for more of them, and when the last one was seen.
        self._changes_since_s: float | None = None
        self._change_at_s = 0.0
        self._looked_s = self._swept_s = -math.inf
        self._able: list[str] = []
        self._counts = {"tables": 0, "slots_moved": 0, "workers_reaped": 0, "steps_failed": 0}

    @property
    def stats(self) -> CoordinatorStats:
        """What was done so far."""
        return CoordinatorStats(coordinates=self._coordinates, **self._counts)

    def start(self) -> None:
        """Begin to look, at once. You owe it ``stop``."""
        assert self._task is None, "a coordinator is started once"
        name = f"flotta-pool coordinator {self._membership.node}"
        self._task = asyncio.get_running_loop().create_task(self._look_until_stopped(), name=name)

    def poke(self) -> None:
        """Look now: a worker has joined or leaves here, or the doorbell ``rebalance`` rang."""
        self._bell.set()

    async def stop(self) -> None:
        """Stop looking; another node takes over at its next look. Again, or before ``start``: harmless.

        Raises nothing for a lost connection: then the coordinator's lease ends by itself, half a ttl later.
        """
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._coordinates:
            self._coordinates = False
            with contextlib.suppress(FlottaError):
                await self._run(RESIGN, self._membership.node)

    # --- the loop -------------------------------------------------------------------------------------------------

    async def _look_until_stopped(self) -> None:
        while True:
            self._bell.clear()
            try:
                await self.step()
                self._refused = ""
            except FlottaError as error:  # Redis is away, or refuses
                self._fail()
                self._tell(error)
            except Exception:  # our bug: the other nodes' looks and the next one go on
                self._fail()
                self._logger.exception("a look after the pool failed", node=self._membership.node)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):  # wait_for of 3.11 may swallow a cancellation
                    await self._bell.wait()

    def _tell(self, error: FlottaError) -> None:
        """What the server refuses does not pass by itself: nobody would look after the pool and nobody know. Once."""
        text = str(error)
        is_refused = isinstance(error, CommandError) and text != self._refused
        self._refused = text if isinstance(error, CommandError) else self._refused
        log = self._logger.error if is_refused else self._logger.debug
        log("a look after the pool failed", pool=self._membership.keys.name, node=self._membership.node, error=text)

    def _fail(self) -> None:
        self._counts["steps_failed"] += 1
        self._members_seen = None
        self._changes_since_s = None
        self._bell.clear()

    def _pause_s(self) -> float:
        if self._changes_since_s is None:
            return self._look_s
        return max(0.0, min(self._look_s, self._settled_s() - boottime_s()))

    async def step(self) -> bool:
        """One look: try for the lease, and if it is ours do what there is to do. Whether it was ours to the end.

        Raises what a Redis call or a reaper raises. Cancelled: another look finishes what was begun.
        """
        reply = await self._renew(_EXPIRED_MAX)
        if reply is None:
            self._depose()
            return False
        if not self._coordinates:
            self._coordinates = True
            self._logger.info("this node coordinates the pool", pool=self._membership.keys.name)
        orders = _Orders.read(reply)
        try:
            gone = await self._replace(orders)
            await self._reap({**dict.fromkeys(gone, False), **orders.expired})
            await self._do_chores(orders)
        except _Deposed:
            self._depose()
            return False
        return True

    def _depose(self) -> None:
        self._coordinates, self._members_seen, self._changes_since_s = False, None, None

    async def _renew(self, expired_max: int) -> list[Any] | None:
        """Take or renew the lease; what there is to do, or None: another node has it."""
        mine, *reply = await self._run(
            COORDINATE, self._membership.node, self._lease_ms, expired_max, self._membership.life
        )
        return reply if mine else None

    async def _go_on(self) -> None:
        """Renew the lease between two calls of a long step. Raises ``_Deposed``."""
        if await self._renew(0) is None:
            raise _Deposed

    # --- the table ------------------------------------------------------------------------------------------------

    async def _replace(self, orders: _Orders) -> list[str]:
        """Bring the table up to date if it is time to; gives workers without a lease of which something is left."""
        now_s = boottime_s()
        if orders.members != self._members_seen:
            self._note_change(orders.members, now_s)
        is_due = self._changes_since_s is not None and now_s >= self._settled_s()
        if not (orders.expired or is_due or now_s - self._looked_s >= self._rebalance_look_s):
            return []
        view = _View.read(await self._run(VIEW))
        self._looked_s, self._able = now_s, view.able
        if self._changes_since_s is None or is_due or view.is_urgent():
            await self._place(view)
        return view.gone

    def _note_change(self, members: int, now_s: float) -> None:
        """Members came or went. A new coordinator does not wait: it cannot know for how long they have waited."""
        if self._members_seen is not None:
            self._change_at_s = now_s
            if self._changes_since_s is None:
                self._changes_since_s = now_s
        self._members_seen = members
        self._looked_s = -math.inf  # perhaps somebody's slots are served by nobody: see

    def _settled_s(self) -> float:
        """When the changes that wait are acted on: when they have paused, but after four pauses at the latest."""
        assert self._changes_since_s is not None
        return min(self._change_at_s + self._debounce_s, self._changes_since_s + _DEBOUNCES_MAX * self._debounce_s)

    async def _place(self, view: _View) -> None:
        self._changes_since_s = None
        changes = await asyncio.to_thread(place, view.table, view.able, view.jobs)  # a second for 1,000 workers
        if not changes:
            return
        emptied = sorted(set(view.table.values()) - set({**view.table, **changes}.values()))
        args: list[Arg] = [self._membership.node, view.epoch, len(emptied), *emptied]
        for slot, worker in changes.items():
            args += (slot, worker)
        answer = await self._run(ASSIGN, *args)
        if isinstance(answer, bytes):
            # Another coordinator or epoch, or a worker has gone in this moment: look at everything again, at once.
            self._members_seen = None
            self.poke()
            return
        self._counts["tables"] += 1
        self._counts["slots_moved"] += len(changes)
        self._membership.table_changed()
        name, workers = self._membership.keys.name, len(view.able)
        self._logger.info("a new slot table", pool=name, epoch=answer, slots=len(changes), workers=workers)
        await self._adopt()

    # --- the dead -------------------------------------------------------------------------------------------------

    async def _reap(self, workers: Mapping[str, bool]) -> None:
        """Take back what ``workers`` had. Who was leaving is not blamed, nor anybody after an outage."""
        if not workers:
            return
        blame = not await self._had_outage()
        for worker, was_leaving in workers.items():
            try:
                await self._reap_one(worker, blame=blame and not was_leaving)
            except (FlottaError, _Deposed):
                raise
            except Exception:  # a reaper's bug with one worker must not keep the others' jobs waiting
                self._counts["steps_failed"] += 1
                self._logger.exception("a dead worker could not be reaped", worker=worker)

    async def _reap_one(self, worker: str, *, blame: bool) -> None:
        for reaper in self._reapers:
            for _ in range(_CALLS_PER_STEP_MAX):
                if await reaper(worker, blame=blame, limit=self._store.step_max) <= 0:
                    break
                await self._go_on()
        while (answer := await self._store.bury_worker(worker)) is BuryAnswer.MORE:
            await self._go_on()
        if answer is BuryAnswer.DONE:
            self._counts["workers_reaped"] += 1
            pool = self._membership.keys.name
            self._logger.warning("a worker without a lease was reaped", pool=pool, worker=worker, blamed=blame)

    async def _reap_jobs(self, worker: str, *, blame: bool, limit: int) -> int:
        del limit  # the store's own
        reaped = await self._store.reap(worker, blame=blame)
        return 0 if reaped is None else reaped.left

    async def _had_outage(self) -> bool:
        """Whether the dead may only have been cut off, or their leases lost."""
        if self._membership.heartbeat.blameless():
            return True
        try:
            info: bytes | str = await self._membership.redis.link.call("INFO", "server")
        except CommandError:  # an ACL without INFO
            return False
        text = info if isinstance(info, str) else info.decode()
        uptime_s = re.search(r"^uptime_in_seconds:(\d+)", text, re.MULTILINE)
        return uptime_s is not None and int(uptime_s[1]) < 2 * self._membership.options.worker_ttl_s

    # --- chores ---------------------------------------------------------------------------------------------------

    async def _do_chores(self, orders: _Orders) -> None:
        if orders.expired_nodes:
            await self._run(BURY_NODES, *orders.expired_nodes)
        if orders.shutdown:
            await self._shut_down()
        elif orders.parked and self._able:
            await self._adopt()
        now_s = boottime_s()
        if orders.queued and now_s - self._swept_s >= self._sweep_s:
            self._swept_s = now_s
            await self._sweep()

    async def _sweep(self) -> None:
        """Jobs that nobody has claimed within the ack grace."""
        for _ in range(_CALLS_PER_STEP_MAX):
            swept = await self._store.sweep(self._able)
            if swept.moved + swept.rung + swept.parked < self._store.step_max:
                return
            await self._go_on()

    async def _adopt(self) -> None:
        for _ in range(_CALLS_PER_STEP_MAX):
            adopted = await self._store.adopt()
            if not adopted.adopted or not adopted.parked:
                return
            await self._go_on()

    async def _shut_down(self) -> None:
        """The node that began the shutdown may have died: whoever coordinates drives it on."""
        for _ in range(_CALLS_PER_STEP_MAX):
            step = await self._store.shutdown_step()
            if step is None or step.dropped < self._store.step_max:
                return
            await self._go_on()

    async def _run(self, script: Script, *args: Arg) -> Any:
        membership = self._membership
        return await script(membership.redis.link, keys=[membership.keys.meta], args=args)
