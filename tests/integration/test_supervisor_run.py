"""N instances as a user runs them: one port, one exit, output that can be read."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import ssl
import stat
import subprocess
import threading
from pathlib import Path

import httpx
import pytest
import trustme

from supervisor_service import APP, Service, alive, flotta, records, service, wait_until


def test_three_instances_answer_on_one_port_and_all_leave_at_sigterm(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "3") as running:
        running.url()
        pids = wait_until(lambda: len(p := running.instances()) == 3 and p, "three instances answer")
        family = running.family()
        assert pids < family
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        assert not [pid for pid in family if alive(pid)]
        assert running.lines[-1].endswith("stopped")


def test_the_ready_line_comes_once_and_after_every_instance(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "2") as running:
        running.url()
        before = [line for line in running.lines[: running.lines.index(f"ready {running.url()}")] if "ready in" in line]
        assert len(before) == 2
        os.kill(running.get()["pid"], signal.SIGKILL)
        running.wait_line("ready in", after=len(running.lines))
        assert [line for line in running.lines if line.startswith("ready ")] == [f"ready {running.url()}"]


def test_a_running_request_ends_before_its_instance_does(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "2") as running:
        url = running.url()
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(httpx.get(f"{url}/slow?2", timeout=10)))
        asking.start()
        running.wait_line("slow request began")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        asking.join()
        assert answers[0].status_code == 200


def test_a_second_signal_ends_everything_at_once_with_1(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "2") as running:
        url = running.url()
        family = running.family()
        asking = threading.Thread(target=lambda: _swallow(f"{url}/stuck"))
        asking.start()
        running.wait_line("stuck request began")
        running.signal(signal.SIGTERM)
        running.wait_line("draining")
        running.signal(signal.SIGINT)
        assert running.wait(timeout_s=5) == 1
        asking.join()
        assert not [pid for pid in family if alive(pid)]


def test_one_sigterm_heard_twice_is_no_order_to_kill(tmp_path: Path) -> None:
    """`make demo` under `timeout`: both pass the signal on."""
    with service(tmp_path, "-n", "1") as running:
        url = running.url()
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(httpx.get(f"{url}/slow", timeout=30)))
        asking.start()
        running.wait_line("slow request began")
        running.signal(signal.SIGTERM)
        running.wait_line("SIGTERM: stopping")
        running.signal(signal.SIGTERM)
        assert running.wait(timeout_s=15) == 0
        asking.join()
        assert answers[0].status_code == 200


def _swallow(url: str) -> None:
    """Ask for what is never answered well."""
    with contextlib.suppress(httpx.HTTPError):
        assert httpx.get(url, timeout=30).is_error


def test_a_drain_that_is_not_enough_ends_with_1(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "1", "--drain", "0.3") as running:
        url = running.url()
        asking = threading.Thread(target=lambda: _swallow(f"{url}/stuck"))
        asking.start()
        running.wait_line("stuck request began")
        running.signal(signal.SIGINT)
        assert running.wait(timeout_s=10) == 1
        asking.join()


def test_what_an_instance_started_goes_with_it(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "1") as running:
        pid = running.get("/child")["pid"]
        family = running.family()
        os.kill(pid, signal.SIGKILL)
        running.wait_line("ended by SIGKILL")
        wait_until(lambda: [p for p in family if alive(p) and p != pid and p not in running.family()] == [], "gone")
        running.signal(signal.SIGTERM)
        running.wait()
        assert not [p for p in family if alive(p)]


def test_a_port_in_use_names_the_port_and_the_cure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with service(tmp_path, "--port", str(port)) as running:
            assert running.wait() == 1
            assert f"port {port} is already in use" in running.text
            assert "--port 0" in running.text
            assert "Traceback" not in running.text


@pytest.mark.parametrize(
    ("app", "told"),
    [
        ("raise ValueError('broken at import')", "broken at import"),
        ("import no_such_module_xyz", "no_such_module_xyz"),
        ("application = 1", "has no attribute 'app'"),
    ],
)
def test_an_application_that_cannot_be_imported_is_told_once_for_three_instances(
    tmp_path: Path, app: str, told: str
) -> None:
    with service(tmp_path, "-n", "3", app=app, env={"FLOTTA_LOG_FORMAT": "console"}) as running:
        assert running.wait() == 1
        assert told in running.text
        assert running.text.count("start failed") == 1
        assert running.text.count("ended by exit 3") == 1
        assert "is started again" not in running.text


def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(key)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    options = ("--ssl-certfile", "chain.pem", "--ssl-keyfile", "key.pem", "--ready-path", "/")
    with service(tmp_path, "-n", "2", *options, verify=context) as running:
        assert running.url().startswith("https://127.0.0.1:")
        assert running.get()["pid"] in running.family()


def test_a_key_that_is_not_the_certificates_stops_the_start(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    authority.issue_cert("127.0.0.1").private_key_pem.write_to_path(tmp_path / "key.pem")
    with service(tmp_path, "--ssl-certfile", "chain.pem", "--ssl-keyfile", "key.pem") as running:
        assert running.wait() == 1
        assert "--ssl-certfile" in running.text
        assert "Traceback" not in running.text


def test_a_unix_socket_has_the_mode_asked_for_and_goes_away(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "2", "--uds", "s.sock", "--uds-mode", "600") as running:
        assert running.url() == "unix:s.sock"
        path = tmp_path / "s.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://any/").json()["pid"] in running.family()
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        assert not path.exists()


def test_an_inherited_socket_is_served_on(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        command = flotta("run", "app:app", "-n", "1", "--fd", str(fd))
        with subprocess.Popen(command, cwd=tmp_path, pass_fds=[fd], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                assert any(line == f"ready http://127.0.0.1:{port}\n".encode() for line in process.stdout)
                assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
                process.terminate()
                assert process.wait(30) == 0
            finally:
                process.kill()


def test_a_flask_application_is_served_alike(tmp_path: Path) -> None:
    flask = (
        "import os\nfrom flask import Flask\napp = Flask(__name__)\n"
        "@app.get('/')\ndef index():\n    return {'pid': os.getpid()}\n"
    )
    with service(tmp_path, "-n", "2", app=flask) as running:
        running.url()
        wait_until(lambda: len(running.instances()) == 2, "both answer")


def test_a_factory_makes_the_application(tmp_path: Path) -> None:
    factory = APP.replace("async def app(", "async def made(") + "\ndef app():\n    return made\n"
    with service(tmp_path, "-n", "1", "--factory", app=factory) as running:
        assert running.get()["pid"] in running.family()


def test_changed_files_restart_the_instances_and_no_request_is_refused(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "2", "--reload") as running:
        running.url()
        old = wait_until(lambda: len(p := running.instances()) == 2 and p, "both answer")
        failures: list[Exception] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                try:
                    running.get()
                except httpx.HTTPError as error:
                    failures.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        (tmp_path / "app.py").write_text(APP.replace('"pid":', '"new": True, "pid":'))
        running.wait_line("changed: app.py; restarting")
        wait_until(lambda: len(p := running.instances()) == 2 and not p & old, "two new ones answer")
        assert running.get()["new"] is True
        done.set()
        asking.join()
        assert failures == []


def test_a_broken_change_waits_for_the_next_one(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "2", "--reload") as running:
        running.url()
        (tmp_path / "app.py").write_text("def broken(:\n")
        running.wait_line("waits for a change of the files")
        assert running.text.count("start failed") == 1
        (tmp_path / "app.py").write_text(APP)
        wait_until(lambda: running.process.poll() is None and len(running.instances()) == 2, "both are back")


_CHATTY = (
    APP
    + r"""
import sys
print("a line")
print("on stderr", file=sys.stderr)
sys.stdout.buffer.write(b"invalid \xff\xfe utf-8\n")
sys.stdout.buffer.write(b"\x1b[2J\x1b]0;title\x07\x1b[31mred\x1b[0m\n")
sys.stdout.write("x" * 20000 + "\n")
sys.stdout.write("no newline at the end")
sys.stdout.flush()
"""
)


def test_each_line_carries_the_name_of_its_instance_and_nothing_that_harms_a_terminal(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "2", "--name", "api", app=_CHATTY) as running:
        running.url()
        for name in ("api.1 ", "api.2 "):
            for text in ("a line", "on stderr", "invalid \ufffd\ufffd utf-8", "red", "no newline at the end"):
                running.wait_line(rf"^{name} \| {text}$")
        long = [line for line in running.lines if re.fullmatch(r"api\.1  \| x+", line)]
        assert sum(line.count("x") for line in long) == 20_000
        assert len(long) == 2
        assert "\x1b" not in running.text


def test_json_is_one_record_per_line_and_a_childs_own_record_keeps_its_fields(tmp_path: Path) -> None:
    app = 'print(\'{"event": "mine", "order": 7}\')\n' + _CHATTY
    with service(tmp_path, "-n", "1", "--name", "api", "--json", app=app) as running:
        running.wait_line('"event": "ready http')
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        found = records(running.lines)
        assert all({"event", "source", "level"} <= record.keys() or record["event"] == "mine" for record in found)
        assert {"event": "mine", "order": 7, "source": "api.1"} in found
        assert next(r for r in found if r["event"] == "on stderr")["stream"] == "stderr"
        assert found[-1] | {"event": "stopped", "source": "flotta", "code": 0} == found[-1]


def test_a_reader_that_goes_away_takes_no_service_down(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP.replace('print("slow', 'print("x" * 100_000, "slow'))

    command = flotta("run", "app:app", "-n", "1", "--port", "0")
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            url = next(line for line in process.stdout if line.startswith(b"ready ")).split()[1].decode()
            process.stdout.close()
            for _ in range(20):
                assert httpx.get(f"{url}/slow?0").status_code == 200  # 100 kB each, read by nobody: more than may wait
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_companion_starts_last_finds_the_service_and_is_stopped_first(tmp_path: Path) -> None:
    (tmp_path / "feed.py").write_text(
        "import os, signal, urllib.request\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "print('answered', urllib.request.urlopen(os.environ['FLOTTA_URL']).status, flush=True)\n"
        "signal.sigwait({signal.SIGTERM})\nprint('fed', flush=True)\n"
    )
    with service(tmp_path, "-n", "2", "--with", "feed=exec python feed.py") as running:
        running.wait_line(r"^feed   \| answered 200$")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        fed = next(n for n, line in enumerate(running.lines) if line.endswith("| fed"))
        first_drain = next(n for n, line in enumerate(running.lines) if '"draining"' in line)
        assert fed < first_drain


def test_a_companion_that_crashes_comes_back_and_the_service_goes_on(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "1", "--with", "worker=echo begun; exit 7") as running:
        running.wait_line("worker ended by exit 7")
        running.wait_line("begun", after=len(running.lines))
        assert running.get()["pid"] in running.family()


def test_ready_path_holds_the_ready_line_back_until_it_answers_2xx(tmp_path: Path) -> None:
    first = '    if path == "/slow":'
    app = APP.replace(first, '    if path == "/go":\n        open("go", "w").close()\n' + first)
    app = app.replace('"status": 200', '"status": 200 if path != "/warm" or os.path.exists("go") else 503')
    with service(tmp_path, "-n", "1", "--ready-path", "/warm", app=app) as running:
        address = running.wait_line(r"on (http://\S+), 1 instance")[1]
        running.wait_line("ready in")
        assert httpx.get(f"{address}/warm").status_code == 503
        assert not any(line.startswith("ready ") for line in running.lines)
        httpx.get(f"{address}/go")
        assert running.url() == address


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits are read from /proc")
def test_instances_may_open_as_many_files_as_the_hard_limit_allows(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with service(tmp_path, "-n", "1") as running:
            limits = Path(f"/proc/{running.get()['pid']}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert re.search(rf"Max open files +{hard} ", limits)


def test_sighup_is_reserved_and_harms_nothing(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "1") as running:
        pid = running.get()["pid"]
        running.signal(signal.SIGHUP)
        running.wait_line("SIGHUP ignored")
        assert running.get()["pid"] == pid


def test_a_wrong_setting_is_told_once_before_anything_starts(tmp_path: Path) -> None:
    with service(tmp_path, "-n", "3", env={"FLOTTA_DRAIN_S": "soon"}) as running:
        assert running.wait() == 1
        assert running.text.count("FLOTTA_DRAIN_S") == 1
        assert "Traceback" not in running.text


def test_stopping_before_anything_is_ready_is_graceful(tmp_path: Path) -> None:
    app = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    running_service = None
    with service(tmp_path, "-n", "3", app=app) as running:
        running_service = running
        running.wait_line("importing")
        family = running.family()
        running.signal(signal.SIGTERM)
        assert running.wait(timeout_s=10) == 0
        assert not [pid for pid in family if alive(pid)]
    assert isinstance(running_service, Service)
