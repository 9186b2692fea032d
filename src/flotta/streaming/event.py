"""What an event is: its identifier, its bytes on the wire, and which of them a consumer wants.

Owns the format shared with Go Pulse: the key of a stream, the fields ``n`` (name), ``p`` (payload) and ``t`` (topic,
only if there is one), the form of consumer names (ULID), and the exclusive lower bounds from which readers and sinks
start.

Invariants: nothing here waits, reads a clock or draws chance (a pure room: time and randomness come in as arguments).
Bytes from outside never raise but by :class:`~flotta.errors.WireError`; an entry that is no event is set apart, so that
one foreign entry cannot stop a consumer.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar, final

from flotta.errors import InvalidName, WireError
from flotta.rmap.codec import Codec

__all__ = [
    "Accept",
    "Event",
    "Origin",
    "Parsed",
    "Start",
    "TopicFilter",
    "check_name",
    "count_gap",
    "dead_stream_name",
    "event_fields",
    "format_id",
    "is_past_gap",
    "keepalive_map_name",
    "lease_key",
    "parse_entries",
    "parse_id",
    "sinks_map_name",
    "start_id",
    "stream_key",
    "ulid",
]

E = TypeVar("E")

_KEY_PREFIX: Final = "pulse:stream:"
_NAME_RULE: Final = "1 to 512 characters, none of them space, NUL, *, ?, [ or ]"
_NAME: Final = re.compile(r"[^ \0*?\[\]]{1,512}", re.DOTALL)
_ID: Final = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
_U64_MAX: Final = 2**64 - 1
_ULID_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U

Start = str | datetime
"""Where a reader or a new sink begins: ``"new"``, ``"oldest"``, after an event id, or at a time (aware datetime)."""


# --- Names -----------------------------------------------------------------------------------------------------------


def check_name(kind: str, name: str) -> str:
    """``name`` itself if Pulse accepts it, else :class:`~flotta.errors.InvalidName`."""
    if _NAME.fullmatch(name) is None:
        raise InvalidName(kind, name, _NAME_RULE)
    return name


def stream_key(name: str) -> str:
    """The Redis key of stream ``name``, before any namespace."""
    return _KEY_PREFIX + name


def sinks_map_name(stream: str) -> str:
    """The replicated map that lists the consumers of each sink of ``stream``."""
    return f"stream:{stream}:sinks"


def keepalive_map_name(sink: str) -> str:
    """The replicated map of ``sink`` that holds each consumer's last sign of life in unix nanoseconds."""
    return f"sink:{sink}:keepalive"


def lease_key(sink: str) -> str:
    """The string key that one consumer of ``sink`` holds while it looks for events to take over."""
    return f"sink:{sink}:stalelease"


def dead_stream_name(stream: str, sink: str) -> str:
    """The stream that receives what ``sink`` could not process."""
    return f"{stream}:dead:{sink}"


def ulid(now_ms: int, randomness: bytes) -> str:
    """A ULID: 48 bits of time and 80 of ``randomness`` (10 bytes), 26 characters, ordered by time."""
    assert len(randomness) == 10, "a ULID holds 80 random bits"
    value = (now_ms & (2**48 - 1)) << 80 | int.from_bytes(randomness)
    return "".join(_ULID_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


# --- Identifiers and where to start ----------------------------------------------------------------------------------


def parse_id(text: str | bytes) -> tuple[int, int]:
    """``"1700000000000-3"`` as (milliseconds, sequence): tuples order as the events do. Raises ``WireError``."""
    shown = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    found = _ID.fullmatch(shown)
    if found is None:
        raise WireError("event id", "expected <milliseconds>-<sequence>", shown)
    ms, sequence = int(found[1]), int(found[2])
    if ms > _U64_MAX or sequence > _U64_MAX:
        raise WireError("event id", "a part does not fit 64 bits", shown)
    return ms, sequence


def format_id(event_id: tuple[int, int]) -> str:
    """The inverse of :func:`parse_id`."""
    return f"{event_id[0]}-{event_id[1]}"


def start_id(start: Start) -> str:
    """The exclusive lower bound that ``start`` means: ``$``, ``0-0`` or an id.

    A time includes the events of its own millisecond (Pulse's ``StartAt`` leaves out the first of them). Raises
    ``WireError`` for text that is no id and ``ValueError`` for a datetime without a time zone.
    """
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ValueError("start: a datetime needs a time zone")
        ms = (start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
        return f"{ms - 1}-{_U64_MAX}" if ms > 0 else "0-0"
    if start == "new":
        return "$"
    if start == "oldest":
        return "0-0"
    return format_id(parse_id(start))


# --- Events ----------------------------------------------------------------------------------------------------------


@final
class Event(Generic[E]):
    """One event as a consumer gets it.

    ``id`` is its place in ``stream``; ``name`` and ``topic`` (None if it has none) are the producer's; ``data`` is the
    payload as it travelled and ``payload`` what the codec makes of it, decoded on first use. ``deliveries`` counts how
    often a sink has given it out, this time included (1 unless a consumer died or was slow); 0 from a reader.
    """

    __slots__ = ("_codec", "_payload", "data", "deliveries", "id", "name", "stream", "topic")

    def __init__(  # noqa: PLR0917 - called once per event: keywords would cost a third of it
        self, event_id: str, name: str, data: bytes, topic: str | None, stream: str, codec: Codec[E], deliveries: int
    ) -> None:
        self.id = event_id
        self.name = name
        self.data = data
        self.topic = topic
        self.stream = stream
        self.deliveries = deliveries
        self._codec = codec

    @property
    def payload(self) -> E:
        """The decoded payload. Raises what the codec raises, ``WireError`` for those of this package."""
        try:
            return self._payload
        except AttributeError:
            self._payload: E = self._codec.decode(self.data)
            return self._payload

    @property
    def time(self) -> datetime:
        """When the server took it, in UTC, to the millisecond."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)

    def __repr__(self) -> str:
        topic = "" if self.topic is None else f" topic={self.topic!r}"
        return f"<Event {self.stream}/{self.id} {self.name!r}{topic} {len(self.data)} B, delivery {self.deliveries}>"


def event_fields(name: str, data: bytes, topic: str | None) -> list[bytes | str]:
    """The fields of one event in the order in which Pulse writes them."""
    fields: list[bytes | str] = ["n", name, "p", data]
    if topic:
        fields += ("t", topic)
    return fields


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopicFilter:
    """Which topics a consumer wants: one by name, or those that a regular expression finds (anywhere in the topic).

    An event without a topic counts as one whose topic is empty. Neither given: everything passes. Raises ``ValueError``
    for both at once, for an empty topic and for a pattern that is no regular expression.
    """

    topic: str | None = None
    pattern: str | None = None
    _search: re.Pattern[str] | None = dataclasses.field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.topic is not None and self.pattern is not None:
            raise ValueError("topic and pattern exclude each other")
        if self.topic == "":
            raise ValueError("topic must not be empty")
        if self.pattern is not None:
            try:
                object.__setattr__(self, "_search", re.compile(self.pattern))
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error

    @property
    def passes_all(self) -> bool:
        """True if nothing is filtered."""
        return self.topic is None and self._search is None

    def passes(self, topic: str | None) -> bool:
        """Whether an event with this topic is wanted."""
        if self.topic is not None:
            return topic == self.topic
        return self._search is None or self._search.search(topic or "") is not None


@final
@dataclass(frozen=True, slots=True)
class Origin(Generic[E]):
    """Where entries were read: the stream's name and the codec of its payloads."""

    stream: str
    codec: Codec[E]


@final
@dataclass(frozen=True, slots=True)
class Accept:
    """What a consumer lets through: its topics, and (a sink) its own name, for events redriven to one sink only."""

    topics: TopicFilter
    sink: str | None = None


@final
@dataclass(slots=True)
class Parsed(Generic[E]):
    """Entries sorted by what is to be done with them. ``filtered`` and ``malformed`` hold ids."""

    events: list[Event[E]]
    filtered: list[str]
    malformed: list[str]
    last_id: str


def parse_entries(
    entries: Sequence[Any], origin: Origin[E], accept: Accept, deliveries: int | Sequence[int]
) -> Parsed[E]:
    """Sort raw entries (``[id, [field, value, ...]]``) into events, filtered ones and entries that are no events.

    ``deliveries`` is one number for all of them or one for each. An entry without ``n`` or ``p`` was written by
    something that is not Pulse: it is malformed. Field ``g`` addresses a redriven event to one sink. The two usual
    forms are taken apart without a dict.
    """
    events: list[Event[E]] = []
    filtered: list[str] = []
    malformed: list[str] = []
    stream, codec, topics = origin.stream, origin.codec, accept.topics
    everything = topics.passes_all
    last_id = ""
    counts = itertools.repeat(deliveries) if isinstance(deliveries, int) else deliveries
    for (raw_id, fields), count in zip(entries, counts, strict=False):
        last_id = raw_id.decode()
        if fields is None:  # pending, but its entry is gone
            malformed.append(last_id)
            continue
        size = len(fields)
        if (size == 4 or (size == 6 and fields[4] == b"t")) and fields[0] == b"n" and fields[2] == b"p":
            topic = fields[5].decode("utf-8", "replace") if size == 6 else None
            if everything or topics.passes(topic):
                name = fields[1].decode("utf-8", "replace")
                events.append(Event(last_id, name, fields[3], topic, stream, codec, count))
            else:
                filtered.append(last_id)
            continue
        found = _pairs(fields)
        raw_name, data = found.get(b"n"), found.get(b"p")
        if raw_name is None or data is None:
            malformed.append(last_id)
            continue
        topic = found[b"t"].decode("utf-8", "replace") if b"t" in found else None
        target = found.get(b"g")
        if (target is not None and target.decode("utf-8", "replace") != accept.sink) or not topics.passes(topic):
            filtered.append(last_id)
            continue
        events.append(Event(last_id, raw_name.decode("utf-8", "replace"), data, topic, stream, codec, count))
    return Parsed(events, filtered, malformed, last_id)


def _pairs(fields: Sequence[bytes] | Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    if isinstance(fields, Mapping):
        return fields
    return dict(zip(fields[::2], fields[1::2], strict=True))


def count_gap(stream: Mapping[bytes, Any], group: Mapping[bytes, Any]) -> int | None:
    """Events that were trimmed before ``group`` was given them, from XINFO STREAM and XINFO GROUPS.

    None where it cannot be told: servers before 7.0, a group that has not read yet, or events that were removed one by
    one. Added minus stored is the number of entries before the first one; the group has read ``entries-read`` of them.
    Redis 7 never adds to ``entries-read`` what the group was not given, so there an old gap stays in the number; Valkey
    corrects it with the group's next read.
    """
    added, read = stream.get(b"entries-added"), group.get(b"entries-read")
    if added is None or read is None:
        return None
    first = stream[b"first-entry"]
    deleted = parse_id(stream.get(b"max-deleted-entry-id", b"0-0"))
    if first and deleted >= parse_id(first[0]):
        return None
    return max(0, int(added) - int(stream[b"length"]) - int(read))


def is_past_gap(stream: Mapping[bytes, Any], group: Mapping[bytes, Any]) -> bool:
    """Whether ``group`` was given an event behind the last one that was trimmed: what is missing, it has passed."""
    first = stream[b"first-entry"]
    next_id = first[0] if first else stream[b"last-generated-id"]
    return parse_id(group[b"last-delivered-id"]) >= parse_id(next_id)
