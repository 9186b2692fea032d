"""How Socket.IO packets look on the wire: a pair of an encoder and a decoder. All clients of a server share one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from flotta.realtime.socketio.msgpack import MsgpackDecoder, encode_msgpack
from flotta.realtime.socketio.packet import Decoder, Encoded, Packet, encode

__all__ = ["JSON", "MSGPACK", "PARSERS", "PacketDecoder", "Parser"]


class PacketDecoder(Protocol):
    """Turns the messages of one connection into packets."""

    def add(self, data: str | bytes) -> Packet | None:
        """Take one message; give the packet that it completes, if any. Raises PacketError."""
        ...


class Parser(NamedTuple):
    """One form of the packets."""

    encode: Callable[[Packet], Encoded]
    """Raises TypeError or ValueError for what cannot travel."""
    decoder: Callable[[int], PacketDecoder]
    """A decoder for a new connection, of packets with at most so many attachments."""


JSON: Final = Parser(encode, lambda attachments_max: Decoder(attachments_max=attachments_max))
MSGPACK: Final = Parser(encode_msgpack, lambda _attachments_max: MsgpackDecoder())
PARSERS: Final = {"json": JSON, "msgpack": MSGPACK}
