"""What one worker is told: a `ServeConfig`, which travels as JSON from the supervisor to its workers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Self, final

from flotta.errors import ConfigError

__all__ = ["Interface", "ServeConfig"]

Interface = Literal["auto", "asgi", "wsgi"]
_INTERFACES: Final = ("auto", "asgi", "wsgi")


@final
@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One worker. Raises `ConfigError` when made with values that cannot be served."""

    app: str
    """``module:attribute`` (dots allowed in both)."""
    factory: bool = False
    """The attribute is a function without arguments that returns the application."""
    interface: Interface = "auto"
    fds: tuple[int, ...] = ()
    """Listening sockets to take over. Empty: listen on ``uds`` or on ``host`` and ``port``."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    uds: str | None = None
    """Path of a Unix socket to listen on; with ``fds`` only shown."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = field(default=None, repr=False)
    access_log: bool = False
    app_dir: str = "."
    """Put before everything else on ``sys.path``; ``flotta.toml`` is read from there."""
    instance: str | None = None
    """Overrides ``FLOTTA_INSTANCE``."""
    drain_s: float | None = None
    """Overrides ``FLOTTA_DRAIN_S``."""
    status_fd: int | None = None
    """JSON lines about this worker are written here; when its reader is gone the worker drains and ends."""
    forwarded_allow_ips: str | None = None
    """Comma-separated proxies whose ``X-Forwarded-*`` are believed; None: loopback."""
    root_path: str = ""
    """Where a proxy has mounted the application."""
    keep_alive_s: float = 75.0
    """An idle connection is closed after so long: longer than the proxy's own limit, so that the proxy closes first."""

    def __post_init__(self) -> None:
        if self.interface not in _INTERFACES:
            raise _wrong("interface", self.interface, ", ".join(_INTERFACES))
        if not 0 <= self.port <= 65_535:
            raise _wrong("port", self.port, "0 to 65535")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise _wrong("ssl_certfile", None, "a file with the certificate, since ssl_keyfile is set")
        if self.drain_s is not None and self.drain_s < 0:
            raise _wrong("drain_s", self.drain_s, "0 or more seconds")
        if self.keep_alive_s <= 0:
            raise _wrong("keep_alive_s", self.keep_alive_s, "more than 0 seconds")

    def to_json(self) -> str:
        """One line of JSON. It may hold the key file's password: hand it on in the environment, never on a command
        line."""
        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The reverse of `to_json`. Raises `ConfigError` on anything else."""
        try:
            values: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise ConfigError("FLOTTA_SERVE", "no JSON", str(error)) from error
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown or "app" not in values:
            allowed = "an object with app and, if wanted, " + ", ".join(f.name for f in fields(cls) if f.name != "app")
            raise ConfigError("FLOTTA_SERVE", sorted(values), allowed)
        values["fds"] = tuple(values.get("fds", ()))
        return cls(**values)


def _wrong(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(name, value, allowed, source="serve")
