"""A real Chromium, and three real instances of Harbor with the replay feed, for the tests in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from flotta.postgres import EmbeddedPostgres
from harbor_stage import HOME, Stage, stage
from harbor_visit import WIDE, Visit
from peers import missing

# As root and without a GPU; without the next two it asks for its maker's hosts at every start; without the last each
# window loads two pages more, for an address bar that nobody sees, which cost as much as ours.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    "--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup",
]
SPEED = 60.0


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
