"""Laws of the queue between the callers of a link and its socket, against a list of plain tuples."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flotta.redis.waiting import Waiting


class Entry:
    """Where a reply would go."""

    def __init__(self) -> None:
        self.error: Any = None
        self.is_cancelled = False

    def done(self) -> bool:
        return self.is_cancelled or self.error is not None

    def set_exception(self, error: Any) -> None:
        assert not self.done()
        self.error = error


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.sampled_from(["take", "fail"]), st.integers(1, 6)),
        st.tuples(st.sampled_from(["drop", "note"]), st.just(0)),
        st.tuples(st.just("overdue"), st.integers(0, 10)),
    ),
    max_size=60,
)


class Both:
    """The queue and its model, which must never differ."""

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.model: list[tuple[int, Entry]] = []  # (number of the command, its entry)
        self.since: dict[int, int] = {}
        self._numbers = itertools.count()

    def call(self, size: int, now: int) -> None:
        entry = Entry()
        for number in itertools.islice(self._numbers, size):
            self.model.append((number, entry))
            self.waiting.packed.append(b"%d" % number)
            self.waiting.entries.append(entry)
            self.waiting.names.append(number)

    def cancel(self, place: int, now: int) -> None:
        if place < len(self.model):
            self.model[place][1].is_cancelled = True

    def take(self, size: int, now: int) -> None:
        packed, entries, names = self.waiting.take(size)
        gone = self.model[:size]
        while gone and len(gone) < len(self.model) and self.model[len(gone)][1] is gone[-1][1]:
            gone.append(self.model[len(gone)])
        del self.model[: len(gone)]
        live = [(number, entry) for number, entry in gone if not entry.done()]
        assert list(zip(names, entries, strict=True)) == live
        assert packed == [b"%d" % number for number, _ in live]

    def fail(self, size: int, now: int) -> None:
        keep = max(len(self.model) - size, 0)
        while 0 < keep < len(self.model) and self.model[keep][1] is self.model[keep - 1][1]:
            keep -= 1
        gone = {entry for _, entry in self.model[keep:]}
        self.waiting.fail_newest(min(size, len(self.model)), lambda name: name)
        assert all(entry.done() for entry in gone)
        del self.model[keep:]

    def drop(self, _: int, now: int) -> None:
        self.waiting.drop_done()
        while self.model and self.model[0][1].done():
            del self.model[0]

    def note(self, _: int, now: int) -> None:
        self.waiting.note_age(now)
        for number, _entry in self.model:
            self.since.setdefault(number, now)

    def overdue(self, age: int, now: int) -> None:
        expected = {n for n, entry in self.model if self.since.get(n, now + 1) <= now - age and not entry.done()}
        found = {name for _, name in self.waiting.overdue(now - age)}
        assert found == expected
        self.since.update(dict.fromkeys(found, 10**9))  # each is given out once


@given(steps=STEPS)
def test_order_batches_and_ages_are_kept(steps: list[tuple[str, int]]) -> None:
    both = Both()
    for now, (step, size) in enumerate(steps):
        getattr(both, step)(size, now)
        assert both.waiting.names == [number for number, _ in both.model]
        assert both.waiting.entries == [entry for _, entry in both.model]
        assert len(both.waiting.packed) == len(both.waiting) == both.waiting.end - both.waiting.left
        assert both.waiting.is_fresh == all(number not in both.since for number, _ in both.model)
