"""How the service looks to its operator: prefixes, the live footer, durations, sizes. Pure: values in, text out.

The footer never wraps: each line is cut to the width of the terminal, since a line that wrapped would make the count
of lines to go back wrong and leave rubbish behind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

__all__ = ["PALETTE", "Row", "Service", "Style", "footer", "prefix", "shown_bytes", "shown_duration", "width_of"]

PALETTE = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
"""Colours of the prefixes by slot, far apart first; red is left for errors."""
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_STATE_COLOURS = {
    "ready": "32",
    "running": "32",
    "starting": "33",
    "restarting": "33",
    "back-off": "31",
    "held": "31",
    "draining": "33",
    "stopping": "33",
    "stopped": "2",
}
_HEADS = ("", "pid", "state", "up", "req/s", "sockets", "memory", "restarts", "last exit")
_RIGHT = frozenset({1, 3, 4, 5, 6, 7})


@final
@dataclass(frozen=True, slots=True)
class Style:
    """Whether colours may be used."""

    colour: bool

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code else text

    def dim(self, text: str) -> str:
        return self.paint(text, "2")

    def bold(self, text: str) -> str:
        return self.paint(text, "1")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One process in the footer. None: unknown, shown as nothing."""

    name: str
    pid: int | None
    state: str
    colour: int
    uptime_s: float | None = None
    requests_per_s: float | None = None
    sockets: int | None = None
    memory_bytes: int | None = None
    restarts: int = 0
    last_exit: str = ""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """What the footer shows."""

    url: str
    rows: Sequence[Row]
    uptime_s: float
    ready: int
    instances: int
    servers: Sequence[tuple[str, str]] = ()
    """Redis and PostgreSQL: name and what to say of it."""
    remaining_s: float | None = None
    """While stopping: until everything is killed."""
    hint: str = ""


def width_of(text: str) -> int:
    """Columns of ``text``, whose characters are all one column wide (ours are), without its colours."""
    return len(_SGR.sub("", text))


def shown_duration(seconds: float) -> str:
    """``8s``, ``3m12s``, ``2h05m``, ``4d03h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def shown_bytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 10 * 2**30 else f"{count / 2**30:.1f} GiB"


def prefix(name: str, width: int, colour: int, style: Style) -> str:
    """``api.1 |``, as wide as the widest name."""
    return style.paint(f"{name:<{width}} |", str(colour)) + " "


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        "" if row.pid is None else str(row.pid),
        row.state,
        "" if row.uptime_s is None else shown_duration(row.uptime_s),
        "" if row.requests_per_s is None else f"{row.requests_per_s:.0f}",
        "" if row.sockets is None else str(row.sockets),
        "" if row.memory_bytes is None else shown_bytes(row.memory_bytes),
        str(row.restarts) if row.restarts else "-",
        row.last_exit,
    ]


def _table(rows: Sequence[Row], style: Style) -> list[str]:
    body = [_cells(row) for row in rows]
    widths = [max(len(cells[at]) for cells in [list(_HEADS), *body]) for at in range(len(_HEADS))]

    def line(cells: Sequence[str], paint: dict[int, str]) -> str:
        shown = []
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            padded = cell.rjust(width) if at in _RIGHT else cell.ljust(width)
            shown.append(style.paint(padded, paint[at]) if at in paint else padded)
        return " " + "  ".join(shown).rstrip()

    lines = [style.dim(line(_HEADS, {}))]
    for row, cells in zip(rows, body, strict=True):
        lines.append(line(cells, {0: str(row.colour), 2: _STATE_COLOURS.get(row.state, ""), 8: "2"}))
    return lines


def _head(service: Service, width: int, style: Style) -> str:
    left = f"─ {style.bold('flotta')}  {service.url} "
    if service.remaining_s is None:
        code = "32" if service.ready == service.instances else "33"
        state = style.paint(f"{service.ready}/{service.instances} ready", code)
    else:
        state = style.paint(f"stopping: {service.remaining_s:.0f} s left", "33")
    right = f" {state}  {shown_duration(service.uptime_s)} ─"
    fill = "─" * max(1, width - width_of(left) - width_of(right))
    return left + style.dim(fill) + right


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns; colours count nothing and are closed."""
    if width_of(text) <= width:
        return text
    shown, columns, at = [], 0, 0
    while columns < width - 1 and at < len(text):
        if match := _SGR.match(text, at):
            shown.append(match[0])
            at = match.end()
            continue
        shown.append(text[at])
        columns += 1
        at += 1
    return "".join(shown) + "…" + ("\x1b[0m" if "\x1b" in text else "")


def footer(service: Service, *, width: int, height: int, style: Style) -> list[str]:
    """The lines of the footer, none wider than ``width``. They take at most two thirds of ``height``: where there are
    too many processes the first ones are shown, those that are not ready before the others."""
    name_width = max((len(name) for name, _ in service.servers), default=0)
    servers = [f" {name:<{name_width}}  {style.dim(said)}" for name, said in service.servers]
    hint = [" " + style.dim(service.hint)] if service.hint else []
    room = max(1, height * 2 // 3 - 2 - len(servers) - len(hint))  # 2: the head of the footer and of the table
    rows, left = list(service.rows), 0
    if len(rows) > room:
        shown = sorted(rows, key=lambda row: row.state in ("ready", "running"))[: max(1, room - 1)]
        rows, left = [row for row in rows if row in shown], len(rows) - len(shown)
    more = [style.dim(f" and {left} more")] if left else []
    lines = [_head(service, width, style), *_table(rows, style), *more, *servers, *hint]
    return [cut(line, width) for line in lines]
