"""The programs of the realtime page run as they stand there, but for the addresses."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from realtime_fixtures import NodePeer, node, node_modules, serving, start_node

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "realtime.md").read_text()
PROGRAM, FILTER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(SCRIPT,) = re.findall(r"```js\n(.*?)```", PAGE, re.DOTALL)


async def _run(program: str, names: dict[str, Any]) -> None:
    """Run a program that may await at its top."""
    code = compile(program, "realtime.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result


async def test_programs_of_the_page_talk_to_each_other(node: NodePeer, node_modules: Path, valkey_url: str) -> None:
    names: dict[str, Any] = {}
    await _run(PROGRAM.replace("redis://127.0.0.1:6379", valkey_url), names)
    sio = names["sio"]
    async with serving(sio, native=True, whole=names["app"]) as port:
        script = SCRIPT.replace("https://app.example.com", f"http://127.0.0.1:{port}")
        whole = f'const {{ io }} = require("socket.io-client"); (async () => {{ {script} process.exit(0); }})();'
        process = await asyncio.create_subprocess_exec(
            "node", "-e", whole, cwd=node_modules, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), 20)
        assert output == b"sent\n"
        await node.do("connect", name="stranger", url=f"http://127.0.0.1:{port}", options={"auth": {"token": "guess"}})
        assert await node.wait("stranger", "connect_error") == [["unknown token", None]]

        seeing = {"219000001": ["account of ada"]}
        names["shares"] = SimpleNamespace(get_values=lambda vessel: seeing[vessel])
        names["position"], names["mmsi"] = {"vessel": "219000001", "lat": 55.7}, "219000001"
        sid = await node.connect("ada", port, auth={"token": "secret"})
        await sio.save_session(sid, {"account": "account of ada"})
        await sio.enter_room(sid, "vessel:219000001")
        await _run(FILTER, names)
        assert await node.wait_event("ada", "position") == [[names["position"]]]
        seeing["219000001"].clear()
        await _run(FILTER, names)
        await sio.emit("end")
        await node.wait_event("ada", "end")
        assert len(node.events("ada", "position")) == 1
