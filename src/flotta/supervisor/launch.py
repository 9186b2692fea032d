"""How each process of a service is started: its command line, its environment, the descriptors that it inherits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from flotta.supervisor import warden
from flotta.supervisor.child import Command
from flotta.supervisor.options import RunOptions
from flotta.supervisor.sockets import Listener, adopt, listen_tcp, listen_unix
from flotta.supervisor.states import Limits

__all__ = ["Launcher", "WardenProcess", "exit_text", "listen", "memory_of", "raise_open_files"]

_ID_LENGTH_MAX = 63
_DRAIN_MARGIN_S = 5.0
_OPEN_FILES = (65_536, 10_240)


def listen(options: RunOptions) -> Listener:
    """The socket that ``options`` ask for. Raises CannotListen."""
    if options.fd is not None:
        return adopt(options.fd)
    if options.uds is not None:
        return listen_unix(options.uds, options.uds_mode)
    return listen_tcp(options.host, options.port)


def raise_open_files() -> None:
    """Let this process and its children open as many files as they may: the usual soft limit of 1024 is 1,000
    connections. (It is that low for programs that use select(2); they must not open more.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, *_OPEN_FILES):  # macOS: no more than kern.maxfilesperproc, whatever hard says
        if wanted == soft:
            return
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


@final
class WardenProcess:
    """Our side of :mod:`flotta.supervisor.warden`. Close it when no process is left."""

    def __init__(self, grace_s: float) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-I", "-S", warden.__file__, str(grace_s)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        self._order(b"+%d\n" % group)

    def forget(self, group: int) -> None:
        self._order(b"-%d\n" % group)

    def close(self) -> None:
        self._order(b"bye\n")
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _order(self, order: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # killed by somebody: workers still watch us themselves
            self._process.stdin.write(order)
            self._process.stdin.flush()


@final
@dataclass(slots=True)
class Launcher:
    """Makes the commands of one service. ``urls`` are those of embedded servers, by variable."""

    options: RunOptions
    listener: Listener
    environ: Mapping[str, str]
    urls: Mapping[str, str]
    live: bool
    _base: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        base = {**self.environ, **self.urls}
        base["PYTHONUNBUFFERED"] = "1"  # a line is shown when it is written
        base["FLOTTA_SERVICE"] = self.options.service
        base["FLOTTA_DRAIN_S"] = f"{self.options.drain_s:g}"
        base["FLOTTA_STOP_S"] = f"{self.options.drain_s + self._stop_margin_s:g}"
        base.pop("FLOTTA_EMBEDDED", None)  # ours to read, not theirs
        if self.options.json:
            base["FLOTTA_LOG_FORMAT"] = "json"
        elif self.live:
            base.setdefault("FLOTTA_LOG_FORMAT", "console")
        self._base = base

    def limits(self) -> Limits:
        return Limits(drain_s=self.options.drain_s, stop_margin_s=self._stop_margin_s, hold=self.options.reload)

    @property
    def _stop_margin_s(self) -> float:
        return _DRAIN_MARGIN_S if self.options.stop_s is None else self.options.stop_s - self.options.drain_s

    def instance(self, slot: int, status_fd: int) -> Command:
        """An instance that serves on the listening socket and tells its state on ``status_fd``."""
        options, fd = self.options, self.listener.socket.fileno()
        # The fields of flotta.server.ServeConfig. It is not imported: uvicorn and all that comes with it would stay in
        # the supervisor for its whole life. A test holds the two together.
        config = {
            "app": options.app,
            "factory": options.factory,
            "interface": options.interface,
            "fds": [fd],
            "host": self.listener.host,
            "port": self.listener.port,
            "uds": self.listener.uds,
            "ssl_certfile": _absolute(options.ssl_certfile),
            "ssl_keyfile": _absolute(options.ssl_keyfile),
            "ssl_keyfile_password": options.ssl_keyfile_password,
            "access_log": options.access_log,
            "app_dir": str(options.app_dir.resolve()),
            "instance": self._id(slot),
            "drain_s": options.drain_s,
            "status_fd": status_fd,
        }
        environ = {**self._base, "FLOTTA_SERVE": json.dumps(config)}
        return Command(argv=[sys.executable, "-m", "flotta.server"], environ=environ, fds=(fd, status_fd))

    def companion(self, command: str) -> Command:
        """A companion's shell. It finds the service at FLOTTA_URL."""
        environ = {**self._base, "FLOTTA_URL": self.listener.url(self.options.scheme)}
        environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(self.options.app_dir.resolve()), self.environ.get("PYTHONPATH", "")])
        )
        return Command(argv=["/bin/sh", "-c", command], environ=environ)

    def _id(self, slot: int) -> str:
        """Unique among all that run now, on every host, and the same for each process that follows in this slot."""
        base = self.options.instance
        if base is None:
            base = f"{self.options.service}-{socket.gethostname()}-{os.getpid()}"
        elif self.options.instances == 1:
            return base
        text = re.sub(r"[^A-Za-z0-9._-]", "-", f"{base}.{slot + 1}")
        return text[-_ID_LENGTH_MAX:].lstrip("-._")


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def exit_text(code: int) -> str:
    """How a process ended: ``exit 3`` or ``SIGKILL``."""
    if code >= 0:
        return f"exit {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def memory_of(pid: int) -> int | None:
    """Resident bytes of ``pid`` and all that it started (a companion's shell is not the companion). None where /proc
    does not exist or the process has gone. Pages that they share count for each."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return None
    own = pages * os.sysconf("SC_PAGE_SIZE")
    return own + sum(memory_of(child) or 0 for child in _children(pid))


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []
