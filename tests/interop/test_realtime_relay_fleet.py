"""Instances of one shared socket that begin, are drained and die under official clients with default options."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from realtime_fixtures import node_modules, node_script
from supervisor_service import Service, service

__all__ = ["node_modules"]

pytestmark = [pytest.mark.node, pytest.mark.timeout(120)]

CLIENTS = int(os.environ.get("FLOTTA_TEST_RELAY_COMERS", "60"))

APP = """
import asyncio, json, os
from realtime_balanced_instance import make_server

sio = make_server(os.environ["REDIS_URL"], os.environ["PREFIX"], None)

async def pid(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = json.dumps({"pid": os.getpid()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})

app = sio.app(pid)
"""


class Comers:
    """A Node process with clients; see comers.js."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(await asyncio.wait_for(self._process.stdout.readline(), 60)))

    async def all_back(self) -> dict[str, Any]:
        """Wait until every client is answered; the report."""
        assert self._process.stdin is not None
        async with asyncio.timeout(60):
            while True:
                self._process.stdin.write(b"report\n")
                report = await self.line()
                if report["answered"] == report["connected"] == CLIENTS:
                    return report


@asynccontextmanager
async def _comers(url: str, pause_ms: int) -> AsyncIterator[Comers]:
    port = url.rsplit(":", 1)[1]
    async with node_script("comers.js", f"http://127.0.0.1:{port}", CLIENTS, pause_ms) as process:
        yield Comers(process)


@contextmanager
def _three(folder: Path, valkey_url: str, unique: str, *arguments: str) -> Iterator[Service]:
    env = {"REDIS_URL": valkey_url, "PREFIX": unique, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with service(folder, "-n", "3", *arguments, app=APP, env=env) as running:
        yield running
        assert "Traceback" not in running.text


@pytest.mark.parametrize("how", ["drained", "killed"])
async def test_everybody_is_back_when_an_instance_ends_while_clients_come(
    node_modules: Path, valkey_url: str, unique: str, tmp_path: Path, how: str
) -> None:
    with _three(tmp_path, valkey_url, unique) as running:
        url = await asyncio.to_thread(running.url)
        pids = sorted(await asyncio.to_thread(running.instances))
        async with _comers(url, 20) as comers:
            await comers.line()  # half are in: handshakes, relayed polls, upgrades and moves are under way
            os.kill(pids[0], signal.SIGTERM if how == "drained" else signal.SIGKILL)
            assert (await comers.line())["ready"] == CLIENTS
            report = await comers.all_back()
            # The official client forgets that it has paused polling when its WebSocket dies in mid-upgrade,
            # and comes back only when it has heard no ping. That takes a server that dies.
            accepted = {"transport close", "transport error"} | ({"ping timeout"} if how == "killed" else set())
            assert set(report["disconnects"]) <= accepted
            if how == "drained":
                assert report["errors"] == []


async def test_clients_that_come_as_the_instances_begin_have_no_errors(
    node_modules: Path, valkey_url: str, unique: str, tmp_path: Path
) -> None:
    with _three(tmp_path, valkey_url, unique) as running:
        url = await asyncio.to_thread(running.url)
        async with _comers(url, 5) as comers:
            assert (await comers.line())["half"]
            assert (await comers.line())["ready"] == CLIENTS
            report = await comers.all_back()
            assert (report["errors"], report["disconnects"], report["most"]) == ([], [], 1)
