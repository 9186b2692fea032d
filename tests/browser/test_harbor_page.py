"""Harbor's page in a real Chromium, on three real instances with the replay feed."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from flotta.postgres import EmbeddedPostgres
from harbor_stage import HOME, Stage, position, stage
from peers import missing

pytestmark = pytest.mark.browser

WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
SMALL_PHONE = {"width": 320, "height": 568}
SIDEWAYS = {"width": 844, "height": 390}
SMALL_SIDEWAYS = {"width": 667, "height": 375}
# As root and without a GPU; without the last two it asks for its maker's hosts at every start.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SPEED = 60.0
# What Chromium itself writes when an instance dies under a connection or a request. Nothing of the page's own fits.
LOST_INSTANCE = re.compile(
    r"error: (WebSocket connection to 'ws://127\.0\.0\.1:\d+/socket\.io/\S*' failed: .*"
    r"|Failed to load resource: net::ERR_\w+)"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing("browser", "no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def harbor(
    tmp_path_factory: pytest.TempPathFactory, chromium: Browser, valkey_url: str, postgres_server: EmbeddedPostgres
) -> Iterator[Stage]:
    if not (HOME / "src/harbor/static/app/index.html").is_file():
        missing("browser", "Harbor's page is not built: make web")
    with stage(tmp_path_factory.mktemp("harbor"), valkey_url, postgres_server, feed=SPEED) as running:
        yield running


# Notes what is drawn on the layer of the vessels, frame by frame, at the canvas itself: each marker with its place and
# turn, each piece of a trail (two points, in the map's own coordinates). Of what is drawn nothing is changed.
RECORDER = """
window.drawn = [];
const canvas = CanvasRenderingContext2D.prototype;
const spy = (name, note) => {
  const real = canvas[name];
  canvas[name] = function (...given) {
    if (this.canvas.classList.contains('map-live')) note(window.drawn.at(-1) ?? { markers: [], trail: [] }, given);
    return real.apply(this, given);
  };
};
let path = [], inMarker = false;
spy('clearRect', () => {
  window.drawn.push({ ms: performance.now(), markers: [], trail: [] });
  if (window.drawn.length > 2000) window.drawn.shift();
});
spy('translate', (frame, [x, y]) => { inMarker = true; frame.markers.push({ x, y, deg: null }); });
spy('rotate', (frame, [radians]) => { frame.markers.at(-1).deg = radians * 180 / Math.PI; });
spy('restore', () => { inMarker = false; });
spy('beginPath', () => { path = []; });
spy('moveTo', (frame, [x, y]) => path.push({ x, y }));
spy('lineTo', (frame, [x, y]) => path.push({ x, y }));
spy('stroke', (frame) => { if (!inMarker && path.length === 2) frame.trail.push(path); });
"""


class Visit:
    """A browser window on Harbor. What the page complains about is collected."""

    def __init__(self, context: BrowserContext, url: str, *, session: str | None = None) -> None:
        self.complaints: list[str] = []
        if session is not None:
            context.add_init_script(f"sessionStorage.setItem('harbor-session', '{session}')")
            context.add_init_script(RECORDER)
        self.page: Page = context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.on("console", self._console)
        self.page.goto(url)

    def _console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def rows(self) -> Any:
        return self.page.locator("#list .row")

    def loaded(self) -> None:
        self.rows().first.wait_for()

    def state(self, state: str) -> None:
        self.page.locator(f'#connection[data-state="{state}"]').wait_for()

    def serving_pid(self) -> int:
        self.page.locator("#connection[data-pid]").wait_for()
        return int(self.page.locator("#connection").get_attribute("data-pid") or 0)

    def picture(self) -> str:
        """What the layer of the vessels shows now."""
        return str(self.page.evaluate("document.querySelector('.map-live').toDataURL()"))

    def frame(self, fact: str) -> Any:
        """The first drawn frame of which ``fact`` (JavaScript, of ``frame`` and its only ``marker``) is true."""
        script = f"""() => {{
            const frame = window.drawn.at(-1), marker = frame?.markers[0];
            return frame?.markers.length === 1 && ({fact}) ? frame : null;
        }}"""
        return self.page.wait_for_function(script).json_value()

    def frames(self, since_ms: float, until_ms: float) -> list[Any]:
        """What was drawn in between, by the page's clock."""
        drawn: list[Any] = self.page.evaluate("window.drawn")
        return [frame for frame in drawn if since_ms <= frame["ms"] <= until_ms]

    def changes(self, times: int) -> None:
        """Waits until the vessels have moved that often."""
        self.page.evaluate(
            """times => new Promise((done, failed) => {
                 const canvas = document.querySelector('.map-live');
                 let last = canvas.toDataURL(), left = times;
                 const deadline = performance.now() + 8000;
                 const look = () => {
                   const now = canvas.toDataURL();
                   if (now !== last) { last = now; left -= 1; }
                   if (left === 0) done();
                   else if (performance.now() > deadline) failed(new Error(`${left} changes are missing`));
                   else setTimeout(look, 60);
                 };
                 look();
               })""",
            times,
        )


@pytest.fixture
def visits(chromium: Browser, harbor: Stage) -> Iterator[Any]:
    contexts: list[BrowserContext] = []

    def visit(viewport: dict[str, int] = WIDE, *, session: str | None = None, **options: Any) -> Visit:
        context = chromium.new_context(viewport=viewport, **options)  # type: ignore[arg-type]
        contexts.append(context)
        return Visit(context, harbor.url, session=session)

    yield visit
    for context in contexts:
        context.close()


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
    visit.page.wait_for_function("document.querySelector('#counts').textContent === '295 vessels'")
    visit.changes(12)
    assert [text for text in visit.complaints if not LOST_INSTANCE.fullmatch(text)] == []


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
    page.wait_for_function("document.querySelectorAll('#list .row').length === 295")
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
