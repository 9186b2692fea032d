"""What instances say to each other about sessions that one holds and the other was asked for. Pure.

Every message but `Deaf` goes to one instance, on the channel ``<prefix>-relay#<its 4 characters>``; ``<prefix>-relay#``
reaches all. They are MessagePack: an array whose first element is the kind. Messages of one tunnel are numbered in each
direction: a reader that misses one ends the tunnel, so a lost message is never a silent gap.

Junk raises `WireError` and nothing else.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from flotta.errors import WireError

__all__ = [
    "Acked",
    "Along",
    "Answer",
    "Ask",
    "Broken",
    "Close",
    "Control",
    "Cut",
    "Deaf",
    "Echo",
    "Echoed",
    "Ended",
    "Flush",
    "Freeze",
    "Frozen",
    "Left",
    "Lost",
    "Message",
    "Moved",
    "MovedSocket",
    "Open",
    "Packet",
    "Reading",
    "Received",
    "Release",
    "Seen",
    "Thaw",
    "decode",
    "encode",
]

Headers: TypeAlias = list[tuple[bytes, bytes]]


class Seen(msgspec.Struct, array_like=True, frozen=True):
    """A request as far as another instance needs it."""

    method: str
    scheme: str
    path: str
    query: bytes
    headers: Headers
    http_version: str = "1.1"
    client: tuple[str, int] | None = None


class Ask(msgspec.Struct, array_like=True, frozen=True, tag="ask"):
    """A polling request for a session of yours."""

    id: str
    asker: str
    request: Seen
    body: bytes


class Left(msgspec.Struct, array_like=True, frozen=True, tag="left"):
    """Nothing more is expected for that request: its client has gone, or a large answer has come."""

    id: str


class Release(msgspec.Struct, array_like=True, frozen=True, tag="release"):
    """Let that request wait no longer: this instance is about to stop."""

    id: str


class Answer(msgspec.Struct, array_like=True, frozen=True, tag="answer"):
    """The response to a request."""

    id: str
    status: int
    kind: bytes
    body: bytes


class Open(msgspec.Struct, array_like=True, frozen=True, tag="open"):
    """A WebSocket for a session of yours is open here."""

    tunnel: str
    asker: str
    request: Seen


class Broken(msgspec.Struct, array_like=True, frozen=True, tag="broken"):
    """There is no such tunnel (any more)."""

    tunnel: str


class Along(msgspec.Struct, array_like=True, frozen=True):
    """What travels in a tunnel: the ``seq``-th message of its sender."""

    tunnel: str
    seq: int


class Received(Along, array_like=True, frozen=True, tag="received"):
    """The client sent a frame."""

    data: bytes
    is_text: bool


class Lost(Along, array_like=True, frozen=True, tag="lost"):
    """The WebSocket is gone."""

    reason: str


class Frozen(Along, array_like=True, frozen=True, tag="frozen"):
    """Nothing of the client follows until you thaw it. Not ``ready``: the session cannot come now."""

    ready: bool


class Packet(Along, array_like=True, frozen=True, tag="packet"):
    """Send a message to the client."""

    text: bytes | None
    attachments: list[bytes]


class Control(Along, array_like=True, frozen=True, tag="control"):
    """Send an Engine.IO packet to the client."""

    text: str


class Close(Along, array_like=True, frozen=True, tag="close"):
    """Close the WebSocket."""

    code: int
    reason: str


class Reading(Along, array_like=True, frozen=True, tag="reading"):
    """Read on, or no further."""

    on: bool


class Freeze(Along, array_like=True, frozen=True, tag="freeze"):
    """The session may move to you: read no further, listen to these rooms, and say so. ``rooms`` by namespace."""

    rooms: dict[str, list[str]]


class Thaw(Along, array_like=True, frozen=True, tag="thaw"):
    """Not now: read on."""


class MovedSocket(msgspec.Struct, array_like=True, frozen=True):
    """One namespace of a session on its way."""

    sid: str
    namespace: str
    rooms: list[str]
    session: bytes | None
    """The user's data, packed; None: none was saved."""
    since: float
    """When its client asked to join (Unix seconds)."""
    last_ack: int
    is_awaited: bool
    """The old instance waits for acknowledgements."""
    facts: dict[str, bytes]
    """What features beside rooms and data keep for a socket, packed, by feature."""


class Moved(Along, array_like=True, frozen=True, tag="moved"):
    """The session is yours."""

    sid: str
    request: Seen
    namespaces: dict[str, str]
    """What the client has asked for, and how it stands there."""
    sockets: list[MovedSocket]


class Cut(msgspec.Struct, array_like=True, frozen=True, tag="cut"):
    """Both instances of a move hear it at the same place among all broadcasts."""

    tunnel: str


class Flush(msgspec.Struct, array_like=True, frozen=True, tag="flush"):
    """An instance to itself: everything that it published before has come back."""

    tunnel: str


class Acked(msgspec.Struct, array_like=True, frozen=True, tag="acked"):
    """A client that has moved answered an event that you sent it before."""

    sid: str
    ack_id: int
    args: bytes


class Ended(msgspec.Struct, array_like=True, frozen=True, tag="ended"):
    """A socket that has moved is gone."""

    sid: str


class Echo(msgspec.Struct, array_like=True, frozen=True, tag="echo"):
    """Say when you have come to this: what was sent to you before it counts as on its way until then."""

    id: str
    asker: str


class Echoed(msgspec.Struct, array_like=True, frozen=True, tag="echoed"):
    """Come to it."""

    id: str


class Deaf(msgspec.Struct, array_like=True, frozen=True, tag="deaf"):
    """Messages to this instance may have been lost until now, or it has just begun: expect no answer to older ones."""

    instance: str


Message: TypeAlias = (
    Ask
    | Left
    | Release
    | Answer
    | Open
    | Broken
    | Received
    | Lost
    | Frozen
    | Packet
    | Control
    | Close
    | Reading
    | Freeze
    | Thaw
    | Moved
    | Cut
    | Flush
    | Acked
    | Ended
    | Echo
    | Echoed
    | Deaf
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message as bytes. Raises TypeError, ValueError for values that cannot travel."""
    return _encoder.encode(message)


def decode(payload: bytes) -> Message:
    """The message in ``payload``. Raises WireError."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireError("relay message", str(error), payload) from error
