"""Who uses the pool in a fault run: dispatches, stops, notifies and enqueues over the faults, and writes down every
answer. And who makes the faults, by a seed.

Owns the honest reading of the answers: accepted, refused, or none at all. Invariant: what was refused is tried again
under a new number, so that the run ends with everything accepted; nothing is asked twice under one number, except
tasks, whose ids make that harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

from flotta.errors import (
    DispatchTimeout,
    JobExists,
    NotRunning,
    NoWorkers,
    PoolShutdown,
    QueueFull,
    RedisError,
    StartFailed,
    StopUnconfirmed,
)
from flotta.pool import PoolOptions, WorkerPool
from flotta.pool.keys import PoolKeys
from flotta.redis import LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from pool_herd import Herd, Member
from pool_history import What
from pool_journal import Journal
from pool_worker import Code, Declared, Setup, declare

__all__ = ["Driver", "Faults"]

REFUSALS = (QueueFull, NoWorkers, PoolShutdown, StartFailed)
AGAIN_S = 0.2
DISPATCHING_MAX = 64
BATCH = 100


@dataclass
class Driver:
    """Client-only nodes of both versions, one journal. Use ``Driver.open``."""

    redis: Redis
    keys: PoolKeys
    journal: Journal
    chance: random.Random
    pools: dict[Code, WorkerPool]
    declared: dict[Code, Declared]
    numbers: int = 0
    running: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """Key -> number and handle of the dispatch that should be running."""
    notes: int = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, setup: Setup, journal: Journal, seed: int) -> AsyncIterator[Self]:
        """Both versions as clients."""
        options = PoolOptions(client_only=True, worker_ttl_s=setup.ttl_s, **setup.options)
        pools: dict[Code, WorkerPool] = {code: WorkerPool(setup.pool, options=options) for code in ("old", "new")}
        declared = {code: declare(pool, code) for code, pool in pools.items()}
        link = LinkOptions(client_name="driver", reconnect_max_s=0.5)
        async with Redis.from_url(setup.url, options=link) as redis, contextlib.AsyncExitStack() as stack:
            for pool in pools.values():
                await stack.enter_async_context(pool.running(redis))
            yield cls(redis, PoolKeys(setup.pool), journal, random.Random(seed), pools, declared)

    def anyone(self) -> Declared:
        """The old or the new client."""
        return self.declared["old" if self.chance.random() < 0.5 else "new"]

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def dispatch_all(self, numbers: range) -> None:
        """Dispatch a job for each of ``numbers``, many at a time, each until it is accepted."""
        free = asyncio.Semaphore(DISPATCHING_MAX)

        async def one(number: int) -> None:
            async with free:
                await self.dispatch_until_accepted(number)

        async with asyncio.TaskGroup() as group:
            for number in numbers:
                group.create_task(one(number), name=f"dispatch {number}")

    async def dispatch(self, number: int, mode: str = "stay") -> None:
        """One job that must be accepted at once."""
        assert await self._dispatch(self.anyone().watch, f"watch:{number}", number, mode)

    async def dispatch_until_accepted(self, number: int) -> None:
        """One job: most stay, some crash a few times, some end by themselves, some are poison."""
        draw = self.chance.random()
        declared = self.anyone()
        if draw < 0.01:
            await self._dispatch(declared.poison, f"poison:{number}", number)
            return
        function, key = declared.watch, f"watch:{number}"
        if draw > 0.9 and self.declared["new"].convoy is not None:
            function, key = self.declared["new"].convoy, f"convoy:{number}"
        mode = "crash:2" if draw < 0.05 else "return:2" if draw < 0.1 else "stay"
        while not await self._dispatch(function, key, number, mode):
            await asyncio.sleep(AGAIN_S)

    async def _dispatch(self, function: Any, key: str, number: int, *mode: str) -> bool:
        """Whether there is nothing left to do for this key."""
        self.numbers += 1
        dispatch = self.numbers
        try:
            handle = await function.dispatch(number, dispatch, *mode, timeout_s=20.0)
        except REFUSALS as error:
            self.journal.say(What.REFUSED, key, dispatch=dispatch, how=type(error).__name__)
            return False
        except JobExists:  # a dispatch without an answer is there
            self.journal.say(What.REFUSED, key, dispatch=dispatch, how="JobExists")
            return True
        except DispatchTimeout as error:
            what = What.REFUSED if error.withdrawn else What.STOPPING
            self.journal.say(what, key, dispatch=dispatch, how="DispatchTimeout")
            return False
        except RedisError as error:
            self.journal.say(What.UNKNOWN, key, dispatch=dispatch, how=type(error).__name__)
            return False
        self.journal.say(What.DISPATCHED, key, dispatch=dispatch)
        if mode and not mode[0].startswith("return"):
            self.running[key] = dispatch, handle
        return True

    async def stop(self, key: str, timeout_s: float = 20.0) -> None:
        """Stop what runs under ``key`` and ask until there is an answer."""
        dispatch, handle = self.running.pop(key)
        asked_before = False
        while True:
            try:
                await handle.stop(timeout_s=timeout_s)
            except StopUnconfirmed:
                self.journal.say(What.STOPPING, key, dispatch=dispatch)
            except NotRunning:
                # Only an answer that was lost explains it; else the job is: then nobody has stopped it, and the checker
                # finds that it does not run.
                if asked_before:
                    self.journal.say(What.STOPPED, key, dispatch=dispatch, how="by a call without an answer")
            except RedisError:
                asked_before = True
                await asyncio.sleep(AGAIN_S)
                continue
            else:
                self.journal.say(What.STOPPED, key, dispatch=dispatch)
            return

    async def notify(self, key: str) -> None:
        """Send the next numbered notification; one without an answer is not promised to anybody."""
        dispatch, handle = self.running[key]
        self.notes += 1
        number = self.notes
        with contextlib.suppress(RedisError, NotRunning, QueueFull):
            await handle.notify(b"%d" % number)
            self.journal.say(What.NOTIFIED, key, dispatch=dispatch, count=number)

    async def stop_and_notify(self, pause_s: float, enough: asyncio.Event) -> None:
        """Stop jobs at random and dispatch half of them again, notify others. Not cancelled, but told when it is
        ``enough``: every answer must be heard."""
        while not enough.is_set():
            await asyncio.sleep(pause_s)
            keys = sorted(self.running)
            if len(keys) < 10:
                continue
            for key in self.chance.sample(keys, 3):
                await self.notify(key)
            key = self.chance.choice(keys)
            await self.stop(key)
            kind, _, number = key.partition(":")
            if self.chance.random() < 0.5:
                function = getattr(self.declared["new"], kind)
                while not await self._dispatch(function, key, int(number), "stay"):
                    await asyncio.sleep(AGAIN_S)

    # --- tasks --------------------------------------------------------------------------------------------------

    async def enqueue_all(self, count: int, over_s: float) -> None:
        """Enqueue ``count`` tasks in batches, spread over about ``over_s``."""
        for first in range(0, count, BATCH):
            declared = self.anyone()
            pool = self.pools["new" if declared.audit is not None else "old"]
            calls = {f"t{n}": self._call(declared, f"t{n}") for n in range(first, min(first + BATCH, count))}
            await self._enqueue_until_accepted(pool, calls)
            await asyncio.sleep(over_s * BATCH / count)

    def _call(self, declared: Declared, ident: str) -> Any:
        draw = self.chance.random()
        mode = "poison" if draw < 0.002 else "fail:1" if draw < 0.05 else "sleep:0.5" if draw < 0.1 else "ok"
        if mode == "poison":
            return declared.doomed.options(id=ident).call(ident)
        if draw > 0.8:
            return declared.post.options(id=ident).call(ident, f"lane{self.chance.randrange(50)}", mode)
        if draw > 0.7 and declared.audit is not None:
            return declared.audit.options(id=ident).call(ident, mode)
        return declared.charge.options(id=ident).call(ident, mode)

    async def _enqueue_until_accepted(self, pool: WorkerPool, calls: dict[str, Any]) -> None:
        while True:
            try:
                await pool.enqueue_many(list(calls.values()))
            except (RedisError, QueueFull):  # the ids make asking again harmless
                await asyncio.sleep(AGAIN_S)
                continue
            for ident in calls:
                self.journal.say(What.ENQUEUED, ident)
            return

    # --- the end ------------------------------------------------------------------------------------------------

    async def record_the_dead(self, known: set[tuple[str, int]]) -> set[tuple[str, int]]:
        """Write down every dead letter that is not ``known``; gives those that are new."""
        new: set[tuple[str, int]] = set()
        for _, flat in await self.redis.link.call("XRANGE", self.keys.dead, "-", "+"):
            letter = dict(zip(flat[::2], flat[1::2], strict=True))
            is_job = letter[b"kind"] == b"job"
            dead = (letter[b"key"].decode(), dispatch_of(letter[b"payload"]) if is_job else 0)
            if dead not in known | new:
                new.add(dead)
                self.journal.say(What.DEAD, dead[0], dispatch=dead[1])
        return new


def dispatch_of(payload: bytes) -> int:
    """The number of the dispatch whose payload this is."""
    import msgspec

    return int(msgspec.msgpack.decode(payload)["dispatch"])


class Faults:
    """Faults on ``herd`` and ``server`` in an order that the seed decides."""

    def __init__(self, herd: Herd, server: EmbeddedRedis, driver: Driver, seed: int, *, rolled_max: int) -> None:
        self.herd = herd
        self.server = server
        self.driver = driver
        self.rolled_max = rolled_max
        self.journal = driver.journal
        self.chance = random.Random(seed)
        self._pauses: set[asyncio.Task[None]] = set()
        self._one = asyncio.Lock()  # held while a fault is being made
        rare: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self._restart_server,
            self._cut_clients,
            self._roll,
            self._stall,
        ]
        self._kinds = [self._kill, self._kill, self._kill, self._pause, self._pause, *rare]

    async def make_for_ever(self, pause_s: float) -> None:
        """Every kind once, in a random order, then at random, ``pause_s`` apart on average; until it is cancelled."""
        order = self.chance.sample(self._kinds, len(self._kinds))
        while True:
            await asyncio.sleep(self.chance.uniform(0.5, 1.5) * pause_s)
            async with self._one:
                await (order.pop() if order else self.chance.choice(self._kinds))()

    async def finish(self, making: asyncio.Task[None]) -> None:
        """No more faults: end what is under way, let everything go on that stands still, fill every empty place."""
        async with self._one:
            making.cancel()
        await asyncio.gather(*self._pauses)
        for slot, member in list(self.herd.members.items()):
            if not member.alive:
                await self.herd.spawn(slot, member.code)

    def _victim(self) -> Member | None:
        alive = [member for _, member in sorted(self.herd.members.items()) if member.alive and not member.paused]
        return self.chance.choice(alive) if len(alive) > 3 else None

    async def _kill(self) -> None:
        if member := self._victim():
            await self.herd.kill(member)
            await self.herd.spawn(member.slot, self._code_of(member.slot, self.chance.random() < 0.5))

    async def _pause(self) -> None:
        if member := self._victim():
            self.herd.pause(member)
            task = asyncio.create_task(self._resume(member), name=f"resume {member.name}")
            self._pauses.add(task)
            task.add_done_callback(self._pauses.discard)

    async def _resume(self, member: Member) -> None:
        await asyncio.sleep(2 * self.herd.setup.ttl_s)
        self.herd.resume(member)

    async def _restart_server(self) -> None:
        self.journal.say(What.FAULT, how="redis killed and restarted")
        self.server.kill()
        await self.server.restart()

    async def _cut_clients(self) -> None:
        self.journal.say(What.FAULT, how="client kill")
        async with Redis.from_url(self.server.url) as redis:
            await redis.link.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _stall(self) -> None:
        """The event loop of some worker is blocked for twice its time to live. (It says itself which, and when.)"""
        self.journal.say(What.FAULT, how="loop blocked")
        with contextlib.suppress(RedisError):
            await self.driver.anyone().stall.enqueue(2 * self.herd.setup.ttl_s)

    async def _roll(self) -> None:
        """Every worker is replaced, one after the other, by one of the other version."""
        self.journal.say(What.FAULT, how="rolling restart")
        for slot in sorted(self.herd.members)[: self.rolled_max]:
            member = self.herd.members[slot]
            if member.alive and not member.paused:
                await self.herd.end(member)
                await self.herd.spawn(slot, self._code_of(slot, member.code == "old"))

    def _code_of(self, slot: int, new: bool) -> Code:
        """The version for ``slot``. The first place is never old: what only the new code knows must find a worker."""
        return "new" if new or slot == 0 else "old"
