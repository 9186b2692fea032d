"""The keeper: the process that owns one embedded server for everybody who works in one folder.

Started by :mod:`flotta.supervisor.embedded`, never by hand; its arguments are the kind of server and the folder.

Invariants

* One keeper per folder and kind: it holds ``<kind>.keeper.lock`` exclusively as long as it lives.
* The server runs as long as somebody uses it: each user holds ``<kind>.users.lock`` shared. The kernel lets go of a
  lock when its holder dies, however it dies, so the keeper, which waits for the same lock exclusively, gets it exactly
  when the last user has gone. Then it stops the server properly and ends.
* ``<kind>.json`` exists exactly while the server can be used. It holds a password: mode 0600.
* A server that ends by itself is started again on the same port and data.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, final

from flotta.errors import EmbeddedServerError

__all__ = ["Paths", "main", "try_lock"]

_LOOK_S = 0.5
_OWN_S = 1.0
_OWN_POLL_S = 0.02
_RESTARTS_MAX = 20


@final
@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one kind of server in one folder."""

    folder: Path
    kind: str

    @property
    def users(self) -> Path:
        return self.folder / f"{self.kind}.users.lock"

    @property
    def starters(self) -> Path:
        return self.folder / f"{self.kind}.start.lock"

    @property
    def keeper(self) -> Path:
        return self.folder / f"{self.kind}.keeper.lock"

    @property
    def state(self) -> Path:
        return self.folder / f"{self.kind}.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.kind}.keeper.log"

    @property
    def data(self) -> Path:
        return self.folder / self.kind


def try_lock(path: Path, *, shared: bool) -> int | None:
    """A descriptor that holds the lock on ``path`` until it is closed, or None if another one is in the way."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


class _Server(Protocol):
    @property
    def url(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def running(self) -> bool: ...
    def start_sync(self) -> Self: ...
    def stop_sync(self) -> None: ...
    def restart_sync(self) -> None: ...


def _make(kind: str, data: Path) -> _Server:
    if kind == "redis":
        from flotta.redis.embedded import EmbeddedRedis  # noqa: PLC0415 - only the kind that is asked for

        return EmbeddedRedis(data, appendonly=True)
    from flotta.postgres.embedded import EmbeddedPostgres  # noqa: PLC0415

    return EmbeddedPostgres(data)


def _publish(paths: Paths, server: _Server) -> dict[str, object]:
    state: dict[str, object] = {"url": server.url, "pid": server.pid, "keeper": os.getpid()}
    draft = paths.state.with_suffix(".draft")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(state, file)
    draft.replace(paths.state)
    return state


def _wait_for_last_user(paths: Paths, gone: threading.Event) -> None:
    fd = os.open(paths.users, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)  # held until this process has ended: who comes now waits, then starts anew
    gone.set()


def _keep(paths: Paths, server: _Server, gone: threading.Event) -> None:
    restarts = 0
    while not gone.wait(_LOOK_S):
        if server.running:
            continue
        restarts += 1
        if restarts > _RESTARTS_MAX:
            raise EmbeddedServerError(paths.kind, f"ended {restarts} times")
        print(f"{paths.kind} has ended by itself: started again", file=sys.stderr, flush=True)
        server.restart_sync()
        _publish(paths, server)


def main() -> int:
    """Own the server that ``argv`` names until nobody uses it. Says on standard output what came of the start."""
    kind, folder = sys.argv[1:3]
    paths = Paths(Path(folder), kind)
    lock = _own(paths)
    if lock is None:
        return 3
    gone = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: gone.set())
    server = _make(kind, paths.data)
    try:
        server.start_sync()
        threading.Thread(target=_wait_for_last_user, args=(paths, gone), daemon=True, name="wait for users").start()
        _tell({"state": _publish(paths, server)})
        _keep(paths, server, gone)
    except EmbeddedServerError as error:
        _tell({"error": str(error)})
        return 1
    finally:
        paths.state.unlink(missing_ok=True)
        server.stop_sync()
        os.close(lock)  # before the users' lock, which goes with the process: see embedded.py
    return 0


def _own(paths: Paths) -> int | None:
    """The keeper's lock; None if there is another keeper. Who only looks whether there is one holds it for a moment."""
    deadline_s = time.monotonic() + _OWN_S
    while (fd := try_lock(paths.keeper, shared=False)) is None and time.monotonic() < deadline_s:
        time.sleep(_OWN_POLL_S)
    return fd


def _tell(news: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):  # who started us has died: the users' lock tells us the same
        sys.stdout.write(json.dumps(news) + "\n")
        sys.stdout.flush()
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)
