"""The first program of the page about pools runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from doc_programs import run_program

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "pool.md"


async def test_the_program_of_the_page_runs(own_valkey) -> None:
    program = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert "JobInfo(key='vessel:367000140'" in await run_program(program, own_valkey.url)
