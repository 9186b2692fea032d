"""The connection pool against a real server: transactions, limits, fairness, cancelling, repair, size, errors."""

from __future__ import annotations

import asyncio
import random
import time

import psycopg
import pytest

from flotta.errors import Closed, ConfigError, DatabaseUnavailable, NotStarted, PoolFull, PoolTimeout
from flotta.postgres import Pool, PoolOptions, PoolStats
from postgres_fixtures import settled


def whole(stats: PoolStats) -> bool:
    return stats.size == stats.idle + stats.in_use + stats.connecting + stats.in_care <= stats.size_max


class Admin:
    """A connection outside the pool, in autocommit."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)

    def value(self, query, params=None):
        return self.connection.execute(query, params).fetchone()[0]

    def backends(self) -> int:
        """Connections to this database other than this one."""
        return self.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    def sleepers(self) -> int:
        """Connections to this database that are in ``pg_sleep`` now."""
        return self.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        )


@pytest.fixture
def admin(database_url: str):
    admin = Admin(database_url)
    yield admin
    admin.connection.close()


async def pid_of(connection) -> int:
    return (await (await connection.execute("SELECT pg_backend_pid()")).fetchone())[0]


# --- Transactions ----------------------------------------------------------------------------------------------------


async def test_block_commits_and_an_exception_rolls_back(database_url: str):
    async with Pool(database_url) as pool:
        await pool.execute("CREATE TABLE t (n int)")
        async with pool.connection() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block itself is what is tested
            async with pool.connection() as connection:
                await connection.execute("INSERT INTO t VALUES (2)")
                _ = 1 / 0
        assert await pool.fetch("SELECT n FROM t") == [(1,)]
        assert await pool.execute("UPDATE t SET n = n + %s", [1]) == 1
        assert await pool.fetch_one("SELECT n FROM t WHERE n > %(least)s", {"least": 1}) == (2,)
        assert await pool.fetch_one("SELECT n FROM t WHERE n > 5") is None
        await pool.execute("VACUUM t")  # refused inside a transaction


async def test_cancelled_block_rolls_back_and_ends_the_query_on_the_server(database_url: str, admin: Admin):
    async with Pool(database_url, options=PoolOptions(check_timeout_s=30)) as pool:
        await pool.execute("CREATE TABLE t (n int)")

        async def work():
            async with pool.connection() as connection:
                await connection.execute("INSERT INTO t VALUES (1)")
                await connection.execute("SELECT pg_sleep(60)")

        task = asyncio.create_task(work())
        while not admin.sleepers():  # a server that has not yet begun with a query ignores the request to end it
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert admin.sleepers() == 0
        assert await pool.fetch("SELECT n FROM t") == []
        assert pool.stats.broken == 0


async def test_lost_connection_fails_the_commit(database_url: str, admin: Admin):
    async with Pool(database_url) as pool:
        await pool.execute("CREATE TABLE t (n int)")
        with pytest.raises(psycopg.OperationalError):  # noqa: PT012 - the block itself is what is tested
            async with pool.connection() as connection:
                await connection.execute("INSERT INTO t VALUES (1)")
                admin.value("SELECT pg_terminate_backend(%s, 5000)", [await pid_of(connection)])
                with pytest.raises(psycopg.OperationalError):
                    await connection.execute("SELECT 1")  # its error is swallowed: the commit must still fail
        assert await pool.fetch("SELECT n FROM t") == []
        assert pool.stats.broken == 1


async def test_what_a_borrower_sets_is_not_seen_by_the_next(database_url: str):
    async with Pool(database_url, options=PoolOptions(size_max=1, size_min=1)) as pool:
        async with pool.connection() as connection:
            await connection.set_autocommit(True)
            connection.row_factory = psycopg.rows.dict_row
            connection.prepare_threshold = 0
            await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
            await connection.set_read_only(True)
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT current_setting('transaction_isolation')")
            assert await cursor.fetchone() == ("read committed",)
            assert connection.in_transaction
            assert connection.prepare_threshold == 5
            await connection.execute("CREATE TABLE t (n int)")
        assert pool.stats.connects == 1


async def test_connection_closed_by_its_borrower_is_replaced(database_url: str):
    async with Pool(database_url, options=PoolOptions(size_max=1)) as pool:
        async with pool.connection() as connection:
            await connection.close()
        assert await pool.fetch("SELECT 1") == [(1,)]
        assert pool.stats.connects == 2


async def test_borrowed_connection_returns_on_close_without_its_transaction(database_url: str):
    async with Pool(database_url, options=PoolOptions(size_max=1)) as pool:
        connection = await pool.borrow()
        await connection.execute("CREATE TABLE t (n int)")
        await connection.close()
        await connection.close()
        assert await pool.fetch_one("SELECT to_regclass('t')") == (None,)
        assert pool.stats.connects == 1
        assert pool.stats.in_use == 0


# --- Limits and fairness ---------------------------------------------------------------------------------------------


async def test_never_more_connections_than_the_maximum(database_url: str, admin: Admin):
    async with Pool(database_url, options=PoolOptions(size_max=4, size_min=0)) as pool:
        peak = 0

        async def work():
            nonlocal peak
            async with pool.connection() as connection:
                assert whole(pool.stats)
                await connection.execute("SELECT 1")
                peak = max(peak, admin.backends())

        await asyncio.gather(*(work() for _ in range(100)))
        assert 1 <= peak <= 4
        assert pool.stats.acquired == 100
        assert pool.stats.connects == 4


async def test_first_come_first_served(database_url: str):
    async with Pool(database_url, options=PoolOptions(size_max=1, size_min=1)) as pool:
        order: list[int] = []

        async def work(number: int):
            async with pool.connection():
                order.append(number)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(work(number))
        assert order == list(range(20))


async def test_time_out_and_full_queue_are_told_apart(database_url: str):
    options = PoolOptions(size_max=1, size_min=1, waiting_max=1)
    async with Pool(database_url, options=options) as pool, pool.connection():
        waiter = asyncio.create_task(pool.fetch("SELECT 1", timeout_s=1.0))
        await settled(pool, lambda stats: True)
        await asyncio.sleep(0)
        assert pool.stats.waiting == 1
        with pytest.raises(PoolFull) as full:
            await pool.fetch("SELECT 1")
        assert (full.value.waiting, full.value.waiting_max) == (1, 1)
        with pytest.raises(PoolTimeout) as late:
            await waiter
        assert (late.value.waited_s, late.value.size, late.value.size_max) == (1.0, 1, 1)
        stats = pool.stats
        assert (stats.timeouts, stats.refused, stats.waiting, stats.waiting_peak) == (1, 1, 0, 1)


async def test_nobody_waits_with_waiting_max_0_while_there_is_room(database_url: str):
    async with Pool(database_url, options=PoolOptions(size_max=2, size_min=0, waiting_max=0)) as pool:
        async with pool.connection(), pool.connection():
            with pytest.raises(PoolFull):
                await pool.fetch("SELECT 1")
        assert await pool.fetch("SELECT 1") == [(1,)]


async def test_statistics_count_the_waiting(database_url: str):
    async with Pool(database_url, options=PoolOptions(size_max=1, size_min=1)) as pool:
        await pool.check()
        before, began_s = pool.stats, time.monotonic()
        async with pool.connection():
            waiter = asyncio.create_task(pool.fetch("SELECT 1"))
            await asyncio.sleep(0.05)  # the time that is measured
        await waiter
        after, took_s = pool.stats, time.monotonic() - began_s
        assert (after.acquired - before.acquired, after.waited - before.waited) == (2, 1)
        assert 0.04 <= after.wait_s - before.wait_s <= took_s


# --- Cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check_idle_s", [None, 1e-9], ids=["plain", "checked-each-time"])
async def test_thousands_of_random_cancels_lose_no_connection(database_url: str, admin: Admin, check_idle_s):
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    options = PoolOptions(size_max=3, size_min=0, waiting_max=10_000, acquire_timeout_s=60, check_idle_s=check_idle_s)
    async with Pool(database_url, options=options) as pool:
        ended = {"served": 0, "cancelled": 0}

        async def work(query: str):
            try:
                async with asyncio.timeout(90), pool.connection() as connection:
                    await connection.execute(query)
                ended["served"] += 1
            except asyncio.CancelledError:
                ended["cancelled"] += 1
                raise

        async def one():
            task = asyncio.create_task(work(chance.choice(["SELECT 1", "SELECT 1", "SELECT pg_sleep(0.002)"])))
            for _ in range(chance.choice([0, 0, 1, 1, 2, 3, 5, 8, 20])):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.01)
            if chance.random() < 0.95:
                task.cancel()
            await asyncio.wait([task])
            assert whole(pool.stats)

        for _ in range(30):
            await asyncio.gather(*(one() for _ in range(100)))
        assert sum(ended.values()) <= 3000  # the rest was cancelled before its first step
        assert ended["cancelled"] > 500
        assert ended["served"] > 50
        stats = await settled(pool, lambda stats: stats.in_care == stats.connecting == 0)
        assert (stats.in_use, stats.waiting) == (0, 0)
        assert whole(stats)
        # All places are usable, at once.
        everyone = asyncio.Barrier(3)

        async def hold():
            async with pool.connection(timeout_s=5) as connection:
                await everyone.wait()
                return await pid_of(connection)

        assert len(set(await asyncio.gather(hold(), hold(), hold()))) == 3
        assert admin.backends() == 3


async def test_caller_cancelled_in_the_turn_it_is_served_gives_the_connection_back(database_url: str):
    async with Pool(database_url, options=PoolOptions(size_max=1, size_min=1)) as pool:
        loan = pool.connection()
        await loan.__aenter__()
        waiter = asyncio.create_task(pool.fetch("SELECT 1"))
        await asyncio.sleep(0)
        await loan.__aexit__(None, None, None)  # hands over to the waiter's future ...
        assert pool.stats.in_use == 1
        waiter.cancel()  # ... before the waiter runs
        with pytest.raises(asyncio.CancelledError):
            await waiter
        stats = pool.stats
        assert (stats.in_use, stats.idle, stats.waiting) == (0, 1, 0)


# --- Repair ----------------------------------------------------------------------------------------------------------


async def test_connection_that_died_idle_is_not_handed_out(database_url: str, admin: Admin):
    options = PoolOptions(size_max=3, size_min=3, check_idle_s=3600)
    async with Pool(database_url, options=options) as pool:
        await settled(pool, lambda stats: stats.idle == 3)
        killed = admin.value(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert killed == 3
        assert await asyncio.gather(*(pool.fetch("SELECT 1") for _ in range(20))) == [[(1,)]] * 20
        stats = await settled(pool, lambda stats: stats.idle == 3)
        assert stats.broken == 3
        assert stats.connects == 6


async def test_notification_for_an_idle_connection_does_not_break_it(database_url: str, admin: Admin):
    async with Pool(database_url, options=PoolOptions(size_max=1, size_min=1)) as pool:
        await pool.execute("LISTEN news")
        admin.connection.execute("NOTIFY news")
        assert await pool.fetch("SELECT 1") == [(1,)]
        stats = pool.stats
        assert (stats.broken, stats.connects) == (0, 1)


async def test_old_connections_are_replaced_and_the_minimum_kept(database_url: str):
    options = PoolOptions(size_max=3, size_min=2, lifetime_s=0.05, idle_s=0.1)
    async with Pool(database_url, options=options) as pool:
        stats = await settled(pool, lambda stats: stats.retired >= 4)
        assert stats.connects >= 4
        assert whole(stats)
        assert await pool.fetch("SELECT 1") == [(1,)]


async def test_idle_connections_above_the_minimum_are_closed(database_url: str, admin: Admin):
    options = PoolOptions(size_max=5, size_min=1, idle_s=0.1)
    async with Pool(database_url, options=options) as pool:
        everyone = asyncio.Barrier(5)

        async def hold():
            async with pool.connection():
                await everyone.wait()

        await asyncio.gather(*(hold() for _ in range(5)))
        assert pool.stats.size == 5
        stats = await settled(pool, lambda stats: stats.size == 1)
        assert (stats.idle, stats.retired) == (1, 4)


async def test_configure_prepares_every_connection_and_its_failure_is_told(database_url: str):
    async def configure(connection):
        await connection.execute("SET search_path TO pg_catalog")

    async with Pool(database_url, configure=configure) as pool:
        assert await pool.fetch("SHOW search_path") == [("pg_catalog",)]

    async def broken(connection):
        raise KeyError("oops")

    async with Pool(database_url, configure=broken, options=PoolOptions(size_min=0)) as pool:
        with pytest.raises(DatabaseUnavailable, match="oops"):
            await pool.check()
        assert pool.stats.size == 0


# --- Size and end ----------------------------------------------------------------------------------------------------


async def test_resize_down_closes_surplus_and_up_serves_the_queue(database_url: str, admin: Admin):
    async with Pool(database_url, options=PoolOptions(size_max=5, size_min=5)) as pool:
        await settled(pool, lambda stats: stats.idle == 5)
        loans = [pool.connection() for _ in range(4)]
        for loan in loans:
            await loan.__aenter__()
        shrinking = asyncio.create_task(pool.resize(size_max=2))
        await asyncio.sleep(0)
        assert pool.stats.size == 4  # the idle one went at once, lent ones stay with their borrowers
        for loan in loans[:2]:
            assert not shrinking.done()
            await loan.__aexit__(None, None, None)
        await shrinking
        stats = pool.stats
        assert (stats.size, stats.in_use, stats.size_max, stats.size_min) == (2, 2, 2, 2)
        waiters = [asyncio.create_task(pool.fetch("SELECT 1")) for _ in range(3)]
        await asyncio.sleep(0)
        await pool.resize(size_max=5)
        await asyncio.gather(*waiters)
        assert whole(pool.stats)
        for loan in loans[2:]:
            await loan.__aexit__(None, None, None)
        with pytest.raises(TimeoutError):
            async with pool.connection(), pool.connection():
                await pool.resize(size_max=1, timeout_s=0.05)
        assert pool.stats.size == 1
        with pytest.raises(ConfigError):
            await pool.resize(size_max=0)


async def test_close_serves_who_waits_and_refuses_who_comes(database_url: str, admin: Admin):
    pool = Pool(database_url, options=PoolOptions(size_max=1))
    with pytest.raises(NotStarted):
        await pool.fetch("SELECT 1")
    await pool.start()
    await pool.start()
    loan = pool.connection()
    await loan.__aenter__()
    waiter = asyncio.create_task(pool.fetch("SELECT 1"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0)
    with pytest.raises(Closed):
        await pool.fetch("SELECT 1")
    assert not closing.done()
    await loan.__aexit__(None, None, None)
    assert await waiter == [(1,)]
    await closing
    await pool.aclose()
    assert pool.stats.size == 0
    with pytest.raises(Closed):
        await pool.start()


async def test_close_cuts_what_is_lent_after_its_time(database_url: str):
    pool = Pool(database_url, options=PoolOptions(size_max=1))
    await pool.start()
    inside = asyncio.Event()

    async def stubborn():
        async with pool.connection() as connection:
            inside.set()
            await connection.execute("SELECT pg_sleep(60)")

    users = [asyncio.create_task(stubborn()), asyncio.create_task(pool.fetch("SELECT 1"))]
    await inside.wait()
    began_s = time.monotonic()
    await pool.aclose(timeout_s=0.1)
    errors = await asyncio.gather(*users, return_exceptions=True)
    assert time.monotonic() - began_s < 3
    assert [type(error) for error in errors] == [psycopg.OperationalError, Closed]
    assert pool.stats.size == 0


async def test_connection_that_comes_back_after_the_close_leaves_no_task(database_url: str):
    pool = Pool(database_url, options=PoolOptions(size_max=1))
    await pool.start()
    borrowed = await pool.borrow()
    await borrowed.execute("SELECT 1")  # it is in a transaction
    await pool.aclose(timeout_s=0.01)
    await borrowed.close()
    assert pool.stats.size == 0
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("postgres")]


async def test_closing_an_unopened_pool_and_one_without_a_database_is_quick():
    await Pool("postgresql://127.0.0.1:1/none").aclose()
    async with Pool("postgresql://127.0.0.1:1/none", options=PoolOptions(retry_delay_s=0.01)) as pool:
        await settled(pool, lambda stats: stats.failures >= 1)
    assert pool.stats.size == 0
