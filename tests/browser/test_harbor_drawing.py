"""Areas and alerts on Harbor's page, in a real Chromium: drawn by mouse, finger and keyboard, told as they come."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from harbor_stage import Stage, position
from harbor_visit import PHONE, SIDEWAYS, SMALL_PHONE, WIDE, Visit
from supervisor_service import wait_until

pytestmark = pytest.mark.browser

SQUARE = [[40.60, -74.10], [40.60, -74.00], [40.70, -74.00], [40.70, -74.10]]
CORNERS = [(700, 250), (900, 240), (930, 420), (760, 470)]


def areas_of(harbor: Stage, session: str) -> list[dict[str, Any]]:
    return list(harbor.ask("GET", "/api/areas", token=session).json()["areas"])


def names(visit: Visit) -> list[str]:
    return list(visit.page.locator("#areas .area-name b").all_inner_texts())


@pytest.fixture
def own(visits: Any, harbor: Stage) -> Any:
    """A page of a new account that has one vessel, outside the square; it moves when told to."""
    _, session = harbor.account("Skipper")
    device, token = harbor.device(session, "Lone Tug")
    sent = iter(range(1, 100))

    def report(lat: float) -> None:
        said = position(lat, -74.05, ago_s=30_000 - 300 * next(sent), speed=5.0, course=0.0)
        assert harbor.ask("POST", "/api/positions", said, token=token).status_code == 202

    def visit(viewport: dict[str, int] = WIDE, **options: Any) -> Visit:
        page: Visit = visits(viewport, session=session, **options)
        page.loaded()
        page.state("live")
        return page

    report(40.55)
    visit.session, visit.device, visit.report = session, device, report  # type: ignore[attr-defined]
    return visit


def test_an_area_is_drawn_named_renamed_coloured_and_deleted(own: Any, harbor: Stage) -> None:
    visit = own()
    page = visit.page
    page.locator("#draw").click()
    for x, y in CORNERS[:-1]:
        page.mouse.click(x, y)
    assert page.locator("#draw-hint").inner_text() == "3 corners. Double click or Enter closes the area."
    page.mouse.dblclick(*CORNERS[-1])
    page.get_by_label("Name", exact=True).fill("Pilot station")
    page.get_by_role("radio", name="violet").check()
    page.get_by_role("button", name="Save the area").click()
    page.locator("#draw-bar").wait_for(state="hidden")
    (area,) = areas_of(harbor, own.session)
    assert (area["name"], area["colour"], len(area["points"])) == ("Pilot station", "violet", 4)

    page.locator("#watch").click()
    page.get_by_role("button", name="Areas", exact=True).click()
    page.get_by_role("button", name="Edit Pilot station").click()
    page.get_by_label("Name", exact=True).fill("Roads")
    page.get_by_role("radio", name="amber").check()
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("button", name="Edit Roads").wait_for()
    assert areas_of(harbor, own.session) == [{**area, "name": "Roads", "colour": "amber"}]

    page.get_by_role("button", name="Edit Roads").click()
    page.get_by_role("button", name="Delete the area").click()
    assert len(areas_of(harbor, own.session)) == 1, "it is asked twice"
    page.get_by_role("button", name="Delete it and its alerts").click()
    page.get_by_text("No areas yet.").wait_for()
    assert areas_of(harbor, own.session) == []
    assert visit.complaints == []


def test_an_area_is_drawn_by_keyboard_alone(own: Any, harbor: Stage) -> None:
    visit = own()
    page, keyboard = visit.page, visit.page.keyboard
    keyboard.press("a")
    assert page.evaluate("document.activeElement.id") == "map"
    for moves in ((), ("ArrowRight",), ("ArrowDown",)):
        for move in moves:
            keyboard.press(move)
        keyboard.press("Space")
    keyboard.press("ArrowLeft")
    keyboard.press("Space")
    keyboard.press("Backspace")
    assert page.locator("#draw-hint").inner_text().startswith("3 corners.")
    keyboard.press("Enter")
    keyboard.type("By hand")
    keyboard.press("Enter")
    page.locator("#draw-bar").wait_for(state="hidden")
    (area,) = areas_of(harbor, own.session)
    (lat1, lon1), (lat2, lon2), (lat3, lon3) = area["points"]
    assert lat1 == lat2 > lat3
    assert lon1 < lon2 == lon3
    assert page.locator("#announce").inner_text() == "Area By hand saved"
    assert visit.complaints == []


@pytest.mark.parametrize("viewport", [PHONE, SMALL_PHONE, SIDEWAYS], ids=["phone", "small", "sideways"])
def test_an_area_is_drawn_by_finger(own: Any, harbor: Stage, viewport: dict[str, int]) -> None:
    visit = own(viewport, has_touch=True, is_mobile=True)
    page = visit.page
    page.locator("#watch").tap()
    page.get_by_role("button", name="Areas", exact=True).tap()
    page.locator("#areas-draw").tap()
    page.wait_for_timeout(500)  # the sheet goes down: an animation of a known length
    wide = viewport["width"] > viewport["height"]
    left, top = (360, 90) if wide else (60, 210)
    for x, y in ((left, top), (left + 150, top), (left + 150, top + 120)):
        page.touchscreen.tap(x, y)
    assert page.locator("#draw-hint").inner_text() == "3 corners. Tap the first one to close the area."
    page.touchscreen.tap(left + 5, top + 5)
    page.get_by_label("Name", exact=True).fill("By finger")
    page.get_by_role("button", name="Save the area").tap()
    page.locator("#draw-bar").wait_for(state="hidden")
    assert [len(area["points"]) for area in areas_of(harbor, own.session)] == [3]
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert visit.complaints == []


def test_a_border_that_would_cross_itself_is_refused_while_it_is_drawn(own: Any, harbor: Stage) -> None:
    visit = own()
    page = visit.page
    page.locator("#draw").click()
    hint = page.locator("#draw-hint")
    page.keyboard.press("Enter")
    assert hint.inner_text() == "An area needs at least three corners."
    for x, y in ((600, 250), (900, 250), (900, 450)):
        page.mouse.click(x, y)
    page.mouse.click(700, 150)
    assert hint.inner_text() == "That side would cross the border. Choose another corner."
    page.mouse.click(1000, 260)
    page.keyboard.press("Enter")
    assert hint.inner_text() == "The last side would cross the border. Add a corner, or undo one."
    assert page.locator("#draw-finish").is_disabled()
    page.locator("#draw-undo").click()
    page.locator("#draw-finish").click()
    page.get_by_role("button", name="Back to the drawing").click()
    assert hint.is_visible()
    page.keyboard.press("Escape")
    assert not hint.is_visible()
    assert areas_of(harbor, own.session) == []
    assert visit.complaints == []


def test_what_the_service_refuses_is_said_in_the_dialog_and_nothing_is_lost(own: Any, harbor: Stage) -> None:
    harbor.ask("POST", "/api/areas", {"name": "Roads", "points": SQUARE}, token=own.session)
    visit = own()
    page = visit.page
    page.locator("#draw").click()
    for x, y in CORNERS:
        page.mouse.click(x, y)
    page.locator("#draw-finish").click()
    page.get_by_label("Name", exact=True).fill("Roads")
    page.get_by_role("button", name="Save the area").click()
    page.get_by_text("You have another area of this name already.").wait_for()
    page.get_by_label("Name", exact=True).fill("Lane")
    page.get_by_role("button", name="Save the area").click()
    page.locator("#draw-bar").wait_for(state="hidden")
    assert sorted(area["name"] for area in areas_of(harbor, own.session)) == ["Lane", "Roads"]
    assert visit.complaints == ["error: Failed to load resource: the server responded with a status of 409 (Conflict)"]


def test_alerts_are_counted_told_listed_and_flown_to(own: Any, harbor: Stage) -> None:
    harbor.ask("POST", "/api/areas", {"name": "Roads", "points": SQUARE, "colour": "amber"}, token=own.session)
    visit = own()
    page = visit.page
    badge, announced = page.locator("#watch-badge"), page.locator("#announce-alerts")
    own.report(40.61)
    badge.get_by_text("1", exact=True).wait_for()
    assert announced.inner_text() == "Lone Tug entered Roads"
    assert page.locator("#watch").get_attribute("aria-label") == "Alerts and areas, 1 unread"
    own.report(40.62)
    own.report(40.56)
    badge.get_by_text("2", exact=True).wait_for()
    page.locator("#watch").click()
    assert not badge.is_visible()
    rows = page.locator("#alerts .alert-words")
    assert rows.all_inner_texts() == ["Lone Tug left Roads", "Lone Tug entered Roads"]
    told = page.locator("#alerts .alert-told").first.inner_text()
    assert re.fullmatch(r"(just now|\d+ s ago), after 10 min · \d\d:\d\d:\d\d UTC", told), told
    page.wait_for_function("() => document.querySelector('#announce-alerts').textContent === 'Lone Tug left Roads'")
    page.locator("#alerts .alert").last.click()
    assert page.locator("#detail h2").inner_text() == "Lone Tug"

    page.reload()
    visit.state("live")
    page.locator("#watch").click()
    rows.nth(1).wait_for()
    assert rows.all_inner_texts() == ["Lone Tug left Roads", "Lone Tug entered Roads"], "they are stored"
    assert visit.complaints == []


def test_another_page_of_the_account_sees_every_change_at_once(own: Any, harbor: Stage) -> None:
    one, other = own(), own()
    other.page.locator("#watch").click()
    other.page.get_by_role("button", name="Areas", exact=True).click()
    one.page.locator("#draw").click()
    for x, y in CORNERS:
        one.page.mouse.click(x, y)
    one.page.keyboard.press("Enter")
    one.page.keyboard.type("Shared view")
    one.page.keyboard.press("Enter")
    other.page.get_by_role("button", name="Edit Shared view").wait_for()
    area_id = areas_of(harbor, own.session)[0]["id"]
    harbor.ask("DELETE", f"/api/areas/{area_id}", token=own.session)
    other.page.get_by_text("No areas yet.").wait_for()
    assert one.complaints == other.complaints == []


def test_the_demonstration_has_areas_and_tells_alerts_within_a_minute(visits: Any) -> None:
    visit = visits()
    visit.loaded()
    page = visit.page
    page.locator("#watch").click()
    page.locator("#alerts .alert").first.wait_for(timeout=60_000)
    page.get_by_role("button", name="Areas", exact=True).click()
    assert "The Narrows" in names(visit)
    assert len(names(visit)) >= 5
    before = page.evaluate("document.querySelector('.map-areas').toDataURL()")
    page.locator("#areas .area-name").first.click()
    page.wait_for_timeout(900)  # the flight: an animation of a known length
    assert page.evaluate("document.querySelector('.map-areas').toDataURL()") != before
    assert visit.complaints == []


def test_the_fleet_shows_the_jobs_of_each_instance(visits: Any, harbor: Stage) -> None:
    wait_until(lambda: sum(one["jobs"] for one in harbor.status()["instances"]) >= 295, "all vessels are watched", 30)
    visit = visits()
    visit.loaded()
    visit.page.locator("#connection-button").click()
    shown = visit.page.locator("#instances span").all_inner_texts()
    jobs = [int(re.search(r"(\d+) jobs?$", text)[1]) for text in shown]  # type: ignore[index]
    assert len(jobs) == 3
    assert sum(jobs) >= 295
    assert visit.complaints == []


def test_a_silent_feed_is_told_on_the_badge(own: Any) -> None:
    visit = own()
    visit.page.clock.install(time=time.time())
    visit.page.reload()
    visit.state("live")
    badge = visit.page.locator("#live-badge")
    assert badge.inner_text() == "LIVE"
    visit.page.clock.fast_forward(40_000)
    badge.get_by_text("QUIET").wait_for()
    own.report(40.57)
    badge.get_by_text("LIVE").wait_for()
    assert visit.complaints == []


def test_a_trail_goes_on_through_what_came_while_the_connection_was_lost(own: Any) -> None:
    visit = own()
    page = visit.page
    for lat in (40.56, 40.57):
        own.report(lat)
    visit.frame("frame.trail.length === 2")
    page.context.set_offline(True)
    visit.state("reconnecting")
    for lat in (40.58, 40.59, 40.60):
        own.report(lat)
    page.context.set_offline(False)
    visit.state("live")
    visit.frame("frame.trail.length === 5")
