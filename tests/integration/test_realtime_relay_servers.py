"""Relaying and moving under the web servers that people run: two processes of each, nginx, official clients."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from test_realtime_servers import COMMANDS, serve

from realtime_balanced import round_robin
from realtime_fixtures import NodePeer, node, node_modules, start_node

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node


@pytest.mark.parametrize("web_server", COMMANDS)
async def test_clients_with_default_transports_need_no_sticky_balancer(
    node: NodePeer, valkey_url: str, unique: str, tmp_path: Path, web_server: str
) -> None:
    async with AsyncExitStack() as stack:
        environ = {"REDIS_URL": valkey_url, "CHANNEL_PREFIX": unique, "PING_INTERVAL_S": "5"}
        webs = [await stack.enter_async_context(serve(web_server, **environ)) for _ in range(2)]
        port = await stack.enter_async_context(round_robin(tmp_path, [web.port for web in webs]))
        names = [f"c{number}" for number in range(8)]
        for number, name in enumerate(names):
            await node.connect(name, port, transports=["polling", "websocket"] if number % 2 else ["polling"])
        for name in names[1::2]:
            await node.wait(name, "upgrade")
        big = b"\x07" * 8_000
        for name in names:
            await node.do("ask", name=name, args=["enter", "harbour"])
            assert await node.do("ask", name=name, args=["echo", big, name]) == [big, name]
        for number in range(5):
            await node.do("emit", name=names[number], args=["say", "harbour", number])
        for number, name in enumerate(names):
            others = [[one] for one in range(5) if one != number]
            assert sorted(await node.wait_event(name, "said", len(others))) == others
        for name in names:
            assert not node.seen(name, "disconnect")
            assert not node.seen(name, "connect_error")
        webs[0].process.send_signal(signal.SIGTERM)  # a deployment: everybody is back, at the other one
        await webs[0].end()
        await asyncio.gather(*(_is_back(node, name) for name in names))


async def _is_back(node: NodePeer, name: str) -> None:
    """What it asks is answered; a question that was on its way when its connection ended is not."""
    async with asyncio.timeout(20):
        while True:
            try:
                async with asyncio.timeout(2):
                    assert await node.do("ask", name=name, args=["echo", "back"]) == ["back"]
                    return
            except (TimeoutError, RuntimeError):
                continue
