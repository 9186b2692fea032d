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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

import structlog

from flotta.errors import CommandError, FlottaError
from flotta.pool.boottime import boottime_s
from flotta.pool.memberscripts import ASSIGN, BURY_NODES, COORDINATE, RESIGN, VIEW
from flotta.pool.membership import Membership
from flotta.pool.placement import place
from flotta.redis import Arg, Redis

__all__ = ["Chores", "Coordinator", "CoordinatorStats", "Reaper"]

_EXPIRED_MAX: Final = 100
_ITEMS_PER_CALL: Final = 100
_CALLS_PER_STEP_MAX: Final = 1_000
_DEBOUNCES_MAX: Final = 4
_LOOK_S_MAX: Final = 1.0
_REBALANCE_LOOK_S_MIN: Final = 1.0


class Reaper(Protocol):
    """Takes back what a worker without a lease had; gives how many items are left. ``blame``: its death counts against
    what it was running."""

    async def __call__(self, worker: str, *, blame: bool, limit: int) -> int: ...


class Chores(Protocol):
    """What the coordinator has done to jobs, at most ``limit`` items a call."""

    async def bury(self, worker: str) -> None:
        """Forget a worker of which the reapers have left nothing."""
        ...

    async def adopt(self, *, limit: int) -> int:
        """Give parked jobs to the workers of their slots; how many were given."""
        ...

    async def sweep(self, workers: Sequence[str], *, limit: int) -> int:
        """Offer jobs that were not claimed within the ack grace to another of ``workers``; how many were late."""
        ...


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


@dataclass(slots=True)
class _Orders:
    """What the script ``coordinate`` says that there is to do."""

    epoch: int
    members: int
    expired: list[str]
    expired_nodes: list[bytes]
    queued: int
    parked: int


@dataclass(slots=True)
class _View:
    """Everything that a table is computed from, at one moment."""

    epoch: int
    members: int
    able: list[str]
    gone: list[str]
    table: dict[int, str]
    jobs: dict[int, int]


@final
class Coordinator:
    """This node's part in looking after the pool. ``reapers`` take back jobs and tasks, in this order."""

    def __init__(
        self, redis: Redis, membership: Membership, *, reapers: Sequence[Reaper], chores: Chores, logger: Any = None
    ) -> None:
        self._redis = redis
        self._membership = membership
        self._reapers = tuple(reapers)
        self._chores = chores
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
        # Since when and up to when changes among the members wait for more of them, and what was seen last.
        self._members_seen = -1
        self._changes_since_s: float | None = None
        self._change_at_s = 0.0
        self._looked_s = 0.0
        self._swept_s = 0.0
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
            except FlottaError as error:  # Redis is away, or refuses: the next look begins from the beginning
                self._counts["steps_failed"] += 1
                self._members_seen = -1
                self._logger.debug("a look after the pool failed", node=self._membership.node, error=str(error))
            except Exception:  # our bug, or a reaper's: others must not wait for ever because of it
                self._counts["steps_failed"] += 1
                self._members_seen = -1
                self._logger.exception("a look after the pool failed", node=self._membership.node)
                self._bell.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), self._pause_s())

    def _pause_s(self) -> float:
        if self._changes_since_s is None:
            return self._look_s
        return max(0.0, min(self._look_s, self._settled_s() - boottime_s()))

    async def step(self) -> bool:
        """One look: try for the lease, and if it is ours do what there is to do. Whether it is ours.

        Raises what a Redis call, a reaper or a chore raises. Cancelled: another look finishes what was begun.
        """
        reply = await self._run(COORDINATE, self._membership.node, self._lease_ms, _EXPIRED_MAX)
        if not reply[0]:
            self._coordinates, self._members_seen, self._changes_since_s = False, -1, None
            return False
        _, _, epoch, members, expired, nodes, queued, parked, _ = reply
        orders = _Orders(epoch, members, [worker.decode() for worker in expired], nodes, queued, parked)
        is_new, self._coordinates = not self._coordinates, True
        if is_new:
            self._logger.info("this node coordinates the pool", pool=self._membership.keys.name)
        gone = await self._replace(orders)
        await self._reap([*orders.expired, *gone])
        await self._do_chores(orders)
        return True

    # --- the table ------------------------------------------------------------------------------------------------

    async def _replace(self, orders: _Orders) -> list[str]:
        """Bring the table up to date if it is time to; gives workers that have facts but no lease."""
        now_s = boottime_s()
        if orders.members != self._members_seen:
            self._note_change(orders, now_s)
        is_due = self._changes_since_s is not None and now_s >= self._settled_s()
        if not (orders.expired or orders.parked or is_due or now_s - self._looked_s >= self._rebalance_look_s):
            return []
        view = await self._view()
        self._looked_s = now_s
        self._able = view.able
        able = set(view.able)
        is_urgent = len(view.table) < 1 or any(owner not in able for owner in view.table.values())
        if self._changes_since_s is None or is_due or is_urgent:
            await self._place(view)
        return view.gone

    def _note_change(self, orders: _Orders, now_s: float) -> None:
        """Members came or went. The first look of a coordinator acts at once: it cannot know for how long they wait."""
        if self._members_seen < 0:
            self._looked_s = 0.0
        else:
            if self._changes_since_s is None:
                self._changes_since_s = now_s
            self._change_at_s = now_s
            self._looked_s = 0.0  # somebody may be left without an owner: see
        self._members_seen = orders.members

    def _settled_s(self) -> float:
        """When the changes that wait should be acted on: after a pause of them, but not later than four pauses."""
        assert self._changes_since_s is not None
        return min(self._change_at_s + self._debounce_s, self._changes_since_s + _DEBOUNCES_MAX * self._debounce_s)

    async def _view(self) -> _View:
        epoch, members, able, gone, slots, jobs = await self._run(VIEW)
        return _View(
            epoch,
            members,
            [worker.decode() for worker in able],
            [worker.decode() for worker in gone],
            {int(slot): worker.decode() for slot, worker in zip(slots[::2], slots[1::2], strict=True)},
            {int(slot): int(count) for slot, count in zip(jobs[::2], jobs[1::2], strict=True)},
        )

    async def _place(self, view: _View) -> None:
        changes = await asyncio.to_thread(place, view.table, view.able, view.jobs)  # up to a second for 1,000 workers
        if not changes:
            self._changes_since_s = None
            return
        after = {**view.table, **changes}
        emptied = sorted(set(view.table.values()) - set(after.values()))
        args: list[Arg] = [self._membership.node, view.epoch, len(emptied), *emptied]
        for slot, worker in changes.items():
            args += (slot, worker)
        answer = await self._run(ASSIGN, *args)
        if isinstance(answer, bytes):
            # Somebody else was faster, or a worker went in this moment: look at everything again, at once.
            self._members_seen = -1
            self.poke()
            return
        self._changes_since_s = None
        self._counts["tables"] += 1
        self._counts["slots_moved"] += len(changes)
        self._membership.table_changed()
        self._logger.info(
            "a new slot table",
            pool=self._membership.keys.name,
            epoch=answer,
            slots=len(changes),
            workers=len(view.able),
        )
        await self._adopt()

    # --- the dead -------------------------------------------------------------------------------------------------

    async def _reap(self, workers: Sequence[str]) -> None:
        if not workers:
            return
        blame = not await self._had_outage()
        for worker in dict.fromkeys(workers):
            if await self._reap_one(worker, blame=blame):
                self._counts["workers_reaped"] += 1
                await self._chores.bury(worker)
                self._logger.warning("a worker was buried", pool=self._membership.keys.name, worker=worker, blame=blame)

    async def _reap_one(self, worker: str, *, blame: bool) -> bool:
        """Whether nothing is left of it. Between the calls the lease is renewed: a big worker takes many."""
        for reaper in self._reapers:
            for _ in range(_CALLS_PER_STEP_MAX):
                if await reaper(worker, blame=blame, limit=_ITEMS_PER_CALL) <= 0:
                    break
                await self._renew()
            else:
                return False
        return True

    async def _renew(self) -> None:
        await self._run(COORDINATE, self._membership.node, self._lease_ms, 0)

    async def _had_outage(self) -> bool:
        """Whether the dead may only have been cut off, or their leases lost: then nothing is blamed for a death."""
        if self._membership.heartbeat.blameless():
            return True
        try:
            info: bytes = await self._redis.link.call("INFO", "server")
        except CommandError:  # an ACL without INFO
            return False
        uptime_s = next(
            (int(line.partition(b":")[2]) for line in info.splitlines() if line.startswith(b"uptime_in_seconds:")), 0
        )
        return uptime_s < 2 * self._membership.options.worker_ttl_s

    # --- chores ---------------------------------------------------------------------------------------------------

    async def _do_chores(self, orders: _Orders) -> None:
        if orders.expired_nodes:
            await self._run(BURY_NODES, *orders.expired_nodes)
        if orders.parked and self._able:
            await self._adopt()
        now_s = boottime_s()
        if orders.queued and self._able and now_s - self._swept_s >= self._sweep_s:
            self._swept_s = now_s
            for _ in range(_CALLS_PER_STEP_MAX):
                if await self._chores.sweep(self._able, limit=_ITEMS_PER_CALL) < _ITEMS_PER_CALL:
                    break
                await self._renew()

    async def _adopt(self) -> None:
        for _ in range(_CALLS_PER_STEP_MAX):
            if await self._chores.adopt(limit=_ITEMS_PER_CALL) < _ITEMS_PER_CALL:
                return
            await self._renew()

    async def _run(self, script: Any, *args: Arg) -> Any:
        return await script(self._redis.link, keys=[self._membership.keys.meta], args=args)
