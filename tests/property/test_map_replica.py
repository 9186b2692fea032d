"""Laws of the local copy: whatever arrives, it is right or it asks for a reload."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flotta.rmap.replica import Phase, Replica, Snapshot, Verdict
from flotta.rmap.wire import EVENT_OF, Change, EventKind, Op, encode

# A write without its revision; the history below numbers them, as Redis does.
writes = st.lists(
    st.one_of(
        st.tuples(st.just(Op.SET), st.sampled_from("abcd"), st.binary(max_size=2)),
        st.tuples(st.just(Op.DEL), st.sampled_from("abcd"), st.none()),
        st.tuples(st.sampled_from([Op.RESET, Op.DESTROY]), st.just(""), st.none()),
    ),
    max_size=30,
)


class History:
    """A deliberately simple map: every state it ever had, and the message of every write."""

    def __init__(self, written: list[tuple[Op, str, bytes | None]], *, first_revision: int = 1) -> None:
        self.states: dict[int, dict[str, bytes]] = {first_revision - 1: {}}
        self.kinds: dict[int, EventKind] = {first_revision - 1: EventKind.CHANGE}
        self.messages: list[Change] = []
        for op, key, value in written:
            before = self.states[self.last]
            if op is Op.DEL and key not in before:
                continue  # announces nothing and costs no revision
            after = {} if op in (Op.RESET, Op.DESTROY) else dict(before)
            if op is Op.SET and value is not None:
                after[key] = value
            after.pop(key, None) if op is Op.DEL else None
            self.messages.append(Change(op, self.last + 1, key, value))
            self.kinds[self.last + 1] = EVENT_OF[op]
            self.states[self.last + 1] = after

    @property
    def last(self) -> int:
        return max(self.states)

    def snapshot(self, revision: int) -> Snapshot:
        return Snapshot(dict(self.states[revision]), revision, self.kinds[revision])


def joined(history: History, revision: int) -> Replica:
    replica = Replica()
    replica.begin_load(new_subscription=True)
    replica.install(history.snapshot(revision))
    replica.settle()
    return replica


@given(writes)
def test_messages_in_order_end_where_redis_is(written) -> None:
    history = History(written)
    replica = joined(history, 0)
    for message in history.messages:
        assert replica.apply(message) is Verdict.APPLIED
        assert replica.content == history.states[replica.revision]
    assert replica.revision == history.last


@given(writes, st.data())
def test_duplicates_and_reordering_end_where_order_ends_or_ask_for_a_reload(written, data: st.DataObject) -> None:
    history = History(written)
    replica = joined(history, 0)
    chosen = data.draw(st.lists(st.sampled_from(history.messages), max_size=40)) if history.messages else []
    for message in chosen:
        before = replica.content.copy(), replica.revision
        verdict = replica.apply(message)
        if verdict is Verdict.RELOAD:
            assert (replica.content, replica.revision) == before
            assert replica.phase is Phase.LOADING
            return
        assert replica.content == history.states[replica.revision]


@given(writes, st.data())
def test_a_gap_asks_for_a_reload(written, data: st.DataObject) -> None:
    history = History(written)
    if len(history.messages) < 2:
        return
    missed = data.draw(st.integers(0, len(history.messages) - 2))
    replica = joined(history, 0)
    for message in history.messages[:missed]:
        replica.apply(message)
    assert replica.apply(history.messages[missed + 1]) is Verdict.RELOAD


@given(writes, st.data())
def test_a_snapshot_may_overtake_or_trail_its_messages(written, data: st.DataObject) -> None:
    """The snapshot comes over another connection: at any moment, and older or newer than what was heard."""
    history = History(written)
    total = len(history.messages)
    asked = data.draw(st.integers(0, total), label="messages heard before the snapshot is asked for")
    taken = data.draw(st.integers(asked, total), label="revision of the snapshot")
    arrives = data.draw(st.integers(asked, total), label="messages heard before the snapshot arrives")
    replica = joined(history, 0)
    for message in history.messages[:asked]:
        replica.apply(message)
    replica.begin_load(new_subscription=False)
    for message in history.messages[asked:arrives]:
        assert replica.apply(message) is Verdict.KEPT
    _, again = replica.install(history.snapshot(taken))
    assert not again
    assert replica.content == history.states[max(taken, arrives)]
    for message in history.messages[arrives:]:
        assert replica.apply(message) in (Verdict.APPLIED, Verdict.KNOWN)
        assert replica.content == history.states[replica.revision]
    assert replica.settle() is Verdict.KNOWN
    assert replica.revision == history.last


@given(writes, writes, st.data())
def test_lost_data_are_noticed_at_the_first_write_after(written, again, data: st.DataObject) -> None:
    """FLUSHALL: revisions begin again at 1, and no message says so."""
    history, after = History(written), History(again)
    if not history.messages or not after.messages:
        return
    replica = joined(history, history.last)
    assert replica.apply(after.messages[0]) is Verdict.RELOAD
    replica.begin_load(new_subscription=False)
    heard = data.draw(st.integers(1, len(after.messages)))
    for message in after.messages[1:heard]:
        replica.apply(message)
    missed, more = replica.install(after.snapshot(heard))
    assert not more
    assert replica.content == after.states[heard]
    if missed is None:
        assert history.states[history.last] == after.states[heard]


@given(writes, writes)
def test_data_lost_while_a_snapshot_is_read_never_stay_unnoticed(written, again) -> None:
    """After a fresh snapshot old messages may still be due; a low revision looks like one of them, until settle."""
    history, after = History(written), History(again)
    if not history.messages or not after.messages:
        return
    replica = Replica()
    replica.begin_load(new_subscription=True)
    replica.install(history.snapshot(history.last))
    verdicts = {replica.apply(message) for message in after.messages}
    if Verdict.RELOAD in verdicts or replica.settle() is Verdict.RELOAD:
        return
    assert replica.content == after.states[after.last]


def test_too_many_messages_during_a_load_make_it_worthless() -> None:
    history = History([(Op.SET, "a", b"1")] * 5)
    replica = Replica(pending_max=3)
    replica.begin_load(new_subscription=True)
    for message in history.messages:
        replica.apply(message)
    _, again = replica.install(history.snapshot(0))
    assert again
    assert replica.phase is Phase.LOADING


def test_a_hole_among_the_messages_of_a_load_asks_again() -> None:
    history = History([(Op.SET, "a", b"1")] * 5)
    replica = Replica()
    replica.begin_load(new_subscription=True)
    for message in (history.messages[1], history.messages[3]):
        replica.apply(message)
    assert replica.install(history.snapshot(1))[1]


def test_what_was_distrusted_during_a_load_asks_again() -> None:
    history = History([(Op.SET, "a", b"1")])
    replica = Replica()
    replica.begin_load(new_subscription=True)
    replica.distrust()
    assert replica.install(history.snapshot(1))[1]


@pytest.mark.parametrize(
    ("known", "missed", "event"),
    [
        ("set a", "", None),
        ("set a", "set b", EventKind.CHANGE),
        ("set a", "del a", EventKind.DELETE),
        ("set a, set b", "del a, set c", EventKind.DELETE),
        ("set a", "set b, del b", EventKind.DELETE),
        ("set a", "reset", EventKind.RESET),
        ("set a", "destroy", EventKind.RESET),
        ("set a", "reset, set b", EventKind.RESET),
        ("set a, set b", "reset, set a", EventKind.RESET),
        ("set a, set b", "set a, del a, set c", EventKind.DELETE),
        ("set a, set b", "set a, set a, set a, set a, set a", EventKind.CHANGE),
    ],
)
def test_the_strongest_missed_event_is_reported(known: str, missed: str, event: EventKind | None) -> None:
    written = []
    for number, words in enumerate(f"{known}, {missed}".split(", ")):
        if words:
            op, _, key = words.partition(" ")
            written.append((Op(op.encode()), key, str(number).encode() if op == "set" else None))
    history = History(written)
    replica = joined(history, len(known.split(", ")))
    replica.begin_load(new_subscription=True)
    assert replica.install(history.snapshot(history.last)) == (event, False)


@given(writes, st.data())
@settings(max_examples=300)
def test_an_event_is_reported_if_and_only_if_something_was_written(written, data: st.DataObject) -> None:
    history = History(written)
    at = data.draw(st.integers(0, history.last))
    replica = joined(history, at)
    replica.begin_load(new_subscription=True)
    missed, _ = replica.install(history.snapshot(history.last))
    assert (missed is None) == (at == history.last)
    kinds = [EVENT_OF[message.op] for message in history.messages[at:]]
    if missed is EventKind.RESET and EventKind.RESET not in kinds:
        # Only where nothing that was known stands as it was: for a reader that is what a reset is.
        assert not history.states[at].items() & history.states[history.last].items()
    if missed is EventKind.DELETE:
        assert max(kinds) >= EventKind.DELETE


@settings(max_examples=60)
@given(writes, st.data())
def test_own_sets_may_be_taken_from_their_replies_at_any_time(written, data: st.DataObject) -> None:
    """Replies and messages travel apart. Whichever comes first, no state is invented, and all ends where Redis is."""
    history = History(written)
    start = data.draw(st.integers(0, history.last))
    replica = Replica()
    replica.begin_load(new_subscription=True)
    replica.install(history.snapshot(start))
    settle_at = data.draw(st.integers(0, 40))
    heard = start if data.draw(st.booleans()) else data.draw(st.integers(0, start))
    for step in range(100):
        if step == settle_at and heard >= start:
            assert replica.settle() is Verdict.KNOWN
        ahead = history.messages[replica.revision : replica.revision + 1]
        if ahead and ahead[0].op is Op.SET and data.draw(st.booleans()):
            assert replica.write_own(ahead[0].revision, [ahead[0].key], [ahead[0].value])
        elif heard < history.last:
            heard += 1
            message = history.messages[heard - 1]
            if not replica.hear_own(encode(message)) and replica.apply(message) is Verdict.RELOAD:
                # Only a first message of revision 1 behind a later snapshot is doubted: lost data begin so too.
                assert message.revision == 1
                assert start > 0
                return
        assert replica.content == history.states[replica.revision]
    assert heard == replica.revision == history.last


@given(writes, st.data())
def test_a_reply_that_is_not_the_next_write_is_not_taken(written, data: st.DataObject) -> None:
    history = History(written)
    replica = joined(history, history.last)
    revision = data.draw(st.integers(0, history.last + 3).filter(lambda number: number != history.last + 1))
    assert not replica.write_own(revision, ["a"], [b"forged"])
    replica.distrust()
    assert not replica.write_own(history.last + 1, ["a"], [b"too late"])
    assert replica.content == history.states[history.last]


def test_a_forged_echo_is_not_applied_and_costs_a_reload() -> None:
    replica = joined(History([]), 0)
    assert replica.write_own(1, ["a"], [b"mine"])
    assert replica.hear_own(encode(Change(Op.SET, 1, "a", b"forged")))
    assert replica.apply(Change(Op.SET, 1, "a", b"mine")) is Verdict.RELOAD
    assert replica.content == {"a": b"mine"}


def test_the_echo_of_a_set_is_told_by_its_revision() -> None:
    replica = joined(History([]), 0)
    assert replica.write_own(1, ["a", "b"], [b"1", b"2"])
    assert not replica.hear_own(encode(Change(Op.SET, 2, "b", b"2")))
    assert replica.apply(Change(Op.SET, 1, "a", b"1")) is Verdict.KNOWN
    assert not replica.hear_own(encode(Change(Op.SET, 12, "b", b"2")))
    assert replica.hear_own(encode(Change(Op.SET, 2, "b", b"2")))
    assert not replica.hear_own(encode(Change(Op.SET, 3, "b", b"2")))
