"""What an emitter says to Redis so that the servers of a cluster do it: the same commands as their adapters. Pure.

An emitter is no server: it hears nothing, so nothing here waits for answers. It says ``emitter`` where servers say who
they are, as Node's emitter does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

from flotta.errors import ConfigError
from flotta.realtime.adapters import Broadcast, Command, Target
from flotta.realtime.adapters import classic_wire as classic
from flotta.realtime.adapters import cluster_wire as cluster
from flotta.realtime.adapters.channels import ShardedChannels, channel
from flotta.realtime.adapters.streams_wire import is_ephemeral
from flotta.realtime.adapters.wire import channel_bytes
from flotta.realtime.options import AdapterName, ShardedMode
from flotta.realtime.socketio.packet import Packet, PacketType, encode
from flotta.realtime.targets import Names, client_event, names_of, server_event, target_of

__all__ = ["EMITTER_UID", "Arg", "EmitterOptions", "Words"]

EMITTER_UID = cluster.EMITTER_UID
Arg: TypeAlias = str | bytes | int
"""A word of a Redis command."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmitterOptions:
    """How the servers that are meant talk to each other: the same values as in their `ServerOptions`.

    Raises:
        ConfigError: a value is outside what is allowed.
    """

    adapter: AdapterName = "classic"
    channel_prefix: str = "socket.io"
    stream_name: str = "socket.io"
    """Adapter ``"streams"``: the stream's key."""
    stream_maxlen: int = 10_000
    """Adapter ``"streams"``: about as many events are kept."""
    sharded_mode: ShardedMode = "dynamic"
    """Adapter ``"sharded"``: which rooms have a channel of their own."""

    def __post_init__(self) -> None:
        """Check every value."""
        for name, kinds in (("adapter", AdapterName), ("sharded_mode", ShardedMode)):
            if getattr(self, name) not in get_args(kinds):
                raise _wrong(name, getattr(self, name), f"one of {get_args(kinds)}")
        if self.stream_maxlen < 1:
            raise _wrong("stream_maxlen", self.stream_maxlen, "a number above 0")


def _wrong(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(name, value, allowed, source="realtime.EmitterOptions")


class Words:
    """Makes the commands of what an emitter's calls were given. ``namespace``: the one that is meant where a call names
    none; ``key_prefix`` goes before all names in Redis. All methods raise TypeError or ValueError for what cannot
    travel."""

    __slots__ = ("_namespace", "_options", "_prefix", "_stream")

    def __init__(self, options: EmitterOptions, *, namespace: str = "/", key_prefix: str = "") -> None:
        self._options = options
        self._namespace = namespace
        self._prefix = key_prefix + options.channel_prefix
        self._stream = key_prefix + options.stream_name

    def whom(self, namespace: str | None, to: Names, room: Names, user: Names, skip_sid: Names) -> Target | None:
        """Whom a call means. None: nobody, for whom `emit` and `command` have no words either."""
        return target_of(namespace or self._namespace, to, room, user, skip_sid)

    def emit(
        self, target: Target | None, event: str, data: Any, *, volatile: bool, may_see: str | None
    ) -> list[Arg] | None:
        """An event for clients."""
        if target is None:
            return None
        return self.broadcast(Broadcast(target, client_event(event, data), volatile, may_see))

    def broadcast(self, broadcast: Broadcast) -> list[Arg]:
        """An event for clients."""
        target = broadcast.target
        # What clients cannot be sent is refused here, not by every server.
        encode(Packet(PacketType.EVENT, target.namespace, broadcast.args))
        if self._options.adapter == "classic":
            channels = classic.Channels(self._prefix, target.namespace)
            return ["PUBLISH", channel_bytes(channels.of(broadcast)), classic.write_broadcast(EMITTER_UID, broadcast)]
        return self._say(cluster.broadcast_message(EMITTER_UID, broadcast))

    def command(
        self, command: Command, target: Target | None, rooms: Names = None, *, close: bool = False
    ) -> list[Arg] | None:
        """An order to every server for its sockets of ``target``."""
        if target is None:
            return None
        names = list(names_of(rooms))
        if self._options.adapter == "classic":
            payload = classic.write_command(EMITTER_UID, command, target, names, close=close)
            return self._request(target.namespace, payload)
        kind, data = cluster.command_data(command, target, names, close=close)
        return self._say(cluster.Message(EMITTER_UID, target.namespace, kind, data))

    def server_side(self, namespace: str | None, event: str, args: tuple[Any, ...]) -> list[Arg]:
        """An event for the servers themselves."""
        namespace, event_args = namespace or self._namespace, server_event(event, args)
        if self._options.adapter == "classic":
            payload = classic.write_request(EMITTER_UID, classic.RequestType.SERVER_SIDE_EMIT, data=event_args)
            return self._request(namespace, payload)
        data = cluster.server_side_data(event_args)
        return self._say(cluster.Message(EMITTER_UID, namespace, cluster.MessageType.SERVER_SIDE_EMIT, data))

    def _request(self, namespace: str, payload: bytes) -> list[Arg]:
        return ["PUBLISH", channel_bytes(classic.Channels(self._prefix, namespace).requests), payload]

    def _say(self, message: cluster.Message) -> list[Arg]:
        """As the servers' adapter says it to all others."""
        if self._options.adapter == "sharded":
            channels = ShardedChannels(self._prefix, message.namespace, self._options.sharded_mode)
            return ["SPUBLISH", channels.of(message), cluster.write_message(message)]
        if is_ephemeral(message):
            return ["PUBLISH", channel(self._prefix, message.namespace), cluster.pack_message(message)]
        return ["XADD", self._stream, "MAXLEN", "~", self._options.stream_maxlen, "*", *cluster.write_entry(message)]
