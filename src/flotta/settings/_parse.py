"""What the text of a setting may be. Each parser is pure: text in, value out, ``ValueError`` if it may not be.

A parser is a small object that also says, for people, what is allowed; error messages and the documentation both print
that sentence, so it cannot differ from what the code accepts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

__all__ = [
    "Parser",
    "choice",
    "choices",
    "integer",
    "name",
    "path",
    "postgres_url",
    "redis_url",
    "seconds",
    "text",
]


@dataclass(frozen=True, slots=True)
class Parser:
    """``parse`` turns text into a value or raises ``ValueError``; ``allowed`` is the rule in words."""

    parse: Callable[[str], Any]
    allowed: str
    types: tuple[type, ...] = (str,)
    """What a value in ``flotta.toml`` may be, besides text."""


def seconds(least: float, most: float, *, off: bool = False) -> Parser:
    """A number of seconds in [least, most]; with ``off``, also ``off`` (None)."""

    def parse(raw: str) -> float | None:
        if off and raw.lower() == "off":
            return None
        value = float(raw)
        if not math.isfinite(value) or not least <= value <= most:
            raise ValueError(raw)
        return value

    words = f"a number of seconds from {least:g} to {most:g}" + (", or off" if off else "")
    return Parser(parse, words, (str, int, float))


def integer(least: int, most: int) -> Parser:
    """A whole number in [least, most]."""

    def parse(raw: str) -> int:
        value = int(raw)
        if not least <= value <= most:
            raise ValueError(raw)
        return value

    return Parser(parse, f"a whole number from {least:,} to {most:,}", (str, int))


def choice(*values: str) -> Parser:
    """One of ``values``, in any case of letters."""

    def parse(raw: str) -> str:
        if raw.lower() not in values:
            raise ValueError(raw)
        return raw.lower()

    return Parser(parse, "one of " + ", ".join(values))


def choices(*values: str) -> Parser:
    """A comma-separated set of ``values``, possibly empty."""

    def parse(raw: str) -> frozenset[str]:
        chosen = frozenset(part.strip().lower() for part in raw.split(",") if part.strip())
        if not chosen <= set(values):
            raise ValueError(raw)
        return chosen

    return Parser(parse, "a comma-separated list of " + ", ".join(values) + " (or nothing)", (str, list))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def name() -> Parser:
    """A name that is safe in Redis keys, metric labels, host names and PostgreSQL's application_name (63 bytes)."""

    def parse(raw: str) -> str:
        if not _NAME.fullmatch(raw):
            raise ValueError(raw)
        return raw

    return Parser(parse, "1 to 63 letters, digits, dots, dashes or underscores, beginning with a letter or digit")


def text(pattern: str, allowed: str) -> Parser:
    """Text that matches ``pattern`` whole."""
    compiled = re.compile(pattern)

    def parse(raw: str) -> str:
        if not compiled.fullmatch(raw):
            raise ValueError(raw)
        return raw

    return Parser(parse, allowed)


_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def path() -> Parser:
    """A URL path, or ``off``."""

    def parse(raw: str) -> str | None:
        if raw.lower() == "off":
            return None
        if not _PATH.fullmatch(raw):
            raise ValueError(raw)
        return raw

    return Parser(parse, "a path such as /health (no slash at its end), or off")


REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
POSTGRES_SCHEMES: Final = ("postgresql", "postgres")


def redis_url() -> Parser:
    def parse(raw: str) -> str:
        parts = urlsplit(raw)
        if parts.scheme not in REDIS_SCHEMES:
            raise ValueError(raw)
        if parts.scheme == "unix":
            if not parts.path.strip("/"):
                raise ValueError(raw)
        elif not parts.hostname:
            raise ValueError(raw)
        _ = parts.port  # raises if it is no port
        return raw

    return Parser(parse, "redis://[user:password@]host[:port][/db], rediss://... for TLS, or unix:///path/to/socket")


def postgres_url() -> Parser:
    def parse(raw: str) -> str:
        parts = urlsplit(raw)
        if parts.scheme not in POSTGRES_SCHEMES:
            raise ValueError(raw)
        # Several hosts (host1:1,host2:2) are libpq's to judge; a single one is checked here.
        if "," not in parts.netloc:
            _ = parts.port
        return raw

    return Parser(parse, "postgresql://user:password@host[:port]/name[?sslmode=require]")
