"""What the commands that look into Redis share: which server, a client for a short time, how to run until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from flotta.errors import ConfigError
from flotta.redis import LinkOptions, Redis
from flotta.settings import Settings
from flotta.supervisor import running_url

__all__ = ["connected", "log", "redis_option", "run_until_interrupt"]

F = TypeVar("F", bound=Callable[..., Any])
_EMBEDDED_DIR = Path(".flotta")
_TIMEOUT_S = 5.0


def redis_option(command: F) -> F:
    """``--redis URL``."""
    option = click.option(
        "--redis",
        "url",
        metavar="URL",
        help="Which server.  [default: REDIS_URL or flotta.toml, else the embedded one that runs in .flotta]",
    )
    return option(command)


def log() -> Any:
    """For the parts that a command uses: warnings and worse, on standard error. Standard output is the command's."""
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
    )


@contextlib.asynccontextmanager
async def connected(url: str | None) -> AsyncIterator[Redis]:
    """A client for the length of one command. Raises ConfigError if no server is named, LinkUnavailable if it does not
    answer within 5 s."""
    # Read past FLOTTA_EMBEDDED and the like: only the server and the namespace matter here.
    settings = Settings.load(environ={**os.environ, **({"REDIS_URL": url} if url else {})})
    found = settings.redis_url or running_url(_EMBEDDED_DIR, "redis")
    if found is None:
        raise ConfigError("REDIS_URL", None, "the URL of a Redis server, also by --redis redis://host:6379/0")
    options = LinkOptions(connect_timeout_s=_TIMEOUT_S, command_timeout_s=_TIMEOUT_S, client_name="flotta-cli")
    redis = Redis.from_url(found, namespace=settings.namespace, options=options, logger=log())
    try:
        await redis.connect()
        yield redis
    finally:
        await redis.aclose()


def run_until_interrupt(main: Coroutine[Any, Any, int]) -> int:
    """Run ``main`` to its end, or until Ctrl-C or SIGTERM, which end it in order. Returns its exit code, 0 for either
    signal: to stop watching is no failure."""

    async def runner() -> int:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sig, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            return 0

    return asyncio.run(runner())
