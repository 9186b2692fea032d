"""The one place that writes to the operator: lines of all children, our own messages, and on a terminal the footer.

Invariants

* A slow or stopped reader (Ctrl-S, a full pipe) never stops the supervisor: a thread does the writing, and when more
  than ``_PENDING_BYTES_MAX`` wait, ``on_full(True)`` asks to stop reading the children, who then wait as if they wrote
  to the terminal themselves. Nothing is dropped.
* A reader that has gone away (``flotta run | head``) takes no service down: what follows is thrown away.
* The footer is always the last thing on the terminal; :meth:`Screen.close` removes it and shows the cursor again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO, final

from flotta.supervisor.footer import PALETTE, Service, Style, footer, prefix, width_of
from flotta.supervisor.output import clean

__all__ = ["Mode", "Screen", "wants_colour"]

_PENDING_BYTES_MAX = 1024 * 1024
_FRAME_S = 0.05
_SYNC_ON, _SYNC_OFF = "\x1b[?2026h", "\x1b[?2026l"  # synchronized output: terminals that know it do not flicker
_CURSOR_OFF, _CURSOR_ON = "\x1b[?25l", "\x1b[?25h"
_CLEAR_DOWN = "\x1b[J"
_OWN = "flotta"
_OWN_COLOURS = {"info": "2", "warning": "33", "error": "31"}


def wants_colour(environ: Mapping[str, str], *, terminal: bool) -> bool:
    """https://no-color.org: set and not empty means no; FORCE_COLOR means yes even where there is no terminal."""
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or (terminal and environ.get("TERM") != "dumb")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Mode:
    """How to show. Exactly one of plain lines, JSON lines, and lines with a footer."""

    json: bool = False
    live: bool = False
    colour: bool = False

    @classmethod
    def of(cls, out: TextIO, environ: Mapping[str, str], *, json: bool) -> Mode:
        """What suits ``out``: a footer only on a terminal that can move its cursor."""
        terminal = out.isatty()
        live = terminal and not json and environ.get("TERM") not in (None, "", "dumb")
        return cls(json=json, live=live, colour=not json and wants_colour(environ, terminal=terminal))


class _Writer:
    """Writes to a descriptor from a thread of its own."""

    def __init__(self, fd: int, on_full: Callable[[bool], None]) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._on_full = on_full
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        self._full = False
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="flotta output", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        data = text.encode("utf-8", errors="replace")
        with self._lock:
            self._pending += len(data)
            full = self._pending > _PENDING_BYTES_MAX and not self._full
            self._full = self._full or full
        self._queue.put(data)
        if full:
            self._on_full(True)  # noqa: FBT003 - a switch

    def close(self, timeout_s: float) -> None:
        """Write what waits, for at most ``timeout_s``: a stopped terminal must not keep the process from ending."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._write_all(data)
            with self._lock:
                self._pending -= len(data)
                eased = self._full and self._pending < _PENDING_BYTES_MAX // 2
                self._full = self._full and not eased
            if eased:
                with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody reads children any more
                    self._loop.call_soon_threadsafe(self._on_full, False)  # noqa: FBT003 - a switch

    def _write_all(self, data: bytes) -> None:
        while data and not self._broken:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                _wait_writable(self._fd)
            except OSError:
                self._broken = True  # the reader has gone


def _wait_writable(fd: int) -> None:
    import select  # noqa: PLC0415 - only where somebody made our output non-blocking

    select.select([], [fd], [], 1.0)


@final
@dataclass(slots=True)
class Screen:
    """Shows lines and, with ``mode.live``, the footer that ``service`` describes, refreshed every second by
    :meth:`refresh` and after each line. Open it with a running loop; close it last."""

    mode: Mode
    fd: int
    names: list[str]
    """Names by slot: they fix the width and the colours of the prefixes."""
    on_full: Callable[[bool], None]
    service: Callable[[], Service] | None = None
    _writer: _Writer = field(init=False)
    _style: Style = field(init=False)
    _width: int = field(init=False)
    _lines: list[str] = field(default_factory=list)
    _shown: list[str] = field(default_factory=list)
    _frame: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self._writer = _Writer(self.fd, self.on_full)
        self._style = Style(self.mode.colour)
        self._width = max(len(name) for name in [*self.names, _OWN])
        if self.mode.live:
            self._writer.write(_CURSOR_OFF)
            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, self.refresh)

    def child_line(self, slot: int, stream: str, line: str) -> None:
        """One line that the child in ``slot`` wrote."""
        if self.mode.json:
            self._put(_json_line(self.names[slot], stream, line))
            return
        text = clean(line, colour=self.mode.colour)
        head = prefix(self.names[slot], self._width, PALETTE[slot % len(PALETTE)], self._style)
        self._put((head + text).rstrip())

    def say(self, message: str, *, level: str = "info", **fields: Any) -> None:
        """One message of our own; ``fields`` are for machines and shown as JSON only."""
        if self.mode.json:
            record = {"event": message, "level": level, "source": _OWN, "time": _now(), **fields}
            self._put(json.dumps(record, default=str))
            return
        for line in message.splitlines():
            head = self._style.dim(f"{_OWN:<{self._width}} |") + " "
            self._put(head + (self._style.paint(line, _OWN_COLOURS[level]) if level != "info" else line))

    def plain(self, line: str, **fields: Any) -> None:
        """One line without a prefix, for programs that wait for it."""
        if self.mode.json:
            self.say(line, **fields)
        else:
            self._put(line)

    def refresh(self) -> None:
        """Draw the footer anew soon."""
        if self.mode.live and self._frame is None:
            self._frame = asyncio.get_running_loop().call_later(_FRAME_S, self._draw)

    def close(self) -> None:
        if self._frame is not None:
            self._frame.cancel()
            self._frame = None
        if self.mode.live:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGWINCH)
            self._writer.write(self._erase() + self._take() + _CURSOR_ON)
        self._writer.close(timeout_s=2.0)

    def _put(self, line: str) -> None:
        if not self.mode.live:
            self._writer.write(line + "\n")
            return
        self._lines.append(line)
        self.refresh()

    def _take(self) -> str:
        text = "".join(line + "\r\n" for line in self._lines)
        self._lines.clear()
        return text

    def _size(self) -> tuple[int, int]:
        """Columns and rows, of the terminal itself: COLUMNS in the environment would not follow a resize."""
        try:
            columns, rows = os.get_terminal_size(self.fd)
        except OSError:
            return 80, 24
        return max(columns, 20), max(rows, 4)

    def _erase(self) -> str:
        """Back to where the footer began. Should the terminal have become narrower, its lines have wrapped since."""
        if not self._shown:
            return ""
        columns = self._size()[0]
        rows = sum(max(1, -(-width_of(line) // columns)) for line in self._shown)
        self._shown = []
        return f"\x1b[{rows}A\r{_CLEAR_DOWN}"

    def _draw(self) -> None:
        self._frame = None
        columns, rows = self._size()
        text = self._erase() + self._take()
        if self.service is not None:
            self._shown = footer(self.service(), width=columns - 1, height=rows, style=self._style)
        text += "".join(line + "\r\n" for line in self._shown)
        self._writer.write(_SYNC_ON + text + _SYNC_OFF)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json_line(source: str, stream: str, line: str) -> str:
    """A child's own JSON record keeps its fields and gets ours; any other line becomes the event of a new record."""
    try:
        record = json.loads(line) if line.startswith("{") else None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        record = {"event": clean(line, colour=False), "level": "info", "time": _now(), "stream": stream}
    record["source"] = source
    return json.dumps(record, ensure_ascii=False)
