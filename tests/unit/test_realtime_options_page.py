"""The overview of realtime tells of every option, with the default that it has, and of every page beside it; no page on
realtime names a method or a metric that is not there."""

from __future__ import annotations

import ast
import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from flotta.realtime import Server, ServerOptions
from flotta.realtime.metrics import RealtimeCollector

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
DOCS = REFERENCE.parent
PAGES = (*REFERENCE.glob("realtime*.md"), *DOCS.glob("howto/*realtime*.md"), *DOCS.glob("howto/moving-from-*.md"))
PAGE = (REFERENCE / "realtime.md").read_text()
OPTIONS = PAGE.partition("## Options")[2].partition("## Errors")[0]
SENDING = PAGE.partition("## Sending")[2].partition("### Who may")[0]


def cells(text: str) -> list[str]:
    """What stands in a cell, one for each pair of backticks."""
    return re.findall(r"`([^`]+)`", text)


TABLE = {
    name: ast.literal_eval(default)
    for row in re.findall(r"^\| (`[a-z_`, ]+`) \| (.+?) \|", OPTIONS, re.MULTILINE)
    for name, default in zip(cells(row[0]), cells(row[1]), strict=True)
}


@pytest.mark.parametrize("option", fields(ServerOptions), ids=lambda option: option.name)
def test_an_option_stands_in_the_table_with_its_default(option: Field[Any]) -> None:
    assert option.name in TABLE, f"{option.name} is missing"
    assert TABLE[option.name] == option.default
    assert type(TABLE[option.name]) is type(option.default) or isinstance(option.default, float)


def test_the_table_has_no_option_that_is_none() -> None:
    assert TABLE.keys() <= {option.name for option in fields(ServerOptions)}


def test_methods_of_the_page_exist() -> None:
    table = "\n".join(line for line in SENDING.splitlines() if line.startswith("|"))
    named = {name for cell in cells(table) for name in re.findall(r"^([a-z_]+)(?:\(|$)", cell)}
    assert {"emit", "call_all", "user_of", "recovered", "server_side_emit"} <= named
    assert {name for name in named if not hasattr(Server, name)} == {"await", "message"}


def test_every_page_of_realtime_is_linked() -> None:
    pages = {path.name for path in REFERENCE.glob("realtime-*.md")} | {"engineio.md"}
    assert pages <= set(re.findall(r"\(([\w-]+\.md)", PAGE))


def test_the_overview_stays_one() -> None:
    assert len(PAGE.splitlines()) <= 180


def test_methods_that_pages_call_exist() -> None:
    sio, pages = Server(), [*PAGES, DOCS / "tutorial" / "chat.md"]
    called = {(page.stem, name) for page in pages for name in re.findall(r"\bsio\.([a-z]\w*)", page.read_text())}
    assert len({name for _, name in called}) > 30
    assert {(page, name) for page, name in called if not hasattr(sio, name)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_metrics_that_a_page_names_exist(page: Path) -> None:
    registry = CollectorRegistry()
    registry.register(RealtimeCollector(Server()))
    found = set(re.findall(r"^# TYPE (\w+)", generate_latest(registry).decode(), re.MULTILINE))
    named = set(re.findall(r"`(flotta_realtime_\w+|websocket_\w+)[`{]", page.read_text()))
    assert {name for name in named if name not in found} == set()
