"""Options of ``flotta run`` from a file, and the embedded servers alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import redis as driver

from flotta.cli import cli
from flotta.errors import ConfigError
from supervisor_service import Service, alive, service


def test_flotta_toml_sets_options_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "flotta.toml").write_text(
        'service = "shop"\n[run]\ninstances = 3\naccess_log = true\nhost = "localhost"\n'
    )
    with service(tmp_path, "-n", "1") as running:
        assert running.wait_line(r"app:app on (\S+), (\d) instance")[2] == "1"
        assert running.url().startswith("http://localhost:")
        running.get("/seen")
        running.wait_line("shop.1 .*/seen")


def test_an_unknown_option_in_flotta_toml_is_named_with_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "flotta.toml").write_text("[run]\nworkers = 3\n")
    with service(tmp_path) as running:
        assert running.wait() == 1
        assert "run.workers" in running.text
        assert "instances" in running.text
        assert "Traceback" not in running.text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("run = 3\n", "run (flotta.toml) is 3"),
        ('[run]\nport = "many"\n', "run.port"),
        ('[run]\nwith = "feed=sleep 1"\n', "run.with"),
        ("[run]\nport = \n", "no TOML"),
    ],
)
def test_a_wrong_value_in_flotta_toml_is_one_sentence(
    text: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flotta.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        cli.main(["run", "app:app"], standalone_mode=False)
    assert named in str(caught.value)
    assert "flotta.toml" in str(caught.value)


def test_the_embedded_servers_alone_are_told_and_joined(tmp_path: Path) -> None:
    environ = {"DATABASE_URL": "postgresql://u@127.0.0.1:1/d"}
    servers = Service(tmp_path, "embedded", env=environ)
    try:
        url = servers.wait_line("^REDIS_URL=(.*)")[1]
        with driver.Redis.from_url(url) as client:
            assert client.ping()
        with service(tmp_path, "-n", "1", "--embedded", env=environ) as running:
            assert running.get()["env"]["REDIS_URL"] == url
        family = servers.family()
        servers.signal(signal.SIGTERM)
        assert servers.wait() == 0
        assert not [pid for pid in family if alive(pid)]
    finally:
        servers.close()
