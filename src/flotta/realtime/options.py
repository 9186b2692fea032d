"""What a realtime server can be told, checked when it is said."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from flotta.errors import ConfigError

__all__ = ["ServerOptions"]

_INSTANCE = re.compile(r"[A-Za-z0-9_-]{4}")
_KNOWN_TRANSPORTS = ("polling", "websocket")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """Options of `flotta.realtime.Server`. Times in seconds, sizes in bytes; None switches a limit off.

    Raises:
        ConfigError: a value is outside what is allowed.
    """

    path: str = "/socket.io"
    """Where clients connect; the trailing slash that they add is part of it."""
    cors_origins: tuple[str, ...] | str = ()
    """Foreign origins that may connect (``https://app.example.com``); the server's own host always may. ``"*"`` lets
    every page connect and needs ``credentials=False``."""
    credentials: bool = True
    """Browsers may send cookies along."""
    transports: tuple[str, ...] | None = None
    """What clients may use. None: ``("polling", "websocket")`` for a server that is alone, ``("websocket",)`` for one
    that shares a Redis with others, where the requests of a polling client may reach any of them."""
    connections_max: int = 50_000
    """Clients of this process; one more is answered with 503. Capped by the open-file limit, with a warning."""
    ping_interval_s: float = 25.0
    """Rest between a pong and the next ping."""
    ping_timeout_s: float = 20.0
    """How long a client may take to answer a ping."""
    connect_timeout_s: float = 45.0
    """How long a client may stay without joining a namespace, and a ``connect`` handler may take."""
    payload_bytes_max: int = 1_000_000
    """The largest message from a client."""
    attachments_max: int = 16
    """Binary values in one packet from a client."""
    rooms_max: int | None = 1_000
    """Rooms that one socket may be in."""
    messages_per_s_max: float | None = None
    """Messages per second and client, with a burst of one second's worth; more ends the connection."""
    handlers_max: int = 1
    """Event handlers of one socket that run at once. 1: a client's events are handled one after the other."""
    backlog_max: int = 64
    """Events of one socket that wait for their handlers; then its connection is not read until half are done."""
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
    channel_prefix: str = "socket.io"
    """First part of the adapter's channels; Node's default."""
    publish_in_flight_max: int = 10_000
    """Broadcasts on their way to Redis; `emit` waits for a place."""
    drain_s: float = 20.0
    """How long a drain may take that the web server's shutdown begins."""
    drain_clients_per_s: float = 500.0
    """How many clients a drain sends away per second, more only if the time would not do."""

    def __post_init__(self) -> None:
        """Check every value."""
        self._check_path()
        self._check_origins()
        self._check_numbers()
        given = _KNOWN_TRANSPORTS if self.transports is None else self.transports
        if not given or any(name not in _KNOWN_TRANSPORTS for name in given):
            raise _wrong("transports", self.transports, f"one or both of {_KNOWN_TRANSPORTS}")
        if self.instance is not None and not _INSTANCE.fullmatch(self.instance):
            raise _wrong("instance", self.instance, "4 characters of A-Z a-z 0-9 _ -")
        if self.cookie is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", self.cookie):
            raise _wrong("cookie", self.cookie, "letters, digits, _ and -")

    def _check_path(self) -> None:
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.path):
            raise _wrong("path", self.path, "a path like /socket.io, without a slash at its end")

    def _check_origins(self) -> None:
        if self.cors_origins == "*":
            if self.credentials:
                raise _wrong("cors_origins", "*", "a list of origins, or * together with credentials=False")
            return
        if isinstance(self.cors_origins, str):
            raise _wrong("cors_origins", self.cors_origins, "a tuple of origins")
        for origin in self.cors_origins:
            parts = urlsplit(origin)
            if origin != "null" and (not parts.scheme or not parts.netloc or parts.path or parts.query):
                raise _wrong("cors_origins", origin, "origins like https://app.example.com, or null")
            if origin != origin.lower() or origin.endswith({"http": ":80", "https": ":443"}.get(parts.scheme, "/")):
                raise _wrong("cors_origins", origin, "what browsers send: lower case, without a scheme's own port")

    def _check_numbers(self) -> None:
        positive = (
            "connections_max",
            "ping_interval_s",
            "ping_timeout_s",
            "connect_timeout_s",
            "payload_bytes_max",
            "rooms_max",
            "messages_per_s_max",
            "handlers_max",
            "backlog_max",
            "send_bytes_max",
            "volatile_bytes_max",
            "publish_in_flight_max",
            "drain_s",
            "drain_clients_per_s",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise _wrong(name, value, "a number above 0")
        if self.attachments_max < 0:
            raise _wrong("attachments_max", self.attachments_max, "0 or more")
        if self.volatile_bytes_max > self.send_bytes_max:
            raise _wrong("volatile_bytes_max", self.volatile_bytes_max, "at most send_bytes_max")

    @property
    def origins(self) -> tuple[str, ...]:
        """`cors_origins` as a tuple."""
        return (self.cors_origins,) if isinstance(self.cors_origins, str) else self.cors_origins


def _wrong(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(name, value, allowed, source="realtime.ServerOptions")
