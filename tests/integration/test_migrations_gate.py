"""Migrations and seeds against a real server: applied once, refused when they contradict, safe in their session."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flotta.errors import (
    DatabaseUnavailable,
    DirectConnectionNeeded,
    MigrationFailed,
    MigrationMismatch,
    MigrationTimeout,
    SeedChanged,
)
from flotta.migrations import Migrations
from flotta.migrations.lock import lock_key
from flotta.postgres import EmbeddedPostgres, Pool
from free_ports import free_port

SHIPS = "CREATE TABLE ships (mmsi bigint PRIMARY KEY, name text);\nCREATE INDEX ON ships (name);"


class Project:
    """A folder of migrations and one of seeds."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.migrations, self.seeds = folder / "migrations", folder / "seeds"
        self.migrations.mkdir()
        self.seeds.mkdir()

    def write(self, name: str, text: str) -> None:
        (self.migrations / f"{name}.sql").write_text(text)

    def seed(self, name: str, text: str) -> None:
        (self.seeds / f"{name}.sql").write_text(text)

    def gate(self, instance: str = "api-1", **options) -> Migrations:
        return Migrations(self.migrations, seeds=self.seeds, application="harbor", instance=instance, **options)

    def value(self, query, params=None):
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query, params).fetchone()[0]


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    return Project(tmp_path, database_url)


async def test_first_run_applies_everything_and_the_second_nothing(project: Project):
    project.write("0001_ships", SHIPS)
    project.write("0002_first", "INSERT INTO ships VALUES (1, '100 % sure')")
    project.seed("10_more", "INSERT INTO ships VALUES (2, 'b');\nINSERT INTO ships VALUES (3, 'c')")
    report = await project.gate().run(project.url)
    assert (report.version, report.applied, report.seeded) == ("0002", ("0001_ships", "0002_first"), ("10_more",))
    assert project.value("SELECT count(*) FROM ships") == 3
    again = await project.gate("api-2").run(project.url)
    assert (again.version, again.applied, again.seeded) == ("0002", (), ())
    project.write("0003_third", "ALTER TABLE ships ADD COLUMN flag text")
    assert (await project.gate().run(project.url)).applied == ("0003_third",)
    assert project.value("SELECT applied_by FROM flotta_migration WHERE version = 3") == "api-1"


async def test_a_pool_says_where_the_database_is(project: Project):
    project.write("0001_ships", SHIPS)
    async with Pool(project.url) as pool:
        await project.gate().run(pool)
        assert await pool.fetch("SELECT count(*) FROM ships") == [(0,)]


async def test_applications_in_one_database_are_apart(project: Project):
    project.write("0001_ships", SHIPS)
    await project.gate().run(project.url)
    project.write("0001_ships", "CREATE TABLE other (n int)")
    report = await Migrations(project.migrations, application="billing").run(project.url)
    assert report.applied == ("0001_ships",)


async def test_applications_that_start_together_make_the_shared_tables_once(project: Project):
    project.write("0001_nothing", "SELECT 1")
    gates = [Migrations(project.migrations, application=f"app-{n}") for n in range(8)]
    for _ in range(3):
        reports = await asyncio.gather(*(gate.run(project.url) for gate in gates))
        assert [report.applied for report in reports] == [("0001_nothing",)] * 8
        with psycopg.connect(project.url) as admin:
            admin.execute("DROP TABLE flotta_migration, flotta_seed, flotta_migration_run")


async def test_files_are_utf_8_whatever_the_database_is(project: Project, postgres_server: EmbeddedPostgres):
    with psycopg.connect(project.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE latin1 ENCODING 'LATIN1' TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'")
    url = postgres_server.url_for("latin1")
    project.write("0001_ships", SHIPS)
    project.write("0002_first", "INSERT INTO ships VALUES (1, 'Tromsø')")
    await project.gate().run(url)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT name, length(name) FROM ships").fetchone() == ("Tromsø", 6)
    with psycopg.connect(project.url, autocommit=True) as admin:
        admin.execute("DROP DATABASE latin1 WITH (FORCE)")


async def test_failed_step_is_rolled_back_and_those_before_it_stay(project: Project):
    project.write("0001_ships", SHIPS)
    project.write("0002_bad", "CREATE TABLE half (n int);\nINSERT INTO half VALUES (1);\nSELECT nonsense;")
    with pytest.raises(
        MigrationFailed, match=r"0002_bad failed and was rolled back: 42703 .*nonsense.*\(line 3\)"
    ) as e:
        await project.gate().run(project.url)
    assert (e.value.step, e.value.rolled_back) == ("0002_bad", True)
    assert project.value("SELECT to_regclass('half')") is None
    status = await project.gate().status(project.url)
    assert (status.version, status.pending, status.locked, status.ready) == ("0001", ("0002_bad",), False, False)
    assert "api-1 failed at 0002_bad" in str(status.run)
    project.write("0002_bad", "CREATE TABLE half (n int)")
    assert (await project.gate().run(project.url)).applied == ("0002_bad",)
    assert str(await project.gate().status(project.url)) == "ready at 0002"


async def test_concurrent_index_needs_and_gets_no_transaction(project: Project):
    project.write("0001_ships", SHIPS)
    project.write("0002_index", "CREATE INDEX CONCURRENTLY by_name ON ships (name)")
    with pytest.raises(MigrationFailed, match="begin the file with: -- flotta: no-transaction"):
        await project.gate().run(project.url)
    text = "-- flotta: no-transaction\nDROP INDEX CONCURRENTLY IF EXISTS by_name;\n"
    project.write("0002_index", text + "CREATE UNIQUE INDEX CONCURRENTLY by_name ON ships (name);")
    await project.gate().run(project.url)
    assert project.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_name'::regclass")


async def test_interrupted_step_without_transaction_runs_again(project: Project):
    project.write("0001_ships", SHIPS + "INSERT INTO ships VALUES (1, 'same'), (2, 'same')")
    head = "-- flotta: no-transaction\n"
    project.write("0002_index", head + "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS by_name ON ships (name)")
    with pytest.raises(MigrationFailed, match="23505") as first:
        await project.gate().run(project.url)
    assert not first.value.rolled_back
    # The leftover index is invalid: IF NOT EXISTS would step over it and call the migration done.
    with pytest.raises(MigrationFailed, match="let the file begin with DROP INDEX CONCURRENTLY IF EXISTS by_name"):
        await project.gate().run(project.url)
    project.write(
        "0002_index",
        head + "DROP INDEX CONCURRENTLY IF EXISTS by_name; CREATE INDEX CONCURRENTLY by_name ON ships (name)",
    )
    assert (await project.gate().run(project.url)).applied == ("0002_index",)


async def test_changed_file_is_refused_before_anything_runs(project: Project):
    project.write("0001_ships", SHIPS)
    project.seed("10_more", "INSERT INTO ships VALUES (2, 'b')")
    await project.gate().run(project.url)
    project.write("0002_next", "CREATE TABLE next (n int)")
    project.write("0001_ships", SHIPS + " ")
    with pytest.raises(MigrationMismatch, match="changed after it was applied"):
        await project.gate().run(project.url)
    project.write("0001_ships", SHIPS)
    project.seed("10_more", "INSERT INTO ships VALUES (2, 'B')")
    with pytest.raises(SeedChanged, match="10_more"):
        await project.gate().run(project.url)
    assert project.value("SELECT to_regclass('next')") is None


async def test_failed_seed_leaves_nothing_and_is_due_again(project: Project):
    project.write("0001_ships", SHIPS)
    project.seed("10_more", "INSERT INTO ships VALUES (2, 'b'); INSERT INTO ships VALUES (2, 'twice')")
    with pytest.raises(MigrationFailed, match=r"10_more.*23505"):
        await project.gate().run(project.url)
    assert project.value("SELECT count(*) FROM ships") == 0
    project.seed("10_more", "INSERT INTO ships VALUES (2, 'b')")
    assert (await project.gate().run(project.url)).seeded == ("10_more",)


async def test_older_instance_finds_a_newer_database_ready(project: Project):
    project.write("0001_ships", SHIPS)
    project.write("0002_next", "CREATE TABLE next (n int)")
    await project.gate().run(project.url)
    (project.migrations / "0002_next.sql").unlink()
    report = await project.gate().run(project.url)
    assert (report.version, report.applied) == ("0002", ())


async def test_stamp_records_without_running(project: Project):
    project.write("0001_ships", SHIPS)
    project.write("0002_next", "CREATE TABLE next (n int)")
    project.seed("10_more", "INSERT INTO ships VALUES (2, 'b')")
    with pytest.raises(MigrationMismatch, match="version 7"):
        await project.gate().stamp(project.url, version=7)
    report = await project.gate().stamp(project.url, version=1)
    assert (report.version, report.applied, report.seeded) == ("0001", ("0001_ships",), ())
    assert project.value("SELECT to_regclass('ships')") is None
    report = await project.gate().stamp(project.url)
    assert (report.version, report.applied, report.seeded) == ("0002", ("0002_next",), ("10_more",))
    assert (await project.gate().run(project.url)).applied == ()


async def test_a_step_leaves_nothing_in_the_session(project: Project):
    project.write("0001_ships", "SELECT set_config('search_path', '', false); CREATE TABLE public.a (n int);")
    project.write("0002_next", "SET ROLE pg_read_all_data;")
    project.write("0003_more", "CREATE TABLE b (n int); SET statement_timeout = 1")
    await project.gate().run(project.url)
    assert project.value("SELECT count(*) FROM flotta_migration WHERE applied_at IS NOT NULL") == 3


@pytest.mark.parametrize(
    "text", ["SELECT pg_advisory_unlock_all()", "DO $$BEGIN PERFORM pg_advisory_unlock_all(); END$$"]
)
def test_a_step_that_gives_our_lock_away_is_rolled_back(project: Project, text: str):
    project.write("0001_ships", f"CREATE TABLE a (n int); {text}")
    with pytest.raises(MigrationFailed, match="released our advisory lock"):
        asyncio.run(project.gate().run(project.url))
    assert project.value("SELECT to_regclass('a')") is None


async def test_cancelled_run_rolls_back_and_frees_the_lock(project: Project):
    project.write("0001_slow", "CREATE TABLE slow (n int); SELECT pg_sleep(60)")
    running = asyncio.create_task(project.gate().run(project.url))
    while not (await project.gate().status(project.url)).locked:
        await asyncio.sleep(0)
    status = await project.gate("api-2").status(project.url)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert status.locked
    project.write("0001_slow", "CREATE TABLE slow (n int)")
    assert (await project.gate().run(project.url)).applied == ("0001_slow",)


async def test_waiter_gives_up_and_names_who_it_waited_for(project: Project):
    project.write("0001_ships", SHIPS)
    await project.gate("api-2").run(project.url)
    project.write("0002_next", "CREATE TABLE next (n int)")
    with psycopg.connect(project.url, autocommit=True) as holder:
        name = project.url.rpartition("/")[2]
        holder.execute("SELECT pg_advisory_lock(%s)", [lock_key("harbor", name)])
        holder.execute(
            "UPDATE flotta_migration_run SET state = 'migrating', from_version = '0042', to_version = '0045'"
        )
        with pytest.raises(MigrationTimeout, match=r"waiting on api-2, 0042 -> 0045, \d+ s"):
            await project.gate(wait_timeout_s=1.5).run(project.url)
        assert str(await project.gate().status(project.url)).startswith("waiting on api-2, 0042 -> 0045")
    assert (await project.gate().run(project.url)).applied == ("0002_next",)


async def test_waiters_do_not_deadlock_a_concurrent_index(project: Project):
    # A waiter blocked in pg_advisory_lock holds a snapshot that CREATE INDEX CONCURRENTLY waits for.
    project.write("0001_ships", SHIPS)
    index = "-- flotta: no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS i{n} ON ships (name)"
    for number in range(2, 6):
        project.write(f"{number:04d}_index", index.replace("{n}", str(number)))
    async with asyncio.timeout(30):
        reports = await asyncio.gather(*(project.gate(f"api-{n}").run(project.url) for n in range(5)))
    assert sorted(len(report.applied) for report in reports) == [0, 0, 0, 0, 5]
    assert {report.version for report in reports} == {"0005"}


async def test_database_that_is_not_there_is_waited_for_and_then_named(project: Project, postgres_server):
    project.write("0001_ships", SHIPS)
    with pytest.raises(DatabaseUnavailable, match="Nothing listens"):
        await project.gate(wait_timeout_s=0.5).run("postgresql://127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailable, match="Create the database"):
        await project.gate(wait_timeout_s=60).run(postgres_server.url_for("nowhere"))
    server = EmbeddedPostgres(durable=False)
    await server.start()
    await server.restart()
    url = server.url
    server.kill()
    running = asyncio.create_task(project.gate(wait_timeout_s=60).run(url))
    await asyncio.sleep(0)
    await server.start()
    try:
        assert (await running).applied == ("0001_ships",)
    finally:
        await server.stop()


async def test_lock_timeout_lets_a_step_fail_instead_of_stopping_the_traffic(project: Project):
    project.write("0001_ships", SHIPS)
    await project.gate().run(project.url)
    project.write("0002_alter", "ALTER TABLE ships ADD COLUMN flag text")
    with psycopg.connect(project.url) as other:
        other.execute("SELECT * FROM ships")
        with pytest.raises(MigrationFailed, match=r"55P03.*lock_timeout_s"):
            await project.gate(lock_timeout_s=0.1).run(project.url)
    assert (await project.gate(lock_timeout_s=0.1).run(project.url)).applied == ("0002_alter",)


async def test_role_without_the_right_is_told_so(project: Project, postgres_server):
    project.write("0001_ships", SHIPS)
    with psycopg.connect(project.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS reader")
        admin.execute("CREATE ROLE reader LOGIN PASSWORD 'reader'")
    url = project.url.replace(project.url.split("//")[1].split("@")[0], "reader:reader")
    with pytest.raises(MigrationFailed, match=r"ledger failed: 42501 permission denied.*lacks this right"):
        await project.gate().run(url)
    await project.gate().run(project.url)
    with psycopg.connect(project.url, autocommit=True) as admin:
        admin.execute("GRANT SELECT ON flotta_migration, flotta_seed, flotta_migration_run TO reader")
    assert (await project.gate().run(url)).version == "0001"  # who only waits need not write
    with psycopg.connect(project.url, autocommit=True) as admin:
        admin.execute("DROP OWNED BY reader; DROP ROLE reader")


# --- Behind a pooler -------------------------------------------------------------------------------------------------


@pytest.fixture
def pgbouncer(tmp_path: Path, project: Project, postgres_server: EmbeddedPostgres, request) -> Iterator[str]:
    """A real PgBouncer in the mode that the test asks for; the URL through it."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    user, password = postgres_server.url.split("//")[1].split("@")[0].split(":")
    port = free_port()
    folder = postgres_server._temporary / f"bouncer-{port}"
    folder.mkdir(mode=0o755)
    (folder / "users.txt").write_text(f'"{user}" "{password}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={postgres_server.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nauth_type = plain\nauth_file = {folder}/users.txt\npool_mode = {request.param[0]}\n"
        f"default_pool_size = {request.param[1]}\nunix_socket_dir =\nquery_wait_timeout = 2\n"
    )
    from flotta.postgres.cluster import drop

    process = subprocess.Popen(
        [program, str(folder / "pgbouncer.ini")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **drop()
    )
    try:
        yield f"postgresql://{user}:{password}@127.0.0.1:{port}/{project.url.rpartition('/')[2]}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    "pgbouncer", [("transaction", 5), ("transaction", 1), ("statement", 5)], indirect=True, ids=str
)
async def test_pooler_that_shares_sessions_is_refused(project: Project, pgbouncer: str):
    project.write("0001_ships", SHIPS)
    with pytest.raises(DirectConnectionNeeded, match="give the migrations a URL of PostgreSQL itself"):
        await project.gate(wait_timeout_s=30).run(pgbouncer)
    assert project.value("SELECT to_regclass('ships')") is None


@pytest.mark.parametrize("pgbouncer", [("session", 5)], indirect=True, ids=str)
async def test_pooler_that_keeps_sessions_will_do(project: Project, pgbouncer: str):
    project.write("0001_ships", SHIPS)
    assert (await project.gate(wait_timeout_s=30).run(pgbouncer)).applied == ("0001_ships",)


@pytest.mark.parametrize("pgbouncer", [("transaction", 2)], indirect=True, ids=str)
async def test_pool_works_behind_a_pooler_without_prepared_statements(project: Project, pgbouncer: str):
    from flotta.postgres import PoolOptions

    options = PoolOptions(size_max=8, prepare_threshold=None, check_idle_s=1e-9)
    async with Pool(pgbouncer, options=options) as pool:
        await pool.check()

        async def add(number: int) -> int:
            async with pool.connection() as connection:
                cursor = await connection.execute("SELECT %s::int + 1", [number])
                return (await cursor.fetchone())[0]

        assert await asyncio.gather(*(add(n) for n in range(200))) == list(range(1, 201))
