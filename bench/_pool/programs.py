"""The other processes of the benchmark: the delay line, task queues and the environments that they live in.

Owns: starting and ending them. A peer lives in an environment of its own, ``.venv-bench/<peer>``, made here on first
use, because the versions of redis-py that the peers need exclude each other and ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONTESTANTS", "Contestant", "DelayedServer", "Lines", "environment_of", "versions_in"]

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-bench"
INSTALL_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0
END_TIMEOUT_S = 5.0


class Lines:
    """A process that answers lines with lines."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.process = process
        self.name = name

    @classmethod
    async def start(cls, command: list[str], environment: Mapping[str, str], *, quiet: bool = True) -> Lines:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=HERE, env={**os.environ, **environment},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL if quiet else None, start_new_session=True,
        )  # fmt: skip
        return cls(process, " ".join(command))

    async def read(self) -> str:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), ANSWER_TIMEOUT_S)
        if not line:
            raise RuntimeError(f"{self.name} has ended")
        return line.decode().strip()

    async def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        return await self.read()

    async def end(self) -> None:
        """SIGTERM to it and its children; SIGKILL if that takes long."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()


class DelayedServer:
    """The server behind a delay line; ``url`` goes through it."""

    def __init__(self, line: Lines, url: str) -> None:
        self.pid = line.process.pid
        self.url = url
        self._line = line

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, url: str) -> AsyncIterator[DelayedServer]:
        line = await Lines.start([sys.executable, "delay.py", url], {}, quiet=False)
        try:
            yield cls(line, f"redis://127.0.0.1:{await line.read()}")
        finally:
            await line.end()

    async def set_round_trip(self, milliseconds: float) -> None:
        await self._line.ask(str(milliseconds))


# --- task queues -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """A task queue: what to install, what to run, and the settings that were best for it here."""

    name: str
    packages: tuple[str, ...] = ()
    worker: tuple[str, ...] = ()
    """The worker's command in its environment; empty: ``python task_<name>.py work``."""

    def command(self, part: str) -> list[str]:
        """``part``: produce or work."""
        folder = Path(sys.executable).parent if not self.packages else ENVIRONMENTS / self.name / "bin"
        if part == "work" and self.worker:
            return [str(folder / self.worker[0]), *self.worker[1:]]
        return [str(folder / "python"), f"task_{self.name}.py", part]


CONTESTANTS = (
    Contestant("flotta"),
    Contestant(
        "taskiq",
        ("taskiq>=0.12,<1", "taskiq-redis>=1.1,<2", "hiredis>=3.2,<4", "uvloop>=0.21,<1"),
        # 100 tasks at a time, the default; more prefetching or less checking made no difference.
        ("taskiq", "worker", "task_taskiq:broker", "--workers", "1", "--log-level", "WARNING"),
    ),
    Contestant("saq", ("saq[redis]>=0.24,<1", "typing-extensions>=4", "hiredis>=3.2,<4", "uvloop>=0.21,<1")),
    Contestant("streaq", ("streaq>=6,<8", "uvloop>=0.21,<1")),
    Contestant("arq", ("arq>=0.26,<1", "hiredis>=3.2,<4", "uvloop>=0.21,<1")),
    Contestant(
        "celery",
        ("celery[redis]>=5.5,<6", "hiredis>=3.2,<4"),
        # In the worker's own process, which is faster here than a child process or threads.
        (
            "celery", "-A", "task_celery", "worker", "--pool", "solo", "--loglevel", "WARNING",
            "--without-gossip", "--without-mingle", "--without-heartbeat",
        ),
    ),
)  # fmt: skip


def environment_of(peer: Contestant) -> str | None:
    """Make the peer's environment if it is not there. The reason if that cannot be done."""
    folder = ENVIRONMENTS / peer.name
    wanted = "\n".join(peer.packages)
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *peer.packages],
    ]
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    stamp.write_text(wanted)
    return None


def versions_in(peer: Contestant) -> str:
    """The versions that the benchmark ran against, with the Redis client that the peer needs."""
    command = [str(ENVIRONMENTS / peer.name / "bin" / "pip"), "list", "--format", "json", "--disable-pip-version-check"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    shown = {peer.name, "taskiq-redis"} if peer.name == "taskiq" else {peer.name}
    clients = {"redis", "coredis", "kombu"}
    return ", ".join(f"{item['name']} {item['version']}" for item in found if item["name"] in shown | clients)
