"""A checker of what really happened in a pool: the events of many processes in, violations and figures out. Pure.

Every process writes its own append-only file, one JSON line per event, with times of one clock that all processes of a
machine share. The checker knows nothing of the pool but what was promised:

* a fencing token (fence) belongs to one owner, and the fences of a key grow;
* two owners of a key overlap in time only while the older one is a zombie: paused past its lease, or told and ending;
* what a fence guards never goes back, and nothing of an older owner is accepted once a newer one has started;
* what was accepted is not lost: each job runs at the end, or has ended properly; each task ran to its end, or is dead;
* what was refused never runs, and a confirmed stop is the end of that dispatch.

Why judged from the outside: counters inside the pool would be wrong in the same way as the pool.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import combinations
from typing import Final, final

__all__ = ["RULES", "Event", "History", "Span", "Violation", "What", "decode", "encode", "overlaps", "violations"]


class What(StrEnum):
    """What an event says. ``since_s`` is when the call began that an event ends."""

    # Said by whoever dispatches. ``dispatch`` is a number of its own: a key stopped and dispatched again has had two.
    DISPATCHED = "dispatched"  # accepted, and its start confirmed
    REFUSED = "refused"  # by a typed error that says: not accepted, or withdrawn
    UNKNOWN = "unknown"  # no answer: it may run, and if it ever does it is as good as accepted
    STOPPED = "stopped"  # a stop was confirmed
    NOTIFIED = "notified"  # a notification was accepted; count: its number
    STOPPING = "stopping"  # a stop was not confirmed in time: the job stays marked, and may not start any more
    # Said by the job itself.
    STARTED = "started"  # count: of the checkpoint that it found
    ENDED = "ended"  # how: returned, crashed, stop, handover, shutdown, fenced
    SAVED = "saved"  # a checkpoint was accepted; count: what is in it
    SAVE_REFUSED = "save refused"
    WROTE = "wrote"  # an outside store, guarded by the fence, took a write; count: that store's own order
    WRITE_REFUSED = "write refused"
    NOTED = "noted"  # a notification came; count: its number
    # Tasks; ``lane``: tasks of one lane run one at a time.
    ENQUEUED = "enqueued"
    TASK_REFUSED = "task refused"
    TASK_STARTED = "task started"
    TASK_ENDED = "task ended"  # how: done, failed (it raised), cancelled
    # Said by the driver.
    DEAD = "dead"  # a dead letter, of a job (key and dispatch) or of a task (key)
    KILLED = "killed"  # the process was seen dead after a SIGKILL
    EXITED = "exited"  # the process has ended by itself; how: its exit code
    PAUSED = "paused"
    RESUMED = "resumed"
    FAULT = "fault"  # how: which
    SETTLED = "settled"  # the faults are over and everything should be in its place


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened at ``at_s`` in ``process``. ``key``: a job's key or a task's id."""

    at_s: float
    process: str
    what: What
    key: str = ""
    fence: int = 0
    worker: str = ""
    dispatch: int = 0
    how: str = ""
    count: int = 0
    lane: str = ""
    since_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One run of a job or task, from its first statement to its last. ``end_s`` infinite: no end is known."""

    key: str
    fence: int
    process: str
    worker: str
    dispatch: int
    lane: str
    start_s: float
    end_s: float = math.inf
    how: str = ""


@dataclass(frozen=True, slots=True)
class Violation:
    """``rule`` was broken by ``key``; ``facts`` are for people."""

    rule: str
    key: str
    facts: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.key}: {self.facts}"


def encode(event: Event) -> bytes:
    """One line, without what is empty."""
    fields = {name: value for name, value in asdict(event).items() if value or name == "at_s"}
    return json.dumps(fields).encode() + b"\n"


def decode(data: bytes) -> list[Event]:
    """The events of one file. A last line without its end was being written when its process was killed: left out."""
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [Event(**{**fields, "what": What(fields["what"])}) for fields in map(json.loads, lines)]


_OPENS = {What.STARTED: What.ENDED, What.TASK_STARTED: What.TASK_ENDED}


@final
class History:
    """All events in the order of their times, and what follows from them.

    ``grace_s``: how long an owner that was told that it is none, or that was resumed after a pause, may need to end.
    """

    def __init__(self, events: Iterable[Event], *, grace_s: float = 2.0) -> None:
        self.events = sorted(events, key=lambda event: event.at_s)
        self.grace_s = grace_s

    def of(self, *whats: What) -> Iterator[Event]:
        """The events of these kinds, in order."""
        return (event for event in self.events if event.what in whats)

    @cached_property
    def jobs(self) -> dict[str, list[Span]]:
        """The runs of each key, by their start."""
        return self._spans(What.STARTED)

    @cached_property
    def tasks(self) -> dict[str, list[Span]]:
        """The runs of each task id, by their start."""
        return self._spans(What.TASK_STARTED)

    @cached_property
    def pauses(self) -> dict[str, list[tuple[float, float]]]:
        """From when to when each process stood still."""
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for event in self.of(What.PAUSED, What.RESUMED):
            pauses = found[event.process]
            if event.what is What.PAUSED:
                pauses.append((event.at_s, math.inf))
            else:  # a blocked loop may be paused, too: the latest that is open
                latest = max(i for i, (_, end_s) in enumerate(pauses) if end_s == math.inf)
                pauses[latest] = (pauses[latest][0], event.at_s)
        return found

    def stale_until_s(self, process: str, at_s: float) -> float | None:
        """If ``process`` stood still at ``at_s`` or has just come back: until when it may not know what it missed."""
        ends_s = [
            resumed_s + self.grace_s
            for paused_s, resumed_s in self.pauses.get(process, ())
            if paused_s <= at_s <= resumed_s + self.grace_s
        ]
        return max(ends_s, default=None)

    def excuses(self, older: Span, since_s: float) -> bool:
        """Whether ``older`` may still have been running at ``since_s``, when it no longer owned its key."""
        stale_s = self.stale_until_s(older.process, since_s)
        if stale_s is not None and (older.end_s <= stale_s or older.how == "killed"):
            return True
        return older.how in ("fenced", "cancelled") and older.end_s <= since_s + self.grace_s

    def _spans(self, opening: What) -> dict[str, list[Span]]:
        spans: list[Span] = []
        running: dict[tuple[str, str, int], list[int]] = defaultdict(list)
        killed_s: dict[str, float] = {}
        for event in self.of(opening, _OPENS[opening], What.KILLED, What.EXITED):
            if event.what in (What.KILLED, What.EXITED):
                killed_s[event.process] = event.at_s
            elif event.what is opening:
                running[event.process, event.key, event.fence].append(len(spans))
                spans.append(_opened(event))
            elif indices := running[event.process, event.key, event.fence]:
                index = indices.pop(0)
                spans[index] = replace(spans[index], end_s=event.at_s, how=event.how)
        by_key: dict[str, list[Span]] = defaultdict(list)
        for span in spans:
            died_s = killed_s.get(span.process, math.inf) if span.end_s == math.inf else math.inf
            by_key[span.key].append(span if died_s == math.inf else replace(span, end_s=died_s, how="killed"))
        return by_key


def _opened(event: Event) -> Span:
    return Span(
        key=event.key,
        fence=event.fence,
        process=event.process,
        worker=event.worker,
        dispatch=event.dispatch,
        lane=event.lane,
        start_s=event.at_s,
    )


# --- the rules -------------------------------------------------------------------------------------------------------


def _one_owner_of_a_fence(history: History) -> Iterator[tuple[str, str]]:
    for key, spans in history.jobs.items():
        by_fence: dict[int, list[Span]] = defaultdict(list)
        for span in spans:
            by_fence[span.fence].append(span)
        for fence, runs in by_fence.items():
            for first, second in combinations(runs, 2):
                if first.worker != second.worker or second.start_s < first.end_s:
                    facts = f"fence {fence} started by {first.worker} and by {second.worker}"
                    yield (key, facts)


def _fences_grow(history: History) -> Iterator[tuple[str, str]]:
    for key, spans in history.jobs.items():
        highest = 0
        for span in spans:
            late = span.fence < highest
            if late and not _was_late(history, span, span.start_s):
                yield (key, f"{span.fence} by {span.worker} started after {highest}")
            highest = max(highest, span.fence)


def _was_late(history: History, span: Span, since_s: float) -> bool:
    """A process that stood still between its claim and the first statement: it may begin, and must end at once."""
    stale_s = history.stale_until_s(span.process, since_s)
    return stale_s is not None and (span.end_s <= stale_s or span.how == "killed")


def _owners_do_not_overlap(history: History) -> Iterator[tuple[str, str]]:
    for key, spans in history.jobs.items():
        for older, newer in overlaps(spans):
            if older.fence != newer.fence and not history.excuses(older, newer.start_s):
                yield (key, _overlap(older, newer))


def _tasks_do_not_overlap(history: History) -> Iterator[tuple[str, str]]:
    for key, spans in history.tasks.items():
        for older, newer in overlaps(spans):
            if not history.excuses(older, newer.start_s):
                yield (key, _overlap(older, newer))


def _lanes_run_one_at_a_time(history: History) -> Iterator[tuple[str, str]]:
    for lane, spans in _lanes(history).items():
        for older, newer in overlaps(spans):
            if not history.excuses(older, newer.start_s):
                yield (lane, _overlap(older, newer))


def _lanes_keep_their_order(history: History) -> Iterator[tuple[str, str]]:
    """A task of a lane runs (and is tried again) before the next one begins."""
    places = {event.key: place for place, event in enumerate(history.of(What.ENQUEUED))}
    for lane, spans in _lanes(history).items():
        furthest = spans[0]
        for span in spans:
            if places.get(span.key, 0) >= places.get(furthest.key, 0):
                furthest = span
            elif not _was_late(history, span, span.start_s):
                yield (
                    lane,
                    f"{span.key} ran on {span.worker} after {furthest.key} had begun, which was enqueued later",
                )


def _lanes(history: History) -> dict[str, list[Span]]:
    """The runs of each lane, by their start."""
    lanes: dict[str, list[Span]] = defaultdict(list)
    for spans in history.tasks.values():
        for span in spans:
            if span.lane:
                lanes[span.lane].append(span)
    return {lane: sorted(spans, key=lambda span: span.start_s) for lane, spans in lanes.items()}


def overlaps(spans: Sequence[Span]) -> Iterator[tuple[Span, Span]]:
    """Pairs that ran at the same time, the one that lost its right first. ``spans`` by their start."""
    running: list[Span] = []
    for span in spans:
        running = [one for one in running if one.end_s > span.start_s]
        for other in running:
            yield (other, span) if other.fence <= span.fence else (span, other)
        running.append(span)


def _overlap(older: Span, newer: Span) -> str:
    return (
        f"{newer.worker or newer.process} (fence {newer.fence}) started at {newer.start_s:.3f}, while "
        f"{older.worker or older.process} (fence {older.fence}) ran until {older.end_s:.3f} ({older.how or 'no end'})"
    )


def _nothing_of_an_older_owner_is_accepted(history: History) -> Iterator[tuple[str, str]]:
    for event in history.of(What.SAVED):
        for span in history.jobs.get(event.key, ()):
            if span.fence > event.fence and span.start_s < event.since_s:
                facts = f"a checkpoint of fence {event.fence} was accepted after {span.fence} had started"
                yield (event.key, facts)
                break


def _guarded_effects_never_go_back(history: History) -> Iterator[tuple[str, str]]:
    highest: dict[str, int] = defaultdict(int)
    for event in sorted(history.of(What.WROTE), key=lambda event: event.count):
        if event.fence < highest[event.key]:
            facts = f"a write of fence {event.fence} follows one of {highest[event.key]}"
            yield (event.key, facts)
        highest[event.key] = max(highest[event.key], event.fence)


def _the_owner_is_not_refused(history: History) -> Iterator[tuple[str, str]]:
    """Who is refused has a successor, or was stopped while it could not know."""
    gone = {(event.key, event.dispatch) for event in history.of(What.STOPPED, What.STOPPING, What.DEAD)}
    for event in history.of(What.SAVE_REFUSED, What.WRITE_REFUSED):
        spans = history.jobs.get(event.key, ())
        newest = max((span.fence for span in spans), default=0)
        if event.fence >= newest and (event.key, event.dispatch) not in gone:
            yield (event.key, f"{event.what} though {event.fence} is the newest")


def _accepted_checkpoints_are_found(history: History) -> Iterator[tuple[str, str]]:
    saved: dict[tuple[str, int], int] = defaultdict(int)
    for event in history.of(What.SAVED, What.STARTED):
        run = (event.key, event.dispatch)
        if event.what is What.SAVED:
            saved[run] = max(saved[run], event.count)
        elif event.count < saved[run] and history.stale_until_s(event.process, event.at_s) is None:
            facts = f"fence {event.fence} found checkpoint {event.count}, accepted was {saved[run]}"
            yield (event.key, facts)


def _refused_never_runs(history: History) -> Iterator[tuple[str, str]]:
    refused = {(event.key, event.dispatch): event for event in history.of(What.REFUSED)}
    for key, spans in history.jobs.items():
        for span in spans:
            # StartFailed refuses what has begun: only what begins after the answer is wrong.
            if (no := refused.get((key, span.dispatch))) and span.start_s > no.at_s:
                yield (key, f"dispatch {span.dispatch}: {no.how}, started by {span.worker}")
    for event in history.of(What.TASK_REFUSED):
        if event.key in history.tasks:
            yield (event.key, f"task: {event.how}, and it ran")


def _stop_really_stops(history: History) -> Iterator[tuple[str, str]]:
    for event in history.of(What.STOPPED, What.STOPPING):
        for span in history.jobs.get(event.key, ()):
            if span.dispatch != event.dispatch:
                continue
            if span.start_s > event.at_s and not _was_late(history, span, span.start_s):
                yield (event.key, f"{event.what}, then started by {span.worker}")
            running = span.start_s <= event.at_s < span.end_s
            if event.what is What.STOPPED and running and not history.excuses(span, event.at_s):
                yield (event.key, f"confirmed while it ran on {span.worker}")


def _no_job_is_lost(history: History) -> Iterator[tuple[str, str]]:
    settled_s = _settled_s(history)
    over = {(event.key, event.dispatch) for event in history.of(What.STOPPED, What.STOPPING, What.DEAD)}
    accepted = [event for event in history.of(What.DISPATCHED) if event.at_s <= settled_s]
    unknown = [event for event in history.of(What.UNKNOWN) if event.at_s <= settled_s]
    for event in [*accepted, *unknown]:
        runs = [span for span in history.jobs.get(event.key, ()) if span.dispatch == event.dispatch]
        if not runs:
            if event.what is What.DISPATCHED:
                yield (event.key, f"dispatch {event.dispatch} was accepted, it never started")
        elif not ((event.key, event.dispatch) in over or any(_is_right_end(span, settled_s) for span in runs)):
            last = max(runs, key=lambda span: span.fence)
            facts = f"dispatch {event.dispatch} last ran on {last.worker} (fence {last.fence}) until {last.end_s:.3f}"
            yield (event.key, f"{facts} ({last.how})")


def _is_right_end(span: Span, settled_s: float) -> bool:
    return span.how == "returned" or span.start_s <= settled_s < span.end_s


def _accepted_notifications_arrive(history: History) -> Iterator[tuple[str, str]]:
    """Also after a move; not if the job has ended before it looked."""
    over = {(event.key, event.dispatch) for event in history.of(What.STOPPED, What.STOPPING, What.DEAD)}
    over |= {(key, span.dispatch) for key, spans in history.jobs.items() for span in spans if span.how == "returned"}
    arrived = {(event.key, event.dispatch, event.count) for event in history.of(What.NOTED)}
    for event in history.of(What.NOTIFIED):
        run = (event.key, event.dispatch)
        if run not in over and (*run, event.count) not in arrived:
            yield (event.key, f"notification {event.count} for dispatch {event.dispatch} never came")


def _no_task_is_lost(history: History) -> Iterator[tuple[str, str]]:
    dead = {event.key for event in history.of(What.DEAD)}
    for event in history.of(What.ENQUEUED):
        runs = history.tasks.get(event.key, ())
        if event.key not in dead and not any(span.how == "done" for span in runs):
            ends = ", ".join(f"{span.worker} {span.how or 'no end'}" for span in runs) or "it never ran"
            yield (event.key, ends)


def _settled_s(history: History) -> float:
    """When everything should be in its place: at the last such mark, else at the end of what is known."""
    marks = [event.at_s for event in history.of(What.SETTLED)]
    return marks[-1] if marks else history.events[-1].at_s if history.events else 0.0


RULES: Final[dict[str, Callable[[History], Iterator[tuple[str, str]]]]] = {
    "one owner of a fence": _one_owner_of_a_fence,
    "fences of a key grow": _fences_grow,
    "owners of a key do not overlap": _owners_do_not_overlap,
    "runs of a task do not overlap": _tasks_do_not_overlap,
    "a lane runs one task at a time": _lanes_run_one_at_a_time,
    "a lane keeps its order": _lanes_keep_their_order,
    "nothing of an older owner is accepted": _nothing_of_an_older_owner_is_accepted,
    "guarded effects never go back": _guarded_effects_never_go_back,
    "the owner is not refused": _the_owner_is_not_refused,
    "accepted checkpoints are found": _accepted_checkpoints_are_found,
    "refused never runs": _refused_never_runs,
    "stop really stops": _stop_really_stops,
    "no job is lost": _no_job_is_lost,
    "accepted notifications arrive": _accepted_notifications_arrive,
    "no task is lost": _no_task_is_lost,
}
"""Each gives the keys that break it, with the facts."""


def violations(history: History) -> list[Violation]:
    """Everything that should not have happened."""
    return [Violation(name, key, facts) for name, rule in RULES.items() for key, facts in rule(history)]
