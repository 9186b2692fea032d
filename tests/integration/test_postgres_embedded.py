"""The embedded PostgreSQL: starts anywhere, keeps its data, is joined by a second start, never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import psycopg
import pytest

from flotta.errors import EmbeddedServerError, NotStarted
from flotta.postgres import EmbeddedPostgres, cluster
from postgres_fixtures import await_end


def query(server: EmbeddedPostgres, text: str) -> object:
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(text)
        return cursor.fetchone()[0] if cursor.description else None


def test_runs_version_18_and_not_as_root():
    with EmbeddedPostgres(durable=False) as server:
        assert query(server, "SHOW server_version").startswith("18")
        assert psutil.Process(server.pid).uids().real != 0
        assert server.owned
        assert server.running
    assert not server.running
    with pytest.raises(NotStarted):
        _ = server.pid


def test_another_local_user_needs_the_password():
    with EmbeddedPostgres(durable=False) as server:
        url = f"postgresql://flotta@127.0.0.1:{server.port}/flotta"
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(url)


async def test_data_is_kept_over_stop_kill_and_restart(postgres_folder: Path):
    async with EmbeddedPostgres(postgres_folder) as server:
        query(server, "CREATE TABLE kept (n int)")
        await server.restart()
        query(server, "INSERT INTO kept VALUES (1)")
        before = server.port
        server.kill()
        assert not server.running
        await server.start()
        assert server.port == before
        query(server, "INSERT INTO kept VALUES (2)")
    async with EmbeddedPostgres(postgres_folder) as server:
        assert query(server, "SELECT sum(n) FROM kept") == 3


def test_pid_file_of_a_dead_server_is_no_obstacle(postgres_folder: Path):
    with EmbeddedPostgres(postgres_folder, durable=False) as server:
        server.kill()
        pid_file = (postgres_folder / "data").resolve() / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        # Its process id has gone to someone else in the meantime: to us.
        pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))
        server.start_sync()
        assert query(server, "SELECT 1") == 1


def test_server_that_nobody_has_reaped_is_not_joined(postgres_folder: Path):
    with EmbeddedPostgres(postgres_folder, durable=False) as first:
        postmaster = psutil.Process(first.pid)
        postmaster.kill()
        await_end([postmaster])  # a zombie until ``first`` asks for it
        assert postmaster.status() == psutil.STATUS_ZOMBIE
        with EmbeddedPostgres(postgres_folder, durable=False) as second:
            assert second.owned
            assert query(second, "SELECT 1") == 1


def test_temporary_folder_is_removed():
    with EmbeddedPostgres(durable=False) as server:
        folder = server._temporary
        assert folder.is_dir()
    assert not folder.exists()


def test_given_port_is_used_and_a_taken_one_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedServerError, match=r"(?s)ended with .*could not bind"):
            EmbeddedPostgres(port=port, durable=False).start_sync()
    with EmbeddedPostgres(port=port, durable=False) as server:
        assert server.port == port
        assert query(server, "SELECT 1") == 1


def test_second_start_in_a_folder_joins_and_does_not_stop_it(postgres_folder: Path):
    with EmbeddedPostgres(postgres_folder, durable=False) as first:
        with EmbeddedPostgres(postgres_folder) as second:
            assert not second.owned
            assert (second.pid, second.url) == (first.pid, first.url)
            assert query(second, "SELECT 1") == 1
        assert not second.running
        assert query(first, "SELECT 1") == 1
        with pytest.raises(EmbeddedServerError, match="already runs"):
            EmbeddedPostgres(postgres_folder, port=1).start_sync()


def test_starts_at_the_same_moment_end_in_one_server(postgres_folder: Path):
    servers = [EmbeddedPostgres(postgres_folder, durable=False) for _ in range(4)]
    threads = [threading.Thread(target=server.start_sync) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len({server.pid for server in servers}) == 1
        assert sum(server.owned for server in servers) == 1
    finally:
        for server in sorted(servers, key=lambda server: server.owned):
            server.stop_sync()


def test_wrong_setting_is_reported_with_the_servers_words():
    with pytest.raises(EmbeddedServerError, match="no_such_setting") as caught:
        EmbeddedPostgres(settings={"no_such_setting": "1"}).start_sync()
    assert caught.value.server == "PostgreSQL"


def test_a_folder_that_cannot_be_used_is_named(postgres_folder: Path):
    (postgres_folder / "file").touch()
    with pytest.raises(EmbeddedServerError, match=r"Not a directory: '.*/file/below'"):
        EmbeddedPostgres(postgres_folder / "file" / "below").start_sync()
    (postgres_folder / "theirs" / "data").mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(postgres_folder / "theirs" / "data", cluster.SERVER_UID, -1)
    with pytest.raises(EmbeddedServerError, match="is no data folder of PostgreSQL"):
        EmbeddedPostgres(postgres_folder / "theirs").start_sync()


def test_only_we_can_read_the_password_and_what_the_server_prints(postgres_folder: Path):
    with EmbeddedPostgres(postgres_folder, durable=False) as server:
        assert "ready to accept connections" in server.output
        for name in ("password", "postgres.log"):
            assert (postgres_folder / name).stat().st_mode & 0o777 == 0o600
        assert (postgres_folder / "data").stat().st_mode & 0o777 == 0o700
        postmaster = psutil.Process(server.pid)
        shown = [process.cmdline() for process in (postmaster, *postmaster.children(recursive=True))]
        assert (postgres_folder / "password").read_text() not in str(shown)


def test_cache_is_below_the_temporary_folder_where_there_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocked = tmp_path / "blocked"
    blocked.touch()
    ours = cluster._ours
    monkeypatch.setattr(cluster, "_ours", lambda folder: ours(blocked / "x" if folder.name == "flotta" else folder))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cluster._cache() == tmp_path / f"flotta-{os.geteuid()}"
    cluster._cache().chmod(0o777)
    with pytest.raises(PermissionError, match="only we may write"):  # it could hold somebody else's programs
        cluster._cache()


async def test_cancelled_start_leaves_no_server(postgres_folder: Path):
    server = EmbeddedPostgres(postgres_folder, durable=False)
    starting = asyncio.create_task(server.start())
    await asyncio.sleep(0)  # it has begun
    starting.cancel()
    await asyncio.sleep(0)
    starting.cancel()  # somebody is impatient
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not server.running
    assert not (postgres_folder / "data" / "postmaster.pid").exists()


_PARENT = """
import signal, sys
from flotta.postgres import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1], durable=False).start_sync()
print(server.pid, flush=True)
signal.pause()
"""


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_ends_when_its_parent_is_killed(postgres_folder: Path, number: signal.Signals):
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(postgres_folder)], stdout=subprocess.PIPE)
    with parent:
        postmaster = psutil.Process(int(parent.stdout.readline()))
        everyone = [postmaster, *postmaster.children(recursive=True)]
        assert postmaster.is_running()
        parent.send_signal(number)
    await_end(everyone)
    with EmbeddedPostgres(postgres_folder, durable=False) as server:
        assert server.owned
        assert query(server, "SELECT 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives up its rights")
def test_root_uses_copies_where_the_servers_user_cannot_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    package = cluster._installed()
    (hidden / package.name).symlink_to(package)
    (hidden / f"{package.name}.libs").symlink_to(package.with_name(f"{package.name}.libs"))
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(cluster, "_installed", lambda: hidden / package.name)
    monkeypatch.setattr(cluster, "_cache", lambda: cache)
    reachable = cluster._reachable
    monkeypatch.setattr(cluster, "_reachable", lambda path: hidden not in path.parents and reachable(path))
    binaries = cluster.find_binaries()
    assert cache in binaries.parents
    assert cluster.find_binaries() == binaries
    shown = subprocess.run([binaries / "initdb", "--version"], check=True, capture_output=True, text=True)
    assert shown.stdout.startswith("initdb")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives up its rights")
def test_root_keeps_data_elsewhere_where_the_servers_user_cannot_go(tmp_path: Path):
    (tmp_path / "hidden").mkdir(mode=0o700)
    with EmbeddedPostgres(tmp_path / "hidden", durable=False) as server:
        assert query(server, "SELECT 1") == 1
        place = (tmp_path / "hidden" / "data").readlink()
    try:
        with EmbeddedPostgres(tmp_path / "hidden", durable=False):
            assert (place / "postmaster.pid").exists()
        assert (place.parent / "origin").read_text().strip() == str(tmp_path / "hidden")
    finally:
        shutil.rmtree(place.parent)
