"""Harbor's geofences on three real instances: who crosses a border raises an alert, once, for who may see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flotta.postgres import EmbeddedPostgres
from harbor_stage import PageSocket, Stage, position, stage
from supervisor_service import wait_until

SQUARE = [[40.60, -74.10], [40.60, -74.00], [40.70, -74.00], [40.70, -74.10]]
OUTSIDE, INSIDE = 40.55, 40.65
SILENT_S = 4.0


@pytest.fixture(scope="module")
def harbor(
    tmp_path_factory: pytest.TempPathFactory, valkey_url: str, postgres_server: EmbeddedPostgres
) -> Iterator[Stage]:
    env = {"HARBOR_SILENT_S": str(SILENT_S), "HARBOR_WORKER_TTL_S": "2"}
    with stage(tmp_path_factory.mktemp("harbor"), valkey_url, postgres_server, env=env) as running:
        yield running


class Vessel:
    """A device of an account, an hour of the told time from one report to the next."""

    def __init__(self, harbor: Stage, session: str) -> None:
        self._harbor = harbor
        self.id, self._token = harbor.device(session)
        self._ago_s = 100 * 3_600.0

    def report(self, *lats: float) -> None:
        for lat in lats:
            self._ago_s -= 3_600
            answer = self._harbor.ask("POST", "/api/positions", position(lat, ago_s=self._ago_s), token=self._token)
            assert answer.json()["accepted"] == 1, answer.text


def draw(harbor: Stage, session: str, name: str = "Roads") -> int:
    answer = harbor.ask("POST", "/api/areas", {"name": name, "points": SQUARE}, token=session)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def kinds(harbor: Stage, device: str) -> list[str]:
    return [str(row[0]) for row in harbor.rows("SELECT kind FROM alerts WHERE device_id = %s ORDER BY at", device)]


def wait_kinds(harbor: Stage, device: str, *expected: str) -> None:
    wait_until(lambda: len(kinds(harbor, device)) >= len(expected), f"{len(expected)} alerts", 20)
    assert kinds(harbor, device) == list(expected)


def alerts(page: PageSocket) -> list[dict[str, Any]]:
    return [data for name, data in page.events if name == "alert"]


async def test_entering_and_leaving_is_shown_and_stored(harbor: Stage) -> None:
    _, session = harbor.account()
    area_id, vessel = draw(harbor, session), Vessel(harbor, session)
    async with harbor.page(session) as page:
        await page.hello()
        vessel.report(OUTSIDE, OUTSIDE + 0.01, INSIDE, INSIDE + 0.01, OUTSIDE)
        await page.wait(lambda page: len(alerts(page)) == 2, "two alerts", 20)
        shown = alerts(page)
    listed = harbor.ask("GET", "/api/alerts", token=session).json()["alerts"]
    assert shown == listed[::-1], "what is shown is what is stored"
    entered, left = shown
    assert (entered["kind"], entered["area"], entered["device"], entered["lat"]) == (
        "enter",
        area_id,
        vessel.id,
        INSIDE,
    )
    assert (left["kind"], left["lat"]) == ("leave", OUTSIDE)
    assert left["since_ms"] == entered["at_ms"]
    assert left["at_ms"] - entered["at_ms"] == pytest.approx(2 * 3_600_000, abs=5_000)


async def test_an_alert_goes_to_the_owner_of_the_area_while_it_may_see_the_vessel(harbor: Stage) -> None:
    _, owner = harbor.account("Owner")
    viewer_email, viewer = harbor.account("Viewer")
    vessel = Vessel(harbor, owner)
    draw(harbor, viewer)
    draw(harbor, owner, "Own roads")
    async with harbor.page(viewer) as seeing, harbor.page(owner) as owning:
        await seeing.hello()
        await owning.hello()

        async def told(count: int) -> None:
            await owning.wait(lambda page: len(alerts(page)) == count, f"{count} alerts of the owner", 20)

        vessel.report(OUTSIDE, INSIDE, OUTSIDE)
        await told(2)
        harbor.ask("POST", "/api/shares", {"viewer": viewer_email}, token=owner)
        vessel.report(INSIDE)
        await told(3)
        await seeing.wait(lambda page: len(alerts(page)) == 1, "the shared vessel's alert")
        harbor.ask("DELETE", "/api/shares", {"viewer": viewer_email}, token=owner)
        vessel.report(OUTSIDE, INSIDE)
        await told(5)
        assert [alert["kind"] for alert in alerts(seeing)] == ["enter"]
    raised = harbor.rows(
        "SELECT owner_id, count(*) FROM alerts JOIN areas ON areas.id = area_id WHERE device_id = %s GROUP BY 1",
        vessel.id,
    )
    assert sorted(count for _, count in raised) == [1, 5], "for the viewer nothing else was raised"


def test_a_new_vessel_is_watched_from_its_first_report_on(harbor: Stage) -> None:
    """Its job starts seconds later and reads the stream from before."""
    _, session = harbor.account()
    draw(harbor, session)
    vessel = Vessel(harbor, session)
    vessel.report(OUTSIDE, INSIDE, OUTSIDE, INSIDE)
    wait_kinds(harbor, vessel.id, "enter", "leave", "enter")


def test_nobody_enters_an_area_that_is_drawn_around_them(harbor: Stage) -> None:
    _, session = harbor.account()
    vessel = Vessel(harbor, session)
    vessel.report(INSIDE)
    draw(harbor, session)
    vessel.report(INSIDE + 0.01, OUTSIDE, INSIDE)
    wait_kinds(harbor, vessel.id, "leave", "enter")


def jobs_of(harbor: Stage) -> int:
    return sum(instance["jobs"] for instance in harbor.status()["instances"])


def test_a_silent_vessel_is_watched_no_more_and_goes_on_where_it_was_when_it_reports_again(harbor: Stage) -> None:
    _, session = harbor.account()
    draw(harbor, session)
    vessel = Vessel(harbor, session)
    vessel.report(OUTSIDE, INSIDE)
    wait_kinds(harbor, vessel.id, "enter")
    wait_until(lambda: jobs_of(harbor) == 0, "no vessel is watched", 30)
    vessel.report(INSIDE + 0.01, OUTSIDE)
    wait_kinds(harbor, vessel.id, "enter", "leave")
    wait_until(lambda: jobs_of(harbor) == 1, "it is watched again", 10)


def test_reports_that_come_late_raise_nothing(harbor: Stage) -> None:
    _, session = harbor.account()
    draw(harbor, session)
    vessel = Vessel(harbor, session)
    vessel.report(OUTSIDE, INSIDE)
    wait_kinds(harbor, vessel.id, "enter")
    vessel._ago_s += 2 * 3_600 + 60  # before both
    vessel.report(INSIDE)
    vessel._ago_s -= 3_600
    vessel.report(OUTSIDE)
    wait_kinds(harbor, vessel.id, "enter", "leave")
