"""Laws of the supervisor's policy, under random histories that a real shell could produce."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flotta.supervisor.plan import (
    Action,
    Announce,
    Begin,
    Changed,
    Due,
    End,
    Event,
    Exited,
    GiveUp,
    Hold,
    Kill,
    Phase,
    Plan,
    Ready,
    Retry,
    Spawn,
    Stop,
    Terminate,
)
from flotta.supervisor.states import TABLE, Limits, State, Trigger


class World(RuleBasedStateMachine):
    """A model of the operating system: which slots have a process. It obeys the actions and produces the events."""

    @initialize(
        instances=st.integers(1, 4),
        companions=st.integers(0, 2),
        hold=st.booleans(),
        crashes=st.integers(1, 6),
    )
    def begin(self, instances: int, companions: int, hold: bool, crashes: int) -> None:
        self.now_s = 0.0
        self.plan = Plan(
            Limits(hold=hold, quick_crashes_max=crashes, drain_s=10), instances=instances, companions=companions
        )
        self.alive: set[int] = set()
        self.told: set[int] = set()
        self.killed: set[int] = set()
        self.ended: int | None = None
        self.announced = 0
        self.stopped_at_s: float | None = None
        self.send(Begin())

    def send(self, event: Event) -> list[Action]:
        actions = self.plan.on_event(event, self.now_s)
        for action in actions:
            self.obey(action)
        if self.plan.phase is not Phase.RUNNING and self.stopped_at_s is None:
            self.stopped_at_s = self.now_s
        return actions

    def obey(self, action: Action) -> None:
        assert self.ended is None, "an action after End"
        match action:
            case Spawn(slot):
                assert self.plan.phase is Phase.RUNNING, "a spawn while stopping"
                assert slot not in self.alive, "two processes in one slot"
                self.alive.add(slot)
            case Terminate(slot):
                assert slot in self.alive
                assert slot not in self.told, "a second SIGTERM would force the drain"
                self.told.add(slot)
            case Kill(slot):
                assert slot in self.alive
                self.killed.add(slot)
            case Announce():
                self.announced += 1
            case End(code):
                assert not self.alive, "ended with a process left"
                self.ended = code
            case Retry(_, delay_s):
                assert 0 < delay_s <= self.plan.limits.backoff_max_s
            case GiveUp():
                assert not self.plan.limits.hold
            case Hold():
                assert self.plan.limits.hold

    @precondition(lambda self: self.ended is None)
    @rule(seconds=st.sampled_from([0.0, 0.05, 0.2, 1.0, 4.9, 5.0, 5.1, 31.0]))
    def wait(self, seconds: float) -> None:
        """Time passes; a shell sends Due at each due time on the way."""
        until_s = self.now_s + seconds
        while (due_s := self.plan.due_at_s) is not None and due_s <= until_s and self.ended is None:
            self.now_s = max(self.now_s, due_s)
            self.send(Due())
            assert self.plan.due_at_s != due_s, "a due time that its Due does not clear would spin"
        self.now_s = until_s

    @precondition(lambda self: self.ended is None and self.alive - self.killed)
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.alive - self.killed)))
        if self.plan.slots[slot].state in (State.STARTING, State.RESTARTING, State.STOPPING):
            self.send(Ready(slot))

    @precondition(lambda self: self.ended is None and self.alive)
    @rule(data=st.data(), code=st.sampled_from([0, 1, 3, -9, -15]), hopeless=st.booleans())
    def exits(self, data: st.DataObject, code: int, hopeless: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.discard(slot)
        self.told.discard(slot)
        self.killed.discard(slot)
        self.send(Exited(slot, code, hopeless))

    @precondition(lambda self: self.ended is None)
    @rule()
    def changed(self) -> None:
        self.send(Changed())

    @rule()
    def due_for_no_reason(self) -> None:
        assert self.send(Due()) == [] or self.ended is None

    @precondition(lambda self: self.ended is None)
    @rule()
    def stop(self) -> None:
        second = self.plan.phase is not Phase.RUNNING
        self.send(Stop())
        if second:
            assert self.killed == self.alive, "the second order to stop must kill all"

    @invariant()
    def a_slot_has_a_process_exactly_when_its_state_says_so(self) -> None:
        if hasattr(self, "plan"):
            assert {slot.number for slot in self.plan.slots if slot.has_process} == self.alive

    @invariant()
    def announced_once_at_most(self) -> None:
        assert getattr(self, "announced", 0) <= 1

    @invariant()
    def one_pathfinder_while_nothing_is_proven(self) -> None:
        if hasattr(self, "plan") and not self.plan.announced and self.plan.phase is Phase.RUNNING:
            starting = [s for s in self.plan.instances if s.state is State.STARTING and s.restarts == 0]
            if all(s.ready_at_s is None for s in self.plan.instances) and not any(
                s.restarts for s in self.plan.instances
            ):
                assert len(starting) <= 1

    @invariant()
    def all_is_killed_in_time(self) -> None:
        if getattr(self, "stopped_at_s", None) is not None and self.now_s - self.stopped_at_s > self.plan.limits.stop_s:
            assert self.killed == self.alive

    @invariant()
    def it_never_rests_without_a_way_on(self) -> None:
        """While it runs, some process lives, or a retry is due, or a changed file is waited for."""
        if hasattr(self, "plan") and self.plan.phase is Phase.RUNNING:
            held = any(slot.state is State.HELD for slot in self.plan.instances)
            running = any(s.has_process or s.state is State.BACKOFF for s in self.plan.instances)
            assert running or held

    def teardown(self) -> None:
        """From every history two orders to stop end everything."""
        if not hasattr(self, "plan"):
            return
        for _ in range(2):
            if self.ended is None:
                self.send(Stop())
        for slot in sorted(self.alive):
            self.alive.discard(slot)
            self.send(Exited(slot, -9))
        assert self.ended is not None


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.sampled_from(list(State)), st.sampled_from(list(Trigger)))
def test_only_gone_is_final_and_every_other_state_can_be_stopped(state: State, trigger: Trigger) -> None:
    if state is State.GONE:
        assert (state, trigger) not in TABLE
    elif state is not State.STOPPING:
        assert TABLE[state, Trigger.STOP] in (State.STOPPING, State.GONE)


def _crash(plan: Plan, now_s: float, slot: int = 0) -> list[Action]:
    return plan.on_event(Exited(slot, 1), now_s)


def _comes_back(plan: Plan) -> float:
    now_s = plan.due_at_s
    assert now_s is not None
    assert plan.on_event(Due(), now_s) == [Spawn(0)]
    return now_s


def test_the_fifth_quick_crash_in_a_row_gives_up_and_the_back_off_doubles() -> None:
    plan = Plan(Limits(), instances=3)
    assert plan.on_event(Begin(), 0) == [Spawn(0)]
    now_s, delays = 0.0, []
    for _ in range(4):
        (retry,) = _crash(plan, now_s)
        assert isinstance(retry, Retry)
        delays.append(retry.delay_s)
        now_s = _comes_back(plan)
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert _crash(plan, now_s) == [GiveUp(0, 5), End(1)]


@pytest.mark.parametrize(("ready_for_s", "gives_up"), [(4.99, True), (5.0, False)])
def test_an_exit_within_settle_s_of_ready_is_quick_and_a_later_one_is_not(ready_for_s: float, gives_up: bool) -> None:
    plan = Plan(Limits(quick_crashes_max=1), instances=1)
    plan.on_event(Begin(), 0)
    plan.on_event(Ready(0), 100)
    actions = _crash(plan, 100 + ready_for_s)
    assert (actions[0] == GiveUp(0, 1)) is gives_up
    assert (actions == [Retry(0, 0.2)]) is not gives_up


def test_an_instance_that_settled_in_between_ends_the_row() -> None:
    plan = Plan(Limits(quick_crashes_max=2), instances=2)
    plan.on_event(Begin(), 0)
    plan.on_event(Ready(0), 1)
    assert isinstance(plan.on_event(Exited(1, 1), 2)[0], Retry)
    assert isinstance(plan.on_event(Due(), 3)[0], Spawn)
    # instance 0 settles at 6: the crash at 2 is forgotten
    assert isinstance(plan.on_event(Exited(1, 1), 7)[0], Retry)
    plan.on_event(Due(), 8)
    assert isinstance(plan.on_event(Exited(1, 1), 9)[0], GiveUp)


def test_an_application_that_cannot_be_imported_is_tried_once() -> None:
    plan = Plan(Limits(), instances=3)
    plan.on_event(Begin(), 0)
    assert plan.on_event(Exited(0, 3, hopeless=True), 1) == [GiveUp(0, 1), End(1)]


def test_watching_files_holds_instead_of_giving_up_and_a_change_starts_anew() -> None:
    plan = Plan(Limits(hold=True), instances=2)
    plan.on_event(Begin(), 0)
    assert plan.on_event(Exited(0, 3, hopeless=True), 1) == [Hold(0)]
    assert plan.due_at_s is None
    assert plan.on_event(Changed(), 60) == [Spawn(0)]
    assert plan.on_event(Ready(0), 61) == [Spawn(1)]


def test_companions_start_when_all_are_ready_and_are_stopped_first() -> None:
    plan = Plan(Limits(), instances=2, companions=1)
    plan.on_event(Begin(), 0)
    assert plan.on_event(Ready(0), 1) == [Spawn(1)]
    assert plan.on_event(Ready(1), 2) == [Announce(), Spawn(2)]
    assert plan.on_event(Stop(), 3) == [Terminate(2)]
    assert plan.on_event(Exited(2, -15), 4) == [Terminate(0), Terminate(1)]
    plan.on_event(Exited(0, 0), 5)
    assert plan.on_event(Exited(1, 0), 6) == [End(0)]


def test_a_companion_that_does_not_end_is_killed_and_holds_nobody_up() -> None:
    plan = Plan(Limits(), instances=1, companions=1)
    plan.on_event(Begin(), 0)
    plan.on_event(Ready(0), 1)
    plan.on_event(Stop(), 10)
    assert plan.due_at_s == 13
    assert plan.on_event(Due(), 13) == [Kill(1)]
    assert plan.on_event(Exited(1, -9), 13.1) == [Terminate(0)]
    assert plan.due_at_s == 40
    assert plan.on_event(Due(), 40) == [Kill(0)]
    assert plan.on_event(Exited(0, -9), 40.1) == [End(1)]


def test_an_instance_that_cut_its_drain_short_makes_the_exit_code_1() -> None:
    plan = Plan(Limits(), instances=1)
    plan.on_event(Begin(), 0)
    plan.on_event(Ready(0), 1)
    plan.on_event(Stop(), 10)
    assert plan.on_event(Exited(0, 1), 35) == [End(1)]


def test_a_companion_that_ends_well_has_done_its_work() -> None:
    plan = Plan(Limits(), instances=1, companions=1)
    plan.on_event(Begin(), 0)
    plan.on_event(Ready(0), 1)
    assert plan.on_event(Exited(1, 0), 2) == []
    assert plan.slots[1].state is State.GONE
    assert plan.phase is Phase.RUNNING
