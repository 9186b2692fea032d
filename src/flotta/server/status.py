"""The channel on which a worker tells its supervisor how it is: JSON lines on an inherited pipe.

Lines are shorter than PIPE_BUF and so arrive whole. The writer never waits: a supervisor that does not read loses
statistics (the next ones follow in a second) but no state, which is kept and sent again. Nobody at the other end means
that the supervisor is dead, and `on_orphaned` is called once.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final, final

__all__ = ["StatusChannel"]

LINE_BYTES_MAX: Final = 4000
"""POSIX guarantees whole writes to a pipe up to 512 bytes, Linux and macOS up to 4096 and 512; states are short."""
TEXT_LENGTHS_MAX: Final = (1500, 300, 60)
"""Characters that are left of a text; the next one is tried where a line is still too long."""


@final
class StatusChannel:
    """Writes to ``fd``; with None it writes nothing."""

    def __init__(self, fd: int | None, on_orphaned: Callable[[], None]) -> None:
        self._fd = fd
        self._on_orphaned = on_orphaned
        self._waiting: deque[bytes] = deque()
        if fd is not None:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)  # noqa: FBT003

    def state(self, state: str, **facts: Any) -> None:
        """Tells a change of state. Long texts in ``facts`` are cut in their middle."""
        self._waiting.append(_line({"state": state, "pid": os.getpid(), **facts}))
        self.flush()

    def stats(self, stats: dict[str, Any]) -> None:
        """Tells statistics, if the channel is free."""
        self.flush()
        if not self._waiting:
            self._write(_line({"stats": stats}))

    def flush(self) -> None:
        """Sends the states that did not fit before."""
        while self._waiting and self._write(self._waiting[0]):
            self._waiting.popleft()

    def _write(self, line: bytes) -> bool:
        """False if the pipe is full. True where nobody reads any more: what waits may go."""
        if self._fd is None:
            return True
        try:
            os.write(self._fd, line)
        except BlockingIOError:
            return False
        except OSError:  # EPIPE: its reader is gone
            self._fd = None
            self._on_orphaned()
        return True


def _line(message: dict[str, Any]) -> bytes:
    """One line of JSON. Texts are cut first, so that it stays JSON: a character may take 12 bytes in it."""
    line = b""
    for length_max in TEXT_LENGTHS_MAX:
        cut = {key: _cut(value, length_max) if isinstance(value, str) else value for key, value in message.items()}
        line = json.dumps(cut, default=str).encode() + b"\n"
        if len(line) <= LINE_BYTES_MAX:
            break
    return line


def _cut(text: str, length_max: int) -> str:
    half = length_max // 2
    return text if len(text) <= length_max else f"{text[:half]} [...] {text[-half:]}"
