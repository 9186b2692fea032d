"""The real Go Pulse, driven from Python.

Owns: finding or building the Go program in ``go/``, starting it, and speaking its line protocol (see ``go/main.go``).
The binary is ``FLOTTA_PULSE_PEER`` if that is set; else it is built from the Go module index, once per process. Where
neither can be had the tests skip and say why, or fail if ``FLOTTA_REQUIRE`` names go (see ``peers.py``).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from peers import missing

__all__ = ["GoPeer", "PeerError", "PeerMissingError", "peer_binary", "pulse_version", "require_peer"]

GO_DIR = Path(__file__).parent / "go"
BUILD_TIMEOUT_S = 300
CALL_TIMEOUT_S = 30.0
LINE_BYTES_MAX = 64 * 1024 * 1024


class PeerMissingError(Exception):
    """The Go peer cannot be had here; the text says why."""


class PeerError(Exception):
    """The Go program answered with an error."""


def peer_binary() -> Path:
    """The finished Go program. Raises PeerMissingError with the exact reason."""
    found = _find_or_build()
    if isinstance(found, str):
        raise PeerMissingError(found)
    return found


def pulse_version() -> str:
    """The version of Pulse that ``go.mod`` asks for, such as "1.6.5"."""
    asked = re.search(r"^\s*goa\.design/pulse v(\S+)", (GO_DIR / "go.mod").read_text(), re.MULTILINE)
    assert asked is not None, "go.mod names no version of Pulse"
    return asked[1]


@functools.cache
def _find_or_build() -> Path | str:
    """The program, or why there is none: a failed build too is tried only once."""
    given = os.environ.get("FLOTTA_PULSE_PEER")
    if given:
        if not os.access(given, os.X_OK):
            return f"FLOTTA_PULSE_PEER={given} is no program"
        return Path(given)
    go = shutil.which("go")
    if go is None:
        return "Go is not installed and FLOTTA_PULSE_PEER is not set"
    return _build(go)


def _build(go: str) -> Path | str:
    """Builds outside the checkout: the module files are copied, because the build completes go.sum."""
    folder = Path(tempfile.mkdtemp(prefix="flotta-peer-"))
    shutil.copy(GO_DIR / "go.mod", folder / "go.mod")
    shutil.copy(GO_DIR / "go.sum", folder / "go.sum")
    binary = folder / "peer"
    command = [go, "build", "-mod=mod", f"-modfile={folder / 'go.mod'}", "-o", str(binary), "."]
    try:
        done = subprocess.run(command, cwd=GO_DIR, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"building it took more than {BUILD_TIMEOUT_S} s"
    return binary if done.returncode == 0 else build_failure(done.stderr)


def build_failure(stderr: str) -> str:
    """The first error of ``go build`` on one line: it repeats a missing module for every import, over two lines."""
    lines = [
        line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith(("go: downloading", "#"))
    ]
    said = [line for line in lines[1:2] if line.startswith("server response:")]
    return "go build: " + " ".join([*lines[:1], *said]) if lines else "go build failed and said nothing"


def require_peer() -> Path:
    """For fixtures: the program, or skip with the reason (fail where FLOTTA_REQUIRE names go)."""
    try:
        return peer_binary()
    except PeerMissingError as reason:
        missing("go", f"no Go Pulse: {reason}")


def pack(value: Any) -> Any:
    """Bytes become what the program reads as text: a string, or ``{"b64": ...}`` where they are no UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value]
    return value


def unpack(value: Any) -> Any:
    """The opposite of pack, for answers: ``{"b64": ...}`` becomes bytes, a string stays a string."""
    if isinstance(value, dict):
        if value.keys() == {"b64"}:
            return base64.b64decode(value["b64"])
        return {key: unpack(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack(item) for item in value]
    return value


class GoPeer:
    """One running Go program. ``events`` holds what it sent without being asked: dicts with at least "event"."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read(), name="go peer")

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, redis_url: str, *, pool: int = 0) -> AsyncIterator[GoPeer]:
        """Start it against one Redis; on exit it is stopped. Raises PeerMissingError."""
        process = await asyncio.create_subprocess_exec(
            str(await asyncio.to_thread(peer_binary)), "-redis", redis_url, "-pool", str(pool),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES_MAX,
        )  # fmt: skip
        peer = cls(process)
        try:
            await peer.call("ping")
            yield peer
        finally:
            await peer.aclose()

    @property
    def pid(self) -> int:
        """Its process id, for tests that kill it."""
        return self._process.pid

    async def call(self, op: str, *, timeout_s: float = CALL_TIMEOUT_S, **arguments: Any) -> Any:
        """Run one operation. Arguments may hold bytes. Raises PeerError with the program's own words."""
        self._last_id += 1
        request = {"id": self._last_id, "op": op} | {key: pack(value) for key, value in arguments.items()}
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[self._last_id] = answer
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return await asyncio.wait_for(answer, timeout_s)

    async def event(self, *, timeout_s: float = CALL_TIMEOUT_S) -> dict[str, Any]:
        """The next event."""
        return await asyncio.wait_for(self.events.get(), timeout_s)

    def kill(self) -> None:
        """SIGKILL: no goodbye to Redis."""
        self._process.kill()

    async def aclose(self) -> None:
        """End its input, and it if it does not end then."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 5)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if "event" in message:
                self.events.put_nowait(unpack(message))
                continue
            answer = self._calls.pop(message["id"])
            if answer.done():
                continue
            if "error" in message:
                answer.set_exception(PeerError(message["error"]))
            else:
                answer.set_result(unpack(message["ok"]))
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(PeerError("the Go peer has ended"))
        self._calls.clear()
