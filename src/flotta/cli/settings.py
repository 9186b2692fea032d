"""``flotta settings``."""

from __future__ import annotations

import json

import click

from flotta.settings import Settings, describe

__all__ = ["settings_command"]


@click.command("settings", short_help="Show what an instance started here would be told.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--explain", is_flag=True, help="Also say what each is, its variable and its place in flotta.toml.")
def settings_command(*, as_json: bool, explain: bool) -> None:
    """Show what an instance started here would be told, secrets masked.

    Read from the environment and ./flotta.toml, as `flotta run` does. Ends with 1 and names the variable if one is
    wrong.
    """
    settings = Settings.load()
    shown = settings.shown()
    if as_json:
        click.echo(json.dumps(shown, default=_plain, indent=2))
        return
    width = max(len(info.variable) for info in describe())
    for info in describe():
        value = shown[info.field]
        changed = getattr(settings, info.field) != info.default
        text = "-" if value is None else ", ".join(sorted(value)) if isinstance(value, frozenset) else str(value)
        click.echo(f"{info.variable:<{width}}  " + click.style(text or '""', bold=changed))
        if explain:
            click.secho(f"    {info.doc} ({info.parser.allowed}; flotta.toml: {info.key})", dim=True)


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(type(value).__name__)
