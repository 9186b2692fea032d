"""The checker of a pool's history: every rule passes a right history and finds the one wrong that it is there for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pool_figures import figures, story
from pool_history import RULES, Event, History, What, decode, encode, violations


class Tape:
    """A history by hand: ``say(1.0, "a", What.STARTED, key="k")``; jobs run on the worker of their process' name."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def say(self, at_s: float, process: str, what: What, **facts: Any) -> Tape:
        self.events.append(Event(at_s=at_s, process=process, what=what, **facts))
        return self

    def run(
        self, process: str, fence: int, start_s: float, end_s: float | None = None, how: str = "", **facts: Any
    ) -> Tape:
        """A run of the job "k", dispatch 1."""
        about = {"key": "k", "dispatch": 1, "fence": fence, "worker": process, **facts}
        self.say(start_s, process, What.STARTED, **about)
        return self if end_s is None else self.say(end_s, process, What.ENDED, **about | {"how": how})

    def task(self, process: str, start_s: float, end_s: float | None = None, how: str = "", **facts: Any) -> Tape:
        """A run of the task "t"."""
        about = {"key": "t", "worker": process, **facts}
        self.say(start_s, process, What.TASK_STARTED, **about)
        return self if end_s is None else self.say(end_s, process, What.TASK_ENDED, **about | {"how": how})

    def dispatched(self, at_s: float, **facts: Any) -> Tape:
        return self.say(at_s, "driver", What.DISPATCHED, **{"key": "k", "dispatch": 1, **facts})

    def settled(self, at_s: float) -> Tape:
        return self.say(at_s, "driver", What.SETTLED)

    def broken(self) -> list[str]:
        return [violation.rule for violation in violations(History(self.events))]


def ordinary() -> Tape:
    """Dispatched, handed over, killed, crashed, run to its end, and a task."""
    tape = Tape().dispatched(1.1).run("a", 5, 1.0, 3.0, "handover").run("b", 6, 3.1, count=1)
    tape.run("c", 8, 9.0, 9.5, "crashed", count=1).run("c", 9, 9.6, count=1).say(5.0, "b", What.KILLED).settled(20.0)
    tape.say(2.0, "a", What.SAVED, key="k", dispatch=1, fence=5, count=1, since_s=1.9)
    tape.say(2.5, "driver", What.NOTIFIED, key="k", dispatch=1, count=1)
    tape.say(3.2, "b", What.NOTED, key="k", dispatch=1, fence=6, count=1)
    tape.say(2.1, "a", What.WROTE, key="k", dispatch=1, fence=5, count=70)
    tape.say(4.1, "b", What.WROTE, key="k", dispatch=1, fence=6, count=71)
    return tape.say(1.0, "driver", What.ENQUEUED, key="t").task("a", 1.2, 1.3, "failed").task("b", 2.2, 2.3, "done")


def zombie() -> Tape:
    """ "a" stands still from 2 to 10; "b" has its job from 5 on; what "a" writes afterwards is refused."""
    tape = Tape().dispatched(1.1).run("a", 5, 1.0, 10.2, "fenced").run("b", 6, 5.0, count=1)
    tape.say(2.0, "a", What.PAUSED).say(10.0, "a", What.RESUMED).settled(20.0)
    tape.say(1.5, "a", What.SAVED, key="k", dispatch=1, fence=5, count=1, since_s=1.4)
    tape.say(10.1, "a", What.SAVE_REFUSED, key="k", dispatch=1, fence=5, since_s=10.0)
    tape.say(10.15, "a", What.WRITE_REFUSED, key="k", dispatch=1, fence=5)
    tape.say(1.0, "driver", What.ENQUEUED, key="t").task("a", 1.9, 10.1, "cancelled").task("b", 6.0, 7.0, "done")
    return tape


def stopped() -> Tape:
    """Stopped by confirmation, then dispatched again under the next number."""
    tape = Tape().dispatched(1.1).run("a", 5, 1.0, 2.0, "stop").say(2.1, "driver", What.STOPPED, key="k", dispatch=1)
    return tape.dispatched(3.1, dispatch=2).run("b", 6, 3.0, dispatch=2).settled(20.0)


def refused() -> Tape:
    """Refused, and never heard of again; one more whose dispatcher had no answer, and which never started."""
    tape = Tape().say(1.0, "driver", What.REFUSED, key="k", dispatch=1, how="QueueFull")
    return tape.say(1.0, "driver", What.UNKNOWN, key="u", dispatch=2).settled(20.0)


def dead() -> Tape:
    """Poison ends among the dead letters, the job's and the task's."""
    tape = Tape().dispatched(1.1).run("a", 5, 1.0, 1.2, "crashed").say(2.0, "driver", What.DEAD, key="k", dispatch=1)
    tape.say(1.0, "driver", What.ENQUEUED, key="t").task("a", 1.2, 1.3, "failed").say(2.0, "driver", What.DEAD, key="t")
    return tape.settled(20.0)


def lane() -> Tape:
    """Two tasks of one lane, one after the other."""
    tape = Tape().task("a", 1.0, 2.0, "failed", key="t1", lane="x").task("a", 2.02, 2.03, "done", key="t1", lane="x")
    tape.say(0.1, "driver", What.ENQUEUED, key="t1").say(0.2, "driver", What.ENQUEUED, key="t2").task(
        "b", 2.1, 3.0, "done", key="t2", lane="x"
    )
    tape.say(0.3, "driver", What.ENQUEUED, key="t3")
    return tape.task("b", 1.0, 4.0, "done", key="t3", lane="y")


@pytest.mark.parametrize("right", [ordinary, zombie, stopped, refused, dead, lane])
def test_a_right_history_has_no_violation(right: Callable[[], Tape]) -> None:
    assert right().broken() == []


LATE = {"key": "k", "dispatch": 1}

WRONG: dict[str, Sequence[tuple[str, Tape]]] = {
    "one owner of a fence": [
        ("two workers", ordinary().run("d", 5, 12.0, 12.1, "returned")),
        ("twice at once", Tape().run("a", 5, 1.0, 3.0, "stop").run("a", 5, 2.0, 3.0, "stop")),
    ],
    "fences of a key grow": [
        ("an old fence starts later", Tape().run("a", 9, 1.0, 2.0, "handover").run("b", 8, 3.0)),
        (
            "a process that stood still long ago",
            Tape()
            .run("a", 9, 1.0, 2.0, "handover")
            .run("b", 8, 9.0)
            .say(2.0, "b", What.PAUSED)
            .say(3.0, "b", What.RESUMED),
        ),
    ],
    "owners of a key do not overlap": [
        ("released before its end", Tape().run("a", 5, 1.0, 3.2, "handover").run("b", 6, 3.1)),
        ("told, and deaf", Tape().run("a", 5, 1.0, 9.0, "fenced").run("b", 6, 3.1)),
        ("never told", Tape().run("a", 5, 1.0).run("b", 6, 3.1)),
        (
            "resumed, and it goes on",
            Tape()
            .run("a", 5, 1.0, 13.0, "fenced")
            .run("b", 6, 5.0)
            .say(2.0, "a", What.PAUSED)
            .say(10.0, "a", What.RESUMED),
        ),
    ],
    "runs of a task do not overlap": [
        ("handed out twice", Tape().task("a", 1.0, 4.0, "done").task("b", 2.0, 3.0, "done"))
    ],
    "a lane runs one task at a time": [("two of one lane", lane().task("c", 1.5, 1.6, "done", key="t4", lane="x"))],
    "a lane keeps its order": [
        (
            "tried again after the next one",
            Tape()
            .say(0.1, "driver", What.ENQUEUED, key="t1")
            .say(0.2, "driver", What.ENQUEUED, key="t2")
            .task("a", 1.0, 1.1, "failed", key="t1", lane="x")
            .task("a", 1.2, 1.3, "done", key="t2", lane="x")
            .task("a", 1.4, 1.5, "done", key="t1", lane="x"),
        ),
    ],
    "nothing of an older owner is accepted": [
        ("a zombie's checkpoint", zombie().say(10.1, "a", What.SAVED, **LATE, fence=5, count=1, since_s=10.05)),
    ],
    "guarded effects never go back": [
        ("by the order of the store", ordinary().say(4.2, "a", What.WROTE, **LATE, fence=5, count=72)),
    ],
    "the owner is not refused": [
        ("a checkpoint", ordinary().say(15.0, "c", What.SAVE_REFUSED, **LATE, fence=9)),
        ("a write", ordinary().say(15.0, "c", What.WRITE_REFUSED, **LATE, fence=9)),
    ],
    "accepted checkpoints are found": [
        ("an older one is found", zombie().say(4.0, "b", What.SAVED, **LATE, fence=6, count=2, since_s=3.9)),
    ],
    "refused never runs": [
        ("a job", refused().run("a", 5, 4.0)),
        ("a task", Tape().say(1.0, "driver", What.TASK_REFUSED, key="t").task("a", 2.0, 2.1, "done")),
    ],
    "stop really stops": [
        ("started afterwards", stopped().run("b", 9, 5.0, 5.1, "returned")),
        (
            "unconfirmed, started afterwards",
            stopped().say(4.0, "driver", What.STOPPING, key="k", dispatch=2).run("c", 9, 5.0, dispatch=2),
        ),
        ("confirmed too early", Tape().run("a", 5, 1.0, 3.0, "stop").say(2.0, "driver", What.STOPPED, **LATE)),
    ],
    "no job is lost": [
        ("never started", Tape().dispatched(1.0).settled(20.0)),
        (
            "its worker was killed, that was all",
            Tape().dispatched(1.1).run("a", 5, 1.0).say(2.0, "a", What.KILLED).settled(20.0),
        ),
        ("handed over to nobody", Tape().dispatched(1.1).run("a", 5, 1.0, 2.0, "handover").settled(20.0)),
        ("crashed for good, and no dead letter", Tape().dispatched(1.1).run("a", 5, 1.0, 2.0, "crashed").settled(20.0)),
        (
            "it was back only later",
            Tape().dispatched(1.1).run("a", 5, 1.0, 2.0, "handover").settled(20.0).run("b", 6, 21.0),
        ),
        (
            "its dispatcher had no answer, and it had started",
            Tape().say(9.0, "driver", What.UNKNOWN, **LATE).run("a", 5, 1.0, 2.0, "handover").settled(20.0),
        ),
    ],
    "accepted notifications arrive": [
        ("it moved, the notification did not", ordinary().say(2.9, "driver", What.NOTIFIED, **LATE, count=2)),
        (
            "another one came",
            ordinary()
            .say(2.9, "driver", What.NOTIFIED, **LATE, count=2)
            .say(9.7, "c", What.NOTED, **LATE, fence=9, count=3),
        ),
    ],
    "no task is lost": [
        ("never run", Tape().say(1.0, "driver", What.ENQUEUED, key="t")),
        (
            "killed, that was all",
            Tape().say(1.0, "driver", What.ENQUEUED, key="t").task("a", 2.0).say(3.0, "a", What.KILLED),
        ),
        ("cancelled, that was all", Tape().say(1.0, "driver", What.ENQUEUED, key="t").task("a", 2.0, 2.1, "cancelled")),
    ],
}


@pytest.mark.parametrize(
    ("rule", "tape"),
    [pytest.param(rule, tape, id=f"{rule}: {why}") for rule, cases in WRONG.items() for why, tape in cases],
)
def test_a_wrong_history_is_found_by_its_rule(rule: str, tape: Tape) -> None:
    assert list(RULES[rule](History(tape.events)))


def test_every_rule_has_its_wrong_history() -> None:
    assert WRONG.keys() == RULES.keys()


def test_events_survive_the_file_and_a_torn_last_line_is_left_out() -> None:
    events = zombie().events
    data = b"".join(encode(event) for event in events)
    assert decode(data) == events
    assert decode(data[:-5]) == events[:-1]
    assert decode(b"") == []


def test_figures_count_what_was_tried() -> None:
    found = figures(History(zombie().events))
    assert (found.pauses, found.fenced, found.jobs_moved, found.job_overlaps) == (1, 1, 1, 1)
    assert (found.checkpoints_refused, found.writes_refused, found.tasks_cancelled) == (1, 1, 1)
    assert found.overlap_s_max == pytest.approx(5.2)
    assert "overlap_s_max 5.20" in str(found)


def test_the_story_of_a_key_names_what_happened_to_its_processes() -> None:
    tape = zombie().say(6.0, "elsewhere", What.KILLED).run("elsewhere", 7, 1.0, key="other")
    told = story(History(tape.events), "k")
    assert [line.split()[1] for line in told.splitlines()].count("a") == 7
    assert "paused" in told
    assert "elsewhere" not in told
    assert "nothing is known" in story(History(tape.events), "nobody")
