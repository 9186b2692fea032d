"""The supervisor when processes die: instances, companions, itself."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from supervisor_service import APP, alive, flotta, service, wait_until

pytestmark = pytest.mark.faults


def test_a_killed_instance_comes_back_while_the_others_serve_on(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "3") as running:
        running.url()
        pids = wait_until(lambda: len(p := running.instances()) == 3 and p, "three answer")
        victim = pids.pop()
        os.kill(victim, signal.SIGKILL)
        # New connections only ever reach the living: the socket is the parent's, none is refused or reset.
        for _ in range(200):
            assert running.get()["pid"] != victim
        now = wait_until(lambda: len(p := running.instances()) == 3 and p, "three answer again")
        assert pids < now
        assert victim not in now
        running.wait_line(r"app\.\d ended by SIGKILL")


def test_five_quick_crashes_stop_everything_and_show_the_last_traceback(tmp_path: Path) -> None:
    app = APP.replace(
        "message = await receive()", 'message = await receive()\n            raise RuntimeError("no luck")'
    )
    with service(tmp_path, "-n", "3", app=app, env={"FLOTTA_LOG_FORMAT": "console"}) as running:
        assert running.wait() == 1
        assert running.text.count("is started again") == 4
        end = running.text.partition("5 quick crashes in a row")[2]
        assert "no luck" in end
        assert "Traceback" in end


def test_crashes_after_ready_count_too_and_the_others_are_drained(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "2") as running:
        running.url()
        family = running.family()
        for _ in range(5):
            os.kill(running.get()["pid"], signal.SIGKILL)
        assert running.wait() == 1
        assert "5 quick crashes in a row" in running.text
        assert not [pid for pid in family if alive(pid)]


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "3", "--with", "feed=sleep 1000 & sleep 1000") as running:
        running.get("/child")
        wait_until(lambda: len([p for p in running.family() if "sleep" in _name(p)]) >= 3, "all have begun")
        family = running.family()
        assert len(family) >= 8
        running.signal(signal.SIGKILL)
        running.wait()
        wait_until(lambda: not [pid for pid in family if alive(pid)], "all have ended", timeout_s=10)


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return ""


def test_a_killed_warden_still_leaves_no_instance_behind(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "2") as running:
        running.url()
        (warden,) = [p for p in running.family() if "warden.py" in " ".join(psutil.Process(p).cmdline())]
        instances = running.family() - {warden}
        os.kill(warden, signal.SIGKILL)
        running.signal(signal.SIGKILL)
        running.wait()
        wait_until(lambda: not [pid for pid in instances if alive(pid)], "all have ended", timeout_s=10)


def test_an_instance_that_ignores_sigterm_is_killed_in_time(tmp_path: Path) -> None:
    app = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(600)\n"
    )
    with service(tmp_path, "-n", "1", app=app, env={"FLOTTA_DRAIN_S": "0.5", "FLOTTA_STOP_S": "1"}) as running:
        running.wait_line("deaf")
        family = running.family()
        running.signal(signal.SIGTERM)
        assert running.wait(timeout_s=5) == 1, "long before the usual 30 s"
        assert "did not end in time: killed" in running.text
        assert not [pid for pid in family if alive(pid)]


def test_a_companion_that_ignores_sigterm_holds_the_drain_up_for_3_s_at_most(tmp_path: Path) -> None:
    deaf = "deaf=trap '' TERM; echo deaf; while true; do sleep 1; done"
    with service(tmp_path, "-n", "1", "--with", deaf) as running:
        running.wait_line(r"\| deaf")
        running.signal(signal.SIGTERM)
        assert running.wait(timeout_s=10) == 0
        assert "deaf did not end in time: killed" in running.text


def test_a_flood_of_output_to_a_reader_that_stops_reading_does_not_stop_the_supervisor(tmp_path: Path) -> None:

    flood = "import threading\ndef flood():\n    while True: print('y' * 1000)\n"
    flood += "threading.Thread(target=flood, daemon=True).start()\n"
    (tmp_path / "app.py").write_text(APP + flood)
    command = flotta("run", "app:app", "-n", "2", "--port", "0")
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            _flooded(process)
        finally:
            process.kill()


def _flooded(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"ready "):
            break
    supervisor = psutil.Process(process.pid)
    instances = [child.pid for child in supervisor.children() if "flotta.server" in _line(child)]
    assert len(instances) == 2
    wait_until(lambda: _rests(instances), "the instances wait for a reader, as if they wrote to it themselves", 30)
    memory = supervisor.memory_info().rss
    # Nobody reads, and still it sees a death and answers it.
    os.kill(instances[0], signal.SIGKILL)
    wait_until(
        lambda: [c for c in supervisor.children() if c.pid not in instances and "flotta.server" in _line(c)],
        "a new instance",
    )
    assert supervisor.memory_info().rss < memory + 20 * 2**20
    process.terminate()
    reading = threading.Thread(target=process.stdout.read)
    reading.start()
    assert process.wait(40) in (0, 1)
    reading.join()


def _rests(pids: list[int]) -> bool:
    """Whether they write next to nothing (their statistics, once a second) for half a second."""

    def written() -> int:
        return sum(psutil.Process(pid).io_counters().write_chars for pid in pids)

    before = written()
    time.sleep(0.5)  # the length of the observation
    return written() - before < 20_000


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
