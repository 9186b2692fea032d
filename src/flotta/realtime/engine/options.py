"""What a server of Engine.IO sessions can be told, checked when it is said."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from flotta.errors import ConfigError

__all__ = ["EngineOptions"]

_INSTANCE = re.compile(r"[A-Za-z0-9_-]{4}")
_KNOWN_TRANSPORTS = ("polling", "websocket")
_POSITIVE = (
    "connections_max",
    "ping_interval_s",
    "ping_timeout_s",
    "payload_bytes_max",
    "connections_per_ip_max",
    "messages_per_s_max",
    "backlog_max",
    "send_bytes_max",
    "volatile_bytes_max",
    "drain_s",
    "drain_clients_per_s",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """Options of `flotta.realtime.EngineServer`. Times in seconds, sizes in bytes; None switches a limit off.

    Raises:
        ConfigError: a value is outside what is allowed.
    """

    path: str = "/engine.io"
    """Where clients connect; the trailing slash that they add is part of it."""
    cors_origins: tuple[str, ...] | str = ()
    """Foreign origins that may connect (``https://app.example.com``); the server's own host always may. ``"*"`` lets
    every page connect and needs ``credentials=False``."""
    credentials: bool = True
    """Browsers may send cookies along."""
    transports: tuple[str, ...] | None = None
    """What clients may use, of ``"polling"`` and ``"websocket"``. None: both."""
    connections_max: int = 50_000
    """Clients of this process; one more is answered with 503. Capped by the open-file limit, with a warning."""
    ping_interval_s: float = 25.0
    """Rest between a pong and the next ping."""
    ping_timeout_s: float = 20.0
    """How long a client may take to answer a ping."""
    payload_bytes_max: int = 1_000_000
    """The largest message from a client."""
    connections_per_ip_max: int | None = None
    """Clients of this process from one address (of IPv6, one /64); one more is answered with 429."""
    messages_per_s_max: float | None = None
    """Messages per second and client, with a burst of one second's worth; more ends the connection."""
    backlog_max: int = 64
    """Messages of one client (Socket.IO: events of one socket) that wait for their handlers; then its connection is not
    read until half are done."""
    send_bytes_max: int = 1_048_576
    """Unsent bytes per client; a packet that would pass it ends the connection as too slow."""
    volatile_bytes_max: int = 65_536
    """Unsent bytes per client from which on volatile packets for it are dropped."""
    cookie: str | None = None
    """Name of the affinity cookie (usually ``io``), whose value names this instance. None: no cookie."""
    instance: str | None = None
    """The 4 url-safe characters that begin every session id of this process. None: random ones."""
    native: bool = True
    """Serve WebSockets on the event loop's transport where the web server allows it, else through ASGI."""
    drain_s: float = 20.0
    """How long a drain may take that the web server's shutdown begins."""
    drain_clients_per_s: float = 500.0
    """How many clients a drain sends away per second, more only if the time would not do."""

    def __post_init__(self) -> None:
        """Check every value."""
        self._check_path()
        self._check_origins()
        self._check_positive(_POSITIVE)
        if self.volatile_bytes_max > self.send_bytes_max:
            raise self._wrong("volatile_bytes_max", "at most send_bytes_max")
        given = _KNOWN_TRANSPORTS if self.transports is None else self.transports
        if not given or any(name not in _KNOWN_TRANSPORTS for name in given):
            raise self._wrong("transports", f"one or both of {_KNOWN_TRANSPORTS}")
        if self.instance is not None and not _INSTANCE.fullmatch(self.instance):
            raise self._wrong("instance", "4 characters of A-Z a-z 0-9 _ -")
        if self.cookie is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", str(self.cookie)):
            raise self._wrong("cookie", "the cookie's name: letters, digits, _ and -")

    def _check_path(self) -> None:
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.path):
            raise self._wrong("path", "a path like /socket.io, without a slash at its end")

    def _check_origins(self) -> None:
        if self.cors_origins == "*":
            if self.credentials:
                raise self._wrong("cors_origins", "a list of origins, or * together with credentials=False")
            return
        if isinstance(self.cors_origins, str):
            raise self._wrong("cors_origins", "a tuple of origins")
        for origin in self.cors_origins:
            parts = urlsplit(origin)
            if origin != "null" and (not parts.scheme or not parts.netloc or parts.path or parts.query):
                raise self._wrong("cors_origins", "origins like https://app.example.com, or null", origin)
            if origin != origin.lower() or origin.endswith({"http": ":80", "https": ":443"}.get(parts.scheme, "/")):
                raise self._wrong("cors_origins", "what browsers send: lower case, without a scheme's own port", origin)

    def _check_positive(self, names: tuple[str, ...]) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise self._wrong(name, "a number above 0")

    def _wrong(self, name: str, allowed: str, value: object = None) -> ConfigError:
        given = getattr(self, name) if value is None else value
        return ConfigError(name, given, allowed, source=f"realtime.{type(self).__name__}")

    @property
    def origins(self) -> tuple[str, ...]:
        """`cors_origins` as a tuple."""
        return (self.cors_origins,) if isinstance(self.cors_origins, str) else self.cors_origins
