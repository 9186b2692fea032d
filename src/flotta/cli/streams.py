"""``flotta stream``: follow streams, add to them, see their sinks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import AsyncIterator

import click

from flotta.cli._redis import connected, log, redis_option, run_until_interrupt
from flotta.streaming import BYTES, Event, Stream, StreamInfo

__all__ = ["stream_group"]

_SHOWN_BYTES_MAX = 400
_json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


@click.group("stream")
def stream_group() -> None:
    """Follow streams, add to them, see how far their sinks are.

    \b
      flotta stream tail orders                     new events until Ctrl-C
      flotta stream tail orders --from oldest -n 10
      flotta stream add orders created '{"id": 7}'
      flotta stream info orders                     length, sinks, lag, pending
    """


@stream_group.command("tail")
@click.argument("name")
@click.option(
    "--from",
    "start",
    default="new",
    show_default=True,
    metavar="PLACE",
    help="new, oldest, or the id of the event to begin after.",
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="Stop after so many events.")
@click.option("--topic", help="Only events of this topic.")
@click.option("--pattern", help="Only events whose topic matches this regular expression.")
@redis_option
@_json_option
def tail(
    *, name: str, start: str, count: int | None, topic: str | None, pattern: str | None, url: str | None, as_json: bool
) -> None:
    """Print the events of stream NAME as they come, until Ctrl-C. It takes nothing away from any sink."""

    async def main() -> int:
        left = count
        async with (
            _opened(name, url) as stream,
            stream.reader(start=start, topic=topic, pattern=pattern) as reader,
        ):
            async for event in reader:
                click.echo(_as_json(event) if as_json else _as_text(event))
                left = None if left is None else left - 1
                if left == 0:
                    break
        return 0

    sys.exit(run_until_interrupt(main()))


@stream_group.command("add")
@click.argument("name")
@click.argument("event")
@click.argument("payload", required=False)
@click.option("--topic", help="The event's topic.")
@click.option("--only-if-exists", is_flag=True, help="Do not make the stream; exit code 1 if there is none.")
@redis_option
def add(
    *, name: str, event: str, payload: str | None, topic: str | None, only_if_exists: bool, url: str | None
) -> None:
    """Add an EVENT with PAYLOAD (- or nothing: what standard input holds) to stream NAME. Prints the event's id."""
    data = sys.stdin.buffer.read() if payload in (None, "-") else str(payload).encode()

    async def main() -> int:
        async with _opened(name, url) as stream:
            event_id = await stream.add(event, data, topic=topic, only_if_exists=only_if_exists)
        if event_id is None:
            return 1
        click.echo(event_id)
        return 0

    sys.exit(run_until_interrupt(main()))


@stream_group.command("info")
@click.argument("name")
@redis_option
@_json_option
def info(*, name: str, url: str | None, as_json: bool) -> None:
    """Print how long stream NAME is and, for each sink, its consumers, lag and pending events."""

    async def main() -> int:
        async with _opened(name, url) as stream:
            found = await stream.info()
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(found), default=str))
        elif found.exists:
            _show_info(name, found)
        else:
            click.echo(f"there is no stream {name!r}", err=True)
        return 0 if found.exists else 1

    sys.exit(run_until_interrupt(main()))


@contextlib.asynccontextmanager
async def _opened(name: str, url: str | None) -> AsyncIterator[Stream[bytes]]:
    async with connected(url) as redis, await Stream.open(name, redis, codec=BYTES, logger=log()) as stream:
        yield stream


def _as_text(event: Event[bytes]) -> str:
    text = event.payload[:_SHOWN_BYTES_MAX].decode("utf-8", errors="replace")
    if len(event.payload) > _SHOWN_BYTES_MAX:
        text += f"… ({len(event.payload)} bytes)"
    topic = click.style(f" [{event.topic}]", fg="cyan") if event.topic else ""
    return click.style(event.id, dim=True) + " " + click.style(event.name, bold=True) + topic + f" {text}"


def _as_json(event: Event[bytes]) -> str:
    record = {"id": event.id, "name": event.name, "topic": event.topic}
    try:
        record["payload"] = event.payload.decode()
    except UnicodeDecodeError:
        record["payload_hex"] = event.payload.hex()
    return json.dumps(record)


def _show_info(name: str, found: StreamInfo) -> None:
    added = "" if found.added is None else f", {found.added:,} ever added"
    click.echo(f"{name}: {found.length:,} events{added}, {found.memory_bytes / 2**20:.1f} MiB")
    click.echo(f"first {found.first_id or '-'}, last {found.last_id or '-'}")
    if not found.sinks:
        click.echo("no sinks")
        return
    width = max(len("sink"), *(len(sink) for sink in found.sinks))
    click.secho(f"{'sink':<{width}}  {'consumers':>9}  {'lag':>9}  {'pending':>9}  oldest pending", dim=True)
    for sink, about in sorted(found.sinks.items()):
        lag = "-" if about.lag is None else f"{about.lag:,}"
        oldest = about.oldest_pending_id or "-"
        click.echo(f"{sink:<{width}}  {about.consumers:>9}  {lag:>9}  {about.pending:>9,}  {oldest}")
