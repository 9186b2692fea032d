"""The programs of the page about clusters run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from doc_programs import run_program
from flotta.realtime import Server
from realtime_fixtures import NodePeer, node, node_modules, serving, start_node

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "realtime-cluster.md").read_text()
QUESTIONS, WSGI, EMITTER = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CALL = """
app({"PATH_INFO": "/orders/1"}, lambda status, headers: print(status))
"""


async def test_the_servers_of_the_page_ask_each_other(own_valkey: Any) -> None:
    said = await run_program(QUESTIONS, own_valkey.url)
    printed = [line for line in said.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]  # the others are logged
    assert printed == ["2 servers", "[{'clients': 0}]", "[]", "[]"]


async def test_the_emitters_of_the_page_reach_the_clients_of_a_server(node: NodePeer, own_valkey: Any) -> None:
    sio = Server(own_valkey.url)
    async with serving(sio, native=True) as port:
        sid = await node.connect("a", port)
        await sio.enter_room(sid, "shop:7")
        await sio.enter_room(sid, "user:ada")
        assert await run_program(WSGI + CALL, own_valkey.url) == "204 No Content\n"
        assert await node.wait_event("a", "price") == [[{"eur": 12}]]
        assert await node.wait_event("a", "your order") == [["/orders/1"]]
        await run_program(EMITTER, own_valkey.url)
        assert await node.wait_event("a", "price", 2) == [[{"eur": 12}], [{"eur": 11}]]
