"""What a realtime server can be told, checked when it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from flotta.realtime.engine.options import EngineOptions

__all__ = ["RECOVERY_S", "AdapterName", "ParserName", "ServerOptions", "ShardedMode"]

RECOVERY_S: Final = 120.0

AdapterName: TypeAlias = Literal["classic", "sharded", "streams"]
ShardedMode: TypeAlias = Literal["static", "dynamic", "dynamic-private"]
ParserName: TypeAlias = Literal["json", "msgpack"]

_POSITIVE = (
    "connect_timeout_s",
    "handlers_max",
    "rooms_max",
    "namespaces_max",
    "publish_in_flight_max",
    "request_timeout_s",
    "stream_maxlen",
    "stream_read_count",
    "recovery_s",
    "connections_per_user_max",
    "idle_s",
    "presence_ttl_s",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions(EngineOptions):
    """Options of `flotta.realtime.Server`. Times in seconds, sizes in bytes; None switches a limit off.

    Raises:
        ConfigError: a value is outside what is allowed.
    """

    path: str = "/socket.io"
    """Where clients connect; the trailing slash that they add is part of it."""
    transports: tuple[str, ...] | None = None
    """What clients may use. None: ``("polling", "websocket")``; only ``("websocket",)`` with a Redis and without
    `relay`, where the requests of a polling client may reach an instance that does not know it."""
    connect_timeout_s: float = 45.0
    """How long a client may stay without joining a namespace, and a ``connect`` handler may take."""
    attachments_max: int = 16
    """Binary values in one packet from a client."""
    handlers_max: int = 1
    """Event handlers of one socket that run at once. 1: a client's events are handled one after the other."""
    rooms_max: int | None = 1_000
    """Rooms that one socket may be in."""
    namespaces: tuple[str, ...] | str = ()
    """Namespaces that clients may come into although no handler was registered for them; ``"*"``: any."""
    namespaces_max: int = 1_000
    """Dynamic namespaces (made by a pattern, a predicate or ``"*"``) that exist at once."""
    connections_per_user_max: int | None = None
    """Connections of one user (`Server.set_user`) on all instances together; one more is refused."""
    parser: ParserName = "json"
    """How packets look on the wire: ``"json"``, what clients speak by default, or ``"msgpack"`` for clients with
    ``socket.io-msgpack-parser``. All clients of one server speak the same."""
    relay: bool = True
    """With a Redis: take the requests of sessions that other instances hold, so that no balancer needs to be sticky."""
    adapter: AdapterName = "classic"
    """With a Redis: how broadcasts travel. ``"classic"`` Pub/Sub, ``"sharded"`` Pub/Sub (Redis 7), or ``"streams"``,
    which lets clients recover what they missed. Every server of a cluster, Node's too, must use the same."""
    sharded_mode: ShardedMode = "dynamic"
    """Adapter ``"sharded"``: which rooms have a channel of their own, so that only instances with somebody in them hear
    what is sent there. ``"static"``: none; ``"dynamic"``: all but those of session ids; ``"dynamic-private"``: those
    too. Every server of a cluster must say the same."""
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
    recovery_s: float | None = RECOVERY_S
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

    def __post_init__(self) -> None:
        """Check every value."""
        EngineOptions.__post_init__(self)  # no super(): a class with slots is made anew, and super() holds the first
        self._check_positive(_POSITIVE)
        if self.attachments_max < 0:
            raise self._wrong("attachments_max", "0 or more")
        if self.namespaces != "*" and isinstance(self.namespaces, str):
            raise self._wrong("namespaces", "a tuple of names, or *")
        if self.adapter not in get_args(AdapterName):
            raise self._wrong("adapter", f"one of {get_args(AdapterName)}")
        if self.sharded_mode not in get_args(ShardedMode):
            raise self._wrong("sharded_mode", f"one of {get_args(ShardedMode)}")
        if self.parser not in get_args(ParserName):
            raise self._wrong("parser", f"one of {get_args(ParserName)}")
