"""The server as a plain ASGI app under the web servers that people run, each a process, with the official client.

What differs between them is written in docs/reference/realtime-handlers.md, and held here.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import InvalidStatus

from free_ports import free_port
from realtime_fixtures import NodePeer, node, node_modules, start_node, until

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node

TESTS = Path(__file__).parents[1]
WAIT_S = 20.0
COMMANDS = {
    "uvicorn": ["uvicorn", "realtime_app:app", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning"],
    "uvicorn-wsproto": ["uvicorn", "realtime_app:app", "--port", "{port}", "--log-level", "warning", "--ws", "wsproto"],
    "hypercorn": ["hypercorn", "realtime_app:app", "--bind", "127.0.0.1:{port}", "--graceful-timeout", "1"],
    "granian": ["granian", "--interface", "asgi", "realtime_app:app", "--host", "127.0.0.1", "--port", "{port}"],
}
TRANSPORTS = {"ws": ["websocket"], "poll": ["polling"], "up": ["polling", "websocket"]}


@pytest.fixture(params=COMMANDS)
def web_server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Running:
    """A web server's process with the application."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.lines: list[str] = []
        self._reader = asyncio.create_task(self._read(), name="web server")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    async def end(self) -> int:
        """Wait for the end that a signal began; the process' code."""
        code = await asyncio.wait_for(self.process.wait(), WAIT_S)
        await self._reader
        return code

    def disconnects(self) -> dict[str, str]:
        """Reasons that the application was told, by session id."""
        told = (line.split(" ", 2) for line in self.lines if line.startswith("disconnect "))
        return {sid: reason for _, sid, reason in told}


@asynccontextmanager
async def serve(name: str, **environ: str) -> AsyncIterator[Running]:
    port = free_port()
    command, *arguments = (part.format(port=port) for part in COMMANDS[name])
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / command,
        *arguments,
        cwd=TESTS,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    running = Running(process, port)
    try:
        async with asyncio.timeout(WAIT_S), httpx.AsyncClient() as http:
            while True:
                try:
                    assert (await http.get(f"http://127.0.0.1:{port}/")).text == "site"
                    break
                except httpx.TransportError:
                    assert process.returncode is None, running.lines
                    await asyncio.sleep(0.05)
        yield running
    except BaseException as error:
        error.add_note("\n".join(running.lines[-50:]))
        raise
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
        await running.end()


async def test_clients_of_every_transport_talk_and_are_sent_away(node: NodePeer, web_server: str) -> None:
    async with serve(web_server) as web:
        sids = {}
        for name, transports in TRANSPORTS.items():
            sids[name] = await node.connect(name, web.port, transports=transports)
        await node.wait("up", "upgrade")
        value = {"data": b"\x00\xff", "text": "æøå"}
        for name, transports in TRANSPORTS.items():
            assert await node.do("ask", name=name, args=["echo", value, 1]) == [value, 1]
            assert set((await node.do("ask", name=name, args=["enter", "harbour"]))[0]) == {sids[name], "harbour"}
            assert await node.do("ask", name=name, args=["transport"]) == [transports[-1]]
        await node.do("emit", name="ws", args=["say", "harbour", value])
        assert await node.wait_event("poll", "said") == await node.wait_event("up", "said") == [[value]]
        big = b"\x07" * 600_000
        assert await node.do("ask", name="up", args=["echo", big]) == [big]
        await node.do("close", name="poll")
        await node.wait("poll", "disconnect")
        await until(lambda: sids["poll"] in web.disconnects())  # the request that says so is on its way

        web.process.send_signal(signal.SIGTERM)
        await node.wait("ws", "disconnect")
        await node.wait("up", "disconnect")
        # uvicorn ends by the signal that it got, once it has shut down.
        assert await web.end() in {0, -signal.SIGTERM}
        assert node.seen("ws", "disconnect") == node.seen("up", "disconnect") == [["transport close"]]
        assert not node.events("ws", "said")
        reasons = web.disconnects()
        assert reasons.pop(sids["poll"]) in {"transport close", "client namespace disconnect"}
        # granian ends the lifespan, which drains, while it closes the WebSockets: either may be first.
        expected = {"transport close", "server draining"} if web_server == "granian" else {"transport close"}
        assert reasons.keys() == {sids["ws"], sids["up"]}
        assert set(reasons.values()) <= expected
        assert "lifespan ends" in web.lines


async def test_polling_client_is_drained(node: NodePeer, web_server: str) -> None:
    async with serve(web_server) as web:
        sid = await node.connect("poll", web.port, transports=["polling"])
        assert await node.do("ask", name="poll", args=["echo", 1]) == [1]
        web.process.send_signal(signal.SIGTERM)
        await node.wait("poll", "disconnect")
        assert await web.end() in {0, -signal.SIGTERM}
        # hypercorn may cut the request that waits, when its graceful timeout is over, before it ends the lifespan.
        expected = {"server draining", "transport error"} if web_server == "hypercorn" else {"server draining"}
        assert web.disconnects()[sid] in expected


async def test_refusals_have_their_status(node: NodePeer, web_server: str) -> None:
    async with serve(web_server, CONNECTIONS_MAX="1") as web:
        options: dict[str, Any] = {"auth": {"token": "wrong"}, "reconnection": False}
        await node.do("connect", name="wrong", url=f"http://127.0.0.1:{web.port}", options=options)
        assert await node.wait("wrong", "connect_error") == [["unknown token", {"code": 7}]]
        url = f"127.0.0.1:{web.port}/socket.io/?EIO=4&transport="
        foreign = {"Origin": "https://evil.example"}
        assert await _ws_refusal(f"ws://{url}websocket", foreign) == (403, {"code": 4, "message": "Forbidden"})
        await node.connect("first", web.port)
        full = {"code": 4, "message": "Server at capacity"}
        assert await _ws_refusal(f"ws://{url}websocket", {}) == (503, full)
        async with httpx.AsyncClient() as http:
            answer = await http.get(f"http://{url}polling")
            assert (answer.status_code, answer.json()) == (503, full)
            answer = await http.get(f"http://{url}polling&sid=unknown")
            assert (answer.status_code, answer.json()["code"]) == (400, 1)


async def _ws_refusal(url: str, headers: dict[str, str]) -> tuple[int, Any]:
    with pytest.raises(InvalidStatus) as caught:
        await ws_connect(url, additional_headers=headers)
    return caught.value.response.status_code, json.loads(caught.value.response.body or b"null")
