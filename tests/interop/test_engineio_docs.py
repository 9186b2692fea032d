"""The programs of the page about Engine.IO run as they stand there, but for the address."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from realtime_fixtures import node_modules, serving

__all__ = ["node_modules"]

pytestmark = pytest.mark.node

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "engineio.md").read_text()
(PROGRAM,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(SCRIPT,) = re.findall(r"```js\n(.*?)```", PAGE, re.DOTALL)


async def test_programs_of_the_page_talk_to_each_other(node_modules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(PROGRAM, "engineio.md", "exec", dont_inherit=True), names)
    async with serving(names["server"], native=True, whole=names["app"]) as port:
        process = await asyncio.create_subprocess_exec(
            "node", "-e", SCRIPT.replace("https://app.example.com", f"http://127.0.0.1:{port}"),
            cwd=node_modules, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 20)
        assert output == b"hello\n"
    assert "gone: transport close" in capsys.readouterr().out
