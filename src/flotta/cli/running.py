"""``flotta run`` and ``flotta dev``."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from flotta.errors import ConfigError
from flotta.settings import FILE_NAME, Settings, redact_url
from flotta.supervisor import KINDS, Companion, EmbeddedServers, RunOptions, Supervisor, wanted

__all__ = ["dev", "embedded_command", "run"]

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"", "0", "false", "no", "off"})


def _cores() -> int:
    """Those that this process may use, which in a container or under taskset are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _mode(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    try:
        mode = int(value, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise click.BadParameter("an octal file mode, such as 660")
    return mode


_FOLDER: Final = click.Path(file_okay=False, path_type=Path)
_ADDRESS: Final[tuple[Decorator, ...]] = (
    click.argument("app", metavar="MODULE:APP"),
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on."),
    click.option(
        "-p",
        "--port",
        type=int,
        default=8000,
        show_default=True,
        envvar="PORT",
        show_envvar=True,
        help="Port to serve on; 0 takes any free one.",
    ),
    click.option("--uds", metavar="PATH", help="Serve on this Unix socket instead."),
    click.option("--uds-mode", default="660", show_default=True, callback=_mode, help="Its file mode, octal."),
    click.option("--fd", type=click.IntRange(min=0), metavar="N", help="Serve on this inherited socket instead."),
)
"""What is served, and where."""
_APPLICATION: Final[tuple[Decorator, ...]] = (
    click.option("--app-dir", type=_FOLDER, default=".", show_default=True, help="Where MODULE is looked for."),
    click.option("--factory", is_flag=True, help="APP is a function that returns the application."),
    click.option(
        "--interface",
        type=click.Choice(["auto", "asgi", "wsgi"]),
        default="auto",
        show_default=True,
        help="What the application speaks; auto looks at it.",
    ),
    click.option(
        "--name",
        metavar="NAME",
        help="Name of the service, in prefixes and metrics.  [default: FLOTTA_SERVICE, or the first part of MODULE]",
    ),
)
"""How the application is found and what it is called."""
_LIFE: Final[tuple[Decorator, ...]] = (
    click.option(
        "--drain",
        type=click.FloatRange(0, 3600),
        metavar="SECONDS",
        help="What running requests get to end after the order to stop.  [default: FLOTTA_DRAIN_S, 25]",
    ),
    click.option(
        "--with",
        "companions",
        multiple=True,
        metavar="NAME=COMMAND",
        help="Run this beside the instances, too: started when all are ready, again when it crashes, "
        "stopped first. FLOTTA_URL tells it where they serve. May be repeated.",
    ),
    click.option("--ready-path", metavar="PATH", help="Say `ready` only when this path answers 2xx."),
    click.option(
        "--reload-dir",
        "reload_dirs",
        type=_FOLDER,
        multiple=True,
        help="Watch this folder for changes instead of --app-dir. May be repeated.",
    ),
)
"""How the instances live, and what lives beside them."""
_TLS: Final[tuple[Decorator, ...]] = (
    click.option("--ssl-certfile", metavar="FILE", help="PEM certificate chain: serve TLS."),
    click.option("--ssl-keyfile", metavar="FILE", help="Its key, if not in the same file."),
    click.option(
        "--ssl-keyfile-password",
        envvar="SSL_KEYFILE_PASSWORD",
        show_envvar=True,
        metavar="TEXT",
        help="The key's password.",
    ),
)
"""Serving TLS."""
_OUTPUT: Final[tuple[Decorator, ...]] = (
    click.option("--access-log/--no-access-log", default=None, help="Log every request.  [default: no]"),
    click.option(
        "--embedded-dir",
        type=_FOLDER,
        default=".flotta",
        show_default=True,
        help="Where embedded servers keep their data.",
    ),
    click.option("--json", is_flag=True, help="Write one JSON record per line and no footer."),
)
"""What is written, and where."""


def _serving(command: F) -> F:
    """The options that both commands have, in the order in which the help shows them."""
    for option in reversed((*_ADDRESS, *_APPLICATION, *_LIFE, *_TLS, *_OUTPUT)):
        command = option(command)
    return command


@click.command()
@click.option("-n", "--instances", type=click.IntRange(1, 1024), help="How many.  [default: one for each core]")
@click.option("--reload", is_flag=True, help="Restart the instances when Python files change.")
@click.option(
    "--embedded/--no-embedded",
    default=None,
    help="Run Redis and PostgreSQL, too, where no URL names them.  [default: FLOTTA_EMBEDDED, no]",
)
@_serving
def run(*, instances: int | None, reload: bool, embedded: bool | None, **given: Any) -> None:
    """Serve MODULE:APP by N processes on one port.

    Crashed ones come back; Ctrl-C or SIGTERM lets running requests end (--drain), a second one ends everything at
    once. Exit code 0 after a graceful stop, 1 when it was forced or the application cannot start.

    \b
      flotta run app:app                          one instance for each core, on 127.0.0.1:8000
      flotta run shop.web:app -n 3 --port 0       three, on any free port
      flotta run app:create_app --factory         a function makes the application
      flotta run app:app --uds /run/app.sock      behind a proxy on the same machine
      flotta run app:app --ssl-certfile c.pem --ssl-keyfile k.pem --host 0.0.0.0 --port 443
      flotta run app:app --embedded --with "feed=python feed.py"
    """
    if embedded is None:
        embedded = _embedded_by_variable()
    given["access_log"] = bool(given["access_log"])
    sys.exit(_run(instances=instances or _cores(), reload=reload, embedded=embedded, **given))


@click.command(short_help="The same for development: reloads, with embedded servers.")
@click.option("-n", "--instances", type=click.IntRange(1, 1024), default=2, show_default=True, help="How many.")
@click.option("--reload/--no-reload", default=True, show_default=True, help="Restart them when Python files change.")
@_serving
def dev(*, instances: int, reload: bool, **given: Any) -> None:
    """Serve MODULE:APP for development: two instances, restarted when files change, with Redis and PostgreSQL.

    The servers are embedded ones (for whichever no URL is set), with their data in --embedded-dir; a second start in
    the same folder joins them. Two instances, because what breaks with two should break here first.

    \b
      flotta dev app:app
      REDIS_URL=redis://localhost flotta dev app:app      with a Redis of yours
    """
    given["access_log"] = given["access_log"] is not False
    if given["drain"] is None:
        given["drain"] = 2.0
    sys.exit(_run(instances=instances, reload=reload, embedded=True, **given))


def _embedded_by_variable() -> bool:
    value = os.environ.get("FLOTTA_EMBEDDED", "").lower()
    if value not in _YES | _NO:
        raise ConfigError("FLOTTA_EMBEDDED", value, "1 or 0")
    return value in _YES


def _service_name(app: str, settings: Settings, name: str | None) -> str:
    if name:
        return name
    if settings.service != Settings().service:
        return settings.service
    return app.partition(":")[0].partition(".")[0].lstrip("_") or settings.service


def _run(*, name: str | None, drain: float | None, companions: tuple[str, ...], **given: Any) -> int:
    if importlib.util.find_spec("uvicorn") is None:
        raise ConfigError("uvicorn", None, 'installed by: pip install "flotta[server]"', source="packages")
    file = given["app_dir"] / FILE_NAME
    # Read as each instance will: what is wrong in it is said once, before anything starts.
    settings = Settings.load(file=file if file.exists() else None)
    options = RunOptions(
        service=_service_name(given["app"], settings, name),
        instance=settings.instance,
        drain_s=settings.drain_s if drain is None else drain,
        stop_s=settings.stop_s if drain is None else drain + settings.stop_s - settings.drain_s,
        companions=tuple(Companion.parse(text) for text in companions),
        **given,
    )
    named = _named(settings)
    lines = [(kind.name, redact_url(url)) for kind in KINDS if (url := named[kind.variable]) is not None]
    if not options.embedded:
        return Supervisor(options, servers=lines).run()
    with _embedded(options.embedded_dir, named, quiet=options.json) as servers:
        return Supervisor(options, urls=servers.urls, servers=[*lines, *servers.lines]).run()


def _named(settings: Settings) -> dict[str, str | None]:
    """The servers that the environment or flotta.toml names, by variable."""
    return {"REDIS_URL": settings.redis_url, "DATABASE_URL": settings.database_url}


def _embedded(folder: Path, named: dict[str, str | None], *, quiet: bool) -> EmbeddedServers:
    kinds, notes = wanted(named)
    if kinds and not quiet:
        names = " and ".join(kind.label for kind in kinds)
        click.echo(f"flotta: starting embedded {names}, data in {folder}", err=True)
    for note in notes:
        click.echo(f"flotta: {note}", err=True)
    return EmbeddedServers(folder, kinds)


@click.command("embedded", short_help="Run the embedded Redis and PostgreSQL of this folder alone.")
@click.option(
    "--embedded-dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=".flotta",
    show_default=True,
    help="Where they keep their data.",
)
def embedded_command(*, folder: Path) -> None:
    """Run the embedded Redis and PostgreSQL of this folder alone, until Ctrl-C, and print their URLs.

    \b
    The URLs hold passwords. In another terminal:
      flotta run app:app --embedded        joins the same servers
    """
    with _embedded(folder, _named(Settings.load()), quiet=False) as servers:
        for variable, url in servers.urls.items():
            click.echo(f"{variable}={url}")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
