"""What the server tells of a stream: its length, and how far behind each sink is.

Invariant: asking changes nothing and costs the same for a stream of any length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from flotta.errors import CommandError
from flotta.redis import Link
from flotta.streaming.retention import RetentionStats

__all__ = ["SinkInfo", "StreamInfo", "describe"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SinkInfo:
    """One sink as the server sees it."""

    consumers: int
    pending: int
    """Events handed out and not acked."""
    lag: int | None
    """Events not handed out yet; None where the server cannot tell (before 7.0, or after ``remove``)."""
    last_delivered_id: str
    oldest_pending_id: str | None


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class StreamInfo:
    """A stream as the server sees it. ``retention`` is this process's part, None unless ``retain="until_acked"``."""

    exists: bool
    length: int
    first_id: str | None
    last_id: str | None
    added: int | None
    """Events ever added; None before Redis 7.0."""
    memory_bytes: int
    sinks: dict[str, SinkInfo]
    retention: RetentionStats | None


async def describe(link: Link, key: str, retention: RetentionStats | None) -> StreamInfo:
    """The stream at ``key`` now. Raises what ``Link.call`` raises."""
    commands = [("XINFO", "STREAM", key), ("XINFO", "GROUPS", key), ("MEMORY", "USAGE", key)]
    about, groups, memory = await link.call_many(commands)
    if isinstance(about, CommandError):
        if "no such key" not in about.text:
            raise about
        return _absent(retention)
    for reply in (groups, memory):
        if isinstance(reply, CommandError):
            raise reply
    pending = await link.call_many([("XPENDING", key, group[b"name"]) for group in groups])
    first, last = about[b"first-entry"], about[b"last-entry"]
    return StreamInfo(
        exists=True,
        length=about[b"length"],
        first_id=first[0].decode() if first else None,
        last_id=last[0].decode() if last else None,
        added=about.get(b"entries-added"),
        memory_bytes=memory or 0,
        sinks={
            group[b"name"].decode("utf-8", "replace"): _sink_info(group, summary, about[b"length"])
            for group, summary in zip(groups, pending, strict=True)
            if not (isinstance(summary, CommandError) and summary.code == "NOGROUP")  # destroyed in between
        },
        retention=retention,
    )


def _absent(retention: RetentionStats | None) -> StreamInfo:
    return StreamInfo(
        exists=False, length=0, first_id=None, last_id=None, added=0, memory_bytes=0, sinks={}, retention=retention
    )


def _sink_info(group: Mapping[bytes, Any], summary: Any, length: int) -> SinkInfo:
    if isinstance(summary, CommandError):
        raise summary
    oldest, lag = summary[1], group.get(b"lag")
    return SinkInfo(
        consumers=group[b"consumers"],
        pending=group[b"pending"],
        lag=None if lag is None else min(lag, length),  # Redis 7 goes on to count what was trimmed
        last_delivered_id=group[b"last-delivered-id"].decode(),
        oldest_pending_id=None if oldest is None else oldest.decode(),
    )
