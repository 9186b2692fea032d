"""The service of the tutorial on pools, run as the page says: three instances, one of them killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import httpx
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "pool.md"
PROGRAM = re.search(r"```python\n(# meters\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
METERS = range(1, 41)  # so many that chance leaves no worker without one: twelve did in one run of forty
WORKER_TTL_S = 5.0
TIMEOUT_S = 30.0


def _read(stream: IO[str]) -> tuple[str, dict[str, int]]:
    """The address, once the fleet is ready, and the process id of each instance."""
    pids: dict[str, int] = {}
    for line in stream:
        if (ready := re.search(r"(\w+\.\d+) ready in .*\(pid (\d+)\)", line)) is not None:
            pids[ready[1]] = int(ready[2])
        elif (address := re.search(r"^ready (http://\S+)", line)) is not None:
            return address[1], pids
    pytest.fail("the fleet has ended")


def _until(check: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


@pytest.mark.timeout(120)
def test_the_tutorial_goes_as_it_says(tmp_path: Path, valkey_url: str) -> None:
    assert PROGRAM is not None
    (tmp_path / "meters.py").write_text(PROGRAM[1])
    command = [sys.executable, "-m", "flotta", "run", "meters:app", "-n", "3", "--port", "0"]
    environ = {**os.environ, "REDIS_URL": valkey_url}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as fleet:
        try:
            assert fleet.stdout is not None
            url, pids = _read(fleet.stdout)
            drain = threading.Thread(target=fleet.stdout.read, name="drain the fleet's output")
            drain.start()
            with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
                _follow(client, pids)
        finally:
            fleet.send_signal(signal.SIGTERM)
            assert fleet.wait(60) == 0
            drain.join()


def _follow(client: httpx.Client, pids: dict[str, int]) -> None:
    for number in METERS:
        assert client.post(f"/meters/{number}").status_code == 200
    assert client.post("/meters/3").status_code == 409

    def owners() -> dict[str, str]:
        try:
            found = client.get("/meters").json()
        except httpx.TransportError:  # a connection that the killed instance had
            return {}
        return {meter["key"]: meter["worker"] for meter in found if meter["state"] == "running"}

    # 2: every key has its worker, and all three have some once the table has settled.
    _until(lambda: len(owners()) == len(METERS) and len(set(owners().values())) == 3)

    # 3: the meters of a killed instance run elsewhere, the others stay where they are.
    before = owners()
    gone = {worker for worker in before.values() if ".2." in worker}  # <service>-<host>-<pid>.<number>.<random>
    os.kill(pids["meters.2"], signal.SIGKILL)
    assert len(gone) == 1
    _until(lambda: len(owners()) == len(METERS) and not gone & set(owners().values()), WORKER_TTL_S + 15.0)

    # 4 and 5
    assert client.post("/meters/3/add/7").status_code == 200
    assert client.delete("/meters/3").status_code == 200
    assert "meter:3" not in owners()
    assert client.post("/meters/3/add/7").status_code == 404
    assert client.post("/meters/1/invoice").json() == {"invoice": "meter 1: 42 units"}
