"""A process that is a node of a pool with one worker, without jobs, for tests that kill and pause it.

``python -m pool_member <url> <pool> <node> <ttl in s>`` writes its worker's id once that has slots, then ``lost <why>``
if its lease is lost. It never claims what it is given.
"""

from __future__ import annotations

import asyncio
import os
import sys

from flotta.pool.coordinator import Coordinator
from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import PoolKeys
from flotta.pool.members.heartbeat import Lease
from flotta.pool.members.lease import Loss
from flotta.pool.members.membership import Membership, WorkerInfo
from flotta.pool.options import PoolOptions
from flotta.redis import Redis


def say(text: str) -> None:
    """One line to whoever started us."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def lost(lease: Lease, why: Loss) -> None:
    """The lease is over."""
    say(f"lost {why.name}")


async def run(url: str, pool: str, node: str, ttl_s: float) -> None:
    """Be a node with a worker until killed."""
    redis = await Redis.from_url(url).connect()
    options = PoolOptions(worker_ttl_s=ttl_s, rebalance_debounce_s=0.05)
    membership = Membership(redis, PoolKeys(pool), node, options=options, on_lost=lost)
    await membership.start()
    coordinator = Coordinator(JobStore(redis, pool, options=options), membership)
    coordinator.start()
    info = WorkerInfo(node=node, name=node, host="test", pid=os.getpid(), service="test", since_ms=0)
    lease = await membership.join_worker(info)
    coordinator.poke()
    assert await membership.placed(lease.worker, 30.0)
    say(lease.worker)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
