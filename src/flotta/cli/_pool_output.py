"""How ``flotta pool`` shows what it finds: tables for people, JSON for programs, payloads as far as can be read."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import sys
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click
import msgspec

from flotta.cli._redis import connected, redis_option, run_until_interrupt
from flotta.pool.deadletters import DeadLetter
from flotta.pool.inspection import PoolSummary, PoolView, PoolWorker, TaskFigures, Timer, find_pools
from flotta.pool.jobs.records import JobInfo
from flotta.pool.tasks.records import TaskInfo

__all__ = [
    "ago",
    "count_option",
    "counted",
    "first",
    "job_lines",
    "job_record",
    "json_option",
    "letter_record",
    "on_pool",
    "readable",
    "redis_option",
    "show_summary",
    "show_tasks",
    "since",
    "task_lines",
    "timer_record",
    "until",
    "worker_record",
    "worker_state",
    "write_json",
    "write_record",
    "write_table",
]

T = TypeVar("T")

_CELL_MAX: Final = 60
_FIND_S: Final = 1.0

json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")
count_option = click.option(
    "-n", "--count", type=click.IntRange(min=1), default=50, show_default=True, help="Show so many at most."
)


def on_pool(name: str, url: str | None, act: Callable[[PoolView], Awaitable[int]]) -> None:
    """Run ``act`` on pool ``name`` and exit with its code; 1 if there is no such pool."""

    async def main() -> int:
        async with connected(url) as redis:
            view = PoolView(redis, name)
            if await view.exists():
                return await act(view)
            try:
                others = ", ".join(await asyncio.wait_for(find_pools(redis), _FIND_S)) or "none at all"
            except TimeoutError:
                others = "see flotta pool list"
            click.echo(f"there is no pool {name!r} (there are: {others})", err=True)
            return 1

    sys.exit(run_until_interrupt(main()))


async def first(items: AsyncIterator[T], count: int) -> tuple[list[T], bool]:
    """The first ``count``, and whether there are more."""
    found: list[T] = []
    async for item in items:
        if len(found) == count:
            return found, True
        found.append(item)
    return found, False


# --- tables and records ----------------------------------------------------------------------------------------------


def write_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, none: str = "", more: bool = False) -> None:
    """Columns as wide as their widest cell, numbers to the right. ``none``: said on standard error if there is no row.
    ``more``: there are rows that are not shown. States are coloured where they need somebody."""
    if not rows:
        click.echo(none, err=True)
        return
    numeric = [all(isinstance(row[column], int) for row in rows) for column in range(len(header))]
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(_width(name), *(_width(row[n]) for row in cells)) for n, name in enumerate(header)]
    click.secho(_line(header, widths, numeric), dim=True)
    for row in cells:
        click.echo(_coloured(_line(row, widths, numeric), row))
    if more:
        click.echo(f"the first {len(rows):,}; -n shows more", err=True)


def write_record(record: dict[str, Any]) -> None:
    """One ``name  value`` a line; a value of several lines under its name. What came from elsewhere does not get at the
    terminal: control characters are shown as dots."""
    width = max(map(len, record))
    for name, value in record.items():
        shown = _text_of(value)
        lines = [_printable(line) for line in shown.splitlines()] or ["-"]
        click.echo(click.style(f"{name:<{width}}", dim=True) + f"  {lines[0]}")
        for line in lines[1:]:
            click.echo(" " * (width + 2) + line)


def _text_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, default=str, ensure_ascii=False)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "·" for char in text)


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 job``, ``12 jobs``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def write_json(value: Any) -> None:
    """One document."""
    click.echo(json.dumps(value, default=str, ensure_ascii=False))


def show_summary(summary: PoolSummary, figures: TaskFigures, timers: Sequence[Timer]) -> None:
    """A pool on a few lines."""
    state = click.style(" shutting down", fg="yellow") if summary.shutting_down else ""
    click.echo(click.style(summary.name, bold=True) + state)
    click.echo(f"workers       {summary.workers:,} on {counted(summary.nodes, 'node')}")
    waiting = f"{summary.queued:,} not started yet" + (f", {summary.parked:,} without a worker" * bool(summary.parked))
    click.echo(f"jobs          {summary.jobs:,}, {waiting}")
    click.echo(f"tasks         {summary.tasks_waiting:,} waiting, {summary.tasks_running:,} running")
    ended = ", ".join(f"{figures.totals.get(name, 0):,} {name}" for name in ("done", "failed", "cancelled"))
    click.echo(f"              {ended} so far")
    now = datetime.now(UTC)
    running = [timer for timer in timers if timer.next_at is not None and timer.next_at > now]
    after = f", next: {running[0].name} {until(running[0].next_at)}" if running else ""
    click.echo(f"timers        {len(timers):,}{after}")
    click.echo("dead letters  " + click.style(f"{summary.dead:,}", fg="red" if summary.dead else None))


def show_tasks(figures: TaskFigures) -> None:
    """Where the tasks are, then what became of the others."""
    write_table(("queue", "ready"), [(_queue(name), n) for name, n in figures.queues.items()], none="no task is ready")
    held_up = figures.totals.get("waiting", 0) - figures.due - sum(figures.queues.values())
    click.echo(f"{figures.running:,} running, {figures.due:,} due later, {max(held_up, 0):,} held up by others")
    names = ("enqueued", "done", "failed", "cancelled", "retried", "lost", "redriven")
    click.echo("so far: " + ", ".join(f"{figures.totals.get(name, 0):,} {name}" for name in names))


def _queue(name: str) -> str:
    """Tasks that some worker does not know wait in a line of their own: ?<queue>?<name>."""
    if not name.startswith("?"):
        return name
    queue, _, task = name[1:].partition("?")
    return f"{queue} ({task}: not every worker knows it)"


_COLOURS: Final = {"lost": "red", "backoff": "yellow", "draining": "yellow", "stopping": "yellow", "(parked)": "yellow"}


def _coloured(line: str, cells: Sequence[str]) -> str:
    colour = next((_COLOURS[cell] for cell in cells if cell in _COLOURS), None)
    return line if colour is None else click.style(line, fg=colour)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = []
    for cell, width, is_number in zip(cells, widths, numeric, strict=True):
        space = " " * (width - _width(cell))
        padded.append(space + cell if is_number else cell + space)
    return "  ".join(padded).rstrip()


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    text = _printable(text)
    return text if _width(text) <= _CELL_MAX else text[: _CELL_MAX - 1] + "…"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


# --- values ----------------------------------------------------------------------------------------------------------


def readable(payload: bytes) -> Any:
    """A payload as something that JSON has: what MessagePack says, else text, else base64 of it."""
    try:
        decoded = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, RecursionError):
        decoded = None
    if isinstance(decoded, dict):
        return msgspec.to_builtins(decoded, str_keys=True)
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(payload).decode()}


def job_record(job: JobInfo) -> dict[str, Any]:
    """For JSON and ``flotta pool job``."""
    return {
        **dataclasses.asdict(job),
        "state": job.state.value,
        "dispatched_at": _iso(job.dispatched_ms),
        "started_at": _iso(job.started_ms),
    }


def job_lines(job: JobInfo) -> dict[str, Any]:
    """For people: each fact once."""
    return {name: value for name, value in job_record(job).items() if not name.endswith("_ms")}


def task_lines(task: TaskInfo) -> dict[str, Any]:
    """For people: progress and the last failure as text."""
    record: dict[str, Any] = msgspec.to_builtins(task)
    failure, progress = task.last_failure, task.progress
    record["progress"] = None if progress is None else f"{progress.fraction:.0%} {progress.text}".rstrip()
    record["last_failure"] = None if failure is None else f"{failure.type}: {failure.reason}"
    return record if failure is None else {**record, "trace": failure.trace}


def worker_record(worker: PoolWorker) -> dict[str, Any]:
    """For JSON."""
    record = dataclasses.asdict(worker)
    info = record.pop("info")
    return {**record, **info, "state": worker_state(worker), "since": _iso(worker.info.since_ms)}


def worker_state(worker: PoolWorker) -> str:
    """In one word."""
    return "lost" if not worker.lives else "draining" if worker.leaves else "working"


def letter_record(letter: DeadLetter) -> dict[str, Any]:
    """For JSON and ``--verbose``."""
    return {**dataclasses.asdict(letter), "at": letter.at.isoformat(), "payload": readable(letter.payload)}


def timer_record(timer: Timer) -> dict[str, Any]:
    """For JSON."""
    times = {
        name: None if at is None else at.isoformat()
        for name, at in (("next_at", timer.next_at), ("last_at", timer.last_at))
    }
    return {**dataclasses.asdict(timer), **times}


def since(ms: int | None) -> str:
    """How long ago a moment of the server's clock was."""
    return "-" if ms is None else ago(datetime.fromtimestamp(ms / 1000, UTC))


def ago(at: datetime | None) -> str:
    """How long ago."""
    return "-" if at is None else _span((datetime.now(UTC) - at).total_seconds()) + " ago"


def until(at: datetime | None) -> str:
    """In how long."""
    if at is None:
        return "stopped"
    left_s = (at - datetime.now(UTC)).total_seconds()
    return f"in {_span(left_s)}" if left_s >= 0 else f"{_span(-left_s)} overdue"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _iso(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
