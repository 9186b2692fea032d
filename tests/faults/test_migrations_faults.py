"""Migrations with real processes: started together, killed in the middle, kept waiting, cut off from the server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from flotta.postgres import EmbeddedPostgres
from free_ports import free_port

pytestmark = pytest.mark.faults

_INSTANCE = """
import asyncio, dataclasses, json, sys
from flotta.errors import FlottaError
from flotta.migrations import Migrations

url, folder, seeds, instance, wait_s = sys.argv[1:]
gate = Migrations(folder, seeds=seeds, application="harbor", instance=instance, wait_timeout_s=float(wait_s))
try:
    report = asyncio.run(gate.run(url))
except FlottaError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print("REPORT " + json.dumps(dataclasses.asdict(report)))
"""


class Project:
    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.migrations, self.seeds = folder / "migrations", folder / "seeds"
        self.migrations.mkdir()
        self.seeds.mkdir()

    def write(self, name: str, text: str) -> None:
        (self.migrations / f"{name}.sql").write_text(text)

    def instance(self, name: str, wait_s: float = 60) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _INSTANCE, self.url, str(self.migrations), str(self.seeds), name, str(wait_s)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def sleeper(self) -> int:
        """The server process that is in ``pg_sleep``, once there is one."""
        deadline_s = time.monotonic() + 20
        with psycopg.connect(self.url, autocommit=True) as admin:
            while time.monotonic() < deadline_s:
                row = admin.execute(
                    "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
                ).fetchone()
                if row is not None:
                    return row[0]
        raise AssertionError("nobody sleeps")

    def slow(self, step: str, how: str = "SELECT pg_sleep((SELECT s FROM pace))") -> str:
        """A step that sleeps for minutes, for those who begin it before `quicken`."""
        with psycopg.connect(self.url, autocommit=True) as admin:
            admin.execute("CREATE TABLE pace (s float); INSERT INTO pace VALUES (300)")
        return f"{step}; {how};"

    def held(self, step: str) -> str:
        """A step that sleeps until `quicken`."""
        looking = "WHILE (SELECT s FROM pace) > 0 LOOP PERFORM pg_sleep(0.05); END LOOP"
        return self.slow(step, f"DO $$ BEGIN {looking}; END $$")

    def quicken(self) -> None:
        """Let steps sleep no more."""
        with psycopg.connect(self.url, autocommit=True) as admin:
            admin.execute("UPDATE pace SET s = 0")

    def value(self, query, params=None):
        with psycopg.connect(self.url, autocommit=True) as admin:
            return admin.execute(query, params).fetchone()[0]


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Project:
    return Project(tmp_path, database_url)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def report(process: subprocess.Popen[str]) -> dict:
    code, output, errors = end(process)
    assert code == 0, errors
    return json.loads(output.split("REPORT ", 1)[1])


def test_five_processes_that_start_together_apply_each_step_once(project: Project):
    project.write("0001_log", "CREATE TABLE log (what text, at timestamptz DEFAULT clock_timestamp())")
    for number in range(2, 8):
        project.write(f"{number:04d}_step", f"INSERT INTO log VALUES ('step {number}'); SELECT pg_sleep(0.02)")
    project.write("0008_index", "-- flotta: no-transaction\nCREATE INDEX CONCURRENTLY by_what ON log (what)")
    (project.seeds / "10_seed.sql").write_text("INSERT INTO log VALUES ('seed')")
    reports = [report(process) for process in [project.instance(f"api-{n}") for n in range(5)]]
    assert sorted(len(one["applied"]) for one in reports) == [0, 0, 0, 0, 8]
    assert sorted(len(one["seeded"]) for one in reports) == [0, 0, 0, 0, 1]
    assert {one["version"] for one in reports} == {"0008"}
    with psycopg.connect(project.url) as admin:
        rows = [row[0] for row in admin.execute("SELECT what FROM log ORDER BY at").fetchall()]
    assert rows == [*(f"step {number}" for number in range(2, 8)), "seed"]


@pytest.mark.parametrize("transaction", [True, False], ids=["transaction", "no-transaction"])
def test_killed_in_the_middle_is_rolled_back_and_another_wins(project: Project, transaction: bool):
    head = "" if transaction else "-- flotta: no-transaction\n"
    project.write("0001_a", "CREATE TABLE first (n int); INSERT INTO first VALUES (1)")
    project.write("0002_slow", head + project.slow("CREATE TABLE IF NOT EXISTS slow (n int)"))
    project.write("0003_last", "INSERT INTO first VALUES (3)")
    first = project.instance("api-1")
    backend = project.sleeper()
    second = project.instance("api-2")
    project.quicken()
    first.send_signal(signal.SIGKILL)
    assert end(first)[0] == -signal.SIGKILL
    won = report(second)
    assert won["applied"] == ["0002_slow", "0003_last"]
    assert project.value("SELECT array_agg(n ORDER BY n) FROM first") == [1, 3]
    assert project.value("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [backend]) == 0


def test_statement_of_a_dead_process_does_not_hold_the_lock_to_its_end(project: Project):
    project.write("0001_slow", "CREATE TABLE slow (n int); SELECT pg_sleep(300)")
    first = project.instance("api-1")
    project.sleeper()
    first.send_signal(signal.SIGKILL)
    end(first)
    project.write("0001_slow", "CREATE TABLE slow (n int)")
    began_s = time.monotonic()
    assert report(project.instance("api-2"))["applied"] == ["0001_slow"]
    assert time.monotonic() - began_s < 10


def test_stopped_process_keeps_the_others_out_and_they_give_up(project: Project):
    project.write("0001_slow", project.held("CREATE TABLE slow (n int)"))
    first = project.instance("api-1")
    project.sleeper()
    first.send_signal(signal.SIGSTOP)
    project.quicken()
    try:
        code, _, errors = end(project.instance("api-2", wait_s=0.5))
        assert code != 0
        assert "MigrationTimeout" in errors
        assert "waiting on api-1, empty -> 0001" in errors
    finally:
        first.send_signal(signal.SIGCONT)
    assert report(first)["applied"] == ["0001_slow"]
    assert report(project.instance("api-3"))["applied"] == []


def test_lost_lock_connection_ends_the_migration_and_another_wins(project: Project):
    project.write("0001_slow", project.slow("CREATE TABLE slow (n int)"))
    first = project.instance("api-1")
    backend = project.sleeper()
    second = project.instance("api-2")
    project.quicken()
    project.value("SELECT pg_terminate_backend(%s)", [backend])
    code, _, errors = end(first)
    assert code != 0
    assert "MigrationFailed" in errors
    assert report(second)["applied"] == ["0001_slow"]


def test_server_killed_in_the_middle_of_a_migration(tmp_path: Path):
    with EmbeddedPostgres(port=free_port(), durable=False, settings={"synchronous_commit": "on"}) as server:
        project = Project(tmp_path, server.url)
        project.write("0001_a", "CREATE TABLE a (n int); INSERT INTO a VALUES (1)")
        project.write("0002_slow", project.slow("INSERT INTO a VALUES (2)"))
        first, second = project.instance("api-1"), project.instance("api-2")
        project.sleeper()
        project.quicken()
        server.kill()
        server.start_sync()
        ends = [end(first), end(second)]
        # Who migrated has failed, in one way or the other; who waited has gone on when the server was back.
        assert sorted(code == 0 for code, _, _ in ends) == [False, True], ends
        assert report(project.instance("api-3"))["version"] == "0002"
        assert project.value("SELECT array_agg(n ORDER BY n) FROM a") == [1, 2]
