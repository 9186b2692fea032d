"""``python -m harbor.demo``, as ``make demo`` runs it: one ready line, three instances, a clean end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from free_ports import free_port
from harbor_stage import HOME, SOURCE
from peers import missing
from supervisor_service import wait_until


@pytest.fixture
def built() -> None:
    if not (HOME / "src/harbor/static/app/index.html").is_file():
        missing("browser", "Harbor's page is not built: make web")


def demo(folder: Path, port: int) -> subprocess.Popen[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLOTTA_", "REDIS_", "DATABASE_", "HARBOR_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "harbor.demo", "--embedded-dir", str(folder / ".flotta")],
        cwd=folder,
        env={**environ, "PYTHONPATH": str(SOURCE), "PORT": str(port), "HARBOR_SPEED": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_demo_says_ready_once_when_positions_flow_and_leaves_nothing_behind(
    postgres_folder: Path, ending: signal.Signals
) -> None:
    port = free_port()
    process = demo(postgres_folder, port)
    family: list[psutil.Process] = []
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready "):
                break
        assert lines[-1] == f"ready http://127.0.0.1:{port}\n", "".join(lines)
        status = httpx.get(f"http://127.0.0.1:{port}/api/status", trust_env=False).json()
        assert len(status["instances"]) == 3
        assert status["positions_stored"] > 0
        assert status["positions_per_second"] > 0
        assert status["viewers"] == 0
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 6, "three instances, the feed, two servers"
        process.send_signal(ending)
        rest, _ = process.communicate(timeout=40)
        assert process.returncode == 0, rest
        assert not re.search(r"^ready ", rest, re.MULTILINE)
        wait_until(lambda: not [child for child in family if child.is_running()], "every process has ended")
    finally:
        process.kill()
        process.communicate(timeout=40)
        for child in family:
            if child.is_running():
                child.kill()


@pytest.mark.usefixtures("built")
def test_a_taken_port_is_named(postgres_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        process = demo(postgres_folder, port)
        output, _ = process.communicate(timeout=40)
    assert process.returncode != 0
    assert str(port) in output
    assert "ready http" not in output
