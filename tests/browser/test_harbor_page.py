"""Harbor's page in a real Chromium, on three real instances with the replay feed."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from typing import Any

import httpx
import pytest

from harbor_stage import Stage, position
from harbor_visit import PHONE, SIDEWAYS, SMALL_PHONE, SMALL_SIDEWAYS, WIDE
from supervisor_service import wait_until

pytestmark = pytest.mark.browser

# What Chromium itself writes when an instance dies under a connection or a request. Nothing of the page's own fits.
LOST_INSTANCE = re.compile(
    r"error: (WebSocket connection to 'ws://127\.0\.0\.1:\d+/socket\.io/\S*' failed: .*"
    r"|Failed to load resource: net::ERR_\w+)"
)


def test_the_page_opens_into_the_live_map_and_the_vessels_move(visits: Any, harbor: Stage) -> None:
    visit = visits()
    visit.loaded()
    visit.state("live")
    assert visit.page.locator("#counts").inner_text() == "295 vessels"
    assert visit.page.locator("#account-name").inner_text() == "Demo viewer"
    visit.changes(12)
    visit.page.locator("#connection-button").click()
    assert visit.page.locator("#instances li").count() == 3
    assert visit.page.locator("#instances li.serves").count() == 1
    assert visit.serving_pid() in harbor.instances().values()
    assert visit.complaints == []


def test_a_killed_instance_leaves_the_map_going_on(visits: Any, harbor: Stage) -> None:
    visit = visits()
    visit.loaded()
    first = visit.serving_pid()
    harbor.kill(first)
    visit.page.locator(f'#connection[data-state="live"]:not([data-pid="{first}"])').wait_for()
    visit.page.get_by_text("Carried on by").wait_for()
    visit.page.wait_for_function("() => document.querySelector('#counts').textContent === '295 vessels'")
    visit.changes(12)
    assert [text for text in visit.complaints if not LOST_INSTANCE.fullmatch(text)] == []


def test_a_killed_instance_leaves_no_hole_in_a_trail_and_the_picture_is_not_loaded_again(
    visits: Any, harbor: Stage
) -> None:
    _, owner = harbor.account("Owner")
    _, token = harbor.device(owner, "Steady Tug")
    told = itertools.count()

    def report(times: int) -> None:
        for number in itertools.islice(told, times):
            said = position(40.65, -74.10 + 0.002 * number, ago_s=6_000 - 60 * number, speed=6.0, heading=90.0)
            assert stubbornly(lambda said=said: harbor.ask("POST", "/api/positions", said, token=token)) == 202

    report(1)
    visit = visits(session=owner)
    visit.state("live")
    visit.frame("true")
    loads: list[str] = []
    visit.page.on("request", lambda request: loads.append(request.url) if "/api/vessels" in request.url else None)
    report(4)
    for _ in range(2):
        first = visit.serving_pid()
        wait_until(lambda: len(harbor.instances()) == 3, "three instances", 20)
        harbor.kill(first)
        report(8)  # some before the page notices, some while it is away, some when it is back
        visit.page.locator(f'#connection[data-state="live"]:not([data-pid="{first}"])').wait_for()
    report(4)
    pieces = 1 + 4 + 2 * 8 + 4 - 1
    frame = visit.frame(f"frame.trail.length === {pieces}")
    lengths = [piece[1]["x"] - piece[0]["x"] for piece in frame["trail"][:-1]]  # the last one is still growing
    assert lengths == pytest.approx([lengths[0]] * (pieces - 1), rel=0.02)
    assert loads == []
    assert [text for text in visit.complaints if not LOST_INSTANCE.fullmatch(text)] == []


def stubbornly(ask: Any) -> int:
    """The status of an answer; the request is repeated when its instance is killed, as a device does it."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            if (status := int(ask().status_code)) != 503:
                return status


def test_a_session_of_an_earlier_start_gives_way_to_a_new_one(visits: Any) -> None:
    visit = visits()
    visit.loaded()
    visit.page.evaluate("sessionStorage.setItem('harbor-session', 'h1.W10.c2lnbmF0dXJl')")
    visit.page.reload()
    visit.loaded()
    assert visit.page.locator("#account-name").inner_text() == "Demo viewer"
    assert not visit.page.locator("#dialog").is_visible()
    assert visit.complaints == [
        "error: Failed to load resource: the server responded with a status of 401 (Unauthorized)"
    ]


@pytest.mark.parametrize(
    "viewport", [PHONE, SMALL_PHONE, SIDEWAYS, SMALL_SIDEWAYS], ids=["phone", "small", "sideways", "small-sideways"]
)
def test_nothing_is_wider_than_a_phone(visits: Any, viewport: dict[str, int]) -> None:
    visit = visits(viewport, has_touch=True, is_mobile=True)
    visit.loaded()
    grip = visit.page.locator("#grip")
    for action in (visit.loaded, visit.rows().first.click, *([grip.click] if grip.is_visible() else [])):
        action()
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= viewport["width"]
        outside = visit.page.evaluate(
            """width => [...document.querySelectorAll('button, input, h1, h2, dd, #counts, .row-speed')].filter(one => {
                 const box = one.getBoundingClientRect(), panel = one.closest('#panel')?.getBoundingClientRect();
                 const [left, right] = panel ? [panel.left, panel.right] : [0, width];  // the panel cuts off the rest
                 return box.width && !one.closest('.chips') && (box.left < left - 1 || box.right > right + 1);
               }).map(one => one.outerHTML)""",
            viewport["width"],
        )
        assert outside == []
    assert visit.page.locator("#detail").is_visible()
    assert visit.complaints == []


def test_the_theme_follows_the_system_and_then_the_reader(visits: Any) -> None:
    visit = visits(color_scheme="dark")
    visit.loaded()
    background = "getComputedStyle(document.body).backgroundColor"
    dark = visit.page.evaluate(background)
    assert visit.page.locator("html").get_attribute("data-theme") == "dark"
    visit.page.get_by_role("button", name="Use the light theme").click()
    assert visit.page.evaluate(background) != dark
    visit.page.reload()
    visit.loaded()
    assert visit.page.locator("html").get_attribute("data-theme") == "light"
    assert visit.complaints == []


def test_everything_is_reached_by_keyboard(visits: Any) -> None:
    visit = visits()
    visit.loaded()
    keyboard, page = visit.page.keyboard, visit.page
    keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    keyboard.type("barberi")
    assert visit.rows().count() == 1
    keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.id") == "list"
    keyboard.press("Enter")
    page.locator("#detail h2").wait_for()
    assert page.locator("#detail h2").inner_text() == "ANDREW J BARBERI"
    assert page.locator("#announce").inner_text() == "ANDREW J BARBERI selected"
    assert page.locator('#list [aria-selected="true"]').count() == 1
    keyboard.press("f")
    assert page.get_by_role("button", name="Following").get_attribute("aria-pressed") == "true"
    keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    keyboard.press("/")
    keyboard.press("Escape")
    keyboard.press("Escape")
    page.wait_for_function("() => document.querySelectorAll('#list .row').length === 295")
    page.locator("#list").focus()
    keyboard.press("End")
    keyboard.press("Home")
    keyboard.press("ArrowDown")
    second = visit.rows().nth(1).get_attribute("id")
    assert page.locator("#list").get_attribute("aria-activedescendant") == second
    assert visit.complaints == []


def test_filters_narrow_the_list_and_can_be_left(visits: Any) -> None:
    visit = visits()
    visit.loaded()
    page = visit.page
    page.get_by_role("button", name="Tankers").click()
    assert set(visit.rows().locator(".row-about").all_text_contents()) == {"Tanker"}
    page.get_by_role("button", name="Moored").click()
    assert set(visit.rows().locator(".row-speed").all_text_contents()) <= {"moored"}
    page.locator("#search").fill("no vessel is called this")
    page.get_by_text("Nothing matches").wait_for()
    page.get_by_role("button", name="Show all vessels").click()
    assert visit.rows().count() == 295
    assert visit.complaints == []


def test_a_vessel_is_picked_on_the_map(visits: Any) -> None:
    visit = visits()
    visit.loaded()
    page = visit.page
    page.locator("#search").fill("barberi")
    visit.rows().first.click()
    page.locator("#detail h2").wait_for()
    page.get_by_role("button", name="Follow").click()
    page.wait_for_timeout(900)  # the flight to the vessel: an animation of a known length
    page.get_by_role("button", name="Close the card").click()
    panel = page.locator("#panel").bounding_box()
    assert panel is not None
    right = panel["x"] + panel["width"]
    page.mouse.click((right + WIDE["width"]) / 2, WIDE["height"] / 2)
    assert page.locator("#detail h2").inner_text() == "ANDREW J BARBERI"
    assert visit.complaints == []


def test_an_account_without_shares_sees_nothing_until_one_is_given_and_after_it_is_revoked(
    visits: Any, harbor: Stage
) -> None:
    _, owner = harbor.account("Owner")
    _, token = harbor.device(owner, "Shared Lady")
    harbor.ask("POST", "/api/positions", position(speed=0.0), token=token)
    visit = visits()
    visit.loaded()
    page = visit.page
    page.locator("#account").click()
    page.locator("#account-panel").get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Make an account").click()
    email = f"viewer-{time.time_ns()}@example.com"
    page.get_by_label("Email").fill(email)
    page.get_by_label("Name", exact=True).fill("Vera")
    page.get_by_label("Password").fill("a long enough password")
    page.get_by_role("button", name="Make the account").click()
    page.get_by_text("No vessels yet").wait_for()
    assert page.locator("#account-name").inner_text() == "Vera"
    harbor.ask("POST", "/api/shares", {"viewer": email}, token=owner)
    page.locator(".row-name", has_text="Shared Lady").wait_for()
    assert visit.rows().count() == 1
    harbor.ask("DELETE", "/api/shares", {"viewer": email}, token=owner)
    page.get_by_text("No vessels yet").wait_for()
    assert visit.complaints == []


def test_a_vessel_is_turned_to_its_heading_glides_between_two_reports_and_draws_a_trail(
    visits: Any, harbor: Stage
) -> None:
    _, owner = harbor.account("Owner")
    device, token = harbor.device(owner, "Lone Tug")

    def report(lon: float, heading: float, ago_s: float) -> None:
        said = position(40.65, lon, ago_s=ago_s, speed=12.0, course=90.0, heading=heading)
        assert harbor.ask("POST", "/api/positions", said, token=token).status_code == 202

    for lon, ago_s in ((-74.10, 600.0), (-74.09, 480.0), (-74.08, 360.0)):
        report(lon, 80.0, ago_s)
    harbor.wait_stored(device, 3)
    visit = visits(session=owner)
    visit.state("live")
    before = visit.frame("frame.trail.length === 2")
    assert before["markers"][0]["deg"] == pytest.approx(80.0, abs=0.1)
    pieces = [abs(piece[1]["x"] - piece[0]["x"]) for piece in before["trail"]]
    assert pieces == pytest.approx([pieces[0]] * 2, rel=0.01)
    # The marker takes as long as reports take to come: this one comes a second after the page knows the vessel.
    visit.page.wait_for_timeout(1_000)
    report(-74.07, 80.0, 240.0)
    there = visit.frame(f"marker.x > {before['markers'][0]['x'] + pieces[0] * 0.999}")
    assert len(there["trail"]) == 3
    report(-74.06, 140.0, 120.0)
    goal = there["markers"][0]["x"] + pieces[0]
    after = visit.frame(f"marker.x > {goal - 0.01} && Math.abs(marker.deg - 140) < 0.5")
    assert after["markers"][0]["x"] == pytest.approx(goal, abs=0.05)
    assert len(after["trail"]) == 4
    frames = visit.frames(there["ms"], after["ms"])
    assert_glides([frame["markers"][0]["x"] for frame in frames])
    assert_glides([frame["markers"][0]["deg"] for frame in frames])
    for frame in frames:  # the trail ends where the marker is, all the way
        end = frame["trail"][-1][1]
        assert (end["x"], end["y"]) == pytest.approx((frame["markers"][0]["x"], frame["markers"][0]["y"]))
    assert visit.complaints == []


def assert_glides(values: list[float]) -> None:
    """They rise over many frames, never back and never by a leap."""
    steps = [after - before for before, after in itertools.pairwise(values)]
    whole = values[-1] - values[0]
    assert min(steps) > -1e-6
    assert len([step for step in steps if step > whole * 1e-4]) >= 8
    assert max(steps) < whole / 2


def test_the_policy_lets_nothing_in_from_elsewhere(harbor: Stage) -> None:
    answer = harbor.ask("GET", "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "http://" not in answer.text.replace("http://www.w3.org", "")
    assert answer.headers["x-content-type-options"] == "nosniff"
