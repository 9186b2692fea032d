"""The dead-letter stream of a sink: what it holds, and the way back.

Invariant: a letter is in exactly one place at any time: it moves back to its stream in one atomic step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from flotta.redis import Link
from flotta.streaming.event import format_id, parse_id
from flotta.streaming.scripts import REDRIVE

__all__ = ["DeadLetter", "list_letters", "redrive_letters"]

_REDRIVE_PER_STEP: Final = 100
_LISTED_PER_STEP: Final = 1_000


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """An event that a sink could not process. ``id`` is its place in the dead-letter stream."""

    id: str
    origin_id: str
    reason: str
    deliveries: int
    name: str
    data: bytes
    topic: str | None


async def list_letters(link: Link, dead: str, after: str, most: int) -> list[DeadLetter]:
    """Up to ``most`` letters at key ``dead`` from behind id ``after`` on, oldest first."""
    entries = await link.call("XRANGE", dead, f"({format_id(parse_id(after))}", "+", "COUNT", most)
    return [_dead_letter(raw_id, fields) for raw_id, fields in entries]


async def redrive_letters(link: Link, dead: str, key: str, sink: str, ids: Sequence[str]) -> int:
    """Move letters (all there are now, if ``ids`` is empty) back to the stream at ``key``; gives their number."""
    wanted = ids or await _ids_in(link, dead)
    moved = 0
    for first in range(0, len(wanted), _REDRIVE_PER_STEP):
        part = wanted[first : first + _REDRIVE_PER_STEP]
        moved += len(await REDRIVE(link, keys=[dead, key], args=[sink, *part]))
    return moved


async def _ids_in(link: Link, key: str) -> list[str]:
    ids: list[str] = []
    after = "-"
    while True:
        entries = await link.call("XRANGE", key, after, "+", "COUNT", _LISTED_PER_STEP)
        ids += (raw_id.decode() for raw_id, _ in entries)
        if len(entries) < _LISTED_PER_STEP:
            return ids
        after = f"({ids[-1]}"


def _dead_letter(raw_id: bytes, flat: Sequence[bytes]) -> DeadLetter:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    topic = fields.get(b"t")
    return DeadLetter(
        id=raw_id.decode(),
        origin_id=fields.get(b"o", b"").decode("utf-8", "replace"),
        reason=fields.get(b"r", b"").decode("utf-8", "replace"),
        deliveries=int(fields.get(b"d", b"0")),
        name=fields.get(b"n", b"").decode("utf-8", "replace"),
        data=fields.get(b"p", b""),
        topic=None if topic is None else topic.decode("utf-8", "replace"),
    )
