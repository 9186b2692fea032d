"""The programs in the how-to page of worker pools are run, each by itself, and print what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from doc_programs import run_program

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "pool.md"
EXAMPLES = re.findall(
    r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL
)
_LOG = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[.*\n", re.MULTILINE)


def test_every_pattern_of_the_page_is_run() -> None:
    assert [title for title, _, _ in EXAMPLES] == re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("title", "program", "printed"), EXAMPLES, ids=[title.split(":")[0] for title, _, _ in EXAMPLES]
)
async def test_a_pattern_prints_what_the_page_says(title: str, program: str, printed: str, valkey_url: str) -> None:
    assert _LOG.sub("", await run_program(program, valkey_url)) == printed
