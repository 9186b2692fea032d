"""What a pool says when something is wrong, and what the server sees of it: causes, cures, and never a password."""

from __future__ import annotations

import asyncio
import socket

import psycopg
import pytest

from flotta.errors import ConfigError, DatabaseUnavailable
from flotta.postgres import EmbeddedPostgres, Pool, PoolOptions, application_name
from flotta.postgres.direct import connect_direct
from flotta.postgres.target import explain
from postgres_fixtures import settled

CANARY = "canary-5f1c"


async def refusal(url: str, *, acquire_timeout_s: float = 30.0, **options) -> DatabaseUnavailable:
    async with Pool(url, options=PoolOptions(size_min=0, acquire_timeout_s=acquire_timeout_s, **options)) as pool:
        with pytest.raises(DatabaseUnavailable) as caught:
            await pool.fetch("SELECT 1")
        assert CANARY not in f"{caught.value!r} {caught.value} {caught.value.__cause__} {pool.stats} {pool!r}"
        return caught.value


async def test_failed_connects_are_explained_without_the_password(postgres_server: EmbeddedPostgres):
    port = postgres_server.port
    wrong = await refusal(f"postgresql://flotta:{CANARY}@127.0.0.1:{port}/flotta")
    assert "correct them in the URL" in wrong.reason
    assert wrong.lasting
    assert wrong.address == f"127.0.0.1:{port}/flotta"
    missing = await refusal(postgres_server.url_for("nowhere"))
    assert "Create the database" in missing.reason
    nobody = await refusal(f"postgresql://flotta:{CANARY}@127.0.0.1:1/flotta", acquire_timeout_s=1.0)
    assert "Nothing listens there now" in nobody.reason
    assert not nobody.lasting
    tls = await refusal(postgres_server.url + "?sslmode=require")
    assert "speaks no TLS" in tls.reason


async def test_a_lasting_fault_leaves_waiters_to_the_connections_that_still_work(database_url: str, unique: str):
    role = f"rotated_{unique}"
    admin = psycopg.connect(database_url, autocommit=True)
    admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'old'")
    url = f"postgresql://{role}:old@{database_url.partition('@')[2]}"
    async with Pool(url, options=PoolOptions(size_max=2, size_min=0, retry_delay_s=0.05)) as pool:
        loan = pool.connection()
        await loan.__aenter__()
        admin.execute(f"ALTER ROLE {role} PASSWORD 'new'")
        waiter = asyncio.create_task(pool.fetch("SELECT 1"))
        await settled(pool, lambda stats: stats.failures == 1)
        assert (pool.stats.waiting, waiter.done()) == (1, False)
        await loan.__aexit__(None, None, None)
        assert await waiter == [(1,)]
        admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [role])
        with pytest.raises(DatabaseUnavailable, match="refuses the user or its password"):
            await pool.fetch("SELECT 1")
    admin.execute(f"DROP ROLE {role}")
    admin.close()


def test_what_a_restart_says_over_tls_is_not_taken_for_a_wrong_certificate():
    assert not explain("connection failed: SSL error: unexpected eof while reading").lasting
    assert explain("connection failed: SSL error: certificate verify failed").lasting


async def test_a_psycopg_that_has_changed_is_refused_by_name(database_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flotta.postgres.connection._PRISTINE", {"_gone": None})
    with pytest.raises(ConfigError, match=r"psycopg \(installed package\) is '.*_gone"):
        await connect_direct(database_url)
    async with Pool(database_url, options=PoolOptions(size_min=0)) as pool:
        with pytest.raises(DatabaseUnavailable, match=r"psycopg .*_gone") as caught:
            await pool.fetch("SELECT 1")
        assert caught.value.lasting


async def test_silent_host_is_given_up_after_the_connect_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel answers, nobody accepts
        port = silent.getsockname()[1]
        error = await refusal(
            f"postgresql://flotta:{CANARY}@127.0.0.1:{port}/x", connect_timeout_s=0.1, acquire_timeout_s=1.5
        )
        assert "no answer in 0.1 s" in error.reason


async def test_too_many_connections_is_explained_and_overcome():
    with EmbeddedPostgres(
        durable=False, settings={"max_connections": "4", "superuser_reserved_connections": "0"}
    ) as db:
        others = [psycopg.connect(db.url) for _ in range(3)]
        options = PoolOptions(size_max=2, size_min=0, acquire_timeout_s=1.5, retry_delay_s=0.05)
        async with Pool(db.url, options=options) as pool, pool.connection(timeout_s=20):
            with pytest.raises(DatabaseUnavailable, match="Too many connections: lower size_max"):
                await pool.fetch("SELECT 1")
            others.pop().close()
            assert await pool.fetch("SELECT 1", timeout_s=10) == [(1,)]
            assert pool.stats.fault is None
            assert pool.stats.failures >= 1
        for other in others:
            other.close()


def test_bad_url_is_refused_without_showing_it():
    for url in (f"postgresql://u:{CANARY}%zz@h/d", f"http://{CANARY}", f"host=x password={CANARY} nonsense"):
        with pytest.raises(ConfigError) as caught:
            Pool(url)
        assert CANARY not in str(caught.value)
        assert caught.value.variable == "DATABASE_URL"
        assert caught.value.__cause__ is None


def test_options_are_checked_at_birth():
    for wrong in (
        {"size_max": 0},
        {"size_min": -1},
        {"idle_s": 0},
        {"waiting_max": -1},
        {"connect_timeout_s": -1},
        {"retry_delay_s": 9.0},
        {"prepare_threshold": -1},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong)).removesuffix("_s")):
            PoolOptions(**wrong)


# --- What the server sees --------------------------------------------------------------------------------------------


async def test_server_sees_the_application_name(database_url: str):
    async with Pool(database_url, application_name=application_name("harbor", "api-1")) as pool:
        assert await pool.fetch("SHOW application_name") == [("flotta:harbor:api-1",)]
    async with Pool(database_url + "?application_name=theirs") as pool:
        assert await pool.fetch("SHOW application_name") == [("theirs",)]
    long = application_name("s" * 100, "instance-é-1")
    assert len(long) == 63
    assert long.endswith(":instance-?-1")


async def test_no_prepared_statements_when_told_so(database_url: str):
    async def prepared(threshold) -> int:
        async with Pool(database_url, options=PoolOptions(size_max=1, prepare_threshold=threshold)) as pool:
            for _ in range(8):
                await pool.fetch("SELECT %s::int", [1])
            return (await pool.fetch_one("SELECT count(*) FROM pg_prepared_statements", []))[0]

    assert await prepared(5) >= 1
    assert await prepared(None) == 0


async def test_urls_of_sqlalchemy_are_understood(database_url: str):
    async with Pool(database_url.replace("postgresql://", "postgresql+psycopg://")) as pool:
        assert await pool.fetch("SELECT 1") == [(1,)]
