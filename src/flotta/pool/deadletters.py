"""Jobs and tasks that were given up: look at them, make them again, throw them away.

Owns what an entry of the stream ``dead`` means. Invariants: a letter that is made again goes in the step that makes the
job or task; one that cannot be made again now stays; an entry that cannot be read is shown as far as it can.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, Literal, final

from flotta.errors import InvalidName, WireError
from flotta.pool.jobs.states import RedriveAnswer
from flotta.pool.jobs.store import JobStore
from flotta.pool.tasks.records import Failure
from flotta.pool.tasks.store import TaskStore
from flotta.redis import Link

__all__ = ["DeadLetter", "DeadLetters", "LetterKind", "Redriven"]

LetterKind = Literal["job", "task"]

_PAGE: Final = 100
_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One job or task that was given up."""

    id: str
    """Of the letter: what ``redrive`` and ``delete`` take."""
    kind: LetterKind
    key: str
    """The job's key, or the task's id."""
    name: str
    """The job's kind, or the task's name."""
    payload: bytes
    error: str
    """What the last run raised, in one line; what else became of it."""
    trace: str
    """Where that was raised; empty for jobs."""
    attempts: int
    """Runs that raised, and workers that died with it."""
    at: datetime
    """When it was given up (UTC)."""


class Redriven(Enum):
    """What became of a letter."""

    MADE = "made"
    """The job or task is there again; the letter is gone."""
    EXISTS = "exists"
    """There is a job with its key now: the letter stays."""
    GONE = "gone"
    """There is no such letter."""
    SHUTDOWN = "shutdown"
    """The pool shuts down: the letter stays."""


_REDRIVEN: Final = {
    RedriveAnswer.OK: Redriven.MADE,
    RedriveAnswer.EXISTS: Redriven.EXISTS,
    RedriveAnswer.NOT_FOUND: Redriven.GONE,
    RedriveAnswer.SHUTDOWN: Redriven.SHUTDOWN,
}


@final
class DeadLetters:
    """The dead letters of one pool. Methods raise what ``Link.call`` raises. Cancelling those that only look
    (``count``, ``get``, ``walk``) is harmless."""

    def __init__(self, link: Link, jobs: JobStore, tasks: TaskStore) -> None:
        self._link = link
        self._key = jobs.keys.dead
        self._jobs = jobs
        self._tasks = tasks

    async def count(self) -> int:
        """How many there are."""
        return int(await self._link.call("XLEN", self._key))

    async def get(self, id: str) -> DeadLetter | None:  # noqa: A002 - it is its id
        """One of them, or None. Raises ``InvalidName`` for an id that is none."""
        _check_ids((id,))
        found = await self._link.call("XRANGE", self._key, id, id)
        return _letter(*found[0]) if found else None

    async def walk(
        self, *, kind: LetterKind | None = None, name: str | None = None, key: str | None = None
    ) -> AsyncIterator[DeadLetter]:
        """The newest first: all, or those of one ``kind``, ``name`` (a job's kind, a task's name) or ``key``."""
        until = "+"
        while True:
            page = await self._link.call("XREVRANGE", self._key, until, "-", "COUNT", _PAGE)
            for entry in page:
                letter = _letter(*entry)
                wanted = kind in (None, letter.kind) and name in (None, letter.name) and key in (None, letter.key)
                if wanted:
                    yield letter
            if len(page) < _PAGE:
                return
            until = f"({page[-1][0].decode()}"

    async def redrive(self, ids: Sequence[str]) -> list[Redriven]:
        """Make the jobs and tasks of these letters again, with their payloads (and a job's checkpoint), without their
        crashes and attempts. For each letter, in order, what became of it.

        It goes in steps of 100. Raises ``InvalidName`` before the first, and what ``Link.call`` raises. After an error,
        or when cancelled, some may have been made: asked again, those are ``GONE``.
        """
        _check_ids(ids)
        outcomes: list[Redriven] = []
        for first in range(0, len(ids), _PAGE):
            outcomes += await self._redrive(ids[first : first + _PAGE])
        return outcomes

    async def delete(self, ids: Sequence[str]) -> int:
        """Throw these letters away, all or (after an error, or when cancelled, perhaps) none. How many there were of
        them. Raises ``InvalidName``."""
        _check_ids(ids)
        return int(await self._link.call("XDEL", self._key, *ids)) if ids else 0

    async def _redrive(self, ids: Sequence[str]) -> list[Redriven]:
        answers = await self._jobs.redrive(ids)
        outcomes = {letter: _REDRIVEN.get(answer) for letter, answer in zip(ids, answers, strict=True)}
        of_tasks = [letter for letter, outcome in outcomes.items() if outcome is None]
        if of_tasks:
            made = await self._tasks.redrive(of_tasks)
            for letter, task in zip(of_tasks, made, strict=True):
                outcomes[letter] = Redriven.SHUTDOWN if task is None else Redriven.MADE if task else Redriven.GONE
        return [outcomes[letter] or Redriven.GONE for letter in ids]


def _check_ids(ids: Sequence[str]) -> None:
    for letter in ids:
        if _ID.fullmatch(letter) is None:
            raise InvalidName("dead letter", letter, "as the list shows it: 1700000000000-0")


def _letter(entry_id: bytes, flat: Sequence[bytes]) -> DeadLetter:
    fields = dict(zip(flat[::2], flat[1::2], strict=False))
    kind: LetterKind = "task" if fields.get(b"kind") == b"task" else "job"
    error, trace = _failure(fields.get(b"error", b""), kind)
    attempts = _int(fields.get(b"attempts")) + _int(fields.get(b"crashes")) + _int(fields.get(b"losses"))
    return DeadLetter(
        id=entry_id.decode(),
        kind=kind,
        key=fields.get(b"key", b"").decode("utf-8", "replace"),
        name=fields.get(b"name", b"").decode("utf-8", "replace"),
        payload=fields.get(b"payload", b""),
        error=error,
        trace=trace,
        attempts=attempts,
        at=_EPOCH + timedelta(milliseconds=_int(fields.get(b"at")) or int(entry_id.partition(b"-")[0])),
    )


def _failure(data: bytes, kind: LetterKind) -> tuple[str, str]:
    if kind == "task":
        try:
            failure = Failure.decode(data)
        except WireError:
            pass
        else:
            return f"{failure.type}: {failure.reason}" if failure.reason else failure.type, failure.trace
    return data.decode("utf-8", "replace"), ""


def _int(value: bytes | None) -> int:
    return int(value) if value and value.isdigit() else 0
