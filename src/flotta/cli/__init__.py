"""The command ``flotta``: arguments in, calls out. Nothing is decided here.

Exit codes: 0 done (or stopped gracefully), 1 failed (or stopped by force), 2 wrong usage. A subcommand is imported when
it is used: the supervisor must not carry a Redis client for its whole life, nor need the packages of another command.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from typing import Any

import click

from flotta._version import __version__
from flotta.errors import ConfigError, FlottaError

__all__ = ["cli", "main"]

_COMMANDS = {
    "run": ("running", "run"),
    "dev": ("running", "dev"),
    "embedded": ("running", "embedded_command"),
    "map": ("maps", "map_group"),
    "stream": ("streams", "stream_group"),
    "pool": ("pools", "pool_group"),
    "settings": ("settings", "settings_command"),
}


class _Lazy(click.Group):
    """Finds its commands in `_COMMANDS`, in that order."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"flotta.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="flotta")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run N copies of one Python service as one.

    \b
    Develop, with Redis and PostgreSQL of its own:
      flotta dev app:app
    Serve three instances on one port:
      flotta run app:app -n 3
    Look into what they share:
      flotta map watch config
      flotta stream tail orders
      flotta pool info orders
    """
    if context.invoked_subcommand in ("run", "dev"):
        context.default_map = {context.invoked_subcommand: _defaults(context.invoked_subcommand)}


def _defaults(name: str) -> dict[str, Any]:
    """The options of command ``name`` that ``./flotta.toml`` sets, in its table of that name. Raises ConfigError."""
    file = Path("flotta.toml")
    if not file.exists():
        return {}
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get(name, {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), "no TOML", str(error), source="file") from error
    except OSError as error:
        raise ConfigError(str(file), "not readable", str(error.strerror), source="file") from error
    if not isinstance(table, dict):
        raise ConfigError(name, table, f"a table: [{name}]", source=str(file))
    context = click.Context(cli)
    command = cli.get_command(context, name)
    assert command is not None
    known = {_key(parameter): parameter for parameter in command.params if isinstance(parameter, click.Option)}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{name}.{key}", value, ", ".join(sorted(known)), source=str(file))
        try:
            known[key].type_cast_value(context, value)
        except click.BadParameter as error:
            raise ConfigError(f"{name}.{key}", value, error.message, source=str(file)) from error
    return {str(known[key].name): value for key, value in table.items()}


def _key(option: click.Option) -> str:
    """An option as flotta.toml spells it: its longest name, with underscores."""
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def main() -> None:
    """The entry point. An error that Flotta raises is one sentence, not a traceback."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except FlottaError as error:
        click.secho("flotta: ", fg="red", nl=False, err=True)
        click.echo(str(error), err=True)
        sys.exit(1)
