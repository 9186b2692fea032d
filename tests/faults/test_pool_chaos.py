"""A pool of real processes under every fault at once; what happened is judged by its history.

Six workers of two versions, keyed jobs and tasks, while workers are killed, stand still for twice their time to live,
are replaced one after the other, the server is killed and restarted, and all connections are cut. Then a liveness phase
without faults must bring everything to its place.

``POOL_CHAOS_JOBS``, ``POOL_CHAOS_TASKS`` and ``POOL_CHAOS_MINUTES`` make it longer: 2,000 jobs and 20,000 tasks are the
promise (``make chaos``). ``POOL_CHAOS_SEED`` chooses faults, victims and requests; it is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from pool_crew import crewman, leftovers
from pool_driver import Driver, Faults
from pool_figures import figures, story
from pool_herd import Herd, herd
from pool_history import RULES, History, Violation, What, violations
from pool_journal import Journal, read_events
from pool_worker import Setup

pytestmark = pytest.mark.faults

JOBS = int(os.environ.get("POOL_CHAOS_JOBS", "150"))
TASKS = int(os.environ.get("POOL_CHAOS_TASKS", "1500"))
MINUTES = float(os.environ.get("POOL_CHAOS_MINUTES", "0.25"))
SEED = int(os.environ.get("POOL_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
WORKERS = 6
TTL_S = 1.5 if JOBS < 500 else 3.0
SETTLE_TIMEOUT_S = 30 + JOBS / 20
STORIES_MAX = 3


@pytest.mark.timeout(60 + 90 * MINUTES + 2 * SETTLE_TIMEOUT_S)
async def test_nothing_is_lost_doubled_or_written_by_a_zombie(
    own_valkey: EmbeddedRedis, valkey_url: str, unique: str, tmp_path: Path
) -> None:
    print(f"POOL_CHAOS_SEED={SEED} commit={commit()} jobs={JOBS} tasks={TASKS} minutes={MINUTES:g}")
    journal = Journal(tmp_path, "driver")
    setup = Setup(
        url=own_valkey.url,
        ledger_url=valkey_url,
        pool=f"chaos-{unique}",
        folder=str(tmp_path),
        process="",
        ttl_s=TTL_S,
        every_s=1.0 if JOBS < 500 else 5.0,
        # Fewer places in the queue than dispatchers: some are refused, and may never run.
        options={"close_timeout_s": 10.0, "handover_timeout_s": 5.0, "queue_max_per_worker": 8},
    )
    began_s = time.monotonic()
    async with (
        herd(setup, WORKERS, journal, code=lambda slot: "old" if slot % 2 else "new") as workers,
        Driver.open(setup, journal, SEED) as driver,
    ):
        async with faults_meanwhile(workers, own_valkey, driver), asyncio.TaskGroup() as group:
            group.create_task(driver.dispatch_all(range(JOBS)))
            group.create_task(driver.enqueue_all(TASKS, MINUTES * 60 * 0.8))
            enough = asyncio.Event()
            group.create_task(driver.stop_and_notify(MINUTES * 60 / 50, enough))
            asyncio.get_running_loop().call_later(MINUTES * 60, enough.set)
        faulty_s = time.monotonic() - began_s
        settled_s = await settle(driver, journal, tmp_path)
        async with crewman(setup, "last") as last:
            await last.pool.shutdown(timeout_s=30)
        codes = await end_all(workers)
        print(f"faults over {faulty_s:.0f} s, everything in its place {settled_s:.1f} s after the last one")
    journal.close()
    judge(tmp_path)
    async with Redis.from_url(own_valkey.url) as redis:
        assert await leftovers(redis, setup.pool) == [], "keys are left after the shutdown"
    assert codes == [0] * WORKERS, workers.exits
    assert workers.complaints() == []


@contextlib.asynccontextmanager
async def faults_meanwhile(workers: Herd, server: EmbeddedRedis, driver: Driver) -> AsyncIterator[None]:
    """Faults until the block ends; then what they left behind is put right."""
    faults = Faults(workers, server, driver, SEED + 1, rolled_max=2 if MINUTES < 1 else WORKERS)
    making = asyncio.create_task(faults.make_for_ever(MINUTES * 60 / 12 if MINUTES < 1 else 3.0), name="faults")
    try:
        yield
        await faults.finish(making)
    finally:
        making.cancel()


async def settle(driver: Driver, journal: Journal, folder: Path) -> float:
    """Wait until every job is in its place and every task is done; how long it took. Too long: the judge says what."""
    began_s = time.monotonic()
    deadline_s = began_s + SETTLE_TIMEOUT_S
    rules = [RULES["no job is lost"], RULES["no task is lost"], RULES["accepted notifications arrive"]]
    dead: set[tuple[str, int]] = set()
    while time.monotonic() < deadline_s:
        dead |= await driver.record_the_dead(dead)
        history = History(read_events(folder))
        if not any(next(rule(history), None) for rule in rules):
            break
        await asyncio.sleep(0.5 if JOBS < 500 else 2.0)
    journal.say(What.SETTLED)
    return time.monotonic() - began_s


async def end_all(workers: Herd) -> list[int]:
    """The exit codes of all, told to end at once."""
    return list(await asyncio.gather(*(workers.end(member) for member in workers.members.values())))


def judge(folder: Path) -> None:
    """Print what the run had in it, and fail with the stories of the keys for which something was broken."""
    history = History(read_events(folder))
    found = figures(history)
    print(found)
    broken = violations(history)
    if broken:
        pytest.fail(verdict(history, broken), pytrace=False)
    assert found.kills > 0, "nothing was killed: it was over too soon"
    assert found.pauses > 0, "nothing stood still: it was over too soon"
    assert found.checkpoints_refused + found.writes_refused > 0, "no zombie has tried to write"
    assert found.jobs_accepted >= JOBS * 0.9
    assert found.tasks_accepted == TASKS


def verdict(history: History, broken: list[Violation]) -> str:
    """The rules that were broken, how often, and the stories of a few keys."""
    lines = [f"POOL_CHAOS_SEED={SEED} commit={commit()}"]
    for rule in RULES:
        of_rule = [violation for violation in broken if violation.rule == rule]
        if of_rule:
            lines.append(f"{rule}: {len(of_rule)} times")
            for violation in of_rule[:STORIES_MAX]:
                lines += [f"* {violation}", story(history, violation.key)]
    return "\n".join(lines)


def commit() -> str:
    """Which code this is."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
