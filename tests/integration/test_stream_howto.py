"""The programs in the how-to page are run, each by itself, and print what the page says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

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
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        program,
        env={**os.environ, "REDIS_URL": valkey_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    assert out.decode() == printed
