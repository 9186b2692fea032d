"""One child process: how it is started, heard, and ended for certain.

Invariants

* It leads a session of its own: Ctrl-C in the terminal reaches the supervisor alone, and what the child itself starts
  can be found and ended by its process group.
* It is reaped only after its group has been killed: until then its number cannot be given to another process, so the
  signal cannot hit a stranger.
* It is known to the warden from right after its birth until it is reaped.
* Its output is read to the end before its end is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from flotta.supervisor.output import LineSplitter

__all__ = ["Child", "Command", "Sink", "Warden"]

_READ_BYTES = 64 * 1024
_STATUS_BYTES_MAX = 64 * 1024
_SILENCE_S = 0.5
"""A line that has begun and not ended is shown after this long."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What to run. ``fds`` are inherited under their own numbers, which ``environ`` may name."""

    argv: Sequence[str]
    environ: Mapping[str, str]
    fds: Sequence[int] = ()
    cwd: str | None = None


class Sink(Protocol):
    """Where a child's news go. All are called from the event loop."""

    def on_line(self, child: Child, stream: str, line: str) -> None: ...

    def on_status(self, child: Child, status: dict[str, Any]) -> None: ...


class Warden(Protocol):
    def watch(self, group: int) -> None: ...

    def forget(self, group: int) -> None: ...


class _Pipe:
    """The reading end of a pipe on the loop."""

    def __init__(self, fd: int, on_data: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._on_data = on_data
        self._paused = False
        self.open = True
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self.read_some)

    def read_some(self) -> bool:
        """Read once; False when there is nothing more to read now."""
        if not self.open:
            return False
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._on_data(data)
            return True
        self.close()
        return False

    def pause(self, paused: bool) -> None:  # noqa: FBT001 - a switch
        if not self.open or paused == self._paused:
            return
        self._paused = paused
        loop = asyncio.get_running_loop()
        if paused:
            loop.remove_reader(self._fd)
        else:
            loop.add_reader(self._fd, self.read_some)

    def close(self) -> None:
        if self.open:
            self.open = False
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)


@final
@dataclass(slots=True, eq=False)
class Child:
    """A running process. Made by :meth:`start`; after :meth:`reap` has returned a code it is over."""

    slot: int
    process: subprocess.Popen[bytes]
    sink: Sink
    warden: Warden
    status: dict[str, Any] = field(default_factory=dict)
    """The last statistics that it sent."""
    state: str = ""
    """The last state that it sent."""
    hopeless: bool = False
    _pipes: list[_Pipe] = field(default_factory=list)
    _texts: list[tuple[str, LineSplitter]] = field(default_factory=list)
    _status_rest: bytes = b""
    _silence: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @classmethod
    def start(cls, slot: int, command: Command, sink: Sink, warden: Warden) -> Child:
        """Start ``command`` in ``slot``. Raises OSError if the program cannot be run."""
        process = subprocess.Popen(  # noqa: S603 - the operator's own command
            command.argv,
            env=dict(command.environ),
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=command.fds,
            start_new_session=True,
        )
        warden.watch(process.pid)
        child = cls(slot, process, sink, warden)
        assert process.stdout is not None
        assert process.stderr is not None
        for name, stream in (("stdout", process.stdout), ("stderr", process.stderr)):
            child._listen(name, os.dup(stream.fileno()))
            stream.close()
        return child

    def hear(self, fd: int) -> None:
        """Read its news (JSON lines) from ``fd``, which belongs to the child from here on."""
        self._pipes.append(_Pipe(fd, self._on_status))

    def pause(self, paused: bool) -> None:  # noqa: FBT001 - a switch
        """Stop reading its output, or go on: who reads us cannot keep up."""
        for pipe in self._pipes[: len(self._texts)]:
            pipe.pause(paused)

    def terminate(self, *, group: bool = False) -> None:
        """SIGTERM to the process. With ``group`` to all that it started, too: a shell passes nothing on."""
        if group:
            self._send_group(signal.SIGTERM)
        elif self.process.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the process and all that it started."""
        self._send_group(signal.SIGKILL)

    def reap(self) -> int | None:
        """If it has ended: its code (negative: by that signal), after everything it wrote has been handed on."""
        code = self._wait()
        if code is None:
            return None
        self.warden.forget(self.pid)
        for pipe in self._pipes:
            while pipe.read_some():
                pass
            pipe.close()
        self._flush()
        return code

    def _wait(self) -> int | None:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13: the number is free a moment before the group is told
            code = self.process.poll()
            if code is not None:
                _kill_group(self.pid)
            return code
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        _kill_group(self.pid)  # what it left behind; its own number is still taken
        return self.process.wait()

    def _send_group(self, sig: signal.Signals) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM where only a zombie is left
                os.killpg(self.pid, sig)

    # -- hearing --

    def _listen(self, name: str, fd: int) -> None:
        splitter = LineSplitter()
        self._texts.append((name, splitter))

        def on_data(data: bytes) -> None:
            for line in splitter.feed(data):
                self.sink.on_line(self, name, line)
            if self._silence is not None:
                self._silence.cancel()
                self._silence = None
            if any(text.partial for _, text in self._texts):
                self._silence = asyncio.get_running_loop().call_later(_SILENCE_S, self._flush)

        self._pipes.append(_Pipe(fd, on_data))

    def _flush(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        for name, splitter in self._texts:
            for line in splitter.flush():
                self.sink.on_line(self, name, line)

    def _on_status(self, data: bytes) -> None:
        *lines, self._status_rest = (self._status_rest + data)[-_STATUS_BYTES_MAX:].split(b"\n")
        for line in lines:
            try:
                news = json.loads(line)
            except ValueError:
                continue  # an application that writes into our pipe harms only its own row
            if isinstance(news, dict):
                self.sink.on_status(self, news)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
