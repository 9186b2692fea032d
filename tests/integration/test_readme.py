"""The programs of the README run as they stand there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
PROGRAM = re.compile(r"```python\n(# (?P<file>\w+\.py)\n.*?)```", re.DOTALL)


@pytest.fixture
def program(tmp_path: Path):
    """Writes a program of the README into a folder of its own and gives its path."""
    programs = {m["file"]: m[1] for m in PROGRAM.finditer(README.read_text())}
    assert set(programs) == {"counter.py", "orders.py", "vessels.py", "chat.py"}

    def write(name: str) -> Path:
        path = tmp_path / name
        path.write_text(programs[name])
        return path

    return write


def _run(path: Path, redis_url: str) -> list[str]:
    environ = {**os.environ, "REDIS_URL": redis_url}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_map_program_counts_on(program, valkey_url: str) -> None:
    path = program("counter.py")
    assert _run(path, valkey_url) == ["so far 0", "visits 1", "visits 2", "visits 3"]
    assert _run(path, valkey_url) == ["so far 3", "visits 4", "visits 5", "visits 6"]


def test_the_stream_program_bills_each_order_once(program, valkey_url: str) -> None:
    path = program("orders.py")
    assert _run(path, valkey_url) == [f"placed order {n}" for n in range(3)]


def test_the_pool_program_runs_a_job_and_a_task(program, valkey_url: str) -> None:
    printed = [line for line in _run(program("vessels.py"), valkey_url) if line.startswith(("367000140", "report"))]
    assert printed == [
        "367000140 called at New York",
        "367000140 called at New York, Rotterdam",
        "report on 367000140 sent",
    ]


@pytest.mark.timeout(90)
def test_the_realtime_program_serves_on_three_instances(program, valkey_url: str) -> None:
    path = program("chat.py")
    command = [sys.executable, "-m", "flotta", "run", "chat:app", "-n", "3", "--port", "0"]
    environ = {**os.environ, "REDIS_URL": valkey_url}
    with subprocess.Popen(command, cwd=path.parent, env=environ, stdout=subprocess.PIPE, text=True) as fleet:
        try:
            assert fleet.stdout is not None
            url = next(m[1] for line in fleet.stdout if (m := re.search(r"ready (http://\S+)", line)))
            with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
                assert json.load(answer)["status"] == "healthy"
        finally:
            fleet.send_signal(signal.SIGTERM)
            fleet.stdout.read()
            assert fleet.wait(40) == 0
