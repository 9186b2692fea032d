"""The programs of the page on handlers run as they stand there, and do what the page says."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from flotta.realtime import Reason, Server
from realtime_fixtures import NodePeer, node, node_modules, serving, start_node

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "realtime-handlers.md").read_text()
PROGRAM = "".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


def _run(program: str, names: dict[str, Any]) -> None:
    code = compile(program, "realtime-handlers.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    assert not inspect.isawaitable(eval(code, names))


async def test_programs_of_the_page_do_what_it_says(node: NodePeer) -> None:
    names: dict[str, Any] = {}
    _run(PROGRAM, names)
    sio: Server = names["sio"]
    sio.on("kick", lambda sid, who: f"{who} is out")
    async with serving(sio, native=True) as port:
        ada, ben = ({"token": f"secret of {name}"} for name in ("ada", "ben"))
        await node.connect("ada", port, auth=ada)
        gone = await node.connect("ben", port, auth=ben)
        await node.do("connect", name="eve", url=f"http://127.0.0.1:{port}", options={"auth": {"token": "guess"}})
        assert await node.wait("eve", "connect_error") == [["unknown token", {"retry": False}]]

        assert await node.do("ask", name="ada", args=["say", "hello"]) == ["sent"]
        assert await node.wait_event("ben", "said") == [["ada", "hello"]]
        assert await node.do("ask", name="ben", args=["kick", "ada"]) == [{"error": "forbidden"}]
        assert await node.do("ask", name="ada", args=["kick", "ben"]) == ["ben is out"]
        assert await node.do("ask", name="ada", args=["sing"]) == [{"error": "no such event: sing"}]

        await node.connect("watcher", port, namespace="/vessel-219000001")
        assert await node.do("ask", name="watcher", args=["watch"]) == ["/vessel-219000001"]
        await node.connect("home", port, namespace="/home/ada", auth=ada)
        assert await node.do("ask", name="home", args=["note", "x"]) == ["noted in /home/ada"]
        await node.do("connect", name="burglar", url=f"http://127.0.0.1:{port}/home/ada", options={"auth": ben})
        assert await node.wait("burglar", "connect_error") == [["Invalid namespace", None]]

        await node.connect("cleo", port, namespace="/chat")
        await node.connect("dan", port, namespace="/chat")
        await node.do("emit", name="cleo", args=["say", "hi"])
        assert await node.wait_event("dan", "said") == [["hi"]]
        assert await node.do("ask", name="dan", args=["sing"]) == [{"error": "no such event: sing"}]

        names["BANNED"].add("127.0.0.1")
        await node.do("connect", name="late", url=f"http://127.0.0.1:{port}", options={"auth": ada})
        assert await node.wait("late", "connect_error") == [["banned", None]]
        assert sio.is_connected(gone)
        await node.do("close", name="ben")


def test_page_lists_every_reason() -> None:
    listed = re.findall(r"^\| `([a-z ]+)` \|", PAGE, re.MULTILINE)
    assert sorted(set(listed) & {str(reason) for reason in Reason}) == sorted(str(reason) for reason in Reason)


async def test_servers_of_the_page_that_are_mounted_are_reached_below_their_mounts_and_nowhere_else(
    node: NodePeer,
) -> None:
    names: dict[str, Any] = {"BANNED": set[str](), "ROLES": dict[str, set[str]]()}
    _run(PROGRAM, names)
    live, staff = names["live"], names["staff"]
    async with serving(live, native=True, whole=names["api"], drain=False) as port:
        for name, sio in (("live", live), ("staff", staff)):
            for transport in ("websocket", "polling"):
                sid = await node.connect(f"{name} {transport}", port, path=f"/{name}/socket.io", transports=[transport])
                assert sio.is_connected(sid)
        await node.do("connect", name="lost", url=f"http://127.0.0.1:{port}", options={"transports": ["websocket"]})
        assert await node.wait("lost", "connect_error") == [["websocket error", None]]
