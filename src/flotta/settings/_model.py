"""The table of settings and its reader.

Invariants: every field of `Settings` has a variable, a place in ``flotta.toml``, a parser and one sentence for the
documentation, all in one line of code here; the reference page is held against this table by a test. The environment
wins over the file, a URL wins over its parts. A variable or key that means nothing is an error, not silence: a typing
mistake in ``FLOTTA_DRAIN_S`` must stop the start, since nobody would notice that the default is in use.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, final
from urllib.parse import quote

from flotta.errors import ConfigError
from flotta.settings import _parse as parse
from flotta.settings._parse import Parser
from flotta.settings.secret import MASK, Redactor, password_of, redact_url

__all__ = ["FILE_NAME", "SettingInfo", "Settings", "describe"]

FILE_NAME: Final = "flotta.toml"

STOP_MARGIN_S: Final = 5.0
"""Between the end of the drain and the end of the process, where only the drain is set."""

# Tables of flotta.toml that belong to the `flotta` command, which checks them itself.
_COMMAND_TABLES: Final = frozenset({"run", "dev", "deploy"})
# Variables that begin with FLOTTA_ and are read elsewhere: by the command, by a worker, by the test suite.
_OTHER_VARIABLES: Final = frozenset(
    {
        "FLOTTA_CHAOS_EVENTS",
        "FLOTTA_EMBEDDED",
        "FLOTTA_PULSE_PEER",
        "FLOTTA_REQUIRE",
        "FLOTTA_SERVE",
        "FLOTTA_URL",
    }
)
# Kubernetes gives every pod variables for each Service; one named "flotta" or "flotta-api" makes FLOTTA_PORT=tcp://...
_SERVICE_LINK = re.compile(
    r"FLOTTA_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)?)"
)

_EMBEDDED_CURE = "or start with embedded servers: `flotta dev`, `flotta run --embedded` or FLOTTA_EMBEDDED=1"
_REDIS_NEEDED = f"{parse.redis_url().allowed} (or set REDIS_HOST, REDIS_PORT, REDIS_PASSWORD); {_EMBEDDED_CURE}"
_POSTGRES_NEEDED = (
    f"{parse.postgres_url().allowed} (or set DATABASE_HOST, DATABASE_USER, DATABASE_PASSWORD, "
    f"DATABASE_NAME); {_EMBEDDED_CURE}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingInfo:
    """One row of the table: what the documentation says and the reader does."""

    field: str
    variable: str
    key: str
    """Dotted place in ``flotta.toml``."""
    parser: Parser
    default: Any
    doc: str
    secret: bool


def _setting(variable: str, key: str, parser: Parser, default: Any, doc: str, *, secret: bool = False) -> Any:
    metadata = {"variable": variable, "key": key, "parser": parser, "doc": doc, "secret": secret}
    return field(default=default, metadata=metadata)


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """Everything that one instance is told from outside. Make it with `load`, or in tests by hand.

    Times are in seconds. `repr` and `str` never show a password or token. Raises `ConfigError` when made with values
    that contradict each other.
    """

    service: str = _setting(
        "FLOTTA_SERVICE", "service", parse.name(), "app", "Name of the service; all its instances share it."
    )
    instance: str | None = _setting(
        "FLOTTA_INSTANCE",
        "instance",
        parse.name(),
        None,
        "Name of this instance; made from service, host and process id if not set.",
    )
    region: str = _setting("FLOTTA_REGION", "region", parse.name(), "default", "Region in which this instance runs.")
    namespace: str = _setting(
        "FLOTTA_NAMESPACE",
        "namespace",
        parse.text(r"[A-Za-z0-9:._-]{0,64}", "up to 64 letters, digits, colons, dots, dashes, underscores"),
        "",
        "Prefix of every key and channel, so that two environments may share a Redis; empty to share with others.",
    )

    redis_url: str | None = _setting(
        "REDIS_URL", "redis.url", parse.redis_url(), None, "The Redis or Valkey server.", secret=True
    )
    redis_command_timeout_s: float = _setting(
        "FLOTTA_REDIS_COMMAND_TIMEOUT_S",
        "redis.command_timeout_s",
        parse.seconds(0.01, 3600),
        5.0,
        "How long one Redis command may take.",
    )
    redis_connect_timeout_s: float = _setting(
        "FLOTTA_REDIS_CONNECT_TIMEOUT_S",
        "redis.connect_timeout_s",
        parse.seconds(0.01, 600),
        5.0,
        "How long connecting to Redis may take.",
    )

    database_url: str | None = _setting(
        "DATABASE_URL",
        "postgres.url",
        parse.postgres_url(),
        None,
        "The PostgreSQL database. Not set: no pool is made.",
        secret=True,
    )
    database_direct_url: str | None = _setting(
        "DATABASE_DIRECT_URL",
        "postgres.direct_url",
        parse.postgres_url(),
        None,
        "PostgreSQL itself, for the migrations, where DATABASE_URL leads through a pooler.",
        secret=True,
    )
    postgres_size_max: int = _setting(
        "FLOTTA_POSTGRES_SIZE_MAX",
        "postgres.size_max",
        parse.integer(1, 10_000),
        10,
        "Most PostgreSQL connections of this instance.",
    )
    postgres_size_min: int = _setting(
        "FLOTTA_POSTGRES_SIZE_MIN",
        "postgres.size_min",
        parse.integer(0, 10_000),
        2,
        "PostgreSQL connections kept open when idle.",
    )
    postgres_idle_s: float = _setting(
        "FLOTTA_POSTGRES_IDLE_S",
        "postgres.idle_s",
        parse.seconds(1, 86_400),
        30.0,
        "A connection beyond the minimum is closed after so long without use.",
    )
    postgres_lifetime_s: float = _setting(
        "FLOTTA_POSTGRES_LIFETIME_S",
        "postgres.lifetime_s",
        parse.seconds(1, 86_400),
        3600.0,
        "A connection is replaced after so long (jittered).",
    )
    postgres_connect_timeout_s: float = _setting(
        "FLOTTA_POSTGRES_CONNECT_TIMEOUT_S",
        "postgres.connect_timeout_s",
        parse.seconds(0.1, 600),
        5.0,
        "How long connecting to PostgreSQL may take.",
    )

    start_timeout_s: float = _setting(
        "FLOTTA_START_TIMEOUT_S",
        "start_timeout_s",
        parse.seconds(0.1, 3600),
        60.0,
        "How long one step of the start may take (Redis, pool, maps, each hook); migrations have their own bound.",
    )
    drain_s: float = _setting(
        "FLOTTA_DRAIN_S",
        "drain_s",
        parse.seconds(0, 3600),
        25.0,
        "How long requests, realtime clients and background tasks may take to end after the signal to stop.",
    )
    stop_s: float = _setting(
        "FLOTTA_STOP_S",
        "stop_s",
        parse.seconds(0.1, 3660),
        30.0,
        "After so long the process ends, whatever still runs; 5 s more than the drain if only that is set.",
    )
    ready_requires: frozenset[str] = _setting(
        "FLOTTA_READY_REQUIRES",
        "ready_requires",
        parse.choices("redis", "postgres"),
        frozenset(),
        "What must answer for the instance to count as ready.",
    )

    health_path: str | None = _setting(
        "FLOTTA_HEALTH_PATH",
        "server.health_path",
        parse.path(),
        "/health",
        "Path of the health answers (also <path>/live and <path>/ready), or off.",
    )
    health_timeout_s: float = _setting(
        "FLOTTA_HEALTH_TIMEOUT_S",
        "server.health_timeout_s",
        parse.seconds(0.05, 60),
        2.0,
        "How long the checks behind one health answer may take together.",
    )
    metrics_path: str | None = _setting(
        "FLOTTA_METRICS_PATH",
        "server.metrics_path",
        parse.path(),
        "/metrics",
        "Path of the Prometheus metrics, or off.",
    )
    metrics_token: str | None = _setting(
        "FLOTTA_METRICS_TOKEN",
        "server.metrics_token",
        parse.text(r"[\x21-\x7e]{8,}", "8 or more printable ASCII characters without a space"),
        None,
        "Whoever sends it (Authorization: Bearer) may read the metrics from anywhere; without one only loopback may.",
        secret=True,
    )
    wsgi_threads: int = _setting(
        "FLOTTA_WSGI_THREADS",
        "server.wsgi_threads",
        parse.integer(1, 1000),
        10,
        "Threads for the requests of a WSGI application.",
    )
    loop_lag_warn_s: float | None = _setting(
        "FLOTTA_LOOP_LAG_WARN_S",
        "server.loop_lag_warn_s",
        parse.seconds(0.05, 60, off=True),
        0.5,
        "An event loop blocked for longer is logged with the place that blocks it; or off.",
    )

    log_format: str = _setting(
        "FLOTTA_LOG_FORMAT",
        "log.format",
        parse.choice("auto", "json", "console"),
        "auto",
        "auto is console (coloured) on a terminal and JSON elsewhere.",
    )
    log_level: str = _setting(
        "FLOTTA_LOG_LEVEL",
        "log.level",
        parse.choice("debug", "info", "warning", "error", "critical"),
        "info",
        "The least important level that is logged.",
    )

    def __post_init__(self) -> None:
        if self.stop_s <= self.drain_s:
            raise ConfigError(
                "FLOTTA_STOP_S", self.stop_s, f"more than FLOTTA_DRAIN_S, which is {self.drain_s:g}", source="settings"
            )
        if self.postgres_size_min > self.postgres_size_max:
            allowed = f"at most FLOTTA_POSTGRES_SIZE_MAX, which is {self.postgres_size_max}"
            raise ConfigError("FLOTTA_POSTGRES_SIZE_MIN", self.postgres_size_min, allowed, source="settings")
        if self.health_path is not None and self.health_path == self.metrics_path:
            raise ConfigError(
                "FLOTTA_METRICS_PATH", self.metrics_path, "another path than FLOTTA_HEALTH_PATH", source="settings"
            )

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, *, file: Path | None = None) -> Settings:
        """Settings from ``environ`` (None: the process's own) and ``file`` (None: ``flotta.toml`` in the working
        directory if it exists). A variable that is set but empty counts as not set.

        Raises `ConfigError`: a value is not allowed, a ``FLOTTA_`` variable or a key of the file is unknown, the file
        was named and does not exist, or is no TOML.
        """
        return _Reader(os.environ if environ is None else environ, file).read()

    def require_redis(self) -> str:
        """`redis_url`. Raises `ConfigError`, with both cures, if it is not set."""
        if self.redis_url is None:
            raise ConfigError("REDIS_URL", None, _REDIS_NEEDED)
        return self.redis_url

    def require_postgres(self) -> str:
        """`database_url`. Raises `ConfigError`, with both cures, if it is not set."""
        if self.database_url is None:
            raise ConfigError("DATABASE_URL", None, _POSTGRES_NEEDED)
        return self.database_url

    def redactor(self) -> Redactor:
        """A function that masks these settings' secrets in any text."""
        urls = (self.redis_url, self.database_url, self.database_direct_url)
        return Redactor([self.metrics_token, *(password_of(url) for url in urls if url)])

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{key}={value!r}' for key, value in self.shown().items())})"

    def shown(self) -> dict[str, Any]:
        """All fields with their secrets masked, for people and logs."""
        return {info.field: _masked(info, getattr(self, info.field)) for info in describe()}


def describe() -> tuple[SettingInfo, ...]:
    """The table of settings, in the order of the fields."""
    return tuple(SettingInfo(field=f.name, default=f.default, **f.metadata) for f in fields(Settings))


def _masked(info: SettingInfo, value: Any) -> Any:
    if not info.secret or value is None:
        return value
    return redact_url(value) if "://" in value else MASK


class _Reader:
    """Reads one environment and one file."""

    def __init__(self, environ: Mapping[str, str], file: Path | None) -> None:
        self._environ = {name: value for name, value in environ.items() if value != ""}
        self._file = Path(FILE_NAME) if file is None else file
        self._file_named = file is not None

    def read(self) -> Settings:
        self._check_variables()
        from_file = self._read_file()
        values: dict[str, Any] = {}
        for info in describe():
            raw = self._environ.get(info.variable)
            if raw is not None:
                values[info.field] = _parsed(info, raw, info.variable, "environment")
            elif (url := self._assembled(info)) is not None:
                values[info.field] = _parsed(info, url, info.variable, "environment")
            elif info.key in from_file:
                values[info.field] = _parsed(
                    info, _text(info, from_file[info.key], self._file), info.key, str(self._file)
                )
        if "drain_s" in values and "stop_s" not in values:
            values["stop_s"] = values["drain_s"] + STOP_MARGIN_S
        return Settings(**values)

    def _check_variables(self) -> None:
        known = {info.variable for info in describe()} | _OTHER_VARIABLES
        for name in self._environ:
            if not name.startswith("FLOTTA_") or name in known or _SERVICE_LINK.fullmatch(name):
                continue
            raise ConfigError(name, MASK, _unknown(name, known - _OTHER_VARIABLES))

    def _assembled(self, info: SettingInfo) -> str | None:
        """A URL from ``REDIS_HOST`` or ``DATABASE_HOST`` and their companions."""
        if info.variable == "REDIS_URL" and "REDIS_HOST" in self._environ:
            return self._redis_from_parts()
        if info.variable == "DATABASE_URL" and "DATABASE_HOST" in self._environ:
            return self._postgres_from_parts()
        return None

    def _redis_from_parts(self) -> str:
        account = _account(self._environ.get("REDIS_USER", ""), self._environ.get("REDIS_PASSWORD", ""))
        database = self._number("REDIS_DB", 0, 0, 100_000)
        return f"redis://{account}{self._address('REDIS', 6379)}/{database}"

    def _postgres_from_parts(self) -> str:
        user = self._environ.get("DATABASE_USER")
        name = self._environ.get("DATABASE_NAME")
        if user is None:
            raise ConfigError("DATABASE_USER", None, "the name of the database user, since DATABASE_HOST is set")
        if name is None:
            raise ConfigError("DATABASE_NAME", None, "the name of the database, since DATABASE_HOST is set")
        mode = self._environ.get("DATABASE_SSLMODE")
        query = f"?sslmode={quote(mode, safe='')}" if mode else ""
        account = _account(user, self._environ.get("DATABASE_PASSWORD", ""))
        return f"postgresql://{account}{self._address('DATABASE', 5432)}/{quote(name, safe='')}{query}"

    def _address(self, prefix: str, port_default: int) -> str:
        host = self._environ[f"{prefix}_HOST"]
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+(%[A-Za-z0-9]+)?\]?", host):
            raise ConfigError(f"{prefix}_HOST", redact_url(host), "a host name or address, without a scheme or port")
        bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"{bracketed}:{self._number(f'{prefix}_PORT', port_default, 1, 65_535)}"

    def _number(self, variable: str, default: int, least: int, most: int) -> int:
        raw = self._environ.get(variable)
        if raw is None:
            return default
        parser = parse.integer(least, most)
        try:
            return int(parser.parse(raw))
        except ValueError:
            allowed = parser.allowed
            if raw.startswith("tcp://"):
                allowed += " (this value looks like a Kubernetes service link: set enableServiceLinks: false)"
            raise ConfigError(variable, raw, allowed) from None

    def _read_file(self) -> dict[str, Any]:
        try:
            with self._file.open("rb") as opened:
                document = tomllib.load(opened)
        except FileNotFoundError:
            if self._file_named:
                raise ConfigError(str(self._file), None, "a file that exists", source="settings file") from None
            return {}
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(str(self._file), "no TOML", str(error), source="settings file") from error
        except OSError as error:
            raise ConfigError(str(self._file), "not readable", str(error.strerror), source="settings file") from error
        entries = dict(_flatten({k: v for k, v in document.items() if k not in _COMMAND_TABLES}))
        known = {info.key for info in describe()}
        for key in entries:
            if key not in known:
                raise ConfigError(key, MASK, _unknown(key, known), source=str(self._file))
        return entries


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(info: SettingInfo, value: Any, file: Path) -> str:
    """A TOML value as the text that the parser reads. TOML has types, so a wrong type is refused here."""
    if type(value) not in info.parser.types:
        raise ConfigError(info.key, MASK if info.secret else value, info.parser.allowed, source=str(file))
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def _parsed(info: SettingInfo, raw: str, name: str, source: str) -> Any:
    try:
        return info.parser.parse(raw)
    except ValueError:
        shown = _masked(info, raw)
        raise ConfigError(name, shown, info.parser.allowed, source=source) from None


def _unknown(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return "nothing under this name; " + (f"did you mean {close[0]}?" if close else "see the reference of settings")


def _account(user: str, password: str) -> str:
    if not user and not password:
        return ""
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else f"{quote(user, safe='')}@"
