"""``flotta pool dead``, ``redrive`` and ``discard``: what a pool has given up, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import click

from flotta.cli._pool_output import (
    ago,
    count_option,
    first,
    json_option,
    letter_record,
    on_pool,
    write_json,
    write_record,
    write_table,
)
from flotta.cli._redis import redis_option
from flotta.pool.deadletters import Redriven
from flotta.pool.inspection import PoolView

__all__ = ["dead", "discard", "redrive"]


@click.command("dead", short_help="What was given up, and why.")
@click.argument("name")
@click.option("--kind", type=click.Choice(["job", "task"]), help="Only jobs, or only tasks.")
@click.option("--name", "only", metavar="NAME", help="Only jobs of this kind, or tasks of this name.")
@click.option("--key", metavar="KEY", help="Only the job with this key, or the task with this id.")
@click.option("-v", "--verbose", is_flag=True, help="Show payloads, and where it was raised.")
@count_option
@redis_option
@json_option
def dead(
    *,
    name: str,
    kind: Literal["job", "task"] | None,
    only: str | None,
    key: str | None,
    verbose: bool,
    count: int,
    url: str | None,
    as_json: bool,
) -> None:
    """Print the jobs and tasks that pool NAME has given up, the newest first, and why."""

    async def look(view: PoolView) -> int:
        found, more = await first(view.dead_letters.walk(kind=kind, name=only, key=key), count)
        if as_json:
            write_json([letter_record(letter) for letter in found])
        elif verbose:
            for letter in found:
                write_record(letter_record(letter))
                click.echo()
        else:
            rows = [
                (x.id, x.kind, x.name or "-", x.key, x.attempts, ago(x.at), x.error.partition("\n")[0]) for x in found
            ]
            header = ("letter", "kind", "name", "key", "attempts", "given up", "error")
            write_table(header, rows, none="no dead letters", more=more)
        return 0

    on_pool(name, url, look)


@click.command("redrive", short_help="Make dead jobs and tasks again.")
@click.argument("name")
@click.argument("letters", metavar="[LETTER]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All letters, or all that the other options choose.")
@click.option("--kind", type=click.Choice(["job", "task"]), help="With --all: only jobs, or only tasks.")
@click.option("--name", "only", metavar="NAME", help="With --all: only jobs of this kind, or tasks of this name.")
@redis_option
@json_option
def redrive(
    *,
    name: str,
    letters: tuple[str, ...],
    everything: bool,
    kind: Literal["job", "task"] | None,
    only: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Make jobs and tasks of these dead letters of pool NAME again, with all their attempts.

    Exit code 1 if one of them could not be made: it is unknown, or a job with its key is there.
    """

    async def act(view: PoolView) -> int:
        ids = await _chosen(view, letters, everything=everything, kind=kind, only=only)
        outcomes = dict(zip(ids, await view.dead_letters.redrive(ids), strict=True))
        if as_json:
            write_json({letter: outcome.value for letter, outcome in outcomes.items()})
        else:
            for letter, outcome in outcomes.items():
                if outcome is not Redriven.MADE:
                    click.echo(f"{letter}: {_WHY[outcome]}", err=True)
            made = sum(outcome is Redriven.MADE for outcome in outcomes.values())
            click.echo(f"{made:,} made again")
        return 0 if all(outcome is Redriven.MADE for outcome in outcomes.values()) else 1

    on_pool(name, url, act)


_WHY: Final = {
    Redriven.GONE: "there is no such letter",
    Redriven.EXISTS: "a job with its key is there: the letter stays",
    Redriven.SHUTDOWN: "the pool shuts down: the letter stays",
}


@click.command("discard", short_help="Throw dead letters away.")
@click.argument("name")
@click.argument("letters", metavar="[LETTER]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All letters, or all that the other options choose.")
@click.option("--kind", type=click.Choice(["job", "task"]), help="With --all: only jobs, or only tasks.")
@click.option("--name", "only", metavar="NAME", help="With --all: only jobs of this kind, or tasks of this name.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@redis_option
def discard(
    *,
    name: str,
    letters: tuple[str, ...],
    everything: bool,
    kind: Literal["job", "task"] | None,
    only: str | None,
    yes: bool,
    url: str | None,
) -> None:
    """Throw dead letters of pool NAME away, for good."""

    async def act(view: PoolView) -> int:
        ids = await _chosen(view, letters, everything=everything, kind=kind, only=only)
        if ids and not yes:
            click.confirm(f"Throw {len(ids):,} dead letters of pool {name!r} away?", abort=True)
        click.echo(f"{await view.dead_letters.delete(ids):,} thrown away")
        return 0

    on_pool(name, url, act)


async def _chosen(
    view: PoolView,
    letters: Sequence[str],
    *,
    everything: bool,
    kind: Literal["job", "task"] | None,
    only: str | None,
) -> list[str]:
    if everything == bool(letters):
        raise click.UsageError("name the letters (flotta pool dead shows them), or give --all")
    if not everything:
        if kind or only:
            raise click.UsageError("--kind and --name go with --all")
        return list(dict.fromkeys(letters))
    return [letter.id async for letter in view.dead_letters.walk(kind=kind, name=only)]
