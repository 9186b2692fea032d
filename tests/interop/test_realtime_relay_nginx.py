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
from supervisor_service import service

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
                if now["heard"] == 3 and all(
                    now["last"][name][0] >= last + count for name, (_, last) in was["last"].items()
                ):
                    break
                await asyncio.sleep(0.05)


APP = """
import asyncio, os
from realtime_balanced_instance import count_up, make_server

sio = make_server(os.environ["REDIS_URL"], os.environ["PREFIX"], None)

async def counting(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    task = asyncio.create_task(count_up(sio, str(os.getpid()), float(os.environ["PAUSE_S"])))
    await receive()
    task.cancel()
    await send({"type": "lifespan.shutdown.complete"})

app = sio.app(counting)
"""


async def _run_crowds(port: int) -> None:
    """Two crowds on that address: one upgrades, one polls. Nothing may happen to anybody."""
    polling = CLIENTS // 4
    async with (
        crowd(port, CLIENTS - polling, "polling,websocket") as upgrading,
        crowd(port, polling, "polling") as rest,
    ):
        assert (await upgrading.ready())["ready"] == CLIENTS - polling
        assert (await rest.ready())["ready"] == polling
        await _wait_for_more([upgrading, rest], 10)
        one, other = await upgrading.settled(), await rest.settled()
        _check(one, CLIENTS - polling)
        _check(other, polling)
        assert one["upgrades"] == one["websockets"] == CLIENTS - polling
        assert other["websockets"] == 0


@pytest.mark.parametrize("adapter", ["classic", "sharded", "streams"])
async def test_nothing_is_lost_doubled_or_reordered_behind_a_plain_round_robin(
    node_modules: Path, valkey_url: str, unique: str, tmp_path: Path, adapter: str
) -> None:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            instances(valkey_url, unique, NAMES, adapter=adapter, FLOTTA_TEST_PAUSE_S=PAUSE_S)
        )
        port = await stack.enter_async_context(round_robin(tmp_path, [one.port for one in running]))
        await _run_crowds(port)
        told = [await instance.stats() for instance in running]
        assert sum(one["failed"] for one in told) == 0
        assert sum(one["relay"]["asked"] for one in told) > CLIENTS
        assert sum(one["relay"]["moved_here"] for one in told) > CLIENTS / 4
        assert sum(one["relay"]["tunnels"] for one in told) == 0


async def test_nothing_is_lost_doubled_or_reordered_on_the_shared_socket_of_flotta_run(
    node_modules: Path, valkey_url: str, unique: str, tmp_path: Path
) -> None:
    env = {
        "REDIS_URL": valkey_url,
        "PREFIX": unique,
        "PAUSE_S": PAUSE_S,
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    with service(tmp_path, "-n", "3", app=APP, env=env) as running:
        url = await asyncio.to_thread(running.url)
        await _run_crowds(int(url.rsplit(":", 1)[1]))
        assert "Traceback" not in running.text


async def _connect(node: NodePeer, port: int, home: str) -> list[str]:
    """Connect clients that poll, and some that upgrade, until two that poll are at home: their names."""
    polling: list[str] = []
    for number in range(40):
        transports = ["polling"] if number % 3 else ["polling", "websocket"]
        sid = await node.connect(f"c{number}", port, transports=transports)
        if sid.startswith(home) and number % 3:
            polling.append(f"c{number}")
        if len(polling) == 2:
            return polling
    raise AssertionError("nobody came to that instance")


async def test_clients_of_a_killed_instance_come_back_without_hanging(
    node: NodePeer, valkey_url: str, unique: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(instances(valkey_url, unique, NAMES, FLOTTA_TEST_PAUSE_S=PAUSE_S))
        port = await stack.enter_async_context(round_robin(tmp_path, [one.port for one in running]))
        polling = await _connect(node, port, "aaaa")
        killed_at_s = asyncio.get_running_loop().time()
        running[0].process.kill()
        for name in polling:  # the instance that answered its polls is gone: noticed by the others, said to it
            await node.wait(name, "disconnect")
            await node.wait(name, "connect", 2)
        assert asyncio.get_running_loop().time() - killed_at_s < 8
        for name in polling:
            assert await node.do("ask", name=name, args=["join", "crowd"]) == ["crowd"]
            await node.wait_event(name, "n", 3)
