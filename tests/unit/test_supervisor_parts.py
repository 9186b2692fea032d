"""The parts of the supervisor that need no second process."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flotta.errors import CannotListen, ConfigError
from flotta.server import ServeConfig
from flotta.supervisor import Companion, RunOptions
from flotta.supervisor.footer import Row, Service, Style, cut, footer, prefix, shown_duration, width_of
from flotta.supervisor.launch import Launcher, exit_text, memory_of
from flotta.supervisor.screen import wants_colour
from flotta.supervisor.sockets import Listener, adopt, listen_tcp, listen_unix

PLAIN = Style(colour=False)


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = listen_tcp("127.0.0.1", 0)
    yield found
    found.close()


def _launcher(listener: Listener, environ: dict[str, str] | None = None, **options: object) -> Launcher:
    made = RunOptions(app="shop.web:app", instances=2, service="shop", **options)  # type: ignore[arg-type]
    return Launcher(made, listener, environ or {}, {"REDIS_URL": "redis://:secret@127.0.0.1:1"}, live=False)


def test_what_an_instance_is_told_is_a_serve_config(listener: Listener) -> None:
    command = _launcher(listener, access_log=True, drain_s=7).instance(1, 9)
    config = ServeConfig.from_json(command.environ["FLOTTA_SERVE"])
    assert config.app == "shop.web:app"
    assert config.fds == (listener.socket.fileno(),)
    assert config.status_fd == 9
    assert config.access_log is True
    assert config.drain_s == 7
    assert config.app_dir == str(Path.cwd())
    assert tuple(command.fds) == (listener.socket.fileno(), 9)
    assert command.environ["REDIS_URL"] == "redis://:secret@127.0.0.1:1"


def test_instances_have_ids_of_their_own_that_stay_over_restarts(listener: Listener) -> None:
    def id_of(launcher: Launcher, slot: int) -> str | None:
        return ServeConfig.from_json(launcher.instance(slot, 9).environ["FLOTTA_SERVE"]).instance

    launcher = _launcher(listener)
    assert id_of(launcher, 0) == id_of(launcher, 0)
    assert id_of(launcher, 0) != id_of(launcher, 1)
    named = _launcher(listener, instance="blue")
    assert [id_of(named, 0), id_of(named, 1)] == ["blue.1", "blue.2"]


def test_the_end_of_an_instance_and_of_the_service_are_one_number(listener: Listener) -> None:
    usual = _launcher(listener, drain_s=7)
    assert usual.limits().stop_s == 12
    assert usual.instance(0, 9).environ["FLOTTA_STOP_S"] == "12"
    told = _launcher(listener, drain_s=7, stop_s=8)
    assert told.limits().stop_s == 8
    assert told.instance(0, 9).environ["FLOTTA_STOP_S"] == "8"
    with pytest.raises(ConfigError, match="FLOTTA_STOP_S"):
        _launcher(listener, drain_s=7, stop_s=7)


@pytest.mark.parametrize("name", ["", "a b", "_private", "x" * 64])
def test_a_name_that_no_instance_could_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        RunOptions(app="a:b", service=name)


def test_a_busy_servers_socket_file_is_not_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)  # its queue is full: the next connection waits
        with pytest.raises(CannotListen, match="listens there already"):
            listen_unix(path, 0o600)


def test_the_url_of_a_wildcard_address_is_one_that_can_be_opened() -> None:
    with socket.socket() as sock:
        assert Listener(sock, "0.0.0.0", 80).url() == "http://127.0.0.1:80"
        assert Listener(sock, "::", 80).url("https") == "https://[::1]:80"
        assert Listener(sock, "fe80::1", 80).url() == "http://[fe80::1]:80"


def test_a_port_in_use_is_named_with_its_cure(listener: Listener) -> None:
    with pytest.raises(CannotListen, match=rf"{listener.port} is already in use.*--port 0") as caught:
        listen_tcp("127.0.0.1", listener.port)
    assert caught.value.address == f"127.0.0.1:{listener.port}"


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CannotListen, match="does not have that address"):
        listen_tcp("192.0.2.1", 0)


def test_a_dead_servers_socket_file_is_replaced_and_a_live_ones_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    live = listen_unix(path, 0o600)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    with pytest.raises(CannotListen, match="listens there already"):
        listen_unix(path, 0o600)
    live.close()
    assert not Path(path).exists()


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(CannotListen, match="no socket is there"):
        listen_unix(str(path), 0o600)
    assert path.read_text() == "data"


def test_a_later_owners_socket_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = listen_unix(str(path), 0o600)
    path.unlink()
    second = listen_unix(str(path), 0o600)
    first.close()
    assert path.exists()
    second.close()


def test_a_descriptor_that_does_not_listen_is_refused(listener: Listener) -> None:
    adopted = adopt(listener.socket.fileno())
    assert adopted.port == listener.port
    adopted.close()
    with socket.socket() as idle, pytest.raises(CannotListen, match="does not listen"):
        adopt(idle.fileno())
    with pytest.raises(CannotListen):
        adopt(10_000)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"app": "app"}, "APP"),
        ({"app": "app.py:app:x"}, "APP"),
        ({"instances": 0}, "-n"),
        ({"port": 70_000}, "--port"),
        ({"uds": "s", "fd": 3}, "--fd"),
        ({"ready_path": "health"}, "--ready-path"),
        ({"app_dir": Path("/no/such/folder")}, "--app-dir"),
        ({"ssl_keyfile": "key.pem"}, "--ssl-certfile"),
        ({"ssl_certfile": "/no/such/file"}, "--ssl-certfile"),
        ({"companions": (Companion("app.1", "true"),)}, "--with"),
    ],
)
def test_what_cannot_work_is_refused_by_the_name_of_its_option(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunOptions(**{"app": "app:app", **wrong})  # type: ignore[arg-type]
    assert caught.value.variable == named


@pytest.mark.parametrize("text", ["feed", "=x", "feed=", "fe ed=x", "feed=echo 'open"])
def test_a_companion_is_name_and_command(text: str) -> None:
    with pytest.raises(ConfigError, match="--with"):
        Companion.parse(text)


def test_a_companions_command_may_hold_equal_signs() -> None:
    assert Companion.parse("feed=A=1 run --x=2") == Companion("feed", "A=1 run --x=2")


def _service(rows: int, **options: object) -> Service:
    made = [
        Row(
            name=f"api.{n}",
            pid=1000 + n,
            state="ready",
            colour=36,
            uptime_s=61,
            requests_per_s=12.4,
            sockets=3,
            memory_bytes=50 * 2**20,
            restarts=n,
            last_exit="SIGKILL, 3s ago",
        )
        for n in range(rows)
    ]
    values: dict[str, object] = {"url": "http://127.0.0.1:8000", "uptime_s": 3725, "ready": rows, "instances": rows}
    return Service(rows=made, **{**values, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [20, 39, 79, 200])
@pytest.mark.parametrize("colour", [True, False])
def test_no_line_of_the_footer_is_wider_than_asked(width: int, colour: bool) -> None:
    lines = footer(_service(3), width=width, height=40, style=Style(colour=colour))
    assert max(width_of(line) for line in lines) <= width
    assert all(
        line.endswith("\x1b[0m") for line in lines if "\x1b" in line and line.rfind("\x1b[0m") < line.rfind("\x1b")
    )


def test_the_footer_says_what_it_knows() -> None:
    head, heads, row, *_ = footer(_service(1, remaining_s=12.0), width=100, height=40, style=PLAIN)
    assert "stopping: 12 s left" in head
    assert "1h02m" in head
    assert heads.split() == ["pid", "state", "up", "req/s", "sockets", "memory", "restarts", "last", "exit"]
    assert row.split() == ["api.0", "1000", "ready", "1m01s", "12", "3", "50", "MiB", "-", "SIGKILL,", "3s", "ago"]


def test_of_too_many_instances_those_in_trouble_are_shown() -> None:
    service = _service(60)
    rows = [*service.rows[:-1], Row(name="api.59", pid=None, state="back-off", colour=36)]
    lines = footer(Service(**{**_fields(service), "rows": rows}), width=100, height=24, style=PLAIN)
    assert len(lines) <= 16
    assert any("api.59" in line for line in lines)
    assert any("more" in line for line in lines)


def _fields(service: Service) -> dict[str, object]:
    return {name: getattr(service, name) for name in service.__slots__}


def test_cutting_keeps_colours_closed() -> None:
    assert cut("\x1b[31mabcdef\x1b[0m", 4) == "\x1b[31mabc…\x1b[0m"
    assert cut("abc", 3) == "abc"


def test_prefixes_are_of_one_width() -> None:
    assert prefix("api.1", 7, 36, PLAIN) == "api.1   | "
    assert prefix("api.1", 7, 36, Style(colour=True)).startswith("\x1b[36mapi.1   |")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (3725, "1h02m"), (90_000, "1d01h")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert shown_duration(seconds) == shown


@pytest.mark.parametrize(
    ("environ", "terminal", "wanted"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_when_colours_are_used(environ: dict[str, str], terminal: bool, wanted: bool) -> None:
    assert wants_colour(environ, terminal=terminal) is wanted


def test_how_a_process_ended_is_told_by_its_signals_name() -> None:
    assert [exit_text(code) for code in (0, 3, -9, -200)] == ["exit 0", "exit 3", "SIGKILL", "signal 200"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_the_memory_of_a_process_is_that_of_its_children_too() -> None:
    code = "held = bytearray(64 * 2**20); print('held', flush=True); input()"
    shell = f'"{sys.executable}" -c "{code}"; true'
    with subprocess.Popen(["/bin/sh", "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert 64 * 2**20 < (memory_of(process.pid) or 0) < 2**30
        process.communicate(b"\n")
    assert memory_of(2**30) is None


def test_the_supervisor_carries_neither_a_server_nor_a_redis_client() -> None:
    code = (
        "import sys, flotta.supervisor, flotta.cli.running\n"
        "print(sorted({'uvicorn', 'redis', 'psycopg', 'fastapi', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
