"""``flotta map`` and ``flotta stream`` as a person or a script uses them, on a real server.

`_run` starts a process, which is what the way in, the exit code and the signals are tested by; `_call` runs the same
command in this one, for what only depends on the command.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from flotta.cli import cli
from flotta.cli._redis import log
from flotta.redis import Redis
from flotta.rmap import TEXT, Map
from flotta.streaming import BYTES, Stream
from flotta.supervisor import EmbeddedServers
from flotta.supervisor.embedded import KINDS
from supervisor_service import Service, flotta


def _environ(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLOTTA_", "REDIS_", "DATABASE_"))}
    return {**kept, **more}


Done = subprocess.CompletedProcess[str]


def _run(*arguments: str, url: str | None, cwd: Path | None = None, stdin: str = "", **more: str) -> Done:
    env = _environ(**({"REDIS_URL": url} if url else {}), **more)
    return subprocess.run(
        flotta(*arguments), env=env, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=30, check=False
    )


def _call(*arguments: str, url: str | None, stdin: str = "") -> Done:
    told = {name: None for name in os.environ if name.startswith(("FLOTTA_", "REDIS_", "DATABASE_"))}
    result = CliRunner().invoke(cli, arguments, input=stdin, env={**told, "REDIS_URL": url})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return Done(arguments, result.exit_code, result.stdout, result.stderr)


def test_a_map_from_the_command_line(valkey_url: str, unique: str) -> None:
    def of(*arguments: str, run: Callable[..., Done] = _call) -> tuple[int, str]:
        done = run("map", arguments[0], unique, *arguments[1:], url=valkey_url)
        assert done.stderr == ""
        return done.returncode, done.stdout

    assert of("get", "a", run=_run) == (1, "")
    assert of("set", "a", "1", run=_run) == (0, "")
    assert of("set", "a", "zwei ü", "--json") == (0, '"1"\n')
    assert of("get", "a") == (0, "zwei ü\n")
    assert of("set", "a", "3", "--if-absent") == (1, "")
    assert of("set", "b", "3", "--if-absent") == (0, "")
    assert of("keys") == (0, "a\nb\n")
    assert of("keys", "-l") == (0, "a\tzwei ü\nb\t3\n")
    assert json.loads(of("keys", "-l", "--json")[1]) == {"a": "zwei ü", "b": "3"}
    assert of("del", "a", "missing") == (0, "")
    assert of("del", "a") == (1, "")
    assert of("keys") == (0, "b\n")


async def test_watching_shows_what_is_there_then_each_change_until_ctrl_c(
    redis: Redis, valkey_url: str, unique: str, tmp_path: Path
) -> None:
    async with await Map.join(unique, redis, codec=TEXT) as shared:
        await shared.set("a", "1")
        watching = Service(tmp_path, "map", "watch", unique, env={"REDIS_URL": valkey_url})
        try:
            watching.wait_line("^a = 1$")
            await shared.set("b", "2")
            watching.wait_line("^b = 2$")
            await shared.delete("a")
            watching.wait_line("^a deleted$")
            watching.signal(signal.SIGINT)
            assert watching.wait() == 0
            assert watching.lines == ["a = 1", "b = 2", "a deleted"]
        finally:
            watching.close()


def test_a_stream_from_the_command_line(valkey_url: str, unique: str) -> None:
    assert _run("stream", "info", unique, url=valkey_url).returncode == 1
    refused = _call("stream", "add", unique, "created", "x", "--only-if-exists", url=valkey_url)
    assert (refused.returncode, refused.stdout) == (1, "")
    first = _call("stream", "add", unique, "created", '{"id": 7}', "--topic", "orders", url=valkey_url).stdout.strip()
    second = _run("stream", "add", unique, "paid", url=valkey_url, stdin="from stdin").stdout.strip()
    shown = _call("stream", "tail", unique, "--from", "oldest", "-n", "2", url=valkey_url).stdout
    assert shown == f'{first} created [orders] {{"id": 7}}\n{second} paid from stdin\n'
    after = _call("stream", "tail", unique, "--from", first, "-n", "1", "--json", url=valkey_url).stdout
    assert json.loads(after) == {"id": second, "name": "paid", "topic": None, "payload": "from stdin"}


async def test_a_stream_is_described_with_its_sinks(redis: Redis, valkey_url: str, unique: str) -> None:
    async with await Stream.open(unique, redis, codec=BYTES) as stream, stream.sink("persister", start="oldest"):
        for name in ("created", "paid"):
            await stream.add(name, b"")
        about = await asyncio.to_thread(_run, "stream", "info", unique, url=valkey_url)
        assert about.stdout.startswith(f"{unique}: 2 events")
        assert "persister" in about.stdout
        as_json = await asyncio.to_thread(_run, "stream", "info", unique, "--json", url=valkey_url)
        found = json.loads(as_json.stdout)
        assert found["length"] == 2
        assert list(found["sinks"]) == ["persister"]


async def test_tailing_shows_what_comes_and_takes_nothing_from_a_sink(
    redis: Redis, valkey_url: str, unique: str, tmp_path: Path
) -> None:
    async with await Stream.open(unique, redis, codec=BYTES) as stream:
        await stream.add("before", b"")
        tailing = Service(tmp_path, "stream", "tail", unique, env={"REDIS_URL": valkey_url})
        try:
            async with asyncio.timeout(20):
                while not tailing.lines:  # it has no prompt: what it shows first says that it listens
                    await stream.add("tick", b"1")
                    await asyncio.sleep(0.05)
            tailing.wait_line(r" tick \d+$")
            await stream.add("bytes", b"\xff\x00ok")
            tailing.wait_line(" bytes ")
            tailing.signal(signal.SIGINT)
            assert tailing.wait() == 0
            assert not any(" before " in line for line in tailing.lines)
            assert (await stream.info()).sinks == {}
        finally:
            tailing.close()


def test_without_a_server_the_error_names_the_variable_and_the_option(tmp_path: Path) -> None:
    done = _run("map", "get", "m", "k", url=None, cwd=tmp_path)
    assert done.returncode == 1
    assert "REDIS_URL" in done.stderr
    assert "--redis" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_parts_log_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    log().debug("not told")
    log().warning("redis link lost", address="cache:6379")
    told = capfd.readouterr()
    assert told.out == ""
    assert "redis link lost" in told.err
    assert "not told" not in told.err


def test_a_server_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    done = _run("stream", "info", "s", "--redis", "redis://:hunter2@127.0.0.1:1", url=None, cwd=tmp_path)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_embedded_server_of_the_folder_is_found(tmp_path: Path) -> None:
    with EmbeddedServers(tmp_path / ".flotta", [kind for kind in KINDS if kind.name == "redis"]):
        assert _run("map", "set", "m", "k", "v", url=None, cwd=tmp_path).returncode == 0
        assert _run("map", "get", "m", "k", url=None, cwd=tmp_path).stdout == "v\n"
    assert _run("map", "get", "m", "k", url=None, cwd=tmp_path).returncode == 1


def test_a_wrong_map_name_is_an_error_of_one_line(valkey_url: str) -> None:
    done = _run("map", "keys", "a b", url=valkey_url)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_settings_are_shown_without_secrets(tmp_path: Path) -> None:
    url = "redis://:hunter2@cache:6379/0"
    done = _run("settings", url=url, cwd=tmp_path, FLOTTA_DRAIN_S="7")
    assert "hunter2" not in done.stdout
    assert "cache:6379" in done.stdout
    found = json.loads(_run("settings", "--json", url=url, cwd=tmp_path, FLOTTA_DRAIN_S="7").stdout)
    assert found["drain_s"] == 7
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
def test_the_version_is_the_packages(arguments: list[str]) -> None:
    from importlib.metadata import version

    assert _run(*arguments, url=None).stdout == f"flotta, version {version('flotta')}\n"


@pytest.mark.parametrize("command", ["", "run", "dev", "map", "map watch", "stream", "stream tail", "settings"])
def test_every_command_explains_itself(command: str) -> None:
    done = _call(*command.split(), "--help", url=None)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")


def test_wrong_usage_is_exit_code_2() -> None:
    assert _run("run", url=None).returncode == 2
    assert _call("no-such-command", url=None).returncode == 2
