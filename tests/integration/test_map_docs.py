"""Every program in the pages about maps runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from doc_programs import run_program

DOCS = Path(__file__).parents[2] / "docs"
PROGRAMS = [
    pytest.param(program, id=f"{page}-{number}")
    for page in ("howto/maps.md", "reference/maps.md")
    for number, program in enumerate(
        re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    )
]
SAYS = ("qa-team: True", "6 429", "host-2 {'draining': True, 'port': 8002}", "100 answers", "it was blue")


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_program_of_the_docs_runs(program: str, own_valkey) -> None:
    out = await run_program(program, own_valkey.url)
    assert any(words in out for words in SAYS), out


def test_there_is_a_program_for_each_use() -> None:
    assert len(PROGRAMS) == 5
