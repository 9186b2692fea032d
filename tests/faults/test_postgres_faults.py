"""The pool while its server is restarted, killed, stopped, or ends its connections: every call ends, none is lost."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Self

import psutil
import psycopg
import pytest

from flotta.errors import DatabaseUnavailable, PostgresError
from flotta.postgres import EmbeddedPostgres, Pool, PoolOptions
from free_ports import free_port
from postgres_fixtures import await_end

pytestmark = pytest.mark.faults

OPTIONS = PoolOptions(
    size_max=5,
    size_min=2,
    acquire_timeout_s=1.0,
    connect_timeout_s=0.5,
    retry_delay_s=0.05,
    retry_delay_max_s=0.2,
    check_idle_s=0.05,
    check_timeout_s=0.3,
)


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    # Without fsync: the machine goes on, so what the operating system was given survives.
    with EmbeddedPostgres(port=free_port(), durable=False, settings={"synchronous_commit": "on"}) as server:
        yield server


class Load:
    """Twenty tasks that insert numbers, and note which ones the pool has called committed."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.ends: Counter[str] = Counter()
        self.committed: list[int] = []
        self.longest_s = 0.0
        self._next = 0
        self._stop = False
        self.progress = asyncio.Event()

    async def _worker(self) -> None:
        while not self._stop:
            self._next += 1
            number, began_s = self._next, time.monotonic()
            try:
                async with asyncio.timeout(15):
                    async with self.pool.connection() as connection:
                        await connection.execute("INSERT INTO numbers VALUES (%s)", [number])
                self.committed.append(number)
                self.ends["ok"] += 1
            except (PostgresError, psycopg.OperationalError) as error:
                self.ends[type(error).__name__] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            stats = self.pool.stats
            assert stats.size == stats.idle + stats.in_use + stats.connecting + stats.in_care <= stats.size_max
            self.progress.set()

    async def __aenter__(self) -> Self:
        await self.pool.execute("CREATE TABLE numbers (n bigint)", timeout_s=20)
        self._tasks = [asyncio.create_task(self._worker()) for _ in range(20)]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop = True
        for error in await asyncio.gather(*self._tasks, return_exceptions=True):
            if error is not None:
                raise error
        print(self.ends, f"longest {self.longest_s:.2f} s", self.pool.stats)

    async def until_committed(self, more: int) -> None:
        """Wait until ``more`` inserts have been committed from now on."""
        goal = len(self.committed) + more
        async with asyncio.timeout(30):
            while len(self.committed) < goal:
                self.progress.clear()
                await self.progress.wait()

    async def verify(self) -> None:
        """Nothing acknowledged is missing, nothing is there twice, and all places work."""
        rows = [row[0] for row in await self.pool.fetch("SELECT n FROM numbers", timeout_s=20)]
        assert len(rows) == len(set(rows))
        assert set(self.committed) <= set(rows)
        everyone = asyncio.Barrier(5)

        async def hold() -> None:
            async with self.pool.connection(timeout_s=10) as connection:
                await connection.execute("SELECT 1")
                await everyone.wait()

        async with asyncio.timeout(20):
            await asyncio.gather(*(hold() for _ in range(5)))
        stats = self.pool.stats
        assert (stats.in_use, stats.waiting) == (0, 0)


async def test_restarts_and_kills_under_load(server: EmbeddedPostgres):
    async with Pool(server.url, options=OPTIONS) as pool:
        async with Load(pool) as load:
            await load.until_committed(200)
            await server.restart()
            await load.until_committed(200)
            server.kill()
            await server.start()
            await load.until_committed(200)
            await server.restart()
            await load.until_committed(200)
        await load.verify()
        assert load.ends["OperationalError"] + load.ends["AdminShutdown"] > 0
        assert pool.stats.fault is None


async def test_connections_ended_by_the_server_under_load(server: EmbeddedPostgres):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with Pool(server.url, options=OPTIONS) as pool:
        admin = await psycopg.AsyncConnection.connect(server.url, autocommit=True)
        async with admin, Load(pool) as load:
            for _ in range(30):
                await load.until_committed(chance.randrange(30))
                cursor = await admin.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'flotta' AND datname = 'flotta'"
                )
                for (pid,) in await cursor.fetchall():
                    if chance.random() < 0.5:
                        await admin.execute("SELECT pg_terminate_backend(%s)", [pid])
            await load.until_committed(200)
        await load.verify()
        assert pool.stats.broken > 10


async def test_stopped_server_hangs_nobody_and_is_used_again(server: EmbeddedPostgres):
    async with Pool(server.url, options=OPTIONS) as pool:
        await pool.execute("CREATE TABLE t (n int)", timeout_s=20)
        holding = asyncio.Event()

        async def in_the_middle() -> None:
            async with pool.connection() as connection:
                await connection.execute("INSERT INTO t VALUES (1)")
                holding.set()
                await stopped.wait()
                async with asyncio.timeout(0.2):
                    await connection.execute("INSERT INTO t VALUES (2)")

        stopped = asyncio.Event()
        user = asyncio.create_task(in_the_middle())
        await holding.wait()
        everyone = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        for process in everyone:
            process.send_signal(signal.SIGSTOP)
        try:
            stopped.set()
            began_s = time.monotonic()
            async with asyncio.timeout(10):
                with pytest.raises(TimeoutError):
                    await user
                ends = await asyncio.gather(*(pool.check() for _ in range(10)), return_exceptions=True)
            assert [type(end) for end in ends] == [DatabaseUnavailable] * 10
            assert time.monotonic() - began_s < 4
            async with asyncio.timeout(5):  # nothing stays in the hands of a server that does not answer
                await pool._keeper.until(lambda: pool.stats.in_care == 0)
            stats = pool.stats
            assert stats.size == stats.idle + stats.in_use + stats.connecting + stats.in_care <= stats.size_max
        finally:
            for process in everyone:
                process.send_signal(signal.SIGCONT)
        await pool.check(timeout_s=10)
        assert await pool.fetch("SELECT n FROM t") == []


async def test_pool_outlives_an_outage_and_then_serves_who_waits(server: EmbeddedPostgres):
    async with Pool(server.url, options=OPTIONS) as pool:
        await pool.check(timeout_s=20)
        async with asyncio.timeout(20):
            while pool.stats.idle < OPTIONS.size_min:  # the others are being connected
                await asyncio.sleep(0.01)
        # Those that serve a client, named "postgres: <user> <database> ...", outlive their postmaster a little.
        backends = [p for p in psutil.Process(server.pid).children() if "flotta flotta" in " ".join(p.cmdline())]
        assert len(backends) == OPTIONS.size_min
        server.kill()
        await asyncio.to_thread(await_end, backends)
        with pytest.raises(DatabaseUnavailable, match="Nothing listens there now"):
            await pool.fetch("SELECT 1")
        waiters = [asyncio.create_task(pool.fetch("SELECT 1", timeout_s=30)) for _ in range(20)]
        await asyncio.sleep(0)
        await server.start()
        assert await asyncio.gather(*waiters) == [[(1,)]] * 20
        assert pool.stats.fault is None


async def test_close_is_quick_while_the_server_is_stopped(server: EmbeddedPostgres):
    pool = Pool(server.url, options=OPTIONS)
    await pool.start()
    await pool.check(timeout_s=20)
    everyone = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    for process in everyone:
        process.send_signal(signal.SIGSTOP)
    try:
        user = asyncio.create_task(pool.fetch("SELECT 1"))
        await asyncio.sleep(0)
        async with asyncio.timeout(3):
            await pool.aclose(timeout_s=0.2)
            with pytest.raises((PostgresError, psycopg.OperationalError, RuntimeError)):
                await user
        assert pool.stats.size == 0
    finally:
        for process in everyone:
            process.send_signal(signal.SIGCONT)
