"""What lies in the stream of ``@socket.io/redis-streams-adapter``, read and written. Pure.

An entry is a message of a server (`cluster_wire.write_entry`: fields ``uid``, ``nsp``, ``type``, ``data``), or a marker
of Flotta's with the field ``flotta``: where the stream begins, or where Redis has lost entries. Node servers pass over
markers. What nobody wants later (`is_ephemeral`) is not in the stream.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from flotta.realtime.adapters.cluster_wire import Message, MessageType
from flotta.realtime.recovery.plan import StreamFacts
from flotta.realtime.recovery.session import Position, read_position
from flotta.streaming.event import parse_id

__all__ = [
    "BEGIN",
    "LOST",
    "MARKER",
    "READ",
    "Entry",
    "Read",
    "is_ephemeral",
    "read_entries",
    "read_facts",
    "read_loss",
]

Entry: TypeAlias = dict[bytes, bytes]
MARKER: Final = b"flotta"
"""The field of entries that are no messages."""
BEGIN: Final = b"begin"
LOST: Final = b"lost"
"""A marker's value: before it, entries may be missing."""
READ: Final = b"read"
"""Its other field: up to where its writer had read."""

_EPHEMERAL: Final = frozenset({MessageType.SERVER_SIDE_EMIT, MessageType.FETCH_SOCKETS})


class Read(NamedTuple):
    """An entry and where it stands."""

    position: Position
    entry: Entry


def is_ephemeral(message: Message) -> bool:
    """Whether a message to all goes over Pub/Sub instead, as Node's adapter sends it."""
    return message.type in _EPHEMERAL or message.data.get("requestId") is not None


def read_entries(reply: Any) -> list[Read]:
    """The entries of an XRANGE reply, or of one stream of XREAD's."""
    return [Read(parse_id(entry_id), dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in reply]


def read_loss(entry: Entry) -> Position | None:
    """How far the server had read that wrote this mark of a loss; None: it is none."""
    if entry.get(MARKER) != LOST:
        return None
    return read_position(entry.get(READ, b"").decode("ascii", "replace")) or (0, 0)


def read_facts(reply: Any) -> StreamFacts:
    """What XINFO STREAM says."""
    facts = dict(zip(reply[::2], reply[1::2], strict=True)) if isinstance(reply, list) else reply
    found = read_entries([facts[b"first-entry"]] if facts[b"first-entry"] else [])
    told = read_loss(found[0].entry) if found else None
    added = facts.get(b"entries-added")  # Redis before 7.0 does not say
    return StreamFacts(
        first=found[0].position if found else None,
        last=parse_id(facts[b"last-generated-id"]),
        whole=told is not None if added is None else added == facts[b"length"],
        told=told,
    )
