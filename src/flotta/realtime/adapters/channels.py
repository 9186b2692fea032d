"""Which rooms have a channel of their own on sharded Pub/Sub: servers and emitters must agree. Pure."""

from __future__ import annotations

from typing import Final

from flotta.realtime.options import ShardedMode

__all__ = ["has_channel"]

SID_LENGTH: Final = 20
"""A room whose name is as long is taken for a session id, by Node too."""


def has_channel(room: str, mode: ShardedMode) -> bool:
    """Whether what is for ``room`` alone is published on its own channel."""
    return mode == "dynamic-private" or (mode == "dynamic" and _length(room) != SID_LENGTH)


def _length(text: str) -> int:
    """As JavaScript counts: in UTF-16."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
