"""A worker in a process of its own, as the supervisor starts it, with its status channel and its log."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

TIMEOUT_S = 30.0


class WorkerProcess:
    """``with WorkerProcess(folder, "main:app", REDIS_URL=...) as worker: worker.wait_for("ready")``."""

    def __init__(
        self, folder: Path, app: str, *, config: dict[str, Any] | None = None, supervised: bool = True, **environ: str
    ) -> None:
        self.folder = folder
        self._supervised = supervised
        self._config = {"app": app, "app_dir": str(folder), "port": 0, **(config or {})}
        self._environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("FLOTTA_", "REDIS_", "DATABASE_"))},
            "FLOTTA_LOG_FORMAT": "json",
            "PYTHONFAULTHANDLER": "1",
            **environ,
        }
        self.messages: list[dict[str, Any]] = []
        self.code: int | None = None
        self._buffer = b""
        self._seen = 0

    def __enter__(self) -> Self:
        self.log_path = self.folder / "worker.log"
        self._status, write_end = os.pipe()
        os.set_blocking(self._status, False)
        self._config["status_fd"] = write_end if self._supervised else None
        environ = {**self._environ, "FLOTTA_SERVE": json.dumps(self._config)}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flotta.server"],
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[write_end, *self._config.get("fds", ())],
                cwd=self.folder,
            )
        os.close(write_end)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.process.poll() is None:
            # After a failure its threads' stacks go into the log.
            self.process.send_signal(signal.SIGKILL if error is None else signal.SIGABRT)
            self.process.wait()
        self.close_status()
        if error is not None:
            error.add_note(f"worker's log:\n{self.log()}\nworker's status: {self.messages}")

    def close_status(self) -> None:
        """As when the supervisor dies."""
        if self._status >= 0:
            os.close(self._status)
            self._status = -1

    def wait_for(self, state: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """The status message with this state."""
        return self.wait_until(lambda m: m.get("state") == state, timeout_s)

    def wait_until(self, is_it: Any, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            while self._seen < len(self.messages):
                message = self.messages[self._seen]
                self._seen += 1
                if is_it(message):
                    return message
            if not self._read(deadline):
                raise AssertionError(f"the worker never said it; it said {self.messages}\n{self.log()}")

    def _read(self, deadline: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            if not selector.select(max(deadline - time.monotonic(), 0)):
                return False
        data = os.read(self._status, 65536)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.messages += [json.loads(line) for line in lines]
        return bool(data)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        self.code = self.process.wait(timeout_s)
        return self.code

    @property
    def url(self) -> str:
        return str(next(m["address"] for m in self.messages if m.get("state") == "ready"))

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=TIMEOUT_S, **options)

    def wait_log(self, text: str, timeout_s: float = TIMEOUT_S) -> None:
        """Until ``text`` is in the log."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log():
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.log()}"
            assert self.process.poll() is None, f"the worker has ended:\n{self.log()}"
            time.sleep(0.02)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
