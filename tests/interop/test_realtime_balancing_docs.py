"""The balancer configurations of the documentation, run as they stand there: only their ports are other ones."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from free_ports import free_port
from realtime_balanced import Instance, haproxy, instances, nginx
from realtime_fixtures import NodePeer, node, node_modules, start_node

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "realtime-balancing.md"
ROUND_ROBIN, BY_PREFIX = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
(HAPROXY,) = re.findall(r"```text\n(defaults\n.*?)```", PAGE.read_text(), re.DOTALL)


Proxy = Callable[[Path, str], AbstractAsyncContextManager[None]]


class Balanced(NamedTuple):
    """Instances behind a proxy."""

    port: int
    running: list[Instance]

    async def relayed(self) -> int:
        """Requests that instances asked of each other."""
        return sum([(await one.stats())["relay"]["asked"] for one in self.running])


@asynccontextmanager
async def _balanced(
    site: str, names: list[str], url: str, prefix: str, folder: Path, proxy: Proxy = nginx
) -> AsyncIterator[Balanced]:
    """As the page has it."""
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(instances(url, prefix, names))
        port = free_port()
        site = site.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        for number, one in enumerate(running, 1):
            site = site.replace(f"127.0.0.1:{8000 + number}", f"127.0.0.1:{one.port}")
        assert "127.0.0.1:80" not in re.sub(rf":({port}|{'|'.join(str(one.port) for one in running)})\b", "", site)
        await stack.enter_async_context(proxy(folder, site))
        yield Balanced(port, running)


async def test_round_robin_of_the_page_serves_clients_that_upgrade(
    node: NodePeer, valkey_url: str, unique: str, tmp_path: Path
) -> None:
    async with _balanced(ROUND_ROBIN, ["aaaa", "bbbb", "cccc"], valkey_url, unique, tmp_path) as site:
        for number in range(4):
            await node.connect(f"c{number}", site.port, transports=["polling", "websocket"])
            await node.wait(f"c{number}", "upgrade")
            assert await node.do("ask", name=f"c{number}", args=["join", "r"]) == ["r"]
        assert await site.relayed() > 0


@pytest.mark.parametrize(("proxy", "config"), [(nginx, BY_PREFIX), (haproxy, HAPROXY)], ids=["nginx", "haproxy"])
async def test_routing_by_the_session_ids_prefix_of_the_page_relays_nothing(
    node: NodePeer, valkey_url: str, unique: str, tmp_path: Path, proxy: Proxy, config: str
) -> None:
    async with _balanced(config, ["a001", "a002"], valkey_url, unique, tmp_path, proxy) as site:
        seen = set()
        for number in range(6):
            transports = ["polling", "websocket"] if number % 2 else ["polling"]
            sid = await node.connect(f"c{number}", site.port, transports=transports)
            seen.add(sid[:4])
            if number % 2:
                await node.wait(f"c{number}", "upgrade")
            assert await node.do("ask", name=f"c{number}", args=["join", "r"]) == ["r"]
        assert seen == {"a001", "a002"}
        async with httpx.AsyncClient() as http:  # of an instance that the balancer does not know: any may refuse it
            url = f"http://127.0.0.1:{site.port}/socket.io/?EIO=4&transport=polling&sid=zzzz{'x' * 16}"
            assert (await http.get(url)).json()["code"] == 1
        assert await site.relayed() == 1
