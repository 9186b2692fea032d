"""An instance is killed as the kernel does it; the official client finds another one and goes on."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from flotta.realtime import Server
from realtime_fixtures import NodePeer, node, node_modules, start_node, until

__all__ = ["node", "node_modules", "start_node"]

pytestmark = [pytest.mark.node, pytest.mark.faults]

PROGRAM = Path(__file__).parent.parent / "realtime_instance.py"
CLIENTS_MAX = 40


@asynccontextmanager
async def _instance(
    listening: socket.socket, redis_url: str, prefix: str, name: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that serves on ``listening``, which all instances share as under one supervisor."""
    arguments = (str(PROGRAM), str(listening.fileno()), redis_url, prefix, name)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, pass_fds=[listening.fileno()], stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readuntil(b"ready\n"), 20)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _connect_to_both(node: NodePeer, port: int) -> dict[str, list[str]]:
    """Connect clients until each instance has some: their names by instance."""
    found: dict[str, list[str]] = {"aaaa": [], "bbbb": []}
    for number in range(CLIENTS_MAX):
        name = f"c{number}"
        sid = await node.connect(name, port)
        found[sid[:4]].append(name)
        if number >= 5 and all(found.values()):
            return found
    raise AssertionError(f"one instance got all clients: {found}")


async def test_client_of_a_killed_instance_goes_on_at_another_and_the_others_miss_nothing(
    node: NodePeer, valkey_url: str, unique: str
) -> None:
    async with AsyncExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        killed = await stack.enter_async_context(_instance(listening, valkey_url, unique, "aaaa"))
        await stack.enter_async_context(_instance(listening, valkey_url, unique, "bbbb"))
        sender = await stack.enter_async_context(Server(valkey_url, channel_prefix=unique))
        clients = await _connect_to_both(node, listening.getsockname()[1])
        moved, stayed = clients["aaaa"], clients["bbbb"]
        sent = 0

        async def send_until_everybody_has(first: int) -> None:
            nonlocal sent
            while not all([first] in node.events(name, "n") for name in [*moved, *stayed]):
                await sender.emit("n", sent)
                sent += 1
                await asyncio.sleep(0.005)

        await send_until_everybody_has(0)
        killed.kill()
        await asyncio.gather(*(node.wait(name, "disconnect") for name in moved))
        await asyncio.gather(*(node.wait(name, "connect", 2) for name in moved))
        assert {node.seen(name, "connect")[1][0][:4] for name in moved} == {"bbbb"}
        await send_until_everybody_has(sent)
        last = sent - 1
        await until(lambda: all([last] in node.events(name, "n") for name in [*moved, *stayed]))
        for name in stayed:
            assert node.events(name, "n") == [[number] for number in range(sent)]
            assert node.seen(name, "disconnect") == []
        for name in moved:  # what was sent while it was away is missed, nothing comes twice or out of order
            got = [number for (number,) in node.events(name, "n")]
            assert got == sorted(set(got))
            assert last in got
