"""What tests of the realtime server share: real web servers in the test's loop, and the official JavaScript peers."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from flotta.realtime import Server
from flotta.realtime.transports.native import ws_protocol_class
from peers import missing

NODE_FOLDER = Path(__file__).parent / "interop" / "node"
WAIT_S = 10.0


@asynccontextmanager
async def serving(
    sio: Server,
    *,
    native: bool,
    port: int = 0,
    other: Any = None,
    whole: Any = None,
    drain: bool = True,
    listening: socket.socket | None = None,
    **uvicorn_options: Any,
) -> AsyncIterator[int]:
    """Serve ``sio`` by uvicorn in this loop, natively or through ASGI; gives the port. ``whole``: an app that
    holds it."""
    listening = listening or _listening(port)
    web = _Web(
        uvicorn.Config(
            whole or sio.app(other),
            ws=ws_protocol_class() if native else "websockets-sansio",
            lifespan="on",
            log_level="warning",
            timeout_graceful_shutdown=5,
            **uvicorn_options,
        )
    )
    task = asyncio.create_task(web.serve(sockets=[listening]), name="uvicorn")
    try:
        await until(lambda: web.started or task.done())
        if task.done():
            await task
        yield listening.getsockname()[1] if listening.family != socket.AF_UNIX else 0
    finally:
        try:
            if drain:
                await sio.drain(0.5)
            web.ending.set()
            await asyncio.wait_for(task, 30)
        finally:
            listening.close()
            await sio.aclose()


def _listening(port: int) -> socket.socket:
    """A socket that names its protocol: only then does asyncio send small packets without waiting (TCP_NODELAY)."""
    own = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.bind(("127.0.0.1", port))
    own.listen(128)
    return own


class _Web(uvicorn.Server):
    """uvicorn's own server, told to stop by an event instead of a signal that it looks for ten times a second, and
    without its pauses of a tenth of a second while it stops: a thousand tests start one."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signal handlers alone."""
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Hear nobody any more, let what runs end in time, then tell the application."""
        state = self.server_state
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        for connection in list(state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while state.connections or state.tasks:
                    await asyncio.sleep(0.005)
                for server in self.servers:
                    await server.wait_closed()
        except TimeoutError:
            for task in state.tasks:
                task.cancel()
        await self.lifespan.shutdown()


async def until(true: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
    """Return when ``true()`` is; the loop turns meanwhile. For facts that nothing announces."""
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.005)


def plain(value: Any) -> Any:
    """Bytes as the peer writes them."""
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def python(value: Any) -> Any:
    """And back."""
    if isinstance(value, list):
        return [python(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$bytes" in value:
        return base64.b64decode(value["$bytes"])
    return {key: python(item) for key, item in value.items()}


class NodePeer:
    """One Node process with the official client, server and adapter."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.happened: list[tuple[str, str, list[Any]]] = []
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read(), name="node peer")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            message = json.loads(line)
            if "event" in message:
                async with self._changed:
                    self.happened.append((message["name"], message["what"], python(message["args"])))
                    self._changed.notify_all()
            elif not (answer := self._answers.pop(message["id"])).done():
                if "error" in message:
                    answer.set_exception(RuntimeError(message["error"]))
                else:
                    answer.set_result(python(message["ok"]))

    async def do(self, op: str, **fields: Any) -> Any:
        """Run one operation; RuntimeError with the peer's message if it fails."""
        assert self._process.stdin is not None
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"id": number, "op": op, **plain(fields)}).encode() + b"\n")
        return await asyncio.wait_for(answer, WAIT_S)

    def seen(self, name: str, what: str) -> list[list[Any]]:
        """Everything of this kind that has happened to a client."""
        return [args for who, kind, args in self.happened if (who, kind) == (name, what)]

    def events(self, name: str, event: str) -> list[list[Any]]:
        """The arguments of every ``event`` that the client got."""
        return [args[1:] for args in self.seen(name, "event") if args[0] == event]

    async def wait(self, name: str, what: str, count: int = 1) -> list[list[Any]]:
        """Wait until it has happened ``count`` times."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: len(self.seen(name, what)) >= count)
        return self.seen(name, what)

    async def wait_event(self, name: str, event: str, count: int = 1) -> list[list[Any]]:
        """Wait until the client got ``event`` ``count`` times."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: len(self.events(name, event)) >= count)
        return self.events(name, event)

    async def connect(self, name: str, port: int, **options: Any) -> str:
        """Connect a client and wait for it; its session id."""
        await self.do(
            "connect", name=name, url=f"http://127.0.0.1:{port}{options.pop('namespace', '')}", options=options
        )
        return (await self.wait(name, "connect"))[0][0]

    async def kill(self) -> None:
        """End the process without a word. Its whole group: ``node`` may be a wrapper that has started the real one."""
        os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def aclose(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), WAIT_S)
        await self._reader


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder with the npm packages, installed from the lock file if they are not there."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("node", "node and npm are not installed")
    installed = NODE_FOLDER / "node_modules" / ".package-lock.json"
    lock = NODE_FOLDER / "package-lock.json"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # another worker of the same run may be installing: then wait for it
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            done = subprocess.run(
                ["npm", "ci", "--no-audit", "--no-fund"],
                cwd=NODE_FOLDER,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            if done.returncode:
                missing("node", f"npm ci failed: {done.stderr[-300:]}")
    return NODE_FOLDER


@asynccontextmanager
async def node_script(name: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """A script of the npm folder as a process that ends when its input does; killed if it does not within 20 s."""
    process = await asyncio.create_subprocess_exec(
        *("node", name, *map(str, arguments)),
        cwd=NODE_FOLDER,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


@pytest.fixture
async def start_node(node_modules: Path) -> AsyncIterator[Callable[[], Awaitable[NodePeer]]]:
    """Start Node processes; they end with the test."""
    peers: list[NodePeer] = []

    async def start() -> NodePeer:
        process = await asyncio.create_subprocess_exec(
            "node",
            "peer.js",
            cwd=node_modules,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
            start_new_session=True,
        )
        peers.append(NodePeer(process))
        return peers[-1]

    yield start
    for peer in peers:
        await peer.aclose()


@pytest.fixture
async def node(start_node: Callable[[], Awaitable[NodePeer]]) -> NodePeer:
    """One Node process."""
    return await start_node()


@pytest.fixture(params=[True, False], ids=["native", "asgi"])
def native(request: pytest.FixtureRequest) -> bool:
    """Both transports."""
    return bool(request.param)
