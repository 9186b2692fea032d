"""Harbor, on three real instances: areas are drawn, renamed and deleted by who owns them, and vessels raise alerts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from flotta.postgres import EmbeddedPostgres
from harbor_stage import Stage, stage

SQUARE = [[40.60, -74.10], [40.60, -74.00], [40.70, -74.00], [40.70, -74.10]]
BOW_TIE = [[40.6, -74.1], [40.7, -74.0], [40.7, -74.1], [40.6, -74.0]]


@pytest.fixture(scope="module")
def harbor(
    tmp_path_factory: pytest.TempPathFactory, valkey_url: str, postgres_server: EmbeddedPostgres
) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("harbor"), valkey_url, postgres_server) as running:
        yield running


def draw(harbor: Stage, session: str, name: str = "Roads", **more: Any) -> dict[str, Any]:
    answer = harbor.ask("POST", "/api/areas", {"name": name, "points": SQUARE, **more}, token=session)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def names(harbor: Stage, session: str) -> list[str]:
    """Asked often, so that every instance has answered."""
    answers = [harbor.ask("GET", "/api/areas", token=session).json()["areas"] for _ in range(6)]
    assert all(answer == answers[0] for answer in answers), answers
    return [area["name"] for area in answers[0]]


def test_an_area_is_known_to_every_instance_once_the_answer_is_there(harbor: Stage) -> None:
    _, session = harbor.account()
    area = draw(harbor, session, colour="amber")
    assert area == {"id": area["id"], "name": "Roads", "colour": "amber", "points": SQUARE}
    assert names(harbor, session) == ["Roads"]
    path = f"/api/areas/{area['id']}"
    changed = harbor.ask("PATCH", path, {"name": "Anchorage"}, token=session).json()
    assert changed == {**area, "name": "Anchorage"}
    assert harbor.ask("PATCH", path, {"colour": "red"}, token=session).json()["colour"] == "red"
    assert names(harbor, session) == ["Anchorage"]
    assert harbor.ask("DELETE", path, token=session).status_code == 204
    assert names(harbor, session) == []
    assert harbor.ask("DELETE", path, token=session).status_code == 204, "deleting twice is deleting once"
    assert harbor.ask("PATCH", path, {"name": "Gone"}, token=session).status_code == 404


def test_drawing_the_same_area_again_is_drawing_it_once(harbor: Stage) -> None:
    _, session = harbor.account()
    first = draw(harbor, session)
    assert draw(harbor, session) == first
    other = harbor.ask("POST", "/api/areas", {"name": "Roads", "points": SQUARE[:3]}, token=session)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "name_taken")
    draw(harbor, session, "Elsewhere")
    renamed = harbor.ask("PATCH", f"/api/areas/{first['id']}", {"name": "Elsewhere"}, token=session)
    assert (renamed.status_code, renamed.json()["error"]["code"]) == (409, "name_taken")
    assert names(harbor, session) == ["Elsewhere", "Roads"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"points": SQUARE}, "name_wrong"),
        ({"name": "x", "points": SQUARE[:2]}, "points_wrong"),
        ({"name": "x", "points": BOW_TIE}, "crosses_itself"),
        ({"name": "x", "points": [[90.1, 0], [1, 1], [0, 1]]}, "point_wrong"),
        ({"name": "x", "points": SQUARE, "colour": "url(x)"}, "colour_wrong"),
        ({"name": "x\0y", "points": SQUARE}, "name_wrong"),
    ],
)
def test_what_is_no_area_is_refused_in_words(harbor: Stage, body: dict[str, Any], code: str) -> None:
    _, session = harbor.account()
    answer = harbor.ask("POST", "/api/areas", body, token=session)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert answer.json()["error"]["message"]
    assert names(harbor, session) == []


def test_an_account_has_a_limit_of_areas_also_when_it_draws_at_once(harbor: Stage) -> None:
    email, session = harbor.account()
    for number in range(49):
        draw(harbor, session, f"Area {number}")
    harbor.rows(
        """INSERT INTO areas (owner_id, name, colour, points)
           SELECT owner_id, 'one more', colour, points FROM areas JOIN accounts ON accounts.id = owner_id
           WHERE email = %s LIMIT 1 RETURNING id""",
        email,
    )
    answer = harbor.ask("POST", "/api/areas", {"name": "too many", "points": SQUARE}, token=session)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "too_many_areas")
    assert draw(harbor, session, "Area 7")["name"] == "Area 7", "one that is there may be drawn again"


def test_nobody_sees_or_touches_the_areas_of_another(harbor: Stage) -> None:
    _, owner = harbor.account("Owner")
    _, other = harbor.account("Other")
    path = f"/api/areas/{draw(harbor, owner)['id']}"
    assert names(harbor, other) == []
    assert harbor.ask("PATCH", path, {"name": "Mine"}, token=other).status_code == 404
    assert harbor.ask("DELETE", path, token=other).status_code == 404
    assert names(harbor, owner) == ["Roads"]
    for method in ("GET", "POST"):
        assert harbor.ask(method, "/api/areas", {}).status_code == 401
    assert harbor.ask("GET", "/api/alerts").status_code == 401


async def test_all_pages_of_the_owner_are_told_and_no_others(harbor: Stage) -> None:
    _, owner = harbor.account("Owner")
    _, other = harbor.account("Other")
    async with AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(harbor.page(owner)) for _ in range(6)]
        outsider = await stack.enter_async_context(harbor.page(other))
        for page in [*pages, outsider]:
            await page.hello()
        draw(harbor, owner)
        for page in pages:
            await page.wait(lambda page: any(name == "areas" for name, _ in page.events), "the owner is told")
        assert [name for name, _ in outsider.events] == ["hello"]


def test_a_query_for_alerts_that_makes_no_sense_is_refused(harbor: Stage) -> None:
    _, session = harbor.account()
    for query in ("area=x", "limit=0", "limit=201", "before=-1", "from=yesterday", "from=2026-01-01T00:00:00"):
        answer = harbor.ask("GET", f"/api/alerts?{query}", token=session)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "parameter_wrong"), query
    assert harbor.ask("GET", "/api/alerts?from=2026-01-01T00:00:00Z", token=session).json() == {
        "alerts": [],
        "next": None,
    }


def stored_alerts(harbor: Stage, area_id: int, device: str, count: int) -> int:
    """Alerts as the job stores them, a minute apart; when the first one was."""
    start_s = int(time.time()) - 86_400
    for number in range(count):
        harbor.rows(
            """INSERT INTO alerts (area_id, device_id, kind, at, since, lat, lon)
               VALUES (%s, %s, %s, to_timestamp(%s), now(), 40.6, -74) RETURNING id""",
            area_id,
            device,
            "leave" if number % 2 else "enter",
            start_s + 60 * number,
        )
    return start_s


def test_alerts_are_listed_page_by_page_and_by_area_vessel_and_time(harbor: Stage) -> None:
    _, session = harbor.account()
    (one, _), (two, _) = harbor.device(session), harbor.device(session)
    roads, lane = draw(harbor, session)["id"], draw(harbor, session, "Lane")["id"]
    start_s = stored_alerts(harbor, roads, one, 7)
    stored_alerts(harbor, lane, two, 3)

    def ask(query: str) -> dict[str, Any]:
        return dict(harbor.ask("GET", f"/api/alerts?{query}", token=session).json())

    seen, before = [], ""
    while True:
        answer = ask(f"limit=4{before}")
        seen += answer["alerts"]
        if answer["next"] is None:
            break
        before = f"&before={answer['next']}"
    assert [alert["id"] for alert in seen] == sorted({alert["id"] for alert in seen}, reverse=True)
    assert len(seen) == 10
    assert {alert["area"] for alert in ask(f"area={lane}")["alerts"]} == {lane}
    assert len(ask(f"vessel={one}")["alerts"]) == 7
    some = ask(f"vessel={one}&from={start_s + 60}&to={start_s + 180}")["alerts"]
    assert [alert["at_ms"] for alert in some] == [(start_s + 120) * 1_000, (start_s + 60) * 1_000]
    assert [alert["kind"] for alert in some] == ["enter", "leave"]


def test_alerts_are_shown_to_the_owner_of_the_area_while_it_may_see_the_vessel(harbor: Stage) -> None:
    _, owner = harbor.account("Owner")
    viewer_email, viewer = harbor.account("Viewer")
    _, stranger = harbor.account("Stranger")
    device, _ = harbor.device(owner)
    area_id = draw(harbor, viewer)["id"]
    stored_alerts(harbor, area_id, device, 1)

    def seen(session: str, query: str = "") -> int:
        return len(harbor.ask("GET", f"/api/alerts?{query}", token=session).json()["alerts"])

    assert [seen(session) for session in (owner, viewer, stranger)] == [0, 0, 0]
    harbor.ask("POST", "/api/shares", {"viewer": viewer_email}, token=owner)
    assert [seen(session) for session in (owner, viewer, stranger)] == [0, 1, 0]
    harbor.ask("DELETE", "/api/shares", {"viewer": viewer_email}, token=owner)
    assert [seen(viewer), seen(viewer, f"vessel={device}"), seen(viewer, f"area={area_id}")] == [0, 0, 0]
    harbor.ask("DELETE", f"/api/areas/{area_id}", token=viewer)
    assert harbor.rows("SELECT count(*) FROM alerts WHERE area_id = %s", area_id)[0][0] == 0
