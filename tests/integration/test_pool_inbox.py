"""What stays in the inbox of a worker, and what becomes of it when the worker goes."""

from __future__ import annotations

import asyncio
from typing import Any

from structlog.testing import capture_logs

from flotta.pool import Job, WorkerPool
from flotta.pool.inbox import Entry
from flotta.redis import Redis
from pool_jobs_harness import FAST, Recorder, joined, until


async def test_doorbells_behind_an_unread_notification_do_not_pile_up(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    pool = WorkerPool(unique, options=FAST)

    @pool.job(key="deaf{n}")
    async def deaf(job: Job[None], n: int) -> None:
        await asyncio.Event().wait()

    async with pool.running(valkey_url):
        await deaf.dispatch(0)
        await pool.notify("deaf0", b"unread")
        for n in range(1, 100):
            await deaf.dispatch(n)
        assert pool.worker is not None
        inbox = pool.node.keys.inbox(pool.worker.id)
        async with asyncio.timeout(5):
            while int(await redis.link.call("XLEN", inbox)) > 1:
                await asyncio.sleep(0.01)
        [(_, fields)] = await redis.link.call("XRANGE", inbox, "-", "+")
        assert b"unread" in fields


async def test_a_handler_without_notify_lets_nothing_pile_up(valkey_url: str, unique: str, redis: Redis) -> None:
    class Plain:
        async def start(self, job: Job[None]) -> None:
            """Nothing to do."""

        async def stop(self, job: Job[None]) -> None:
            """Nothing to do."""

    async with joined(unique, valkey_url) as node:
        worker = await node.add_worker(Plain())
        await node.dispatch("k")
        for _ in range(50):
            await node.notify("k", b"unheard")
        async with asyncio.timeout(5):
            while int(await redis.link.call("XLEN", node.keys.inbox(worker.id))) > 1:  # the last one is in hand
                await asyncio.sleep(0.01)


async def test_a_notification_in_the_inbox_of_a_worker_that_leaves_follows_its_job(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    one, two = Recorder(), Recorder()
    async with joined(unique, valkey_url) as a, joined(unique, valkey_url) as b:
        first = await a.add_worker(one)
        await a.dispatch("k")
        second = await b.add_worker(two)
        await until(lambda: first.id and second.id)
        # As it is when the one who leaves was about to send it after a job that has moved.
        lease = await a.membership.join_worker(_info(a.id), worker="leaver")
        inbox = a.keys.inbox(lease.worker)
        for n in range(250):
            await redis.link.call("XADD", inbox, "*", "t", "note", "k", "k", "p", str(n))
            await redis.link.call("XADD", inbox, "*", "t", "table")
        await a.membership.left(lease.worker)
        await until(lambda: len(one.keys("noted")) + len(two.keys("noted")) >= 250)
        noted = one.details("noted", "k") + two.details("noted", "k")
        assert sorted(int(payload) for payload in noted) == list(range(250))


async def test_a_node_that_was_taken_for_gone_asks_the_records_for_what_its_replies_would_have_said(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    slow = Recorder()
    may_end = asyncio.Event()

    async def stop(job: Job[Any]) -> None:
        await may_end.wait()

    slow.stop = stop  # type: ignore[method-assign]
    async with joined(unique, valkey_url) as node, joined(unique, valkey_url, stop_timeout_s=60.0) as client:
        await node.add_worker(slow)
        await client.dispatch("k")
        stopping = asyncio.create_task(client.stop("k"))
        async with asyncio.timeout(5):
            while (info := await node.job_info("k")) is None or info.state.value != "stopping":
                await asyncio.sleep(0.005)
        await redis.link.call("UNLINK", client.keys.replies(client.id))
        may_end.set()
        async with asyncio.timeout(5):
            while await node.job_info("k") is not None:
                await asyncio.sleep(0.005)
        await redis.link.call("ZREM", client.keys.nodes, client.id)
        async with asyncio.timeout(5):
            await stopping


async def test_a_fault_while_doorbells_are_heard_deafens_nobody(valkey_url: str, unique: str) -> None:
    async with joined(unique, valkey_url) as node:
        recorder = Recorder()
        worker = await node.add_worker(recorder)
        assert worker.tenure is not None
        mail = worker.tenure._mail
        hear = mail.on_entries
        faults = iter([True])

        def faulty(entries: list[Entry]) -> None:
            if next(faults, False):
                raise AssertionError("a fault of ours")
            hear(entries)

        mail.on_entries = faulty
        with capture_logs() as logs:
            await node.dispatch("lost", timeout_s=5)  # its doorbell is: the records tell of it
            await node.dispatch("next", timeout_s=5)
        assert recorder.keys("started") == ["lost", "next"]
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == [
            "entries of a pool's inbox were not taken"
        ]


def _info(node: str):  # type: ignore[no-untyped-def]
    from flotta.pool import WorkerInfo

    return WorkerInfo(node=node, name="leaver", host="h", pid=1, service="", since_ms=1)
