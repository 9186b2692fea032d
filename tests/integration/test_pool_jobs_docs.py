"""The first program of the page about pools runs as it stands."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "pool.md"


async def test_the_program_of_the_page_runs(own_valkey) -> None:
    program = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program,
        env=os.environ | {"REDIS_URL": own_valkey.url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert "JobInfo(key='vessel:367000140'" in out.decode()
