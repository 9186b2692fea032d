"""How readers and sinks consume, and what they have counted so far.

Invariant: an options object that exists makes sense: every value was checked at birth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from flotta.streaming.event import Start, TopicFilter, start_id

__all__ = ["ReaderOptions", "ReaderStats", "SinkOptions", "SinkStats"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderOptions:
    """How a reader reads; raises ``ValueError`` at birth if a value makes no sense."""

    start: Start = "new"
    """Where it begins on each stream: ``"new"``, ``"oldest"``, after an event id, or at an aware datetime."""
    topic: str | None = None
    """Only events with this topic."""
    pattern: str | None = None
    """Only events in whose topic this regular expression is found."""
    block_s: float = 5.0
    """The longest one blocking wait for new events lasts; then the streams are looked at anew. 0 is refused."""
    polled_max: int = 1_000
    """Events per read and stream, at most."""
    buffer_max: int = 1_000
    """Events in memory, read and not yet taken; reading stops meanwhile."""

    def __post_init__(self) -> None:
        start_id(self.start)
        TopicFilter(topic=self.topic, pattern=self.pattern)
        _check_consumer(self.block_s, self.polled_max, self.buffer_max)


def _check_consumer(block_s: float, polled_max: int, buffer_max: int) -> None:
    """The checks that readers and sinks share. Raises ``ValueError``."""
    if not 0.001 <= block_s <= 3600:
        raise ValueError(f"block_s: {block_s} s; from 0.001 to 3600 (0 would block for ever)")
    if polled_max < 1:
        raise ValueError(f"polled_max: {polled_max} events, at least 1 is needed")
    if buffer_max < 1:
        raise ValueError(f"buffer_max: {buffer_max} events, at least 1 is needed")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderStats:
    """Counts since the reader was started. ``resets``: how often a stream was found to have begun anew."""

    delivered: int
    filtered: int
    malformed: int
    reads: int
    resets: int
    retries: int
    buffered: int


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SinkOptions:
    """How a sink consumes; raises ``ValueError`` at birth if a value makes no sense.

    All consumers of one sink should use the same ``ack_grace_s`` and filter.
    """

    start: Start = "new"
    """Where the group begins if it does not exist yet: ``"new"``, ``"oldest"``, after an id, or at a datetime."""
    topic: str | None = None
    """Only events with this topic; others are acked unseen."""
    pattern: str | None = None
    """Only events in whose topic this regular expression is found; others are acked unseen."""
    block_s: float = 5.0
    """The longest one blocking read lasts. 0 is refused."""
    polled_max: int = 1_000
    """Events per read and stream, at most."""
    buffer_max: int = 1_000
    """Events read and not yet handed out (a take-over may add 100); reading stops meanwhile."""
    no_ack: bool = False
    """Events count as done when they are read: at most once, nothing to ack."""
    ack_grace_s: float = 20.0
    """An event not acked for so long is handed to another consumer. At least 0.1."""
    max_deliveries: int | None = 5
    """An event delivered so often without an ack goes to the dead-letter stream. None: never."""
    dead_maxlen: int = 10_000
    """Events that the dead-letter stream keeps, approximately."""

    def __post_init__(self) -> None:
        start_id(self.start)
        TopicFilter(topic=self.topic, pattern=self.pattern)
        _check_consumer(self.block_s, self.polled_max, self.buffer_max)
        if not 0.1 <= self.ack_grace_s <= 86_400:
            raise ValueError(f"ack_grace_s: {self.ack_grace_s} s; from 0.1 to 86400")
        if self.max_deliveries is not None and self.max_deliveries < 1:
            raise ValueError(f"max_deliveries: {self.max_deliveries}, at least 1 is needed (None: no limit)")
        if self.dead_maxlen < 1:
            raise ValueError(f"dead_maxlen: {self.dead_maxlen} events, at least 1 is needed")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SinkStats:
    """Counts of this consumer since it was started."""

    received: int
    """Events that came into the buffer, repeated ones included."""
    redelivered: int
    """Those of them that had been delivered before: their consumer died, was slow, or left."""
    acked: int
    filtered: int
    buried: int
    """Moved to the dead-letter stream here."""
    gap: int
    """Events trimmed by somebody before this sink was done with them; see the reference on when it can be told."""
    reads: int
    retries: int
    regroups: int
    """How often the group was gone (destroyed, or the server lost its data) and was made anew."""
    forgotten: int
    """Dead consumers deleted here."""
    buffered: int
