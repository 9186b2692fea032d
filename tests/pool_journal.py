"""Where the processes of a pool's fault run write what they do: a file each, one write() a line, one clock for all."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

from pool_history import Event, What, decode, encode

__all__ = ["Journal", "now_s", "read_events"]

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_s() -> float:
    """A clock that all processes of this machine share, that nobody sets, and that goes on while they stand still."""
    return time.clock_gettime(_CLOCK)


class Journal:
    """The file of ``process`` in ``folder``. What was said stays, also if the process is killed in the next moment."""

    def __init__(self, folder: Path, process: str) -> None:
        self.folder = folder
        self.process = process
        self._file = os.open(folder / f"{process}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def say(self, what: What, key: str = "", **facts: Any) -> float:
        """Write it down; gives the time that it got. ``process``: of whom it is said, if not of this one."""
        at_s = now_s()
        os.write(
            self._file, encode(Event(**{"process": self.process, **facts, "at_s": at_s, "what": what, "key": key}))
        )
        return at_s

    def close(self) -> None:
        os.close(self._file)


def read_events(folder: Path) -> list[Event]:
    """Everything that was said up to now, unordered."""
    return list(itertools.chain.from_iterable(decode(path.read_bytes()) for path in sorted(folder.glob("*.jsonl"))))
