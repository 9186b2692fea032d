"""A pool when something breaks: data lost, a silent server, half-open links, junk, wrong wall clocks, blocked loops."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from flotta.pool.keys import PoolKeys
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy
from pool_crew import crewman, history_of, open_runs
from pool_driver import Driver
from pool_figures import figures
from pool_herd import herd, until
from pool_history import RULES, What, violations
from pool_journal import Journal
from pool_worker import Setup

pytestmark = pytest.mark.faults

TTL_S = 1.5
JOBS = 24  # by chance one of two workers has none of them once in ten million runs


@pytest.fixture
def setup(own_valkey: EmbeddedRedis, valkey_url: str, unique: str, tmp_path: Path) -> Setup:
    return Setup(
        url=own_valkey.url,
        ledger_url=valkey_url,
        pool=f"fault-{unique}",
        folder=str(tmp_path),
        process="",
        ttl_s=TTL_S,
        every_s=0.3,
        options={"close_timeout_s": 5.0, "handover_timeout_s": 2.0},
    )


# --- the server ------------------------------------------------------------------------------------------------------


async def test_a_pool_whose_data_is_lost_starts_from_zero_and_says_so(setup: Setup, own_valkey: EmbeddedRedis) -> None:
    with capture_logs() as logs:
        async with crewman(setup, "a") as a, Redis.from_url(own_valkey.url) as redis:
            for number in range(JOBS):
                await a.dispatch(number)
            await until(lambda: len(open_runs(setup)) == JOBS, "all of them run")
            before = open_runs(setup)
            await redis.link.call("FLUSHALL")
            await until(lambda: not open_runs(setup), "the jobs of a pool without records end", 3 * TTL_S)
            spans = [spans[-1] for spans in history_of(setup).jobs.values()]
            assert {span.how for span in spans} == {"fenced"}
            async with asyncio.timeout(10):
                while True:  # it joins anew by itself
                    if any(worker for worker in await a.pool.workers()):
                        break
                    await asyncio.sleep(0.05)
            for number in range(JOBS):
                await a.dispatch(number, dispatch=JOBS + number)
            await until(lambda: len(open_runs(setup)) == JOBS, "all of them run again")
            after = open_runs(setup)
            assert {key: span.fence > before[key].fence for key, span in after.items()} == dict.fromkeys(before, True)
            done = await a.declared.charge.enqueue("t-after")
            assert await done.result(timeout_s=10) == "t-after"
    said = [line for line in logs if line["log_level"] in ("warning", "error")]
    assert any("lost" in line["event"] or "from zero" in line["event"] for line in said), said


async def test_jobs_are_not_blamed_for_a_server_that_stood_still(setup: Setup, own_valkey: EmbeddedRedis) -> None:
    async with crewman(setup, "a") as a, crewman(setup, "b"):
        for number in range(JOBS):
            await a.dispatch(number)
        own_valkey.pause()
        try:
            await until(lambda: not open_runs(setup), "nobody trusts a lease that nobody renews", 3 * TTL_S)
        finally:
            own_valkey.resume()
        await until(lambda: len(open_runs(setup)) == JOBS, "every job runs again", 20)
        for number in range(JOBS):
            info = await a.pool.job_info(f"watch:{number}")
            assert info is not None
            assert (info.losses, info.crashes) == (0, 0)
        a.journal.say(What.SETTLED)
    assert violations(history_of(setup)) == []
    assert figures(history_of(setup)).job_overlaps == 0


async def test_a_worker_on_a_half_open_link_ends_its_jobs_before_others_start_them(
    setup: Setup, own_valkey: EmbeddedRedis
) -> None:
    async with FaultProxy(own_valkey.url) as proxy, crewman(setup, "b") as b:
        async with crewman(setup, "a", url=proxy.url, careless=False):
            for number in range(JOBS):
                await b.dispatch(number)
            await until(lambda: open_runs(setup, "a"), "a has jobs")
            had = set(open_runs(setup, "a"))
            proxy.drop()
            await until(lambda: had <= set(open_runs(setup, "b")), "b has them", 6 * TTL_S)
            proxy.restore()
            proxy.cut()
        b.journal.say(What.SETTLED)
    history = history_of(setup)
    assert violations(history) == []
    assert figures(history).job_overlaps == 0
    moved = [span for key in had for span in history.jobs[key] if span.process == "a"]
    assert {span.how for span in moved} == {"fenced"}


# --- hand-overs ------------------------------------------------------------------------------------------------------


async def test_a_notification_that_comes_while_its_job_moves_moves_after_it(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crewman(setup, "b") as b:
        async with crewman(setup, "a") as a:
            await until(lambda: a.pool.worker is not None and b.pool.worker is not None, "both work")
            for number in range(JOBS):
                await a.dispatch(number)
            await until(lambda: open_runs(setup, "a"), "a has jobs")
            release = a.pool.node.store.release

            async def release_late(worker: str, jobs: Any, *, seen: bytes) -> Any:
                """The ids of what moves along were taken; now one more comes for each, and is read, before they go."""
                noted = a.pool.stats.noted + len(jobs)
                for job in jobs:
                    await b.pool.notify(job.key, b"7")
                    b.journal.say(What.NOTIFIED, job.key, dispatch=int(job.key.partition(":")[2]), count=7)
                await until(lambda: a.pool.stats.noted >= noted, "a has read them")
                return await release(worker, jobs, seen=seen)

            monkeypatch.setattr(a.pool.node.store, "release", release_late)
        await until(lambda: len(open_runs(setup, "b")) == JOBS, "b has them all")
        rule = RULES["accepted notifications arrive"]
        b.journal.say(What.SETTLED)
        with contextlib.suppress(AssertionError):  # said below, by their keys
            await until(lambda: not list(rule(history_of(setup))), "all have arrived", 3 * TTL_S)
        assert violations(history_of(setup)) == []
        assert list(history_of(setup).of(What.NOTIFIED)), "nothing was sent"


# --- junk ------------------------------------------------------------------------------------------------------------

JUNK: list[tuple[str | bytes, ...]] = [
    ("t", "start"),
    ("t", "start", "k", "nobody"),
    ("t", "start", "k", b"\xff\xfe", "g", "7"),
    ("t", "start", "k", "watch:0", "g", "seven"),
    ("t", "stop", "k", "watch:0", "g", "1"),
    ("t", "note", "k", "nobody", "p", b"\x00"),
    ("t", "never heard of"),
    (b"\xff", b"\xff"),
    ("t", "cancel", "k", "none", "g", b"\xff"),
]


async def test_junk_in_inboxes_and_replies_is_reported_and_everything_goes_on(
    setup: Setup, own_valkey: EmbeddedRedis
) -> None:
    keys = PoolKeys(setup.pool)
    with capture_logs() as logs:
        async with crewman(setup, "a") as a, Redis.from_url(own_valkey.url) as redis:
            await a.dispatch(0)
            streams = [keys.inbox((await a.pool.workers())[0].id), keys.replies(a.pool.node.id)]
            for stream in streams:
                for fields in JUNK:
                    await redis.link.call("XADD", stream, "*", *fields)
            await a.dispatch(1)
            await until(lambda: len(open_runs(setup)) == 2, "one is still there, one has come")
            assert await (await a.declared.charge.enqueue("t1")).result(timeout_s=10) == "t1"
            a.journal.say(What.SETTLED)
    assert [line for line in logs if line["log_level"] in ("warning", "error")], "nobody has said anything"
    assert violations(history_of(setup)) == []


RECORDS: dict[str, dict[str, str | bytes]] = {
    "no fields of ours": {"x1": "y"},
    "a kind that nobody knows": {"s": "q", "g": "1", "k": "nothing", "p": "", "c": "0", "l": "0", "m": "1", "n": "0"},
    "a payload that is none": {"s": "q", "g": "2", "k": "watch", "p": b"\xc1", "c": "0", "l": "0", "m": "1", "n": "0"},
    "a checkpoint that is none": {
        "s": "q", "g": "3", "k": "watch", "p": b"\x82\xa6number\x05\xa8dispatch\x05", "z": b"\xc1", "c": "0", "l": "0",
        "m": "1", "n": "0",
    },
}  # fmt: skip


@pytest.mark.parametrize("what", RECORDS)
async def test_a_record_that_makes_no_sense_stops_nobody_else(
    setup: Setup, own_valkey: EmbeddedRedis, what: str
) -> None:
    keys = PoolKeys(setup.pool)
    with capture_logs() as logs:
        async with crewman(setup, "a") as a, Redis.from_url(own_valkey.url) as redis:
            await a.dispatch(0)
            worker = (await a.pool.workers())[0].id
            fields = RECORDS[what] | {"o": worker, "d": "junk", "f": "", "t": "1"}
            flat = [part for pair in fields.items() for part in pair]
            await redis.link.call("HSET", keys.job("junk"), *flat)
            await redis.link.call("SADD", keys.owned(worker), "junk")
            await redis.link.call("ZADD", keys.queued, 1, "junk")
            await redis.link.call("HINCRBY", keys.slotjobs, 0, 1)
            await redis.link.call("XADD", keys.inbox(worker), "*", "t", "start", "k", "junk", *bell(fields))
            await a.dispatch(1)
            if "s" in fields:  # without a state it is no record: the bell was late
                await until(lambda: [line for line in logs if "junk" in str(line)], "it is reported", 10)
            await until(lambda: {"watch:0", "watch:1"} <= set(open_runs(setup)), "the others run")
            assert await (await a.declared.charge.enqueue("t1")).result(timeout_s=10) == "t1"


def bell(fields: dict[str, str | bytes]) -> list[str | bytes]:
    """The rest of the doorbell of a record with these fields."""
    return ["g", fields.get("g", "1"), "n", fields.get("k", "")]


# --- clocks and loops ------------------------------------------------------------------------------------------------


async def test_wrong_wall_clocks_change_nothing(setup: Setup, tmp_path: Path) -> None:
    journal = Journal(tmp_path, "driver")
    async with herd(setup, 1, journal) as workers, Driver.open(setup, journal, seed=1) as driver:
        wrong = [await workers.spawn(1, wall_shift_s=3_600.0), await workers.spawn(2, wall_shift_s=-3_600.0)]
        for number in range(3 * JOBS):
            await driver.dispatch(number)
        for member in wrong:
            await until(lambda name=member.name: open_runs(setup, name), "those with the wrong clocks work, too")
        await asyncio.sleep(3 * TTL_S)  # long enough for a lease to end, if its time were judged by those clocks
        assert figures(history_of(setup)).fenced == 0
        assert len(open_runs(setup)) == 3 * JOBS
        for member in wrong:
            had = set(open_runs(setup, member.name))
            await workers.kill(member)
            await until(lambda had=had: had <= set(open_runs(setup)), "its jobs run elsewhere", TTL_S + 2, poll_s=0.1)
        journal.say(What.SETTLED)
        assert await workers.end(workers.members[0]) == 0
    journal.close()
    assert violations(history_of(setup)) == []


async def all_placed(setup: Setup, workers: int) -> None:
    """Returns when the slot table has so many workers: what is dispatched from then on stays where it is."""
    async with Redis.from_url(setup.url) as redis, asyncio.timeout(20):
        while await redis.scard(PoolKeys(setup.pool).placed) < workers:
            await asyncio.sleep(0.01)


async def test_a_loop_blocked_for_less_than_its_ttl_keeps_everything(setup: Setup, tmp_path: Path) -> None:
    journal = Journal(tmp_path, "driver")
    async with herd(setup, 2, journal) as workers, Driver.open(setup, journal, seed=1) as driver:
        await all_placed(setup, 2)
        for number in range(JOBS):
            await driver.dispatch(number)
        await until(lambda: all(open_runs(setup, m.name) for m in workers.members.values()), "both have jobs")
        for _ in range(3):
            stalled = await driver.declared["old"].stall.enqueue(0.7 * TTL_S)
            await stalled.result(timeout_s=10)
        journal.say(What.SETTLED)
        found = figures(history_of(setup))
        assert (found.fenced, found.jobs_moved) == (0, 0)
        for member in list(workers.members.values()):
            assert await workers.end(member) == 0
    journal.close()
    assert violations(history_of(setup)) == []


async def test_a_loop_blocked_for_longer_loses_its_jobs_to_others_and_none_runs_twice(
    setup: Setup, tmp_path: Path
) -> None:
    journal = Journal(tmp_path, "driver")
    async with herd(setup, 2, journal) as workers, Driver.open(setup, journal, seed=1) as driver:
        for number in range(JOBS):
            await driver.dispatch(number)
        await until(lambda: all(open_runs(setup, m.name) for m in workers.members.values()), "both have jobs")
        had = {m.name: set(open_runs(setup, m.name)) for m in workers.members.values()}
        blocked_s, since_s = 6 * TTL_S, time.monotonic()
        await driver.declared["old"].stall.enqueue(blocked_s)
        await until(
            lambda: any(jobs and jobs <= moved(setup, name) for name, jobs in had.items()),
            "the jobs of the blocked one run elsewhere",
            blocked_s,
            poll_s=0.05,
        )
        assert time.monotonic() - since_s < blocked_s, "while it was still blocked"
        await until(lambda: len(open_runs(setup)) == JOBS, "every job runs once", 20, poll_s=0.05)
        journal.say(What.SETTLED)
    journal.close()
    # A blocked loop cannot end its functions: until it turns again they overlap, as those of a paused process do.
    assert violations(history_of(setup)) == []


def moved(setup: Setup, process: str) -> set[str]:
    """Keys that ``process`` had and whose last run is another's."""
    return {
        key
        for key, spans in history_of(setup).jobs.items()
        if any(span.process == process for span in spans) and spans[-1].process != process
    }
