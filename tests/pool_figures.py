"""What a run of a pool had in it, and what happened to one key of it: read from a history, for people. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from pool_history import Event, History, What, overlaps

__all__ = ["Figures", "figures", "story"]


@dataclass(kw_only=True)
class Figures:
    """What a run had in it: a check that had nothing to check proves nothing."""

    kills: int = 0
    pauses: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    jobs_accepted: int = 0
    jobs_refused: int = 0
    jobs_unknown: int = 0
    stops: int = 0
    job_runs: int = 0
    jobs_moved: int = 0
    job_overlaps: int = 0
    overlap_s_max: float = 0.0
    checkpoints: int = 0
    checkpoints_refused: int = 0
    writes: int = 0
    writes_refused: int = 0
    fenced: int = 0
    dead: int = 0
    tasks_accepted: int = 0
    task_runs: int = 0
    tasks_doubled: int = 0
    tasks_cancelled: int = 0

    def __str__(self) -> str:
        facts: dict[str, Any] = asdict(self)
        return ", ".join(
            f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
        )


_COUNTED = {
    What.KILLED: "kills",
    What.PAUSED: "pauses",
    What.DISPATCHED: "jobs_accepted",
    What.REFUSED: "jobs_refused",
    What.UNKNOWN: "jobs_unknown",
    What.STOPPED: "stops",
    What.SAVED: "checkpoints",
    What.SAVE_REFUSED: "checkpoints_refused",
    What.WROTE: "writes",
    What.WRITE_REFUSED: "writes_refused",
    What.DEAD: "dead",
    What.ENQUEUED: "tasks_accepted",
}


def figures(history: History) -> Figures:
    """How much of everything there was."""
    found = Figures()
    for event in history.events:
        if name := _COUNTED.get(event.what):
            setattr(found, name, getattr(found, name) + 1)
        if event.what is What.FAULT:
            found.faults[event.how] = found.faults.get(event.how, 0) + 1
    for spans in history.jobs.values():
        found.job_runs += len(spans)
        found.jobs_moved += sum(a.dispatch == b.dispatch and a.worker != b.worker for a, b in pairwise(spans))
        found.fenced += sum(span.how == "fenced" for span in spans)
        for older, newer in overlaps(spans):
            found.job_overlaps += 1
            found.overlap_s_max = max(found.overlap_s_max, min(older.end_s, newer.end_s) - newer.start_s)
    for spans in history.tasks.values():
        found.task_runs += len(spans)
        found.tasks_doubled += sum(span.how == "done" for span in spans) > 1
        found.tasks_cancelled += sum(span.how == "cancelled" for span in spans)
    return found


_OF_PROCESSES = (What.KILLED, What.EXITED, What.PAUSED, What.RESUMED, What.FAULT, What.SETTLED)


def story(history: History, key: str) -> str:
    """What happened to ``key`` (a job's, a task's id, or a lane), and to the processes that had it meanwhile."""
    own = [event for event in history.events if key in (event.key, event.lane)]
    if not own:
        return f"  nothing is known of {key!r}"
    whose = {event.process for event in own}
    first_s, last_s = own[0].at_s - 5.0, own[-1].at_s + 5.0
    told = [
        event
        for event in history.events
        if key in (event.key, event.lane)
        or (
            event.what in _OF_PROCESSES
            and first_s <= event.at_s <= last_s
            and (event.process in whose or event.what in (What.FAULT, What.SETTLED))
        )
    ]
    return "\n".join(_told(event) for event in _without_routine(told))


def _without_routine(events: list[Event]) -> list[Event]:
    """Of checkpoints and writes that follow each other in one run only the first and the last of each."""
    kept: list[Event] = []
    for at, event in enumerate(events):
        around = events[max(0, at - 2) : at] + events[at + 1 : at + 3]
        same = [other for other in around if (other.what, other.fence) == (event.what, event.fence)]
        if event.what not in (What.SAVED, What.WROTE) or len(same) < 2:
            kept.append(event)
    return kept


def _told(event: Event) -> str:
    rest = {
        name: value for name, value in asdict(event).items() if value and name not in ("at_s", "process", "what", "key")
    }
    return f"  {event.at_s:12.3f} {event.process:<10} {event.what:<14} " + " ".join(f"{k}={v}" for k, v in rest.items())
