"""Harbor, on three real instances: reports become rows, each exactly once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flotta.postgres import EmbeddedPostgres
from harbor_stage import Stage, position, stage
from supervisor_service import wait_until


@pytest.fixture(scope="module")
def harbor(
    tmp_path_factory: pytest.TempPathFactory, valkey_url: str, postgres_server: EmbeddedPostgres
) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("harbor"), valkey_url, postgres_server) as running:
        yield running


def track(count: int, *, start_ago_s: float = 3_000.0) -> list[dict[str, float]]:
    """A vessel that sails north at a possible speed, a report every two seconds."""
    return [position(40.5 + 1e-5 * n, -74.0, ago_s=start_ago_s - 2 * n, speed=1.2) for n in range(count)]


def test_a_single_report_becomes_one_row_with_all_it_said(harbor: Stage) -> None:
    _, session = harbor.account()
    device, token = harbor.device(session)
    report = position(40.7, -74.02, speed=12.3, course=271.5, heading=270)
    answer = harbor.ask("POST", "/api/positions", report, token=token)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "duplicates": 0, "rejected": []})
    harbor.wait_stored(device, 1)
    query = """SELECT (extract(epoch FROM time) * 1000)::bigint, lat, lon, speed_kn, course_deg, heading_deg
               FROM positions WHERE device_id = %s"""
    ((time_ms, lat, lon, speed, course, heading),) = harbor.rows(query, device)
    assert time_ms == round(report["time"] * 1000)
    assert (lat, lon, course, heading) == (40.7, -74.02, 271.5, 270)
    assert speed == pytest.approx(12.3)


def test_a_batch_is_judged_report_by_report(harbor: Stage) -> None:
    _, session = harbor.account()
    device, token = harbor.device(session)
    now = time.time()
    reports = [
        {"time": now - 60, "lat": 40.6, "lon": -74.0},
        {"time": now - 50, "lat": 0, "lon": 0},
        {"time": now - 40, "lat": 91, "lon": -74.0},
        {"time": now - 30, "lat": 41.6, "lon": -74.0},
        {"time": now + 3_600, "lat": 40.6, "lon": -74.0},
        {"time": now - 400 * 86_400, "lat": 40.6, "lon": -74.0},
        {"time": now - 60, "lat": 40.6, "lon": -74.0},
        {"time": now - 20, "lat": 40.6, "lon": -74.0, "device": "mmsi:367000140"},
        "nonsense",
        {"time": now, "lat": 40.6001, "lon": -74.0},
    ]
    answer = harbor.ask("POST", "/api/positions/batch", {"positions": reports}, token=token)
    assert answer.status_code == 202
    outcome = answer.json()
    assert (outcome["accepted"], outcome["duplicates"]) == (2, 1)
    assert [(refusal["index"], refusal["code"]) for refusal in outcome["rejected"]] == [
        (1, "null_island"),
        (2, "lat_wrong"),
        (3, "impossible_speed"),
        (4, "time_future"),
        (5, "time_old"),
        (7, "unknown_device"),
        (8, "not_an_object"),
    ]
    harbor.wait_stored(device, 2)


def test_a_request_that_is_no_batch_says_what_is_wrong(harbor: Stage) -> None:
    _, session = harbor.account()
    _, token = harbor.device(session)
    cases = {
        "positions_wrong": {"positions": [position()] * 501},
        "not_json": None,
    }
    for code, body in cases.items():
        answer = harbor.ask("POST", "/api/positions/batch", body, token=token)
        assert answer.status_code in {400, 422}
        assert answer.json()["error"]["code"] == code
    huge = harbor.ask("POST", "/api/positions/batch", {"positions": [{"x": "y" * 300_000}]}, token=token)
    assert huge.status_code == 413
    assert harbor.ask("POST", "/api/positions", position(), token="hd_wrong").status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b'{"positions": [{"device": "\\ud800", "time": 1, "lat": 1, "lon": 1}]}',
        b'{"positions": [{"time": "\\udfff", "lat": 1, "lon": 1}]}',
        b'{"positions": ' + b"[" * 50_000,
        b"\xff\xfe",
    ],
    ids=["half a pair as a device", "half a pair as a time", "deep", "no text"],
)
def test_a_body_that_no_text_can_hold_is_refused_as_such(harbor: Stage, body: bytes) -> None:
    _, session = harbor.account()
    _, token = harbor.device(session)
    answer = harbor.http.post("/api/positions/batch", content=body, headers={"authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_json")


def test_a_number_beyond_all_calendars_is_a_wrong_time(harbor: Stage) -> None:
    _, session = harbor.account()
    _, token = harbor.device(session)
    for time_s in (10**400, 1e308, -1e308):
        answer = harbor.ask("POST", "/api/positions", {**position(), "time": time_s}, token=token)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "time_wrong")


def test_every_refusal_has_the_same_form(harbor: Stage) -> None:
    for method, path, status in (
        ("GET", "/api/nothing", 404),
        ("PUT", "/api/status", 405),
        ("GET", "/api/flowing?instances=many", 422),
        ("GET", "/assets/nothing.js", 404),
        ("GET", "/api/vessels", 401),
    ):
        answer = harbor.ask(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"code", "message"}


def test_a_device_that_is_registered_again_is_told_where_its_token_is(harbor: Stage) -> None:
    _, session = harbor.account()
    device, _ = harbor.device(session)
    again = harbor.ask("POST", "/api/devices", {"id": device}, token=session)
    assert again.status_code == 409
    assert f"/api/devices/{device}/token" in again.json()["error"]["message"]
    _, stranger = harbor.account()
    foreign = harbor.ask("POST", "/api/devices", {"id": device}, token=stranger)
    assert foreign.status_code == 409
    assert "token" not in foreign.json()["error"]["message"]


def test_many_batches_over_all_instances_are_stored_complete_and_once(harbor: Stage) -> None:
    _, session = harbor.account()
    device, token = harbor.device(session)
    reports = track(1_000)
    for start in range(0, len(reports), 50):
        answer = harbor.ask("POST", "/api/positions/batch", {"positions": reports[start : start + 50]}, token=token)
        assert answer.json()["accepted"] == 50
    harbor.wait_stored(device, 1_000)
    ((rows, times),) = harbor.rows("SELECT count(*), count(DISTINCT time) FROM positions WHERE device_id = %s", device)
    assert (rows, times) == (1_000, 1_000)


def test_a_batch_whose_answer_was_lost_may_be_sent_again(harbor: Stage) -> None:
    _, session = harbor.account()
    device, token = harbor.device(session)
    reports = track(40)
    body = json.dumps({"positions": reports}).encode()
    address = urlsplit(harbor.url)
    head = f"POST /api/positions/batch HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {token}\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        harbor.wait_stored(device, 40)  # it was taken in; the answer is never read
    again = harbor.ask("POST", "/api/positions/batch", {"positions": reports}, token=token).json()
    assert again["accepted"] + again["duplicates"] == 40
    assert again["rejected"] == []
    later = position(40.5005, -74.0)
    assert harbor.ask("POST", "/api/positions", later, token=token).status_code == 202
    harbor.wait_stored(device, 41)
    assert harbor.stored(device) == 41


def test_a_new_token_ends_the_old_one_on_every_instance_at_once(harbor: Stage) -> None:
    _, session = harbor.account()
    device, token = harbor.device(session)
    renewed = harbor.ask("POST", f"/api/devices/{device}/token", token=session).json()["token"]
    answers = {harbor.ask("POST", "/api/positions", position(), token=token).status_code for _ in range(12)}
    assert answers == {401}
    assert harbor.ask("POST", "/api/positions", position(), token=renewed).status_code == 202


def test_a_new_device_may_report_to_every_instance_at_once(harbor: Stage) -> None:
    _, session = harbor.account()
    for _ in range(5):
        _, token = harbor.device(session)
        reports = (position(ago_s=60 - n) for n in range(6))
        assert {harbor.ask("POST", "/api/positions", report, token=token).status_code for report in reports} == {202}


def test_the_figures_of_the_status_are_those_of_the_database(harbor: Stage) -> None:
    wait_until(lambda: len(harbor.instances()) == 3, "three instances are on the board")
    _, session = harbor.account()
    device, token = harbor.device(session)
    for report in track(30):
        harbor.ask("POST", "/api/positions", report, token=token)
    harbor.wait_stored(device, 30)
    count = int(harbor.rows("SELECT count(*) FROM positions")[0][0])
    wait_until(lambda: harbor.status()["positions_stored"] == count, f"the status counts {count} positions")
    wait_until(lambda: harbor.status()["positions_per_second"] > 0, "positions per second are told")


ADMITS = """
import asyncio, os, sys
from harbor.config import HarborConfig
from harbor.parts import Harbor

async def main():
    harbor = Harbor(HarborConfig.load(os.environ))
    async with harbor.fleet:
        for token in sys.argv[1:]:
            await harbor.registry.admit_demo_gateway(token)
            await harbor.registry.credentials_mirror.reconcile()

asyncio.run(main())
"""


def test_later_demonstrations_leave_the_last_eight_feeds_alone(harbor: Stage) -> None:
    def may_report(token: str) -> bool:
        return harbor.ask("GET", "/api/devices", token=token).status_code == 200

    assert may_report(harbor.token)
    environ = {**os.environ, **harbor.environ, "FLOTTA_INSTANCE": "harbor-later"}
    starts = [f"start {number}" for number in range(8)]
    subprocess.run([sys.executable, "-c", ADMITS, *starts], env=environ, check=True, timeout=60)
    assert all(wait_until(lambda token=start: may_report(token), start) for start in starts)
    wait_until(lambda: not may_report(harbor.token), "the ninth last has ended")


CRASHER = """
import asyncio, os, signal
from flotta.streaming.sink import Sink
from harbor.config import HarborConfig
from harbor.parts import Harbor

async def die(self, *events):
    print("committed", len(events), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

Sink.ack = die

async def main():
    harbor = Harbor(HarborConfig.load(os.environ))
    async with harbor.fleet:
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.faults
def test_a_persister_killed_between_commit_and_ack_leaves_every_row_once(
    tmp_path: Path, valkey_url: str, postgres_server: EmbeddedPostgres
) -> None:
    with stage(tmp_path, valkey_url, postgres_server, instances=1) as harbor:
        _, session = harbor.account()
        device, token = harbor.device(session)
        environ = {**os.environ, **harbor.environ, "FLOTTA_INSTANCE": "harbor-crasher"}
        crasher = subprocess.Popen([sys.executable, "-c", CRASHER], env=environ, stdout=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: "harbor-crasher" in harbor.instances(), "the one that is to die takes part")
            reports = track(200)
            sent = 0
            while crasher.poll() is None and sent < len(reports):
                answer = harbor.ask("POST", "/api/positions", reports[sent], token=token)
                assert answer.status_code == 202
                sent += 1
            assert crasher.wait(10) == -signal.SIGKILL
            assert crasher.stdout is not None
            assert "committed" in crasher.stdout.read()
        finally:
            crasher.kill()
            crasher.communicate()
        harbor.wait_stored(device, sent)
        duplicates = "SELECT coalesce(sum(duplicates), 0) FROM persisted"
        wait_until(lambda: harbor.rows(duplicates)[0][0] > 0, "what the dead one had stored came again", 20)
        assert harbor.stored(device) == sent
        assert harbor.rows("SELECT sum(stored) FROM persisted")[0][0] == sent


async def test_a_repeated_report_is_shown_again_as_it_was_accepted(harbor: Stage) -> None:
    """The instance that had it may have died between accepting and showing it."""
    _, session = harbor.account()
    _, token = harbor.device(session)
    said = position(lat=40.65)
    async with harbor.page(session) as page:
        await page.hello()
        for lat in (40.65, 40.66):
            assert harbor.ask("POST", "/api/positions", {**said, "lat": lat}, token=token).status_code == 202
        await page.wait(lambda page: [name for name, _ in page.events].count("positions") == 2, "both")
        first, second = (fixes for name, fixes in page.events if name == "positions")
        assert first == second
