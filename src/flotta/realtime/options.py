"""What a realtime server can be told, checked when it is said."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from flotta.errors import ConfigError

__all__ = ["AdapterName", "ParserName", "ServerOptions"]

_INSTANCE = re.compile(r"[A-Za-z0-9_-]{4}")
AdapterName: TypeAlias = Literal["classic", "sharded", "streams"]
ParserName: TypeAlias = Literal["json", "msgpack"]

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
    connections_per_ip_max: int | None = None
    """Clients of this process from one address (of IPv6, one /64); one more is answered with 429."""
    connections_per_user_max: int | None = None
    """Connections of one user (`Server.set_user`) on all instances together; one more is refused."""
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
    parser: ParserName = "json"
    """How packets look on the wire: ``"json"``, what clients speak by default, or ``"msgpack"`` for clients with
    ``socket.io-msgpack-parser``. All clients of one server speak the same."""
    relay: bool = True
    """With a Redis: take the requests of sessions that other instances hold, so that no balancer needs to be sticky."""
    adapter: AdapterName = "classic"
    """With a Redis: how broadcasts travel. ``"classic"`` Pub/Sub, ``"sharded"`` Pub/Sub (Redis 7), or ``"streams"``,
    which lets clients recover what they missed. Every server of a cluster, Node's too, must use the same."""
    channel_prefix: str = "socket.io"
    """First part of the adapter's channels; Node's default."""
    publish_in_flight_max: int = 10_000
    """Broadcasts on their way to Redis; `emit` waits for a place."""
    request_timeout_s: float = 5.0
    """How long the other servers may take to answer a request (`Server.fetch_sockets`, for one)."""
    stream_name: str = "socket.io"
    """Adapter ``"streams"``: the stream's key; Node's default."""
    stream_maxlen: int = 10_000
    """Adapter ``"streams"``: about as many events are kept at most, whatever `recovery_s` says."""
    stream_read_count: int = 100
    """Adapter ``"streams"``: events per read."""
    recovery_s: float | None = 120.0
    """Adapter ``"streams"``: for how long after its connection was lost a client finds its session and what it missed.
    None: no recovery."""
    recovery_key_prefix: str = "sio:session:"
    """First part of the keys of sessions that may be recovered; Node's default."""
    recovery_skips_connect: bool = False
    """Do not run the ``connect`` handler (and middleware) for a client that recovers: whoever held the session is
    trusted again. Default: it runs, so that who may no longer come in is refused."""
    idle_s: float | None = None
    """A client that has sent no event for so long is disconnected. None: the heartbeat alone decides."""
    presence: bool = False
    """Keep in Redis who is connected, where, since when, in which state (`Server.presence`)."""
    presence_ttl_s: float = 30.0
    """How long the presence of an instance that died without a word lives on."""
    drain_event: str | None = None
    """An event that each client gets right before a drain closes its connection, with ``{"reconnectInMs": n}``: a hint
    for clients of your own. Official clients come back by themselves. None: no event."""
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
        if self.adapter not in get_args(AdapterName):
            raise _wrong("adapter", self.adapter, f"one of {get_args(AdapterName)}")
        if self.parser not in get_args(ParserName):
            raise _wrong("parser", self.parser, f"one of {get_args(ParserName)}")
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
            "request_timeout_s",
            "stream_maxlen",
            "stream_read_count",
            "recovery_s",
            "connections_per_ip_max",
            "connections_per_user_max",
            "idle_s",
            "presence_ttl_s",
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
