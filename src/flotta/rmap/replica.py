"""The local copy of a replicated map: what a message or a snapshot does to it.

Owns the content (raw bytes by key), its revision, and the decision that the copy can no longer be trusted. Pure: the
shell feeds it messages in the order of arrival and snapshots, and does what it answers.

Why it is sound. Every write raises the revision by one and is announced in the same atomic step, so messages arrive in
the order of their revisions: each is the one last heard + 1. Of those, with ``revision`` that of the copy,

- ``revision + 1`` is the next write: apply it
- a lower one was overtaken by a snapshot, which came over a connection of its own: it is in already

One's own ``set`` may be taken before its message comes: the reply tells its revision, and if that is ``revision + 1``
the write is the next one, whoever says so. Its message is then of the second kind.

Whatever else arrives cannot be explained: higher, a message was missed; lower, Redis lost its data, or the hash expired
or was deleted, and revisions began again. Then the copy asks for a reload.

Invariants: a snapshot is the truth, whatever its revision. While LOADING nothing is applied; messages wait (bounded),
because the old content stays readable and must not mix with the new. A needless reload costs one read of the hash, a
missing one the truth; so every doubt is decided for the reload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import final

from flotta.rmap.wire import EVENT_OF, Change, EventKind, Op, announces_set

__all__ = ["PENDING_MAX", "Phase", "Replica", "Snapshot", "Verdict", "strongest_missed"]

PENDING_MAX = 100_000
"""Messages kept while a snapshot is read; more make it worthless and it is read again."""


class Phase(Enum):
    """Whether messages are applied (LIVE) or wait for a snapshot (LOADING)."""

    LOADING = "loading"
    LIVE = "live"


class Verdict(Enum):
    """What a message did."""

    APPLIED = "applied"
    KNOWN = "known"
    """It was in the snapshot already."""
    KEPT = "kept"
    """It waits for the snapshot that is being read."""
    RELOAD = "reload"
    """It cannot be explained: the content is no longer known to be right."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A hash as it was at one moment. Whoever gives it away leaves ``content`` alone: it becomes the copy."""

    content: dict[str, bytes]
    revision: int
    kind: EventKind


@final
class Replica:
    """One local copy. ``content`` may be read at any time and is never changed from outside."""

    __slots__ = ("_doubt", "_heard", "_installed", "_pending", "_pending_max", "content", "phase", "revision")

    def __init__(self, *, pending_max: int = PENDING_MAX) -> None:
        self.content: dict[str, bytes] = {}
        self.revision = 0
        self.phase = Phase.LOADING
        self._heard: int | None = None
        self._installed = 0
        self._pending: list[Change] = []
        self._pending_max = pending_max
        self._doubt = False

    def begin_load(self, *, new_subscription: bool) -> None:
        """A snapshot is about to be read. Call it before the command leaves: what was heard until then is inside it."""
        self.phase = Phase.LOADING
        self._pending.clear()
        self._doubt = False
        if new_subscription:
            self._heard = None

    def distrust(self) -> None:
        """The content may be wrong, as the shell knows from elsewhere: keep messages until a snapshot comes."""
        self.phase = Phase.LOADING
        self._doubt = True

    def apply(self, change: Change) -> Verdict:
        """Take one message."""
        revision = change.revision
        explained = self._explains(revision)
        self._heard = revision
        if self.phase is Phase.LOADING:
            self._keep(change, explained=explained)
            return Verdict.KEPT
        if explained and revision == self.revision + 1:
            self.revision = revision
            self._write(change)
            return Verdict.APPLIED
        if explained and revision <= self.revision:
            return Verdict.KNOWN
        self.phase = Phase.LOADING
        return Verdict.RELOAD

    def _explains(self, revision: int) -> bool:
        if self._heard is not None:
            return revision == self._heard + 1
        # The first message of a subscription may be any, but 1 is also what begins after lost data.
        return revision != 1 or (self.phase is Phase.LIVE and self._installed == 0)

    def write_own(self, first: int, keys: Sequence[str], values: Sequence[bytes]) -> bool:
        """Take sets of one's own, of revisions ``first`` and on, from their reply. False: only messages can tell."""
        if first != self.revision + 1 or self.phase is Phase.LOADING:
            return False
        self.content.update(zip(keys, values, strict=True))
        self.revision += len(keys)
        return True

    def hear_own(self, payload: bytes) -> bool:
        """Whether ``payload`` announces the next of the sets that were taken from their reply; then it is done with.

        This saves parsing half of the messages where writers are busy. Only the revision is looked at: a forged message
        is not applied, and makes the true one a duplicate, which asks for a reload.
        """
        heard = self._heard
        if heard is None or heard >= self.revision or self.phase is Phase.LOADING:
            return False
        if not announces_set(payload, heard + 1):
            return False
        self._heard = heard + 1
        return True

    def install(self, snapshot: Snapshot) -> tuple[EventKind | None, bool]:
        """Take a snapshot, then what was announced while it was read.

        Returns the strongest event that its reader has missed since the last known state (None: nothing), and whether
        the snapshot must be read again.
        """
        missed = strongest_missed(self, snapshot)
        self.content = snapshot.content
        self.revision = snapshot.revision
        again = self._doubt
        for change in self._pending:
            if change.revision == self.revision + 1:
                self.revision = change.revision
                self._write(change)
                missed = max(missed or EventKind.CHANGE, EVENT_OF[change.op])
            elif change.revision > self.revision:
                again = True
        self._pending.clear()
        self._installed = self.revision
        self.phase = Phase.LOADING if again else Phase.LIVE
        return missed, again

    def settle(self) -> Verdict:
        """The time in which a snapshot can overtake messages is over: all that it held must have been heard by now.

        RELOAD if messages that must have come have not; KNOWN otherwise.
        """
        if self.phase is Phase.LOADING:
            return Verdict.KEPT
        if self._heard is None:
            self._heard = self._installed
        if self._heard >= self._installed:
            return Verdict.KNOWN
        self._heard = None
        self.phase = Phase.LOADING
        return Verdict.RELOAD

    def _keep(self, change: Change, *, explained: bool) -> None:
        if explained and len(self._pending) < self._pending_max:
            self._pending.append(change)
        else:
            self._doubt = True

    def _write(self, change: Change) -> None:
        if change.op is Op.SET:
            assert change.value is not None, "a set has a value"
            self.content[change.key] = change.value
        elif change.op is Op.DEL:
            self.content.pop(change.key, None)
        else:
            self.content = {}


def strongest_missed(before: Replica, now: Snapshot) -> EventKind | None:
    """The strongest event between what a replica knew and a snapshot; None if nothing was written.

    The stored kind tells only the last write, so the contents are compared too. A reset is reported if it was the last
    write, if revisions went back (the data were lost), if the missed writes are too few to explain the difference
    without one, or if they are enough for one, keys are gone, and nothing that was known stands as it was.
    """
    if now.revision < before.revision:
        return EventKind.RESET
    old, new = before.content, now.content
    missed = now.revision - before.revision
    if missed == 0 and old == new:
        return None
    gone, rewritten = _difference(old, new)
    nothing_stands = gone > 0 and rewritten == len(new)
    kind = now.kind if missed else EventKind.CHANGE
    # After a reset every key of now needs a write of its own; a last write "del" needs a key that was set and deleted.
    reset_needs = 1 + len(new) + (2 if kind is EventKind.DELETE else 0)
    if kind is EventKind.RESET or gone + rewritten > missed:
        return EventKind.RESET
    if nothing_stands and missed >= reset_needs:
        return EventKind.RESET
    return EventKind.DELETE if gone else kind


def _difference(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> tuple[int, int]:
    """How many keys of old are gone, and how many of new are new or have another value."""
    kept = 0
    same = 0
    for key, value in old.items():
        now = new.get(key)
        if now is not None:
            kept += 1
            same += now == value
    return len(old) - kept, len(new) - same
