"""The official ``engine.io-client`` against an `EngineServer`."""

from __future__ import annotations

from typing import Any

import pytest

from flotta.realtime import EngineServer
from realtime_fixtures import NodePeer, native, node, node_modules, serving, start_node, until

__all__ = ["native", "node", "node_modules", "start_node"]

pytestmark = pytest.mark.node


@pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]])
async def test_text_and_bytes_travel_both_ways(node: NodePeer, native: bool, transports: list[str]) -> None:
    server = EngineServer(ping_interval_s=0.1, ping_timeout_s=2.0)
    seen: list[Any] = []

    @server.on_message
    def echo(sid: str, data: str | bytes) -> None:
        seen.append(data)
        server.send(sid, data)

    async with serving(server, native=native) as port:
        url = f"http://127.0.0.1:{port}"
        await node.do("engine", name="a", url=url, options={"transports": transports})
        sid = (await node.wait("a", "open"))[0][0]
        # The official client shows an empty text as undefined.
        for data in ("text é", b"\x00\xff", "", b"x" * 10_000):
            await node.do("engineSend", name="a", data=data)
        assert [args[0] for args in await node.wait("a", "message", 4)] == ["text é", b"\x00\xff", None, b"x" * 10_000]
        assert seen == ["text é", b"\x00\xff", "", b"x" * 10_000]
        if len(transports) == 2:
            await node.wait("a", "upgrade")
            await until(lambda: server.transport(sid) == "websocket")
        assert server.transport(sid) == transports[-1]
        server.disconnect(sid)
        await node.wait("a", "close")
        assert server.stats.ended == {"server namespace disconnect": 1}
