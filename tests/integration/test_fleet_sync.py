"""The fleet from threads: every part, one loop behind, none touched from two threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest

from flotta.errors import ConfigError, StateError
from flotta.fleet import Fleet, FleetState
from flotta.settings import Settings


@pytest.fixture
def settings(valkey_url: str, unique: str) -> Settings:
    return Settings(redis_url=valkey_url, namespace=f"{unique}:", drain_s=2, stop_s=4, start_timeout_s=10)


def run_script(script: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, *options, "-c", textwrap.dedent(script)]
    return subprocess.run(command, check=False, timeout=30, capture_output=True)


def test_script_uses_every_part_without_await(settings: Settings, database_url: str) -> None:
    fleet = Fleet(replace(settings, database_url=database_url))
    flags = fleet.sync.map("flags")
    events = fleet.sync.stream("events")
    with fleet.sync as sync:
        assert fleet.state is FleetState.STARTED
        flags.set_and_wait("a", "1")
        assert flags.get("a") == "1"
        assert flags["a"] == "1"
        assert "a" in flags
        assert "b" not in flags
        assert (len(flags), list(flags), flags.revision) == (1, ["a"], 1)
        with pytest.raises(KeyError):
            flags["b"]
        assert sync.redis.set("k", "v") is True
        assert sync.redis.get("k") in (b"v", "v")
        event_id = events.add("hello", b"world")
        with events.sink("s", start="oldest") as sink:
            event = next(iter(sink))
            assert (event.id, event.payload) == (event_id, b"world")
            sink.ack(event)
        assert events.info().sinks["s"].pending == 0
        with sync.postgres.connection() as connection:
            connection.execute("CREATE TABLE t (n int)")
            connection.execute("INSERT INTO t VALUES (1)")
        assert sync.postgres.fetch("SELECT n FROM t") == [(1,)]
    assert fleet.state is FleetState.STOPPED


def test_exception_in_the_block_rolls_back_and_comes_through(settings: Settings, database_url: str) -> None:
    with Fleet(replace(settings, database_url=database_url)).sync as sync:
        with pytest.raises(ZeroDivisionError), sync.postgres.connection() as connection:  # noqa: PT012 - both count
            connection.execute("CREATE TABLE t (n int)")
            raise ZeroDivisionError
        assert sync.postgres.fetch_one("SELECT to_regclass('t')") == (None,)
        with pytest.raises(psycopg.errors.SyntaxError):
            sync.postgres.fetch("SELEC 1")
        with pytest.raises(psycopg.errors.SyntaxError), sync.postgres.connection() as connection:
            connection.execute("SELEC 1")
        assert sync.postgres.fetch_one("SELECT 1") == (1,)


def test_first_use_starts_it_once_from_many_threads(settings: Settings) -> None:
    fleet = Fleet(settings)
    starts: list[int] = []
    fleet.on_start(lambda: starts.append(threading.get_ident()))
    counter = fleet.sync.map("counter")
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: counter.incr("n", 1), range(200)))
        counter.refresh()
        assert counter.get("n") == "200"
        assert len(starts) == 1
        assert starts[0] != threading.get_ident()
    finally:
        fleet.sync.stop()
    assert fleet.state is FleetState.STOPPED


async def test_threads_use_the_loop_of_a_fleet_that_runs_already(settings: Settings) -> None:
    fleet = Fleet(settings)
    flags = fleet.map("flags")
    async with fleet:
        seen = fleet.sync.of(flags)
        await asyncio.to_thread(lambda: seen.set_and_wait("x", "y"))
        assert flags.get("x") == "y"
        fleet.sync.stop()  # not its own: left alone
        assert fleet.state is FleetState.STARTED
        with pytest.raises(StateError, match="await"):
            seen.get("x")


def test_a_hook_that_would_wait_for_its_own_loop_is_refused(settings: Settings) -> None:
    fleet = Fleet(settings)
    flags = fleet.sync.map("flags")
    fleet.on_start(lambda: flags.get("x"))
    with pytest.raises(StateError, match="await"):
        fleet.sync.start()
    assert fleet.state is FleetState.STOPPED


def test_failed_start_tells_the_reason_and_leaves_no_thread() -> None:
    fleet = Fleet(Settings())
    before = set(threading.enumerate())
    for _ in range(2):
        with pytest.raises(ConfigError, match="REDIS_URL"):
            fleet.sync.start()
    assert set(threading.enumerate()) <= before


def test_fork_after_the_start_is_refused_in_the_child(settings: Settings) -> None:
    script = f"""
    import os, sys
    from flotta.errors import StateError
    from flotta.fleet import Fleet
    from flotta.settings import Settings

    fleet = Fleet(Settings(redis_url={settings.redis_url!r}))
    fleet.sync.start()
    child = os.fork()
    if child == 0:
        try:
            fleet.sync.redis.ping()
        except StateError as error:
            os._exit(7 if "forked" in str(error) else 8)
        os._exit(9)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert fleet.sync.redis.ping()
    sys.exit(code)
    """
    run = run_script(script, "-W", "ignore")  # from 3.12 on a fork beside threads warns
    assert run.returncode == 7, run.stderr.decode()


def test_end_of_a_script_stops_the_fleet(settings: Settings) -> None:
    script = f"""
    from flotta.fleet import Fleet
    from flotta.settings import Settings

    fleet = Fleet(Settings(redis_url={settings.redis_url!r}))

    @fleet.on_stop
    async def bye():
        assert await fleet.redis.ping()
        print("stopped in order", flush=True)

    assert fleet.sync.redis.ping()
    """
    run = run_script(script)
    assert run.returncode == 0, run.stderr.decode()
    assert b"stopped in order" in run.stdout


def test_call_that_waits_too_long_is_cancelled(settings: Settings) -> None:
    with Fleet(settings).sync as sync:
        cancelled = threading.Event()

        async def for_ever() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        with pytest.raises(TimeoutError):
            sync.run(for_ever(), timeout_s=0.05)
        assert cancelled.wait(5)
