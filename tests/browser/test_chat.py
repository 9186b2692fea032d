"""The chat's page in a real Chromium: two people on two instances, one of which dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from chat_stage import CLIENT, Stage, chat_stage
from flotta.postgres import EmbeddedPostgres
from harbor_visit import PHONE, WIDE
from peers import missing
from supervisor_service import wait_until

pytestmark = pytest.mark.browser

LINES = 30
SOON_MS = 30_000


@pytest.fixture(scope="module")
def chat(
    tmp_path_factory: pytest.TempPathFactory, chromium: Browser, valkey_url: str, postgres_server: EmbeddedPostgres
) -> Iterator[Stage]:
    if not CLIENT.is_file():
        missing("browser", "the chat's page lacks its Socket.IO client: make web")
    with chat_stage(tmp_path_factory.mktemp("chat"), valkey_url, postgres_server, "fastapi") as running:
        yield running


class Visit:
    """A browser window on the chat; what the page complains about is collected."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.complaints: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(SOON_MS)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.on("console", self._console)
        self.page.goto(url)

    def _console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def come_in(self, name: str) -> Visit:
        self.page.get_by_role("button", name=name).click()
        self.live()
        return self

    def live(self, *, not_pid: int | None = None) -> int:
        """Wait until an instance serves the page (another one than ``not_pid``); its pid."""
        other = f':not([data-pid="{not_pid}"])' if not_pid else ""
        self.page.locator(f'#connection[data-state="live"]{other}').wait_for()
        return int(self.page.locator("#connection").get_attribute("data-pid") or 0)

    def listed(self) -> None:
        """Wait until the rooms or people are there: on a phone the instance is shown in a room only."""
        self.page.locator("#people .row").first.wait_for()

    def open(self, room: str) -> None:
        self.page.get_by_role("button", name=f"Room {room}").click()
        self.page.locator("#room-name", has_text=room).wait_for()

    def write(self, text: str) -> None:
        self.page.locator("#text").fill(text)
        self.page.locator("#text").press("Enter")

    def message(self, text: str, state: str = "stored") -> Any:
        return self.page.locator(f'.message[data-state="{state}"]', has_text=text)

    def bodies(self, prefix: str) -> list[str]:
        found = self.page.locator('.message[data-state="stored"] .message-body').all_inner_texts()
        return [body for body in found if body.startswith(prefix)]


@pytest.fixture
def visits(chromium: Browser, chat: Stage) -> Iterator[Callable[..., Visit]]:
    contexts: list[BrowserContext] = []

    def visit(viewport: dict[str, int] = WIDE, **options: Any) -> Visit:
        contexts.append(chromium.new_context(viewport=viewport, **options))  # type: ignore[arg-type]
        return Visit(contexts[-1], chat.url)

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def two(visits: Callable[..., Visit]) -> tuple[Visit, Visit]:
    """Ada and Grace, on two instances."""
    ada = visits().come_in("Ada Lovelace")
    grace = visits().come_in("Grace Hopper")
    while grace.live() == ada.live():
        grace.page.reload()
    return ada, grace


def test_two_people_talk_across_instances(two: tuple[Visit, Visit]) -> None:
    ada, grace = two
    ada.open("Quayside")
    grace.open("Deploys")
    ada.write("Good morning")
    ada.message("Good morning").wait_for()
    row = grace.page.get_by_role("button", name="Room Quayside, ")
    row.wait_for()
    assert "unread" in (row.get_attribute("aria-label") or "")
    grace.open("Quayside")
    grace.message("Good morning").wait_for()
    grace.page.locator('#rooms .row[aria-current="true"]:not([data-unread])', has_text="Quayside").wait_for()
    grace.page.locator("#text").press_sequentially("Good")
    ada.page.locator("#typing", has_text="Grace is typing").wait_for()
    grace.write("Good evening <b>here</b> https://example.com/x?y=1.")
    said = ada.message("Good evening <b>here</b>")
    said.wait_for()
    assert said.locator("a").get_attribute("href") == "https://example.com/x?y=1"

    ada.page.get_by_role("button", name="Grace Hopper, online").click()
    ada.write("Between us")
    ada.message("Between us").wait_for()
    grace.page.get_by_role("button", name="Ada Lovelace, online").click()
    grace.message("Between us").wait_for()
    assert ada.complaints == grace.complaints == []


def test_an_instance_is_killed_and_the_talk_goes_on(two: tuple[Visit, Visit], chat: Stage) -> None:
    ada, grace = two
    for visit in two:
        visit.open("Quayside")
    ready = chat.ready_lines()
    ada_pid, grace_pid = ada.live(), grace.live()
    for number in range(LINES):
        ada.write(f"line {number}")
        if number == LINES // 3:
            chat.kill(ada_pid)
        if number == LINES // 2:
            chat.kill(grace_pid)
    ada.live(not_pid=ada_pid)
    grace.live(not_pid=grace_pid)
    expected = [f"line {number}" for number in range(LINES)]
    for visit in two:
        visit.message(expected[-1]).wait_for()
        wait_until(lambda: visit.bodies("line ") == expected, "every line, once, in order")  # noqa: B023
        assert visit.page.locator('.message:not([data-state="stored"])').count() == 0
    room = next(one for one in chat.rooms(chat.demo("ada")).values() if one["name"] == "Quayside")
    stored = chat.history(chat.demo("ada"), room["id"], limit=200)["messages"]
    assert [one["body"] for one in stored if one["body"].startswith("line ")] == expected
    assert [one["id"] for one in stored] == list(range(1, len(stored) + 1))
    wait_until(lambda: chat.ready_lines() >= ready + 2, "both instances are back")


def test_what_is_written_while_nobody_serves_is_sent_later(visits: Callable[..., Visit], chat: Stage) -> None:
    ada = visits().come_in("Ada Lovelace")
    ada.open("Galley")
    supervisor = psutil.Process(chat.service.process.pid)
    supervisor.suspend()  # so that it starts nothing in the place of those that die
    try:
        for pid in chat.pids().values():
            chat.kill(pid)
        ada.page.locator("#trouble", has_text="The connection was lost").wait_for()
        ada.write("Written in the dark")
        ada.message("Written in the dark", "waiting").wait_for()
    finally:
        supervisor.resume()
    ada.message("Written in the dark").wait_for()
    ada.page.locator("#trouble").wait_for(state="hidden")
    assert ada.page.locator(".message", has_text="Written in the dark").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_the_keyboard_are_enough(visits: Callable[..., Visit], chat: Stage, scheme: str) -> None:
    visit = visits(PHONE, has_touch=True, is_mobile=True, color_scheme=scheme)
    page = visit.page
    page.get_by_role("button", name="Register").tap()
    page.get_by_label("Name").fill("1x")
    page.get_by_label("Password").fill("correct horse battery")
    page.locator("#sign-submit").tap()
    page.locator("#sign-error", has_text="another name").wait_for()
    page.get_by_label("Name").fill(f"kate-{scheme}")
    page.get_by_label("Shown as").fill("Katherine Johnson")
    page.locator("#sign-submit").tap()
    visit.listed()
    page.get_by_role("button", name="Join or open a room").tap()
    page.locator("#dialog").get_by_role("button", name="Quayside").tap()
    page.locator("#room-name", has_text="Quayside").wait_for()
    page.locator("#text").fill(f"Hello from a {scheme} phone")
    page.get_by_role("button", name="Send").tap()
    visit.message(f"Hello from a {scheme} phone").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.reload()
    visit.message(f"Hello from a {scheme} phone").wait_for()
    page.go_back()
    page.get_by_role("button", name="Room Quayside").tap()
    page.get_by_role("button", name="Back to the rooms").tap()
    page.get_by_role("button", name="Room Quayside").focus()
    page.keyboard.press("Enter")
    visit.message(f"Hello from a {scheme} phone").wait_for()
    page.get_by_role("button", name="Who is in this room").tap()
    page.locator("#dialog li", has_text="Katherine Johnson").filter(has_text="Online").wait_for()
    page.get_by_role("button", name="Leave this room").tap()
    page.get_by_role("button", name="Room Quayside").wait_for(state="detached")
    assert page.evaluate(NAMELESS) == []
    page.get_by_role("button", name="Sign out").tap()
    page.locator("#welcome").wait_for()
    assert visit.complaints == []


NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, a')]
  .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length))
  .map((one) => one.outerHTML)"""
