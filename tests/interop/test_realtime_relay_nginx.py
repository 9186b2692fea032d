"""Three instances behind a balancer that is not sticky, and official clients that know nothing of it.

``FLOTTA_TEST_RELAY_CLIENTS=1000`` makes it the whole thousand; the short form runs always.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from realtime_balanced import Crowd, crowd, instances, round_robin
from realtime_fixtures import NodePeer, node, node_modules, start_node

__all__ = ["node", "node_modules", "start_node"]

pytestmark = [pytest.mark.node, pytest.mark.timeout(240)]

CLIENTS = int(os.environ.get("FLOTTA_TEST_RELAY_CLIENTS", "80"))
PAUSE_S = "0.05" if CLIENTS < 300 else "0.6"
NAMES = ("aaaa", "bbbb", "cccc")


def _check(report: dict[str, Any], clients: int) -> None:
    assert report["faults"] == []
    assert report["connects"] == 1
    assert report["connected"] == clients
    assert report["heard"] == 3
    assert report["answered"] == report["asked"] > 0
    assert report["wasAsked"] > 0


async def _wait_for_more(crowds: list[Crowd], count: int) -> None:
    """Until every client has got ``count`` more events of each instance."""
    begun = [await one.report() for one in crowds]
    async with asyncio.timeout(60):
        for one, was in zip(crowds, begun, strict=True):
            while True:
                now = await one.report()
                if all(now["last"][name][0] >= was["last"][name][1] + count for name in NAMES):
                    break
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("shared", [False, True], ids=["nginx", "shared-socket"])
async def test_nothing_is_lost_doubled_or_reordered_without_sticky_sessions(
    node_modules: Path, valkey_url: str, unique: str, tmp_path: Path, *, shared: bool
) -> None:
    polling = CLIENTS // 4
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            instances(valkey_url, unique, NAMES, shared=shared, FLOTTA_TEST_PAUSE_S=PAUSE_S)
        )
        ports = [one.port for one in running]
        port = ports[0] if shared else await stack.enter_async_context(round_robin(tmp_path, ports))
        upgrading = await stack.enter_async_context(crowd(port, CLIENTS - polling, "polling,websocket"))
        staying = await stack.enter_async_context(crowd(port, polling, "polling"))
        assert (await upgrading.ready())["ready"] == CLIENTS - polling
        assert (await staying.ready())["ready"] == polling
        await _wait_for_more([upgrading, staying], 10)
        one, other = await upgrading.settled(), await staying.settled()
        _check(one, CLIENTS - polling)
        _check(other, polling)
        assert one["upgrades"] == one["websockets"] == CLIENTS - polling
        assert other["websockets"] == 0
        told = [await instance.stats() for instance in running]
        assert sum(one["failed"] for one in told) == 0
        assert sum(one["connections"] for one in told) == CLIENTS
        assert sum(one["relay"]["asked"] for one in told) > CLIENTS
        assert sum(one["relay"]["moved_here"] for one in told) > CLIENTS / 4
        assert sum(one["relay"]["tunnels"] for one in told) == 0


async def test_clients_of_a_killed_instance_come_back_without_hanging(
    node: NodePeer, valkey_url: str, unique: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(instances(valkey_url, unique, NAMES, FLOTTA_TEST_PAUSE_S=PAUSE_S))
        port = await stack.enter_async_context(round_robin(tmp_path, [one.port for one in running]))
        sids: dict[str, str] = {}
        for number in range(12):
            transports = ["polling"] if number % 2 else ["polling", "websocket"]
            sids[f"c{number}"] = await node.connect(f"c{number}", port, transports=transports)
        for name in [name for name in sids if int(name[1:]) % 2 == 0]:
            await node.wait(name, "upgrade")
        before = asyncio.get_running_loop().time()
        running[0].process.kill()
        polling = [name for name, sid in sids.items() if sid.startswith("aaaa") and int(name[1:]) % 2]
        assert polling
        for name in polling:  # the instance that answered its polls is gone: noticed by the others, said to it
            await node.wait(name, "disconnect")
            await node.wait(name, "connect", 2)
        assert asyncio.get_running_loop().time() - before < 15
        for name in polling:
            assert await node.do("ask", name=name, args=["join", "crowd"]) == ["crowd"]
            await node.wait_event(name, "n", 3)
