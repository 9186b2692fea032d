"""What lies in the stream of ``@socket.io/redis-streams-adapter``, read and written. Pure.

An entry is a message of a server (`cluster_wire.write_entry`: fields ``uid``, ``nsp``, ``type``, ``data``), or a marker
of Flotta's with the one field ``flotta``: where the stream begins, or where Redis has lost entries. Node servers pass
over markers. What nobody wants later (`is_ephemeral`) is not in the stream.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from flotta.realtime.adapters.cluster_wire import Message, MessageType
from flotta.realtime.recovery.plan import StreamFacts
from flotta.realtime.recovery.session import Position
from flotta.streaming.event import parse_id

__all__ = ["BEGIN", "LOST", "MARKER", "Entry", "Read", "is_ephemeral", "read_entries", "read_facts"]

Entry: TypeAlias = dict[bytes, bytes]
MARKER: Final = b"flotta"
"""The field of entries that are no messages."""
BEGIN: Final = b"begin"
LOST: Final = b"lost"
"""A marker's value: before it, entries may be missing."""

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


def read_facts(reply: Any) -> StreamFacts:
    """What XINFO STREAM says."""
    facts = dict(zip(reply[::2], reply[1::2], strict=True)) if isinstance(reply, list) else reply
    first = facts[b"first-entry"]
    return StreamFacts(None if not first else parse_id(first[0]), parse_id(facts[b"last-generated-id"]))
