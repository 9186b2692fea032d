"""The logs of a worker: structlog and the standard library's logging, one form, no secret.

Everything ends in one handler on stderr: JSON lines, or coloured text on a terminal. Redaction is the last step, on the
finished line, so that it does not matter whether a secret came in an event, an argument, an exception or a library's
own message. Fields whose *name* says that they are secret are masked before that.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

from flotta.settings import Redactor
from flotta.settings.secret import MASK

__all__ = ["configure_logs", "processors"]

_SECRET_NAME = re.compile(
    r"(?i)(^|[_-])(password|passwd|secret|token|api_?key|authorization|cookie|set-cookie|private_?key)$"
)
_QUIET: Final = ("uvicorn.error",)
"""Loggers whose informational lines repeat what the worker says itself."""

Event = MutableMapping[str, Any]


def configure_logs(
    *, form: str, level: str, redact: Redactor, context: dict[str, str] | None = None, stream: TextIO | None = None
) -> None:
    """Sets up structlog and logging for this process. ``form`` is auto, json or console; ``context`` is in each line.
    An application may configure structlog again when it is imported; then its own choice holds for structlog."""
    out = sys.stderr if stream is None else stream
    console = form == "console" or (form == "auto" and out.isatty())
    colors = _wants_colors(out)
    number = logging.getLevelNamesMapping()[level.upper()]
    shared = processors(context or {})
    handler = logging.StreamHandler(out)
    handler.setFormatter(_Formatter(shared, console=console, colors=colors, redact=redact))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def processors(context: dict[str, str]) -> list[structlog.typing.Processor]:
    """What every event passes through, whichever library it comes from."""

    def add_context(_logger: Any, _method: str, event: Event) -> Event:
        for key, value in context.items():
            event.setdefault(key, value)
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        add_context,
        _split_access,
        _mask_by_name,
        structlog.processors.StackInfoRenderer(),
    ]


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Renders, then redacts."""

    def __init__(
        self, shared: list[structlog.typing.Processor], *, console: bool, colors: bool, redact: Redactor
    ) -> None:
        self._redact = redact
        final: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
        if console:
            final.append(
                structlog.dev.ConsoleRenderer(
                    colors=colors, exception_formatter=structlog.dev.plain_traceback, timestamp_key="time"
                )
            )
        else:
            final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        super().__init__(foreign_pre_chain=shared, processors=final, pass_foreign_args=True)

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


def _split_access(_logger: Any, _method: str, event: Event) -> Event:
    """uvicorn's access line as fields."""
    record: logging.LogRecord | None = event.get("_record")
    args = event.pop("positional_args", None)
    if record is not None and record.name == "uvicorn.access" and isinstance(args, tuple) and len(args) == 5:
        client, method, path, version, status = args
        event.update(event="request", client=client, method=method, path=path, http=version, status=status)
    return event


def _mask_by_name(_logger: Any, _method: str, event: Event) -> Event:
    for key in event:
        if _SECRET_NAME.search(key):
            event[key] = MASK
    return event


def _wants_colors(out: TextIO) -> bool:
    """On a terminal, unless NO_COLOR (no-color.org) says otherwise; FORCE_COLOR where a parent passes the lines on."""
    if os.environ.get("NO_COLOR"):
        return False
    return out.isatty() or bool(os.environ.get("FORCE_COLOR"))
