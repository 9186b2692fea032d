"""One worker in a process of its own: what it serves, what it tells, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trustme

from flotta.postgres import EmbeddedPostgres
from flotta.redis.embedded import EmbeddedRedis
from server_process import WorkerProcess

FASTAPI = """
import asyncio, time
from fastapi import FastAPI, WebSocket
from flotta import Fleet

fleet = Fleet()
flags = fleet.map("flags")
started = asyncio.Event()
app = FastAPI(lifespan=fleet.lifespan)

@app.get("/")
async def root():
    return {"instance": fleet.instance.id}

@app.get("/slow")
async def slow(seconds: float):
    print("slow request is here", flush=True)
    await asyncio.sleep(seconds)
    await fleet.redis.ping()
    return {"slow": seconds}

@app.get("/crash")
async def crash():
    raise LookupError("no such ship")

@app.get("/block")
async def block(seconds: float):
    time.sleep(seconds)
    return {}

@app.get("/hang")
async def hang():
    print("hanging", flush=True)
    while True:
        time.sleep(3600)

@app.websocket("/ws")
async def ws(websocket: WebSocket):
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())
"""

FLASK = """
from flask import Flask, request
from flotta import Fleet

fleet = Fleet()
flags = fleet.sync.map("flags")
app = Flask(__name__)

@app.get("/set")
def set_flag():
    flags.set_and_wait("colour", request.args["colour"])
    return {"colour": flags.get("colour"), "instance": fleet.instance.id}
"""

PLAIN = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"plain"})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("fast", FASTAPI), ("flasky", FLASK), ("plain", PLAIN)):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.fixture
def redis_environ(valkey_url: str, unique: str) -> dict[str, str]:
    return {"REDIS_URL": valkey_url, "FLOTTA_NAMESPACE": f"{unique}:"}


@pytest.fixture
def fast(folder: Path, redis_environ: dict[str, str]) -> Iterator[WorkerProcess]:
    with WorkerProcess(folder, "fast:app", config={"instance": "api.1"}, **redis_environ) as worker:
        worker.wait_for("ready")
        yield worker


def metrics_of(http: httpx.Client) -> str:
    """The metrics of a worker without the label that says whose they are."""
    text = re.sub(r',?instance_id="[^"]*"', "", http.get("/metrics").text)
    return text.replace("{,", "{").replace("{}", "")


def in_thread(http: httpx.Client, path: str) -> tuple[threading.Thread, list[httpx.Response]]:
    """Asks for ``path`` in a thread; the list holds the answer when it has come, nothing if the connection broke."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        with suppress(httpx.HTTPError):
            answers.append(http.get(path))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def test_fastapi_is_served_and_tells_its_states_in_order(fast: WorkerProcess) -> None:
    with fast.client() as http:
        assert http.get("/").json() == {"instance": "api.1"}
        health = http.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "healthy")
        assert health.json()["checks"]["redis"]["ok"] is True
        assert http.get("/health/live").json() == {"status": "live"}
        assert http.get("/health/ready").json() == {"status": "ready"}
        assert http.head("/health").content == b""
    stats = fast.wait_until(lambda m: m.get("stats", {}).get("requests") == 1)["stats"]
    assert stats["ready"] is True
    fast.terminate()
    fast.wait_for("stopped")
    assert fast.wait() == 0
    states = [m["state"] for m in fast.messages if "state" in m]
    assert states == ["starting", "started", "ready", "draining", "stopped"]
    assert all(m["pid"] == fast.process.pid for m in fast.messages if "state" in m)
    assert "fleet stopped" in fast.log()


def test_flask_runs_in_threads_with_its_fleet(folder: Path, redis_environ: dict[str, str]) -> None:
    with WorkerProcess(folder, "flasky:app", config={"instance": "web.1"}, **redis_environ) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            assert http.get("/set", params={"colour": "red"}).json() == {"colour": "red", "instance": "web.1"}
            assert http.get("/health").json()["checks"]["redis"]["ok"] is True
        worker.terminate()
        assert worker.wait() == 0
        assert "fleet stopped" in worker.log()


def test_realtime_server_of_a_flask_application_is_mounted(folder: Path, redis_environ: dict[str, str]) -> None:
    from websockets.sync.client import connect

    (folder / "chat.py").write_text(f"{FLASK}\nsio = fleet.realtime(transports=('polling', 'websocket'))\n")
    with WorkerProcess(folder, "chat:app", **redis_environ) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            assert http.get("/socket.io/", params={"EIO": "4", "transport": "polling"}).text.startswith('0{"sid"')
            assert http.get("/set", params={"colour": "red"}).json()["colour"] == "red"
            with connect(worker.url.replace("http", "ws") + "/socket.io/?EIO=4&transport=websocket") as client:
                assert str(client.recv()).startswith('0{"sid"')
                assert "\nwebsocket_connections 2.0" in metrics_of(http), "one by polling, one native"
        worker.terminate()
        assert worker.wait() == 0


def test_plain_asgi_without_lifespan_needs_no_fleet(folder: Path) -> None:
    with WorkerProcess(folder, "plain:app") as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            assert http.get("/x").text == "plain"
            assert http.get("/health").json() == {"status": "healthy", "checks": {}}
        worker.terminate()
        assert worker.wait() == 0


def test_parts_that_the_application_does_not_use_are_not_imported(folder: Path) -> None:
    (folder / "modules.py").write_text(
        "import sys\nfrom fastapi import FastAPI\nfrom flotta import Fleet\nfleet = Fleet()\napp = FastAPI()\n"
        "@app.get('/')\nasync def modules():\n    return sorted(m for m in sys.modules if m.startswith('flotta.'))\n"
    )
    with WorkerProcess(folder, "modules:app") as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            imported = {name.split(".")[1] for name in http.get("/").json()}
    assert not imported & {"realtime", "postgres", "migrations", "streaming", "rmap", "redis"}


def test_inherited_socket_is_used_and_left_open_for_others(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = {"fds": [listener.fileno()]}
        with WorkerProcess(folder, "plain:app", config=config) as worker:
            worker.wait_for("ready")
            port = listener.getsockname()[1]
            assert httpx.get(f"http://127.0.0.1:{port}/").text == "plain"
            worker.terminate()
            assert worker.wait() == 0
        # Still listening: a connection waits in the backlog for the next worker.
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def test_sigterm_lets_a_slow_request_end_and_refuses_new_connections(fast: WorkerProcess) -> None:
    with fast.client() as http:
        port = http.base_url.port
        request, answers = in_thread(http, "/slow?seconds=2")
        fast.wait_log("slow request is here")
        fast.terminate()
        fast.wait_for("draining")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        assert request.is_alive()
        request.join(20)
    assert answers[0].json() == {"slow": 2.0}
    assert answers[0].headers["connection"] == "close"
    assert fast.wait() == 0


def test_crash_of_a_handler_is_logged_and_keeps_the_connection(fast: WorkerProcess) -> None:
    with fast.client() as http:
        for _ in range(20):
            assert http.get("/crash").status_code == 500
            assert http.get("/").status_code == 200
        assert 'method="GET",status="500"} 20.0' in metrics_of(http)
    crash = next(line for line in fast.log_lines() if line["event"] == "request failed")
    assert crash["path"] == "/crash"
    assert "no such ship" in crash["exception"]


def test_idle_keep_alive_connection_gets_one_more_answer_and_a_close(fast: WorkerProcess) -> None:
    with fast.client() as http:
        assert "connection" not in http.get("/").headers
        fast.terminate()
        fast.wait_for("draining")
        answer = http.get("/")
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        assert fast.wait() == 0


def test_readiness_ends_with_the_drain(fast: WorkerProcess) -> None:
    with fast.client() as http:
        assert http.get("/health/ready").status_code == 200
        fast.terminate()
        fast.wait_for("draining")
        answer = http.get("/health/ready")
        assert (answer.status_code, answer.json()["reasons"]) == (503, ["draining"])
    assert fast.wait() == 0


def test_request_past_the_deadline_is_cancelled_and_the_exit_says_forced(
    folder: Path, redis_environ: dict[str, str]
) -> None:
    with WorkerProcess(folder, "fast:app", config={"drain_s": 0.5}, **redis_environ) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            request, answers = in_thread(http, "/slow?seconds=60")
            worker.wait_until(lambda m: m.get("stats", {}).get("in_flight") == 1)
            worker.terminate()
            stopped = worker.wait_for("stopped")
            assert (worker.wait(), stopped["code"]) == (1, 1)
            request.join(20)
        assert answers[0].status_code == 503
        assert "stopping" in answers[0].text
        assert "requests cancelled" in worker.log()
        assert "fleet stopped" in worker.log(), "Redis must be closed even then"


def test_second_signal_forces_at_once(folder: Path, redis_environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = {"fds": [listener.fileno()]}
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            WorkerProcess(folder, "fast:app", config=config, supervised=False, **redis_environ) as worker,
            httpx.Client(base_url=url, timeout=30) as http,
        ):
            request, answers = in_thread(http, "/slow?seconds=60")
            worker.wait_log("slow request is here")
            worker.terminate()
            worker.wait_log('"draining"')
            worker.terminate()
            assert worker.wait(10) == 1
            request.join(20)
    assert answers[0].status_code == 503


def test_sigterm_that_comes_twice_under_a_supervisor_is_one_order(fast: WorkerProcess) -> None:
    with fast.client() as http:
        request, answers = in_thread(http, "/slow?seconds=2")
        fast.wait_log("slow request is here")
        fast.terminate()
        fast.wait_for("draining")
        fast.terminate()
        request.join(20)
    assert answers[0].status_code == 200
    assert fast.wait() == 0


def test_blocked_loop_cannot_keep_the_process(folder: Path, redis_environ: dict[str, str]) -> None:
    environ = {**redis_environ, "FLOTTA_DRAIN_S": "0.2", "FLOTTA_STOP_S": "0.5"}
    with WorkerProcess(folder, "fast:app", **environ) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            request, answers = in_thread(http, "/hang")
            while "hanging" not in worker.log():
                assert worker.process.poll() is None
            worker.terminate()
            assert worker.wait(10) == 1
            assert worker.wait_for("stopped")["code"] == 1
            request.join(20)
            assert answers == [], "its connection broke"
        overdue = next(line for line in worker.log_lines() if line["event"].startswith("forced"))
        assert "time.sleep(3600)" in overdue["where"]


def test_supervised_worker_ignores_the_terminals_interrupt(fast: WorkerProcess) -> None:
    fast.process.send_signal(signal.SIGINT)
    with fast.client() as http:
        assert http.get("/").status_code == 200
    assert fast.process.poll() is None


def test_worker_ends_when_its_supervisor_is_gone(fast: WorkerProcess) -> None:
    fast.close_status()
    assert fast.wait() == 0
    assert "the supervisor is gone" in fast.log()


def test_blocked_loop_is_logged_with_its_place(fast: WorkerProcess) -> None:
    with fast.client() as http:
        http.get("/block?seconds=1.5")
        blocked = [line for line in fast.log_lines() if line["event"] == "event loop blocked"]
        assert len(blocked) == 1, "once for each blockage"
        assert "time.sleep(seconds)" in blocked[0]["where"]
        metrics = metrics_of(http)
        assert "flotta_loop_blocked_total 1.0" in metrics


def test_websocket_is_served_counted_and_closed_with_1012(fast: WorkerProcess) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    with connect(fast.url.replace("http", "ws") + "/ws") as client:
        client.send("hello")
        assert client.recv() == "hello"
        fast.wait_until(lambda m: m.get("stats", {}).get("websocket_connections") == 1)
        with fast.client() as http:
            assert "\nwebsocket_connections 1.0" in metrics_of(http)
        fast.terminate()
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    assert fast.wait() == 0


def test_redis_gone_makes_health_fail_with_the_reason_and_leaves_it_ready(
    folder: Path, own_valkey: EmbeddedRedis
) -> None:
    with WorkerProcess(folder, "fast:app", REDIS_URL=own_valkey.url) as worker:
        worker.wait_for("ready")
        own_valkey.kill()
        with worker.client() as http:
            health = http.get("/health")
            assert health.status_code == 503
            assert health.json()["status"] == "unhealthy"
            assert "redis" in health.json()["error"]
            assert http.get("/health/ready").status_code == 200
            assert http.get("/health/live").status_code == 200
            assert "flotta_redis_connected" in metrics_of(http)
        worker.terminate()
        assert worker.wait() == 0


def test_postgres_gone_makes_health_fail_with_the_reason_and_comes_back(
    folder: Path, valkey_url: str, postgres_folder: Path
) -> None:
    with EmbeddedPostgres(postgres_folder) as server:
        environ = {"REDIS_URL": valkey_url, "DATABASE_URL": server.url, "FLOTTA_HEALTH_TIMEOUT_S": "1"}
        with WorkerProcess(folder, "fast:app", **environ) as worker:
            worker.wait_for("ready")
            with worker.client() as http:
                assert http.get("/health").json()["checks"]["postgres"]["ok"] is True
                assert 'flotta_postgres_pool_size_max{service="app"} 10.0' in metrics_of(http)
                server.kill()
                health = http.get("/health")
                assert health.status_code == 503
                assert "postgres" in health.json()["error"]
                assert health.json()["checks"]["redis"]["ok"] is True
                assert http.get("/health/ready").status_code == 200
                server.restart_sync()
                while http.get("/health").status_code != 200:
                    assert worker.process.poll() is None
            worker.terminate()
            assert worker.wait() == 0


def test_redis_that_is_required_takes_readiness_away_and_gives_it_back(folder: Path, own_valkey: EmbeddedRedis) -> None:
    environ = {"REDIS_URL": own_valkey.url, "FLOTTA_READY_REQUIRES": "redis", "FLOTTA_HEALTH_TIMEOUT_S": "0.5"}
    with WorkerProcess(folder, "fast:app", **environ) as worker:
        worker.wait_for("ready")
        own_valkey.kill()
        with worker.client() as http:
            answer = http.get("/health/ready")
            assert (answer.status_code, "redis" in answer.json()["reasons"][0]) == (503, True)
            own_valkey.restart_sync()
            while http.get("/health/ready").status_code != 200:
                assert worker.process.poll() is None


def test_start_without_redis_fails_with_the_reason(folder: Path) -> None:
    with WorkerProcess(folder, "fast:app") as worker:
        failed = worker.wait_for("failed")
        assert "REDIS_URL" in failed["reason"]
        assert "FLOTTA_EMBEDDED=1" in failed["reason"]
        assert (failed["hopeless"], failed["traceback"]) == (True, "")
        assert worker.wait() == 3
        assert "Traceback" not in worker.log()


def test_wrong_setting_fails_as_hopeless_before_the_application_is_imported(folder: Path) -> None:
    (folder / "loud.py").write_text("print('imported')\n" + PLAIN)
    with WorkerProcess(folder, "loud:app", FLOTTA_DRAIN_S="soon") as worker:
        failed = worker.wait_for("failed")
        assert "FLOTTA_DRAIN_S" in failed["reason"]
        assert failed["hopeless"] is True
        assert worker.wait() == 3
        assert "imported" not in worker.log()


def test_failing_import_shows_the_applications_own_traceback(folder: Path) -> None:
    (folder / "broken.py").write_text("def part():\n    return 1 / 0\n\npart()\n")
    with WorkerProcess(folder, "broken:app") as worker:
        failed = worker.wait_for("failed")
        assert "ZeroDivisionError" in failed["reason"]
        assert "return 1 / 0" in failed["traceback"]
        assert "importlib" not in failed["traceback"]
        assert worker.wait() == 3
        assert "return 1 / 0" in worker.log()


def test_failing_lifespan_fails_the_start_with_its_reason(folder: Path) -> None:
    (folder / "refuses.py").write_text(
        "from contextlib import asynccontextmanager\nfrom fastapi import FastAPI\n\n"
        "@asynccontextmanager\nasync def lifespan(app):\n    raise LookupError('no licence')\n    yield\n\n"
        "app = FastAPI(lifespan=lifespan)\n"
    )
    with WorkerProcess(folder, "refuses:app") as worker:
        failed = worker.wait_for("failed")
        assert failed["reason"] == "application startup failed: LookupError: no licence"
        assert "raise LookupError('no licence')" in failed["traceback"]
        assert failed["hopeless"] is False
        assert worker.wait() == 3
        assert not any(m.get("state") == "started" for m in worker.messages)


def test_signal_while_it_starts_ends_it(folder: Path, redis_environ: dict[str, str]) -> None:
    (folder / "waits.py").write_text(
        FASTAPI
        + "\n@fleet.on_start\nasync def wait():\n    print('in on_start', flush=True)\n    await asyncio.sleep(3600)\n"
    )
    with WorkerProcess(folder, "waits:app", **redis_environ) as worker:
        worker.wait_for("starting")
        while "in on_start" not in worker.log():
            assert worker.process.poll() is None
        worker.terminate()
        assert worker.wait(10) == 0
        assert not any(m.get("state") == "started" for m in worker.messages)


def test_own_routes_are_hidden_with_a_word_and_can_be_had_back(folder: Path) -> None:
    (folder / "own.py").write_text(
        "from fastapi import FastAPI\napp = FastAPI()\n\n@app.get('/health')\ndef health():\n    return 'mine'\n"
    )
    with WorkerProcess(folder, "own:app") as worker:
        worker.wait_for("ready")
        hidden = [line for line in worker.log_lines() if line["event"].startswith("the application's own route")]
        assert [line["path"] for line in hidden] == ["/health"]
    with WorkerProcess(folder, "own:app", FLOTTA_HEALTH_PATH="/up", FLOTTA_METRICS_PATH="off") as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            assert http.get("/health").json() == "mine"
            assert http.get("/up/live").json() == {"status": "live"}
            assert http.get("/metrics").status_code == 404


def test_metrics_are_for_loopback_or_a_token(folder: Path) -> None:
    with WorkerProcess(folder, "plain:app", FLOTTA_METRICS_TOKEN="let-me-in-please") as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            assert http.get("/metrics").status_code == 200
            assert http.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 403
            assert http.get("/metrics", headers={"Forwarded": "for=127.0.0.1"}).status_code == 403
            assert http.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 403
            proxied = {"X-Forwarded-For": "203.0.113.9", "Authorization": "Bearer let-me-in-please"}
            assert http.get("/metrics", headers=proxied).status_code == 200


def test_metrics_show_every_part(fast: WorkerProcess) -> None:
    with fast.client() as http:
        http.get("/")
        http.request("PURGE", "/")
        text = metrics_of(http)
        with_labels = http.get("/metrics").text
    for line in (
        'flotta_http_requests_total{method="GET",status="200"} 1.0',
        'flotta_http_requests_total{method="OTHER",status="405"} 1.0',
        'flotta_http_request_duration_seconds_bucket{le="+Inf"} 2.0',
        "flotta_http_requests_in_flight 0.0",
        'flotta_map_keys{map="flags"} 0.0',
        'flotta_map_stale{map="flags"} 0.0',
        'flotta_redis_connected{service="app"} 1.0',
        "flotta_loop_lag_seconds ",
        "process_resident_memory_bytes ",
    ):
        assert line in text
    samples = [line for line in with_labels.splitlines() if not line.startswith("#")]
    assert all('instance_id="api.1"' in line for line in samples), "behind a shared port they are told apart"


def test_tls_is_served(folder: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for n, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(folder / "cert.pem", append=n > 0)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    config = {"ssl_certfile": str(folder / "cert.pem"), "ssl_keyfile": str(folder / "key.pem")}
    with WorkerProcess(folder, "plain:app", config=config) as worker:
        worker.wait_for("ready")
        assert worker.url.startswith("https://")
        with worker.client(verify=context) as http:
            assert http.get("/").text == "plain"


def test_unix_socket_is_served_and_a_stale_one_replaced(folder: Path) -> None:
    path = folder / "own.sock"
    for _ in range(2):  # the second finds the file of the first, which was killed
        with WorkerProcess(folder, "plain:app", config={"uds": str(path)}) as worker:
            worker.wait_for("ready")
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as http:
                assert http.get("/").text == "plain"
                assert http.get("/metrics").status_code == 200
            os.kill(worker.process.pid, signal.SIGKILL)


def test_taken_port_is_told_at_once(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with WorkerProcess(folder, "plain:app", config={"port": port}) as worker:
            assert f"127.0.0.1:{port}" in worker.wait_for("failed")["reason"]
            assert worker.wait() == 3


def test_access_log_has_fields_and_no_token(folder: Path) -> None:
    with WorkerProcess(folder, "plain:app", config={"access_log": True}) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            http.get("/x?token=hunter2hunter2&page=3")
        worker.terminate()
        assert worker.wait() == 0
        line = next(line for line in worker.log_lines() if line["event"] == "request")
        assert (line["method"], line["status"], line["path"]) == ("GET", 200, "/x?token=***&page=3")


def test_fleet_that_the_lifespan_forgot_is_reported(folder: Path, redis_environ: dict[str, str]) -> None:
    (folder / "forgot.py").write_text(
        "from fastapi import FastAPI\nfrom flotta import Fleet\nfleet = Fleet()\napp = FastAPI()\n"
    )
    with WorkerProcess(folder, "forgot:app", **redis_environ) as worker:
        worker.wait_for("ready")
        assert "lifespan=fleet.lifespan" in worker.log()


@pytest.mark.parametrize(("app", "told"), [("api", True), ("app", False)])
def test_realtime_server_that_is_not_in_the_application_is_reported_once_a_client_asks(
    folder: Path, redis_environ: dict[str, str], app: str, told: bool
) -> None:
    (folder / "unmounted.py").write_text(
        "from fastapi import FastAPI\nfrom flotta import Fleet\nfleet = Fleet()\nsio = fleet.realtime()\n"
        "api = FastAPI(lifespan=fleet.lifespan)\napp = sio.app(api)\n"
    )
    with WorkerProcess(folder, f"unmounted:{app}", **redis_environ) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            for path in ("/other", "/socket.io/", "/socket.io/"):
                answer = http.get(path, params={"EIO": "4", "transport": "polling"})
                assert answer.status_code == (404 if told or path == "/other" else 200)
        assert worker.log().count("realtime clients get 404") == worker.log().count("app = sio.app(api)") == told


def test_realtime_client_that_asks_at_another_path_than_the_servers_is_reported(
    folder: Path, redis_environ: dict[str, str]
) -> None:
    (folder / "elsewhere.py").write_text(
        "from fastapi import FastAPI\nfrom flotta import Fleet\nfleet = Fleet()\n"
        "app = fleet.realtime(path='/live').app(FastAPI(lifespan=fleet.lifespan))\n"
    )
    with WorkerProcess(folder, "elsewhere:app", **redis_environ) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            for path in ("/other", "/socket.io/", "/socket.io/"):
                assert http.get(path, params={"EIO": "4", "transport": "polling"}).status_code == 404
        [line] = [line for line in worker.log_lines() if "realtime clients get 404" in line["event"]]
        assert line["path"] == "/socket.io/"
        assert line["cure"].endswith("served is /live")


def test_a_thread_that_the_application_forgot_cannot_keep_the_process(folder: Path) -> None:
    (folder / "forgetful.py").write_text(
        "import threading\nfrom plain import app\n"
        "threading.Thread(target=threading.Event().wait, name='mine').start()\n"
    )
    with WorkerProcess(folder, "forgetful:app") as worker:
        worker.wait_for("ready")
        worker.terminate()
        assert worker.wait_for("stopped")["code"] == 0
        assert worker.wait(10) == 1
        assert "did not end: mine" in worker.log()


def test_unix_socket_of_a_living_server_is_not_taken(folder: Path) -> None:
    path = folder / "taken.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with WorkerProcess(folder, "plain:app", config={"uds": str(path)}) as worker:
            assert str(path) in worker.wait_for("failed")["reason"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_nothing_to_serve_is_a_clean_error(folder: Path) -> None:
    with WorkerProcess(folder, "plain:app", config={"interface": "cgi"}) as worker:
        assert worker.wait() == 3
        assert "interface" in worker.log()
