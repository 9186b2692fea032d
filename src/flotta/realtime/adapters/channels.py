"""The channels of what speaks Node's ``ClusterAdapter`` messages over Pub/Sub: servers and emitters must agree. Pure.

Of a namespace ``<prefix>#<namespace>#`` is for all its servers, and the same with a name behind it for those that have
somebody in the room of that name (sharded only), or for the server of that uid.
"""

from __future__ import annotations

from typing import Final, final

from flotta.realtime.adapters.cluster_wire import Message, MessageType
from flotta.realtime.adapters.wire import channel_bytes
from flotta.realtime.options import ShardedMode

__all__ = ["ShardedChannels", "channel"]

SID_LENGTH: Final = 20
"""A room whose name is as long is taken for a session id, by Node too."""


def channel(prefix: str, namespace: str, name: str | None = None) -> bytes:
    """The channel for all servers of ``namespace``; with ``name`` that of a room or of one server."""
    everybody = f"{prefix}#{namespace}#"
    return channel_bytes(everybody if name is None else f"{everybody}{name}#")


@final
class ShardedChannels:
    """The channels of one namespace on sharded Pub/Sub."""

    __slots__ = ("_mode", "_namespace", "_prefix", "all", "filtered")

    def __init__(self, prefix: str, namespace: str, mode: ShardedMode) -> None:
        self._prefix = prefix
        self._namespace = namespace
        self._mode = mode
        self.all = channel(prefix, namespace)
        self.filtered = channel(f"{prefix}-filtered", namespace)
        """For broadcasts that not everybody may see; Node does not subscribe to it."""

    def of(self, message: Message) -> bytes:
        """Where a message is published that is not for one server."""
        if message.type is MessageType.FILTERED:
            return self.filtered
        # With acknowledgements everybody answers, so everybody must hear it.
        if message.type is MessageType.BROADCAST and "requestId" not in message.data:
            rooms = message.data["opts"]["rooms"]
            if len(rooms) == 1 and self.has_room(rooms[0]):
                return self.of_room(rooms[0])
        return self.all

    def has_room(self, room: str) -> bool:
        """Whether what is for ``room`` alone is published on its own channel."""
        return self._mode == "dynamic-private" or (self._mode == "dynamic" and _length(room) != SID_LENGTH)

    def of_room(self, room: str) -> bytes:
        """The room's own channel."""
        return channel(self._prefix, self._namespace, room)

    def of_server(self, uid: str) -> bytes:
        """Where the server ``uid`` gets its answers."""
        return channel(self._prefix, self._namespace, uid)


def _length(text: str) -> int:
    """As JavaScript counts: in UTF-16."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
