"""``flotta map``: look into replicated maps and change them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator

import click

from flotta.cli._redis import connected, log, redis_option, run_until_interrupt
from flotta.rmap import TEXT, Map

__all__ = ["map_group"]

_json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


@click.group("map")
def map_group() -> None:
    """Read, write and watch replicated maps.

    \b
      flotta map keys flags -l            keys and values
      flotta map get flags new-checkout   the value, or exit code 1 if there is none
      flotta map set flags new-checkout on
      flotta map watch flags              every change until Ctrl-C
    """


@map_group.command("get")
@click.argument("name")
@click.argument("key")
@redis_option
@_json_option
def get(*, name: str, key: str, url: str | None, as_json: bool) -> None:
    """Print the value of KEY in map NAME. Exit code 1 if there is none."""

    async def main() -> int:
        async with _joined(name, url) as shared:
            value = shared.get(key)
        if as_json:
            click.echo(json.dumps(value))
        elif value is not None:
            click.echo(value)
        return 0 if value is not None else 1

    sys.exit(run_until_interrupt(main()))


@map_group.command("set")
@click.argument("name")
@click.argument("key")
@click.argument("value")
@click.option("--if-absent", is_flag=True, help="Only if KEY has no value; exit code 1 if it has one.")
@redis_option
@_json_option
def set_(*, name: str, key: str, value: str, if_absent: bool, url: str | None, as_json: bool) -> None:
    """Set KEY in map NAME to VALUE. With --json, print the value that it had."""

    async def main() -> int:
        async with _joined(name, url) as shared:
            if if_absent:
                done = await shared.set_if_absent(key, value)
                if as_json:
                    click.echo(json.dumps(done))
                return 0 if done else 1
            previous = await shared.set(key, value)
        if as_json:
            click.echo(json.dumps(previous))
        return 0

    sys.exit(run_until_interrupt(main()))


@map_group.command("del")
@click.argument("name")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@redis_option
@_json_option
def delete(*, name: str, keys: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Delete KEYs from map NAME. Exit code 1 if none of them was there. With --json, print the values they had."""

    async def main() -> int:
        async with _joined(name, url) as shared:
            had = {key: await shared.delete(key) for key in keys}
        if as_json:
            click.echo(json.dumps(had))
        return 0 if any(value is not None for value in had.values()) else 1

    sys.exit(run_until_interrupt(main()))


@map_group.command("keys")
@click.argument("name")
@click.option("-l", "--long", is_flag=True, help="With their values, after a tab.")
@redis_option
@_json_option
def keys_(*, name: str, long: bool, url: str | None, as_json: bool) -> None:
    """List the keys of map NAME, sorted, one a line."""

    async def main() -> int:
        async with _joined(name, url) as shared:
            content = shared.snapshot()
        if as_json:
            click.echo(json.dumps(content if long else sorted(content), sort_keys=True))
            return 0
        for key in sorted(content):
            click.echo(f"{key}\t{content[key]}" if long else key)
        return 0

    sys.exit(run_until_interrupt(main()))


@map_group.command("watch")
@click.argument("name")
@click.argument("key", required=False)
@redis_option
@_json_option
def watch(*, name: str, key: str | None, url: str | None, as_json: bool) -> None:
    """Print what map NAME holds now (or KEY alone), then each change, until Ctrl-C.

    `key = value` for a value that is new or other, `key deleted` for one that has gone. Of changes that follow each
    other faster than they are shown the last one is.
    """

    async def main() -> int:
        async with _joined(name, url) as shared:
            shown: dict[str, str] = {}
            events = shared.subscribe()
            while True:
                now = {k: v for k, v in shared.snapshot().items() if key is None or k == key}
                _show_difference(shown, now, as_json=as_json)
                shown = now
                await anext(events)

    sys.exit(run_until_interrupt(main()))


@contextlib.asynccontextmanager
async def _joined(name: str, url: str | None) -> AsyncIterator[Map[str]]:
    async with connected(url) as redis, await Map.join(name, redis, codec=TEXT, logger=log()) as shared:
        yield shared


def _show_difference(before: dict[str, str], now: dict[str, str], *, as_json: bool) -> None:
    changed = {key: value for key, value in now.items() if before.get(key) != value}
    gone = [key for key in before if key not in now]
    for key, value in [*sorted(changed.items()), *((key, None) for key in sorted(gone))]:
        if as_json:
            click.echo(json.dumps({"key": key, "value": value}))
        elif value is None:
            click.echo(f"{key} " + click.style("deleted", fg="red"))
        else:
            click.echo(f"{key} = {value}")
