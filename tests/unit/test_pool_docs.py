"""The reference pages of worker pools know every public name, and every option with the default that it has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import flotta.pool
from flotta.cli.pools import pool_group
from flotta.pool import JobOptions, PoolOptions

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {page.name: page.read_text() for page in REFERENCE.glob("*.md")}


@pytest.mark.parametrize("name", flotta.pool.__all__)
def test_every_public_name_is_on_some_page(name: str) -> None:
    pages = [page for name_, page in PAGES.items() if name_.startswith(("pool", "testing"))]
    assert any(re.search(rf"\b{name}\b", page) for page in pages)


def rows(page: str) -> dict[str, str]:
    """First cell -> second cell of every table row."""
    found: dict[str, str] = {}
    for line in PAGES[page].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) > 2:
            names, values = re.findall(r"`(\w+)`", cells[0]), cells[1].split(", ")
            found.update(zip(names, values if len(values) == len(names) else [cells[1]] * len(names), strict=True))
    return found


def figure(text: str) -> float:
    return float(re.sub(r"[,`]| .*", "", text))


@pytest.mark.parametrize("field", dataclasses.fields(PoolOptions), ids=lambda field: field.name)
def test_every_option_of_a_pool_stands_there_with_its_default(field: dataclasses.Field[object]) -> None:
    shown = rows("pool.md")[field.name]
    if isinstance(field.default, bool):
        assert shown == f"`{field.default}`"
    else:
        assert figure(shown) == field.default


@pytest.mark.parametrize("field", dataclasses.fields(JobOptions), ids=lambda field: field.name)
def test_every_option_of_a_job_stands_there(field: dataclasses.Field[object]) -> None:
    shown = rows("pool.md")[field.name]
    if isinstance(field.default, int | float):
        assert figure(shown) == field.default


@pytest.mark.parametrize("command", sorted(pool_group.commands))
def test_every_command_is_on_the_page_of_the_command_line(command: str) -> None:
    assert re.search(rf"`flotta pool {command}\b", PAGES["cli.md"])
