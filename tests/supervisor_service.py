"""A real ``flotta run`` for tests: started as a user starts it, heard line by line, ended for certain."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

APP = """
import asyncio, json, os, signal

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path = scope["path"]
    if path == "/slow":
        print("slow request began", flush=True)
        await asyncio.sleep(float(scope["query_string"] or b"1"))
    if path == "/stuck":
        print("stuck request began", flush=True)
        await asyncio.Event().wait()
    if path == "/child":
        import subprocess
        subprocess.Popen(["sleep", "1000"])
    body = json.dumps({"pid": os.getpid(), "env": {k: os.environ.get(k) for k in ("REDIS_URL", "DATABASE_URL")}})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body.encode()})
"""


def wait_until(fact: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    """The first true value of ``fact``; fails with ``what`` when it does not come true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := fact()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return value


def flotta(*arguments: str) -> list[str]:
    """The command line of ``flotta`` with this interpreter."""
    return [sys.executable, "-c", "from flotta.cli import main; main()", *arguments]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Service:
    """``flotta`` with ``arguments``, its output as ``lines`` (both streams)."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        env: dict[str, str] | None = None,
        verify: ssl.SSLContext | bool = False,
    ) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLOTTA_", "REDIS_", "DATABASE_"))}
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            flotta(*arguments),
            cwd=folder,
            env={**environ, "NO_COLOR": "", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._family: dict[int, psutil.Process] = {}
        self.client = httpx.Client(headers={"Connection": "close"}, timeout=10.0, verify=verify)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_line(self, pattern: str, timeout_s: float = 20.0, *, after: int = 0) -> re.Match[str]:
        """The first line from number ``after`` on in which ``pattern`` is found."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found[:] = [m for line in self.lines[after:] if (m := re.search(pattern, line))]
            return bool(found) or not self._reader.is_alive()

        with self._news:
            self._news.wait_for(look, timeout_s)
        assert found, f"no line matches {pattern!r} in:\n{self.text}"
        return found[0]

    def url(self) -> str:
        return self.wait_line(r"^ready (\S+)$")[1]

    def get(self, path: str = "/") -> Any:
        """The JSON of one answer, over a connection of its own: it may come from any instance."""
        return self.client.get(self.url() + path).json()

    def family(self) -> set[int]:
        """Every process that it has started up to now and that was seen by a call of this."""
        me = psutil.Process(self.process.pid)
        for child in me.children(recursive=True):
            self._family[child.pid] = child
        return set(self._family)

    def instances(self) -> set[int]:
        """The pids that answer now."""
        return {self.get()["pid"] for _ in range(30)}

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        for child in self._family.values():
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                child.kill()


@contextmanager
def service(
    folder: Path,
    *arguments: str,
    app: str | None = APP,
    env: dict[str, str] | None = None,
    verify: ssl.SSLContext | bool = False,
) -> Iterator[Service]:
    """``flotta run app:app --port 0`` with ``arguments`` after it, on ``app`` as ``app.py``."""
    if app is not None:
        (folder / "app.py").write_text(app)
    running = Service(folder, "run", "app:app", "--port", "0", *arguments, env=env, verify=verify)
    try:
        yield running
    finally:
        running.close()


def records(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]
