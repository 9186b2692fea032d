"""The programs in the how-to page are run, each by itself, and print what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from doc_programs import run_program

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "streams.md"
EXAMPLES = re.findall(
    r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL
)


def test_the_page_has_its_four_patterns() -> None:
    assert [title.split(":")[0] for title, _, _ in EXAMPLES] == [
        "Fan-out",
        "Fan-in",
        "Event sourcing",
        "Asynchronous tasks",
    ]


@pytest.mark.parametrize(
    ("title", "program", "printed"), EXAMPLES, ids=[title.split(":")[0] for title, _, _ in EXAMPLES]
)
async def test_a_pattern_prints_what_the_page_says(title: str, program: str, printed: str, valkey_url: str) -> None:
    assert await run_program(program, valkey_url) == printed
