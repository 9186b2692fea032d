"""Laws of leases, held against a deliberately dumb second reading of every history that hypothesis makes up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flotta.pool.members.lease import LeaseMachine, LeaseState, LeaseTimes, Loss, Rhythm

TTL_S = 10.0
TIMES = LeaseTimes(TTL_S)


class LeaseHistory(RuleBasedStateMachine):
    """Time goes on, beats leave, are answered late, early, twice or never, and the loop turns or does not.

    The model remembers everything and decides from the whole history whether the lease may be trusted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.machine = LeaseMachine(TIMES, self.now_s)
        self.attempts: list[float] = []
        self.confirmed = [self.now_s]
        self.turned_s = self.now_s
        self.losses: list[Loss] = []
        self.dead = False
        self.left = False

    def _heard(self, loss: Loss | None) -> None:
        if loss is not None:
            self.losses.append(loss)

    def _is_over(self) -> bool:
        """By the clock alone, at this moment."""
        trust_ends_s = max(self.confirmed) + TTL_S - TIMES.margin_s
        return self.now_s >= trust_ends_s or self.now_s - self.turned_s >= TTL_S

    @rule(passed_s=st.sampled_from([0.1, 1.0, 2.0, 3.0]))
    def time_passes(self, passed_s: float) -> None:
        self.now_s += passed_s

    @precondition(lambda self: len(self.attempts) > 3)
    @rule(passed_s=st.floats(8.0, 30.0))
    def everything_stands_still(self, passed_s: float) -> None:
        self.now_s += passed_s

    @rule()
    def a_beat_leaves(self) -> None:
        self.attempts.append(self.now_s)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def an_answer_comes(self, data: st.DataObject) -> None:
        self._answer(data.draw(st.sampled_from(self.attempts)))

    def _answer(self, started_s: float) -> None:
        self.dead = self.dead or self._is_over()
        self._heard(self.machine.beat_confirmed(started_s, self.now_s))
        if not self.dead:
            self.confirmed.append(started_s)

    @rule(took_s=st.sampled_from([0.0, 0.1, 2.0, 5.0]))
    def a_beat_is_answered(self, took_s: float) -> None:
        self.attempts.append(self.now_s)
        self.now_s += took_s
        self.the_loop_turns()
        self._answer(self.attempts[-1])

    @precondition(lambda self: len(self.attempts) > 3)
    @rule()
    def the_server_says_no(self) -> None:
        self._heard(self.machine.beat_lost())
        self.dead = True

    @rule()
    def the_loop_turns(self) -> None:
        self.dead = self.dead or self._is_over()
        self._heard(self.machine.loop_turned(self.now_s))
        self.turned_s = self.now_s

    @rule()
    def somebody_looks(self) -> None:
        self.dead = self.dead or self._is_over()
        self._heard(self.machine.tick(self.now_s))

    @precondition(lambda self: not self.losses and len(self.attempts) > 3)
    @rule()
    def the_worker_leaves(self) -> None:
        self.machine.left()
        self.dead = self.left = True

    @invariant()
    def never_trusted_after_attempt_start_plus_ttl_less_margin(self) -> None:
        if self.machine.trusted(self.now_s):
            assert self.now_s < max(self.confirmed) + TTL_S - TIMES.margin_s

    @invariant()
    def trust_counts_from_the_start_of_a_confirmed_attempt(self) -> None:
        assert self.machine.trusted_until_s == max(self.confirmed) + TTL_S - TIMES.margin_s

    @invariant()
    def what_is_dead_stays_dead(self) -> None:
        if self.dead:
            assert not self.machine.trusted(self.now_s)

    @invariant()
    def what_nothing_has_ended_is_trusted(self) -> None:
        if not self.dead and not self._is_over():
            assert self.machine.trusted(self.now_s)

    @invariant()
    def a_loss_is_told_exactly_once(self) -> None:
        assert len(self.losses) <= 1
        assert self.losses == ([self.machine.loss] if self.machine.loss else [])
        assert (self.machine.state is LeaseState.LOST) == bool(self.losses)
        assert not (self.left and self.losses)


TestLeaseHistory = LeaseHistory.TestCase


def test_a_confirmation_that_was_on_its_way_for_too_long_revives_nothing() -> None:
    machine = LeaseMachine(TIMES, 0.0)
    assert machine.loop_turned(8.0) is None
    assert machine.beat_confirmed(8.9, 9.0) is Loss.EXPIRED  # it arrives in the moment in which the trust has ended
    assert not machine.trusted(9.0)
    assert machine.beat_confirmed(8.9, 9.1) is None


def test_a_loop_that_stands_still_for_a_ttl_loses_a_lease_that_is_renewed_all_the_time() -> None:
    machine = LeaseMachine(TIMES, 0.0)
    for tenth in range(1, 100):
        assert machine.beat_confirmed(tenth / 10, tenth / 10) is None
    assert machine.trusted(9.95)
    assert machine.tick(10.0) is Loss.BLOCKED
    assert machine.loop_turned(10.1) is None
    assert not machine.trusted(10.1)


@pytest.mark.parametrize(("ttl_s", "margin_s"), [(0.5, 0.05), (1.0, 0.1), (10.0, 1.0), (30.0, 1.0), (600.0, 1.0)])
def test_the_margin_is_a_tenth_of_the_ttl_and_a_second_at_most(ttl_s: float, margin_s: float) -> None:
    assert LeaseTimes(ttl_s).margin_s == pytest.approx(margin_s)


# --- rhythm and outages ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 2.0), st.booleans()), max_size=40))
def test_beats_leave_every_period_and_after_a_failure_sooner(steps: list[tuple[float, float, bool]]) -> None:
    now_s = 0.0
    rhythm = Rhythm(TIMES, now_s)
    for late_s, took_s, is_answered in steps:
        started_s = max(now_s, rhythm.due_s()) + late_s
        rhythm.beat_started(started_s)
        now_s = started_s + took_s
        if is_answered:
            rhythm.beat_confirmed(now_s)
        else:
            rhythm.beat_failed()
        assert rhythm.due_s() == started_s + (TIMES.period_s if is_answered else TIMES.retry_s)
        assert TIMES.retry_s * 4 <= TIMES.period_s


@given(st.lists(st.tuples(st.floats(0.01, 9.0), st.booleans()), max_size=40), st.floats(0.0, 30.0))
def test_blameless_is_who_had_a_gap_within_two_ttl(steps: list[tuple[float, bool]], later_s: float) -> None:
    now_s = 0.0
    rhythm = Rhythm(TIMES, now_s)
    confirmed, gaps_ended = [0.0], []
    for passed_s, is_answered in steps:
        now_s += passed_s
        rhythm.beat_started(now_s)
        if not is_answered:
            rhythm.beat_failed()
            continue
        rhythm.beat_confirmed(now_s)
        if now_s - confirmed[-1] > TTL_S / 5 + TTL_S / 3:
            gaps_ended.append(now_s)
        confirmed.append(now_s)
    now_s += later_s
    expected = now_s - confirmed[-1] > TTL_S / 5 + TTL_S / 3 or any(now_s - at < 2 * TTL_S for at in gaps_ended)
    assert rhythm.blameless(now_s) is expected
