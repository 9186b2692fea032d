"""Every program in the pages about maps runs as it stands."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

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
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program,
        env=os.environ | {"REDIS_URL": own_valkey.url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    assert any(words in out.decode() for words in SAYS), out.decode()


def test_there_is_a_program_for_each_use() -> None:
    assert len(PROGRAMS) == 5
