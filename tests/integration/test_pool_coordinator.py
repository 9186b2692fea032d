"""Looking after a pool: deaths, takeovers, and coordinators that die or are paused in the middle of a step."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from flotta.pool.coordinator import Coordinator
from flotta.pool.jobs.states import JobState
from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import SLOTS, PoolKeys, slot_of
from flotta.pool.members.lease import Loss
from flotta.pool.members.scripts import ASSIGN, COORDINATE, RESIGN, VIEW
from flotta.pool.options import PoolOptions
from flotta.redis import Redis
from pool_members import PATIENCE_S, Member, member

TESTS = Path(__file__).parents[1]
LONG = PoolOptions(worker_ttl_s=30.0, rebalance_debounce_s=0.05)


async def until(check: Callable[[], Awaitable[bool]], *, timeout_s: float = PATIENCE_S) -> None:
    """Ask the server until it says so: there is no signal for what another process' coordinator does."""
    async with asyncio.timeout(timeout_s):
        while not await check():
            await asyncio.sleep(0.01)


async def dispatch(store: JobStore, count: int, *, crashes_max: int = 5) -> list[str]:
    keys = [f"job:{number}" for number in range(count)]
    await asyncio.gather(*(store.dispatch(key, "k", b"p", did=f"d:{key}", crashes_max=crashes_max) for key in keys))
    return keys


async def owners_of(store: JobStore, keys: list[str]) -> Counter[str]:
    infos = await asyncio.gather(*(store.read(key) for key in keys))
    return Counter(info.owner if info else "none" for info in infos)


async def die(one: Member, *workers: str) -> None:
    """The leases end, as if the process had been killed a ttl ago."""
    for worker in workers:
        one.membership.heartbeat.release(worker)
        await one.redis.zadd(one.keys.leases, {worker: 1})


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def test_a_server_that_refuses_is_told_of_once_and_looking_goes_on(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1") as one:
        async with asyncio.timeout(PATIENCE_S):
            while not one.coordinator.stats.coordinates:
                await asyncio.sleep(0.01)
        with capture_logs() as logs:
            await one.redis.link.call("SET", one.keys.parked, "of another type")
            failed = one.coordinator.stats.steps_failed
            async with asyncio.timeout(PATIENCE_S):
                while one.coordinator.stats.steps_failed < failed + 3:
                    one.coordinator.poke()
                    await asyncio.sleep(0.01)
            await one.redis.link.call("DEL", one.keys.parked)
            lease = await one.work()
            assert await one.membership.placed(lease.worker, PATIENCE_S)
        told = [entry for entry in logs if entry["log_level"] == "error"]
        assert len(told) == 1
        assert "WRONGTYPE" in told[0]["error"]


# --- deaths ----------------------------------------------------------------------------------------------------------


async def test_what_a_dead_worker_had_follows_its_slots(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", options=LONG) as one:
        leases = [await one.work() for _ in range(3)]
        for lease in leases:
            assert await one.membership.placed(lease.worker, PATIENCE_S)
        keys = await dispatch(one.store, 300)
        dead = leases[0].worker
        had = (await owners_of(one.store, keys))[dead]
        assert had > 50
        before = await one.membership.table()
        await die(one, dead)

        async def is_forgotten() -> bool:
            return not await one.redis.hexists(one.keys.workers, dead)

        await until(is_forgotten)
        after = await one.membership.table()
        assert set(after.owners.values()) == {leases[1].worker, leases[2].worker}
        moved = {slot for slot in range(SLOTS) if before.owners[slot] != after.owners[slot]}
        theirs = {slot for slot, worker in before.owners.items() if worker == dead}
        assert theirs <= moved
        assert len(moved - theirs) < 0.1 * SLOTS  # to level the load, if these jobs make it uneven
        infos = [await one.store.read(key) for key in keys]
        assert [info.owner for info in infos if info] == [after.owners[slot_of(key)] for key in keys]
        assert await one.redis.scard(one.keys.parked) == 0
        assert [key for key in await one.redis.keys(f"{one.keys.prefix}*") if dead.encode() in key] == []


async def test_a_death_does_not_wait_for_joins_to_pause(valkey_url: str, unique: str) -> None:
    options = PoolOptions(worker_ttl_s=30.0, rebalance_debounce_s=3600.0)
    async with member(valkey_url, unique, "n1", options=options) as one:
        first = await one.work()
        assert await one.membership.placed(first.worker, PATIENCE_S)
        second = await one.work()  # waits for an hour
        await die(one, first.worker)
        assert await one.membership.placed(second.worker, PATIENCE_S)
        assert set((await one.membership.table()).owners.values()) == {second.worker}


async def test_joins_that_never_pause_are_acted_on_after_four_pauses(valkey_url: str, unique: str) -> None:
    options = PoolOptions(worker_ttl_s=30.0, rebalance_debounce_s=0.3)
    async with member(valkey_url, unique, "n1", options=options) as one:
        first = await one.work()
        assert await one.membership.placed(first.worker, PATIENCE_S)
        second = await one.work()
        joined_s, pause_s = [time.monotonic()], 0.0
        async with asyncio.timeout(PATIENCE_S):
            while not await one.membership.placed(second.worker, 0.1):
                await one.work()
                joined_s.append(time.monotonic())
                pause_s = max(pause_s, joined_s[-1] - joined_s[-2])
        assert time.monotonic() - joined_s[0] > 1.0 or pause_s > 0.2, "a machine that is late makes a pause"


async def test_jobs_without_any_worker_are_parked_and_go_to_the_next_one(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", options=LONG) as one:
        first = await one.work()
        assert await one.membership.placed(first.worker, PATIENCE_S)
        keys = await dispatch(one.store, 150)
        await die(one, first.worker)

        async def are_parked() -> bool:
            return await one.redis.scard(one.keys.parked) == len(keys)

        await until(are_parked)
        second = await one.work()

        async def are_given() -> bool:
            return (await owners_of(one.store, keys))[second.worker] == len(keys)

        await until(are_given)


@pytest.mark.parametrize(("leaves", "has_outage", "losses"), [(False, False, 1), (True, False, 0), (False, True, 0)])
async def test_who_dies_is_blamed_unless_it_was_leaving_or_redis_was_away(
    valkey_url: str, unique: str, leaves: bool, has_outage: bool, losses: int
) -> None:
    options = PoolOptions(worker_ttl_s=1.0, rebalance_debounce_s=0.05)  # the server is older than two of these
    async with member(valkey_url, unique, "n1", options=options) as one:
        worker = (await one.work()).worker
        assert await one.membership.placed(worker, PATIENCE_S)
        dispatched = await one.store.dispatch("k", "kind", b"", did="d", crashes_max=5)
        await one.store.claim(worker, "k", dispatched.fence)
        if has_outage:
            one.membership.heartbeat.blameless = lambda: True  # type: ignore[method-assign]
        if leaves:
            await one.membership.leaving(worker)
        await until(lambda: _is_older(one.redis, 2 * options.worker_ttl_s))
        await die(one, worker)

        async def is_parked() -> bool:
            info = await one.store.read("k")
            return info is not None and info.state is JobState.QUEUED

        await until(is_parked)
        info = await one.store.read("k")
        assert info is not None
        assert info.losses == losses


async def _is_older(redis: Redis, seconds: float) -> bool:
    return bool((await redis.info("server"))["uptime_in_seconds"] > seconds)


async def test_a_death_of_poison_ends_as_a_dead_letter(valkey_url: str, unique: str) -> None:
    options = PoolOptions(worker_ttl_s=1.0, rebalance_debounce_s=0.05)
    async with member(valkey_url, unique, "n1", options=options) as one:
        await until(lambda: _is_older(one.redis, 2 * options.worker_ttl_s))
        worker = (await one.work()).worker
        assert await one.membership.placed(worker, PATIENCE_S)
        dispatched = await one.store.dispatch("k", "kind", b"", did="d", crashes_max=0)
        await one.store.claim(worker, "k", dispatched.fence)
        await die(one, worker)

        async def is_dead() -> bool:
            return bool(await one.redis.xlen(one.keys.dead) == 1)

        await until(is_dead)
        assert await one.store.read("k") is None


async def test_a_reaper_that_fails_for_one_worker_keeps_no_other_waiting(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", options=LONG, coordinates=False) as one:
        workers = [(await one.work()).worker for _ in range(3)]

        async def reap(worker: str, *, blame: bool, limit: int) -> int:
            if worker == min(workers[:2]):
                raise ValueError("a bug")
            return 0

        coordinator = Coordinator(one.store, one.membership, reapers=[reap])
        await coordinator.step()
        await die(one, *workers[:2])
        await coordinator.step()
        left = {worker.decode() for worker in await one.redis.hkeys(one.keys.workers)}
        assert left == {workers[2], min(workers[:2])}
        await coordinator.stop()


async def test_reapers_are_called_until_nothing_is_left(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", options=LONG, coordinates=False) as one:
        worker = (await one.work()).worker
        left = [4]

        async def reap(dead: str, *, blame: bool, limit: int) -> int:
            assert dead == worker
            left[0] -= 1
            return left[0]

        await die(one, worker)
        coordinator = Coordinator(one.store, one.membership, reapers=[reap])
        await coordinator.step()
        assert left == [0]
        assert coordinator.stats.workers_reaped == 1
        await coordinator.stop()


async def test_nodes_that_are_gone_are_forgotten(valkey_url: str, unique: str) -> None:
    async with (
        member(valkey_url, unique, "n1", options=LONG) as one,
        member(valkey_url, unique, "n2", options=LONG, coordinates=False) as two,
    ):
        await two.membership.heartbeat.stop()
        await one.redis.zadd(one.keys.nodes, {"n2": 1})

        async def is_forgotten() -> bool:
            return not await one.redis.exists(one.keys.replies("n2"))

        await until(is_forgotten)
        assert await one.redis.zrange(one.keys.nodes, 0, -1) == [b"n1"]


async def test_a_shutdown_goes_on_without_the_node_that_began_it(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", options=LONG) as one:
        lease = await one.work()
        assert await one.membership.placed(lease.worker, PATIENCE_S)
        keys = await dispatch(one.store, 250)
        await one.store.shutdown_begin("somebody.else")

        async def are_gone() -> bool:
            return (await owners_of(one.store, keys))["none"] == len(keys)

        await until(are_gone)


# --- evenness without joins or leaves --------------------------------------------------------------------------------


async def test_jobs_that_crowd_on_one_worker_are_spread_without_a_join(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", options=LONG, coordinates=False) as one:
        leases = [await one.work() for _ in range(4)]
        await one.coordinator.step()
        table = (await one.membership.table()).owners
        crowded = [slot for slot, worker in table.items() if worker == leases[0].worker]
        await one.redis.hset(one.keys.slotjobs, mapping=dict.fromkeys(crowded, 4))
        one.coordinator._looked_s = 0.0
        await one.coordinator.step()
        after = (await one.membership.table()).owners
        moved = [slot for slot in range(SLOTS) if table[slot] != after[slot]]
        assert moved
        assert set(moved) <= set(crowded)
        one.coordinator._looked_s = 0.0
        await one.coordinator.step()
        assert (await one.membership.table()).owners == after
        await one.coordinator.stop()


# --- who coordinates -------------------------------------------------------------------------------------------------


async def test_an_assignment_of_another_coordinator_epoch_or_to_the_dead_is_refused(
    valkey_url: str, unique: str
) -> None:
    async with member(valkey_url, unique, "n1", options=LONG, coordinates=False) as one:
        lease, other = await one.work(), await one.work()
        link, keys, life = one.redis.link, [one.keys.meta], one.membership.life
        assert await ASSIGN(link, keys=keys, args=["n1", 0, 0, 1, lease.worker]) == b"STALE"  # nobody coordinates
        assert (await COORDINATE(link, keys=keys, args=["n1", 10_000, 10, life]))[0] == 1
        assert (await COORDINATE(link, keys=keys, args=["n2", 10_000, 10, life])) == [0]
        assert await ASSIGN(link, keys=keys, args=["n2", 0, 0, 1, lease.worker]) == b"STALE"
        assert await ASSIGN(link, keys=keys, args=["n1", 1, 0, 1, lease.worker]) == b"STALE"
        assert await ASSIGN(link, keys=keys, args=["n1", 0, 0, 1, lease.worker]) == 1
        assert await ASSIGN(link, keys=keys, args=["n1", 0, 0, 1, lease.worker]) == b"STALE"
        await one.membership.leaving(other.worker)
        assert await ASSIGN(link, keys=keys, args=["n1", 1, 0, 2, lease.worker, 3, other.worker]) == b"GONE"
        await die(one, other.worker)
        assert await ASSIGN(link, keys=keys, args=["n1", 1, 0, 2, lease.worker, 3, other.worker]) == b"GONE"
        assert (await one.membership.table()).owners == {1: lease.worker}
        assert await RESIGN(link, keys=keys, args=["n2"]) == 0
        assert await RESIGN(link, keys=keys, args=["n1"]) == 1
        assert (await COORDINATE(link, keys=keys, args=["n2", 10_000, 10, life]))[0] == 1


async def test_a_coordinator_that_was_overtaken_while_it_computed_changes_nothing(valkey_url: str, unique: str) -> None:
    """It reads its view, then stands still; another one takes over and makes a table; its own is refused."""
    async with (
        member(valkey_url, unique, "n1", options=LONG, coordinates=False) as one,
        member(valkey_url, unique, "n2", options=LONG, coordinates=False) as two,
    ):
        lease = await one.work()
        link = one.redis.link
        send = link.call

        async def pause_after_the_view(*args: Any) -> Any:
            reply = await send(*args)
            if args[1] == VIEW.sha:
                await one.redis.delete(one.keys.coordinator)  # its lease has ended meanwhile
                assert await two.coordinator.step()
            return reply

        link.call = pause_after_the_view  # type: ignore[method-assign, assignment]
        await one.coordinator.step()
        link.call = send  # type: ignore[method-assign]
        assert (await one.membership.table()).epoch == 1
        assert one.coordinator.stats.tables == 0
        assert two.coordinator.stats.tables == 1
        assert not await one.coordinator.step()
        assert set((await one.membership.table()).owners.values()) == {lease.worker}
        await two.coordinator.stop()


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_the_next_coordinator_finishes_what_any_call_left_undone(
    valkey_url: str, unique: str, after: bool
) -> None:
    """The coordinator dies at its first, second, ... call, until it lives through a whole step."""
    call = 0
    while True:
        call += 1
        pool = f"{unique}.{call}"
        async with (
            member(valkey_url, pool, "n1", options=LONG, coordinates=False) as one,
            member(valkey_url, pool, "n2", options=LONG, coordinates=False) as two,
        ):
            workers = [(await two.work()).worker for _ in range(3)]
            await two.coordinator.step()
            await two.coordinator.stop()
            keys = await dispatch(two.store, 250)
            await die(two, workers[0])
            survived = await _step_dying_at(one, call, after=after)
            await one.redis.delete(one.keys.coordinator)  # half a ttl later
            assert await two.coordinator.step()
            assert await two.coordinator.step()
            owners = await owners_of(two.store, keys)
            assert set(owners) == set(workers[1:])
            assert sum(owners.values()) == len(keys)
            assert await two.redis.scard(two.keys.parked) == 0
            assert not await two.redis.hexists(two.keys.workers, workers[0])
            assert set((await two.membership.table()).owners.values()) == set(workers[1:])
            await two.coordinator.stop()
        if survived:
            break
    assert call > 6


async def _step_dying_at(one: Member, call: int, *, after: bool) -> bool:
    """One step of a coordinator that is killed at its ``call``-th call to Redis; True if it has fewer."""
    link = one.redis.link
    send, count = link.call, [0]

    async def dying(*args: Any) -> Any:
        count[0] += 1
        if count[0] == call and not after:
            raise Killed
        reply = await send(*args)
        if count[0] == call:
            raise Killed
        return reply

    link.call = dying  # type: ignore[method-assign, assignment]
    try:
        await one.coordinator.step()
    except Killed:
        return False
    finally:
        link.call = send  # type: ignore[method-assign]
    return True


# --- real processes --------------------------------------------------------------------------------------------------


class Process:
    """A node with a worker in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, node: str) -> None:
        self.process = process
        self.node = node
        self.worker = ""

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while True:
                text = (await self.process.stdout.readline()).decode().strip()
                assert text, "it has ended"
                if not text.startswith("20"):  # not a line of the log
                    return text

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def processes(url: str, pool: str, count: int, ttl_s: float) -> AsyncIterator[list[Process]]:
    async with AsyncExitStack() as stack:
        started = []
        for number in range(count):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pool_member",
                url,
                pool,
                f"p{number}",
                str(ttl_s),
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )
            stack.push_async_callback(_end, process)
            started.append(Process(process, f"p{number}"))
        for one in started:
            one.worker = await one.line()
        yield started


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


@pytest.mark.faults
async def test_a_killed_coordinator_and_its_worker_are_replaced_within_the_ttl_and_two_seconds(
    redis: Redis, valkey_url: str, unique: str
) -> None:
    ttl_s = 2.0
    store, keys = JobStore(redis, unique, options=PoolOptions(worker_ttl_s=ttl_s)), PoolKeys(unique)
    async with processes(valkey_url, unique, 3, ttl_s) as nodes:
        jobs = await dispatch(store, 150)
        for _ in range(2):
            holder = (await redis.get(keys.coordinator) or b"").decode()
            dying = next(one for one in nodes if one.node == holder)
            nodes.remove(dying)
            alive = {one.worker for one in nodes}
            began_s = time.monotonic()
            dying.signal(signal.SIGKILL)

            async def are_moved(alive: set[str] = alive) -> bool:
                return set(await owners_of(store, jobs)) <= alive

            await until(are_moved)
            assert time.monotonic() - began_s <= ttl_s + 2.0
            assert set((await store_table(redis, keys)).values()) <= alive
            await until(lambda: _coordinates(redis, keys))


async def _coordinates(redis: Redis, keys: PoolKeys) -> bool:
    return await redis.get(keys.coordinator) is not None


async def store_table(redis: Redis, keys: PoolKeys) -> dict[int, str]:
    return {int(slot): worker.decode() for slot, worker in (await redis.hgetall(keys.slots)).items()}


@pytest.mark.faults
async def test_a_paused_coordinator_loses_its_worker_and_harms_nothing_when_it_goes_on(
    redis: Redis, valkey_url: str, unique: str
) -> None:
    ttl_s = 2.0
    store, keys = JobStore(redis, unique, options=PoolOptions(worker_ttl_s=ttl_s)), PoolKeys(unique)
    async with processes(valkey_url, unique, 3, ttl_s) as nodes:
        jobs = await dispatch(store, 150)
        holder = (await redis.get(keys.coordinator) or b"").decode()
        paused = next(one for one in nodes if one.node == holder)
        alive = {one.worker for one in nodes if one is not paused}
        paused.signal(signal.SIGSTOP)

        async def are_moved() -> bool:
            return set(await owners_of(store, jobs)) <= alive

        await until(are_moved)
        table, epoch = await store_table(redis, keys), await redis.hget(keys.meta, "epoch")
        paused.signal(signal.SIGCONT)
        assert await paused.line() in {f"lost {loss.name}" for loss in Loss}
        assert await store_table(redis, keys) == table
        assert await redis.hget(keys.meta, "epoch") == epoch
        assert set(await owners_of(store, jobs)) <= alive
        assert await redis.zscore(keys.leases, paused.worker) is None
