"""The entries of inboxes and replies: what rings a worker, and what answers a node. Pure: bytes in, values out.

Owns their field names. One entry may carry several jobs: a batch of dispatches rings each worker once. Invariants: an
entry of an unknown type (a newer Flotta's) gives nothing; a known one that lacks a field raises ``WireError``.

====================  ==================================================================
inbox ``t``           fields
====================  ==================================================================
``start``             ``k`` key, ``g`` fence, ``n`` kind; repeated for each job
``stop`` ``cancel``   ``k`` key (of a task: its id), ``g`` fence
``note``              ``k`` key, ``p`` payload
``table`` ``wake`` ``shutdown`` ``nudge``   nothing
====================  ==================================================================

====================  ==================================================================
replies ``t``         fields
====================  ==================================================================
``started``           ``w`` worker, then ``d`` dispatch id, ``k`` key, ``g`` fence; repeated for each job
``failed`` ``gone``   ``d`` dispatch id, ``k`` key, ``e`` error (may be empty)
``stopped``           ``k`` key
``result``            ``i`` id of the task, ``s`` its state, ``p`` its result, or how it failed (absent if large)
``rebalance`` ``shutdown``   nothing
====================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from flotta.errors import WireError

__all__ = ["Bell", "Ring", "parse_bell", "parse_reply"]

_START: Final = b"start"
_INBOX: Final = frozenset((b"start", b"stop", b"cancel", b"note", b"table", b"wake", b"shutdown", b"nudge"))
_REPLIES: Final = frozenset((b"started", b"failed", b"gone", b"stopped", b"result", b"rebalance", b"shutdown"))


@final
@dataclass(frozen=True, slots=True)
class Bell:
    """One thing that an inbox entry says. What its ``type`` does not carry is empty or 0."""

    type: str
    key: str = ""
    fence: int = 0
    kind: str = ""
    payload: bytes = b""


@final
@dataclass(frozen=True, slots=True)
class Ring:
    """One thing that an entry of a node's replies says. What its ``type`` does not carry is empty or 0.

    ``key`` of a ``result`` is the id of the task."""

    type: str
    key: str = ""
    did: str = ""
    fence: int = 0
    worker: str = ""
    error: str = ""
    state: str = ""
    payload: bytes | None = None


def parse_bell(fields: Sequence[bytes]) -> list[Bell]:
    """What the inbox entry ``fields`` (field, value, field, value, ...) says, in order. Raises ``WireError``."""
    kind, pairs = _open(fields, "inbox entry")
    if kind not in _INBOX:
        return []
    name = kind.decode()
    if kind == _START:
        jobs = fields[2:]
        if jobs[::6].count(b"k") == jobs[2::6].count(b"g") == jobs[4::6].count(b"n") == len(jobs) / 6:
            bells = zip(jobs[1::6], jobs[3::6], jobs[5::6], strict=True)  # as our scripts write them: the short way
            return [
                Bell(name, _as_text(key, b"k"), _as_number(fence, b"g"), _as_text(of, b"n")) for key, fence, of in bells
            ]
        return [
            Bell(name, _text(job, b"k"), _number(job, b"g"), _text(job, b"n")) for job in _split(pairs, b"k", fields)
        ]
    entry = dict(pairs)
    if kind in (b"stop", b"cancel"):
        return [Bell(name, _text(entry, b"k"), _number(entry, b"g"))]
    if kind == b"note":
        return [Bell(name, _text(entry, b"k"), payload=_take(entry, b"p"))]
    return [Bell(name)]


def parse_reply(fields: Sequence[bytes]) -> list[Ring]:
    """What the entry ``fields`` (field, value, field, value, ...) of a node's replies says. Raises ``WireError``."""
    kind, pairs = _open(fields, "reply")
    if kind not in _REPLIES:
        return []
    name = kind.decode()
    if kind == b"started":
        return _started(fields, pairs)
    entry = dict(pairs)
    if kind in (b"failed", b"gone"):
        return [Ring(name, _text(entry, b"k"), _text(entry, b"d"), error=_text(entry, b"e"))]
    if kind == b"stopped":
        return [Ring(name, _text(entry, b"k"))]
    if kind == b"result":
        return [Ring(name, _text(entry, b"i"), state=_text(entry, b"s"), payload=entry.get(b"p"))]
    return [Ring(name)]


_Pairs = list[tuple[bytes, bytes]]


def _started(fields: Sequence[bytes], pairs: _Pairs) -> list[Ring]:
    worker = _text(dict(pairs[:1]), b"w")
    jobs = fields[4:]
    if jobs[::6].count(b"d") == jobs[2::6].count(b"k") == jobs[4::6].count(b"g") == len(jobs) / 6:
        rings = zip(jobs[1::6], jobs[3::6], jobs[5::6], strict=True)  # as our scripts write them
        return [
            Ring("started", _as_text(key, b"k"), _as_text(did, b"d"), _as_number(fence, b"g"), worker)
            for did, key, fence in rings
        ]
    return [
        Ring("started", _text(job, b"k"), _text(job, b"d"), _number(job, b"g"), worker)
        for job in _split(pairs[1:], b"d", fields)
    ]


def _open(fields: Sequence[bytes], what: str) -> tuple[bytes, _Pairs]:
    """Type and other pairs of an entry. Scripts write the type first."""
    if len(fields) < 2 or len(fields) % 2 or fields[0] != b"t":
        raise WireError(what, "it does not begin with its type", fields[0] if fields else b"")
    return fields[1], list(zip(fields[2::2], fields[3::2], strict=True))


def _split(pairs: _Pairs, first: bytes, fields: Sequence[bytes]) -> list[dict[bytes, bytes]]:
    """The jobs of an entry: each begins with the field ``first``."""
    jobs: list[dict[bytes, bytes]] = []
    for name, value in pairs:
        if name == first:
            jobs.append({})
        elif not jobs:
            raise WireError("entry", f"{name!r} stands before {first!r}", fields[1])
        jobs[-1][name] = value
    return jobs


def _take(entry: dict[bytes, bytes], name: bytes) -> bytes:
    try:
        return entry[name]
    except KeyError:
        raise WireError("entry", f"{name!r} is missing") from None


def _text(entry: dict[bytes, bytes], name: bytes) -> str:
    return _as_text(_take(entry, name), name)


def _number(entry: dict[bytes, bytes], name: bytes) -> int:
    return _as_number(_take(entry, name), name)


def _as_text(value: bytes, name: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise WireError("entry", f"{name!r} is no UTF-8", value) from None


def _as_number(value: bytes, name: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise WireError("entry", f"{name!r} is no number", value)
    return int(value)
