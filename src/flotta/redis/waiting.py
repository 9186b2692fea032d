"""What waits to be written on a link: commands in the order of their calls, and since when.

Owns: the queue from ``Link.call`` to the socket, its marks of time, and what leaves it unwritten. Invariants: the three
lists stay in step; entries leave from the front to be written, or from the back, failed, when there are too many; a
batch is never cut; a mark never reaches past the newest entry, or later calls would inherit its age.

Why three lists and not one of objects: an object for each command costs as much as all the rest of a call
(docs/design/redis.md). Ages are noted once per loop tick for the same reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, final

from flotta.redis.connection import Arg

__all__ = ["Commands", "Waiting"]

Commands = tuple[list[bytes], list[Any], list[Arg]]
"""Packed commands, where their replies go, and their names."""


@final
class Waiting:
    """The queue of one link. ``Link.call`` appends to the lists itself: it is the hottest line of the package."""

    __slots__ = ("_given", "_noted", "_since", "entries", "left", "names", "packed")

    def __init__(self) -> None:
        self.packed: list[bytes] = []
        self.entries: list[Any] = []
        self.names: list[Arg] = []
        self.left = 0
        # (end, time): everything before place ``end`` (counted since the beginning) waits at least since ``time``.
        self._since: deque[tuple[int, float]] = deque()
        self._noted = 0  # the place up to which ages were noted; the marks of what was overdue are gone, this is not
        self._given = 0  # the place up to which entries were given out as overdue

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def end(self) -> int:
        """The place of the next call, counted since the link was made. ``left`` is the place of the oldest."""
        return self.left + len(self.entries)

    @property
    def is_fresh(self) -> bool:
        """Whether everything in it was called in this tick."""
        return self._noted <= self.left

    def take_all(self) -> Commands:
        """Everything, as it is. Only while ``is_fresh``."""
        taken = self.packed, self.entries, self.names
        self.left += len(self.entries)
        self.packed, self.entries, self.names = [], [], []
        return taken

    def take(self, count: int) -> Commands:
        """The oldest ``count`` that are still awaited, and the rest of a batch that this would cut."""
        entries = self.entries
        while 0 < count < len(entries) and entries[count] is entries[count - 1]:
            count += 1
        live = [place for place, entry in enumerate(entries[:count]) if not entry.done()]
        taken = (
            [self.packed[place] for place in live],
            [entries[place] for place in live],
            [self.names[place] for place in live],
        )
        self._forget(min(count, len(entries)))
        return taken

    def drop_done(self) -> None:
        """Take out from the front what nobody waits for any more: it is never written."""
        count = 0
        for entry in self.entries:
            if not entry.done():
                break
            count += 1
        if count:
            self._forget(count)

    def note_age(self, now_s: float) -> None:
        """Everything that is not noted yet waits since now."""
        if self.entries and self._noted < self.end:
            self._noted = self.end
            self._since.append((self.end, now_s))

    def overdue(self, before_s: float) -> Iterator[tuple[Any, Arg]]:
        """Entries that wait since before then, with their names; each is given out once and stays in its place."""
        while self._since and self._since[0][1] <= before_s:
            begin, self._given = max(self._given, self.left), self._since.popleft()[0]
            places = slice(begin - self.left, self._given - self.left)
            for entry, name in zip(self.entries[places], self.names[places], strict=True):
                if not entry.done():
                    yield entry, name

    def fail_newest(self, count: int, make_error: Callable[[Arg], Exception]) -> None:
        """Take out the newest ``count``, and the rest of a batch that this would cut."""
        keep = len(self.entries) - count
        while keep > 0 and self.entries[keep] is self.entries[keep - 1]:
            keep -= 1
        for entry, name in zip(self.entries[keep:], self.names[keep:], strict=True):
            if not entry.done():
                entry.set_exception(make_error(name))
        del self.packed[keep:], self.entries[keep:], self.names[keep:]
        self._trim_marks()

    def _forget(self, count: int) -> None:
        del self.packed[:count], self.entries[:count], self.names[:count]
        self.left += count
        while self._since and self._since[0][0] <= self.left:
            self._since.popleft()

    def _trim_marks(self) -> None:
        self._noted, self._given = min(self._noted, self.end), min(self._given, self.end)
        since_s = None
        while self._since and self._since[-1][0] > self.end:
            _, since_s = self._since.pop()
        before = self._since[-1][0] if self._since else self.left
        if since_s is not None and self.end > before:
            self._since.append((self.end, since_s))
