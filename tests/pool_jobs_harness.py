"""For the tests of jobs: handlers that say what happens to them, waits without fixed pauses, and workers in processes.

``python pool_jobs_harness.py '<setup as JSON>'`` is such a process: it joins, prints "ready", then a line for all that
its jobs do. It obeys lines on its standard input: "close", "block <seconds>", "block" (until the next line comes).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

from flotta.pool import Backoff, Job, Node, PoolOptions, StopReason, WorkerPool

__all__ = ["FAST", "Recorder", "Said", "WorkerProcess", "declare", "joined", "until"]

FAST = PoolOptions(
    worker_ttl_s=1.5, ack_grace_s=1.5, rebalance_debounce_s=0.05, handover_timeout_s=1.0, dispatch_timeout_s=10.0,
    stop_timeout_s=5.0, close_timeout_s=5.0, shutdown_ttl_s=5.0,
)  # fmt: skip
QUICK = Backoff(first_s=0.02, max_s=0.1)


async def until(condition: Callable[[], object], timeout_s: float = 15) -> None:
    """Wait for what other processes do: looks every 5 ms."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def joined(name: str, url: str, **options: Any) -> AsyncIterator[Node]:
    """A node that is closed at the end."""
    from dataclasses import replace

    node = await Node.join(name, url, options=replace(FAST, **options))
    try:
        yield node
    finally:
        await node.close(timeout_s=1.0)


@dataclass
class Said:
    """One thing that happened to a job."""

    what: str
    key: str
    fence: int
    worker: str
    detail: Any = None


class Recorder:
    """A handler that remembers. ``refuse``: a payload whose start raises; ``gate``: holds every start while clear."""

    def __init__(self, refuse: bytes = b"bad") -> None:
        self.said: list[Said] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuse = refuse
        self.running: dict[str, Job[Any]] = {}

    def keys(self, what: str) -> list[str]:
        return [said.key for said in self.said if said.what == what]

    def details(self, what: str, key: str) -> list[Any]:
        return [said.detail for said in self.said if said.what == what and said.key == key]

    def _say(self, what: str, job: Job[Any], detail: Any = None) -> None:
        self.said.append(Said(what, job.key, job.fence, job.worker, detail))

    async def start(self, job: Job[Any]) -> None:
        self._say("starting", job)
        await self.gate.wait()
        if job.payload == self.refuse:
            raise ValueError("this payload is refused")
        self.running[job.key] = job
        self._say("started", job, job.payload)

    async def stop(self, job: Job[Any]) -> None:
        self.running.pop(job.key, None)
        self._say("stopped", job, job.stop_reason)

    async def notify(self, job: Job[Any], payload: bytes) -> None:
        self._say("noted", job, payload)


def declare(pool: WorkerPool, say: Callable[..., None]) -> Any:
    """A job that does what ``mode`` says, and counts its runs in its checkpoint."""

    @pool.job(key="unit:{number}", name="unit", crashes_max=50, backoff=QUICK)
    async def unit(job: Job[int], number: int, mode: str = "stay") -> None:
        before = job.state
        await job.checkpoint((before or 0) + 1)
        say("run", job.key, job.fence, job.attempt, before)
        try:
            async for note in job.notifications():
                assert note is not None
                say("note", job.key, job.fence, note.payload.decode())
        except asyncio.CancelledError:
            say("end", job.key, job.fence, None if job.stop_reason is None else job.stop_reason.value, job.owned)
            if mode == "stubborn" and job.stop_reason is not StopReason.STOP:
                await asyncio.Event().wait()
            raise

    return unit


class WorkerProcess:
    """A worker in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[list[Any]] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, pool: str, url: str, **options: Any) -> Self:
        setup = json.dumps({"pool": pool, "url": url, "options": options})
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, setup, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        worker = cls(process)
        await until(lambda: worker.about("ready"))
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    def about(self, what: str, key: str | None = None) -> list[list[Any]]:
        return [said for said in self.said if said[0] == what and (key is None or said[1] == key)]

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def kill(self) -> None:
        """SIGKILL, also of one that was stopped. Again: harmless."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> int:
        async with asyncio.timeout(15):
            code = await self._process.wait()
            await self._reading
        return code

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.startswith(b"["):
                self.said.append(json.loads(line))


async def _work(setup: dict[str, Any]) -> None:
    from dataclasses import replace

    def say(*what: Any) -> None:
        print(json.dumps(what), flush=True)

    pool = WorkerPool(setup["pool"], options=replace(FAST, **setup["options"]))
    declare(pool, say)
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)

    def obey() -> None:
        line = sys.stdin.readline().split()
        if not line or line[0] == "close":
            end.set()
        elif line[0] == "block":
            if line[1:]:
                time.sleep(float(line[1]))
            else:
                sys.stdin.readline()
            say("unblocked")

    loop.add_reader(sys.stdin, obey)
    async with pool.running(setup["url"]):
        say("ready")
        await end.wait()
    say("closed")


if __name__ == "__main__":
    asyncio.run(_work(json.loads(sys.argv[1])))
