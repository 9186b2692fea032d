"""The reads of one consumer from its group, on a connection of its own: XREADGROUP and what must travel beside it.

Owns the blocking read that may be under way and the way to end it. Invariant: at most one read is under way; every read
is bounded by ``block_s`` and the link's time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, final

from flotta.errors import CommandError
from flotta.redis import Link
from flotta.streaming.event import count_gap, is_past_gap
from flotta.streaming.options import SinkOptions
from flotta.streaming.tail import unblock

__all__ = ["GroupReads"]


@final
class GroupReads:
    """XREADGROUP as ``consumer`` of ``group``. ``link`` is used by nobody else, ``shared`` ends what blocks on it."""

    def __init__(self, link: Link, shared: Link, group: str, consumer: str, options: SinkOptions) -> None:
        self._link = link
        self._shared = shared
        self._group = group
        self._head = ("XREADGROUP", "GROUP", group, consumer)
        self._block_s = options.block_s
        self._no_ack = ("NOACK",) if options.no_ack else ()
        self._blocked: asyncio.Future[Any] | None = None
        self._client_id: asyncio.Future[Any] | None = None
        self._gaps_stay = False
        """Whether this server goes on to count as missing what a group has passed."""
        self._passed: dict[str, int] = {}
        """How much of what is missing is no news, by the key of the stream."""

    async def new(self, keys: Sequence[str], count: int) -> dict[bytes, list[Any]]:
        """Up to ``count`` new events for each of ``keys``; waits for the first, at most ``block_s``."""
        link = self._link
        self._client_id = asyncio.ensure_future(link.call("CLIENT", "ID"))
        self._client_id.add_done_callback(_retrieve)
        block_ms = max(1, int(self._block_s * 1000))
        tail = ("COUNT", count, "BLOCK", block_ms, *self._no_ack, "STREAMS", *keys, *[">"] * len(keys))
        timeout_s = self._block_s + link.options.command_timeout_s
        self._blocked = asyncio.ensure_future(link.call(*self._head, *tail, timeout_s=timeout_s))
        try:
            return await self._blocked or {}
        finally:
            self._blocked = None

    async def history(self, after: Sequence[tuple[str, str]]) -> dict[bytes, list[Any]]:
        """What is pending for this consumer above an id, from (key, id) pairs."""
        keys, ids = zip(*after, strict=True)
        return await self._link.call(*self._head, "STREAMS", *keys, *ids) or {}

    async def interrupt(self) -> None:
        """End the blocking read under way, if any. Never raises for Redis."""
        if self._blocked is not None and self._client_id is not None:
            await unblock(self._shared, self._client_id, self._blocked)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._link.aclose(drain_s=0)

    # --- gaps -----------------------------------------------------------------------------------------------------

    def ask_gaps(self, keys: Sequence[str]) -> asyncio.Future[list[Any]]:
        """Ask, right before the next read in the same write, whether something was trimmed before the group got it."""
        commands = [(*("XINFO", about), key) for key in keys for about in ("STREAM", "GROUPS")]
        asked = asyncio.ensure_future(self._link.call_many(commands))
        asked.add_done_callback(_retrieve)
        return asked

    def sum_gaps(self, keys: Sequence[str], replies: Sequence[Any]) -> int:
        """The events that the answer to ``ask_gaps(keys)`` shows to be missing and no answer before it has shown.

        Where it finds some, ask once more with the next read: only then is it known whether they stay in the number.
        """
        found = 0
        for key, about, groups in zip(keys, replies[::2], replies[1::2], strict=True):
            if isinstance(about, CommandError) or isinstance(groups, CommandError):
                continue  # the read beside it has met the same and raised
            for group in groups:
                if group[b"name"].decode("utf-8", "replace") == self._group:
                    found += self._unseen(key, about, group)
        return found

    def regrouped(self, key: str) -> None:
        """The group was made anew, and with it what it counts."""
        self._passed.pop(key, None)

    def _unseen(self, key: str, about: Mapping[bytes, Any], group: Mapping[bytes, Any]) -> int:
        missing = count_gap(about, group)
        if missing is None:
            return 0
        known = self._passed.get(key, 0)
        if not is_past_gap(about, group):
            self._passed[key] = missing
            return max(0, missing - known)
        self._gaps_stay = self._gaps_stay or missing > 0
        self._passed[key] = max(known, missing) if self._gaps_stay else 0
        return 0


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
