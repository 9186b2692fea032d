"""Members of a pool on a real server: joining, leases under blocked loops and broken connections, leaving."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import redis as driver

from flotta.errors import PoolShutdown, StateError
from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import SLOTS
from flotta.pool.members.boottime import boottime_s
from flotta.pool.members.lease import Loss
from flotta.pool.members.membership import WorkerInfo
from flotta.pool.members.scripts import BEAT
from flotta.pool.options import PoolOptions
from flotta.redis.embedded import EmbeddedRedis
from pool_members import OPTIONS, PATIENCE_S, TTL_S, member

# --- joining and leaving ---------------------------------------------------------------------------------------------


async def test_the_first_worker_of_an_empty_pool_has_all_slots_without_a_debounce(valkey_url: str, unique: str) -> None:
    options = PoolOptions(worker_ttl_s=30.0, rebalance_debounce_s=3600.0)
    async with member(valkey_url, unique, "n1", options=options) as one:
        lease = await one.work()
        assert await one.membership.placed(lease.worker, PATIENCE_S)
        epoch, slots = await one.membership.slots_of(lease.worker)
        assert epoch == 1
        assert slots == frozenset(range(SLOTS))
        assert lease.owned()
        assert (await one.membership.table()).owners == dict.fromkeys(range(SLOTS), lease.worker)


async def test_workers_that_join_together_make_one_table(valkey_url: str, unique: str) -> None:
    options = PoolOptions(worker_ttl_s=30.0, rebalance_debounce_s=0.3)
    async with member(valkey_url, unique, "n1", options=options) as one:
        first = await one.work()
        assert await one.membership.placed(first.worker, PATIENCE_S)
        others = [await one.work() for _ in range(4)]
        for lease in others:
            assert await one.membership.placed(lease.worker, PATIENCE_S)
        table = await one.membership.table()
        assert table.epoch == 2
        assert {*table.owners.values()} == {first.worker, *(lease.worker for lease in others)}


async def test_a_leaver_loses_its_slots_and_then_every_trace(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1") as one:
        stayer, leaver = await one.work(), await one.work()
        for lease in (stayer, leaver):
            assert await one.membership.placed(lease.worker, PATIENCE_S)
        assert await one.membership.leaving(leaver.worker)
        assert await one.membership.unplaced(leaver.worker, PATIENCE_S)
        assert leaver.owned()  # it may still finish what it has
        assert await one.membership.left(leaver.worker) == 0
        assert not leaver.owned()
        assert set((await one.membership.table()).owners.values()) == {stayer.worker}
        keys = [key.decode() for key in await one.redis.keys(f"{one.keys.prefix}*")]
        assert not [key for key in keys if leaver.worker in key]
        assert not await one.redis.hexists(one.keys.workers, leaver.worker)
        assert await one.redis.smembers(f"{one.keys.prefix}placed") == {stayer.worker.encode()}
        assert one.losses.empty()


async def test_the_last_worker_need_not_wait_for_a_successor(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1") as one:
        lease = await one.work()
        assert await one.membership.placed(lease.worker, PATIENCE_S)
        await one.membership.leaving(lease.worker)
        assert await one.membership.unplaced(lease.worker, 0.0)


async def test_a_worker_id_is_used_once(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", coordinates=False) as one:
        lease = await one.work(worker="w1")
        with pytest.raises(StateError, match="used before"):
            await one.work(worker="w1")
        await one.redis.zadd(one.keys.leases, {"w1": 1})
        assert await one.lost() == (lease, Loss.REFUSED)
        with pytest.raises(StateError, match="used before"):
            await one.work(worker="w1")


async def test_nobody_joins_a_pool_that_shuts_down_or_was_shut_down(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1") as one:
        await JobStore(one.redis, unique, options=OPTIONS).shutdown_begin("n1")
        with pytest.raises(PoolShutdown):
            await one.work()
        assert (await one.beaten()).shutdown == "n1"
        redis, meta = one.redis, one.keys.meta
        with pytest.raises(PoolShutdown):
            async with member(valkey_url, unique, "n2"):
                pass
        await one.membership.close()
        with pytest.raises(PoolShutdown):  # also when it is empty: it is to be cleared away first
            async with member(valkey_url, unique, "n3"):
                pass
        assert await redis.link.call("HGET", meta, "shutdown") == b"n1"


async def test_streams_of_members_exist_and_expire_unless_renewed(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1") as one:
        lease = await one.work()
        for key in (one.keys.inbox(lease.worker), one.keys.replies("n1")):
            assert await one.redis.type(key) == b"stream"
            assert 10 * TTL_S * 1000 < await one.redis.pttl(key) <= (10 * TTL_S + 60) * 1000


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_a_blocked_loop_delays_no_beat(valkey_url: str, unique: str) -> None:
    """Blocked for most of a ttl, twice: a watcher in another thread never sees the lease grow old."""
    options = PoolOptions(worker_ttl_s=4.0)  # so that a second is left for a machine that is late
    async with member(valkey_url, unique, "n1", options=options, coordinates=False) as one:
        lease = await one.work()
        await one.beaten()
        lowest_ms, stop = [1e9], threading.Event()

        def watch() -> None:
            with driver.Redis.from_url(valkey_url) as client:
                while not stop.is_set():
                    until_ms = client.zscore(one.keys.leases, lease.worker)
                    seconds, micros = client.time()
                    lowest_ms.append((until_ms or 0.0) - seconds * 1000 - micros / 1000)
                    stop.wait(0.01)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(2):
            time.sleep(0.65 * options.worker_ttl_s)
            assert lease.owned()
            await asyncio.sleep(0.02)  # the loop turns: what is due runs
        stop.set()
        watcher.join()
        assert len(lowest_ms) > 50
        assert min(lowest_ms) > 0.4 * options.worker_ttl_s * 1000  # a loop that beats itself: at most 0.35
        assert one.losses.empty()


async def test_a_loop_blocked_for_longer_than_the_ttl_loses_the_lease_at_once(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", coordinates=False) as one:
        lease = await one.work()
        await one.beaten()
        time.sleep(1.2 * TTL_S)
        assert not lease.owned()
        assert lease.loss is Loss.BLOCKED
        assert await one.lost() == (lease, Loss.BLOCKED)
        await one.beaten()
        assert await one.lease_left_ms(lease) < 0  # let go, though no ttl has passed since the last beat
        assert one.losses.empty()


async def test_an_ended_lease_is_never_revived_also_if_nobody_has_reaped_it(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", coordinates=False) as one:
        lease = await one.work()
        await one.redis.zadd(one.keys.leases, {lease.worker: 1})
        assert await one.lost() == (lease, Loss.REFUSED)
        life = one.membership.life
        reply = await BEAT(one.redis.link, keys=[one.keys.meta], args=["n1", 1000, 1000, life, 0, 1, lease.worker])
        assert reply[5:] == [0]
        assert await one.redis.zscore(one.keys.leases, lease.worker) == 1


async def test_killed_connections_cost_no_lease(valkey_url: str, unique: str) -> None:
    async with member(valkey_url, unique, "n1", coordinates=False) as one:
        lease = await one.work()
        for _ in range(5):
            await one.beaten()
            for client in await one.redis.client_list():
                if client["name"].endswith("lease"):
                    await one.redis.client_kill_filter(_id=client["id"])
        await one.beaten()
        assert lease.owned()
        assert await one.lease_left_ms(lease) > 0
        assert one.losses.empty()


async def test_a_restart_of_redis_shorter_than_the_ttl_costs_no_lease(own_valkey: EmbeddedRedis, unique: str) -> None:
    options = PoolOptions(worker_ttl_s=5.0)
    async with member(own_valkey.url, unique, "n1", options=options, coordinates=False) as one:
        lease = await one.work()
        own_valkey.kill()
        await own_valkey.restart()
        assert (await one.beaten()).was_present
        assert lease.owned()
        assert one.losses.empty()


async def test_a_lease_ends_by_the_clock_when_redis_is_silent(own_valkey: EmbeddedRedis, unique: str) -> None:
    options = PoolOptions(worker_ttl_s=2.5)
    async with member(own_valkey.url, unique, "n1", options=options, coordinates=False) as one:
        lease = await one.work()
        await one.beaten()
        own_valkey.pause()
        silent_s = boottime_s()
        try:
            assert await one.lost() == (lease, Loss.EXPIRED)
        finally:
            own_valkey.resume()
        assert lease.trusted_until_s < silent_s + options.worker_ttl_s  # before the server's can end
        await one.beaten()
        assert not lease.owned()
        assert one.membership.heartbeat.blameless()  # it cannot tell who has died meanwhile
        assert await one.lease_left_ms(lease) < 0


async def test_lost_data_cost_the_leases_and_the_node_is_present_again(own_valkey: EmbeddedRedis, unique: str) -> None:
    async with member(own_valkey.url, unique, "n1") as one:
        lease = await one.work()
        assert await one.membership.placed(lease.worker, PATIENCE_S)
        await one.redis.flushall()
        assert await one.lost() == (lease, Loss.REFUSED)
        await one.beaten()
        assert await one.redis.exists(one.keys.replies("n1"))
        again = await one.work()
        assert again.worker != lease.worker
        assert await one.membership.placed(again.worker, PATIENCE_S)


async def test_closing_without_redis_ends_in_bounded_time(own_valkey: EmbeddedRedis, unique: str) -> None:
    async with member(own_valkey.url, unique, "n1") as one:
        await one.work()
        own_valkey.kill()
        async with asyncio.timeout(PATIENCE_S):
            await one.coordinator.stop()
            await one.membership.close()
            await one.membership.close()


def test_the_facts_of_a_worker_travel_and_newer_fields_are_ignored() -> None:
    import msgspec

    info = WorkerInfo(node="n", name="w", host="h", pid=7, service="s", since_ms=1, kinds=("a",), tasks=("b", "c"))
    assert WorkerInfo.decode(info.encode()) == info
    fields: dict[str, Any] = msgspec.msgpack.decode(info.encode())
    assert WorkerInfo.decode(msgspec.msgpack.encode({**fields, "later": 1})) == info
