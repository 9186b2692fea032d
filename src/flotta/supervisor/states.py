"""The states of one place for a process, the table of how they follow each other, and the numbers of the policy. Pure.

Invariant: a slot changes its state by a row of `TABLE` only; a pair that is not there is our bug and raises KeyError.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import final

__all__ = ["TABLE", "Limits", "Slot", "State", "Trigger"]


class State(Enum):
    """Where one slot is. Only STARTING, READY, RESTARTING and STOPPING have a process."""

    PENDING = "pending"
    """Not started: it waits for the pathfinder, or (a companion) for all instances."""
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "back-off"
    """It crashed and is started again at ``Slot.due_at_s``."""
    HELD = "held"
    """It crashed; only a changed file starts it again."""
    RESTARTING = "restarting"
    """Told to end so that a new process with the changed files can take its place."""
    STOPPING = "stopping"
    GONE = "gone"


class Trigger(Enum):
    """What moves a slot from one state to another."""

    SPAWN = "spawn"
    READY = "ready"
    RETRY = "retry"
    HOLD = "hold"
    RESTART = "restart"
    EMPTIED = "emptied"
    FINISH = "finish"
    STOP = "stop"


TABLE: dict[tuple[State, Trigger], State] = {
    (State.PENDING, Trigger.SPAWN): State.STARTING,
    (State.PENDING, Trigger.STOP): State.GONE,
    (State.STARTING, Trigger.READY): State.READY,
    (State.STARTING, Trigger.RETRY): State.BACKOFF,
    (State.STARTING, Trigger.HOLD): State.HELD,
    (State.STARTING, Trigger.RESTART): State.RESTARTING,
    (State.STARTING, Trigger.FINISH): State.GONE,
    (State.STARTING, Trigger.STOP): State.STOPPING,
    (State.READY, Trigger.RETRY): State.BACKOFF,
    (State.READY, Trigger.HOLD): State.HELD,
    (State.READY, Trigger.RESTART): State.RESTARTING,
    (State.READY, Trigger.FINISH): State.GONE,
    (State.READY, Trigger.STOP): State.STOPPING,
    (State.BACKOFF, Trigger.SPAWN): State.STARTING,
    (State.BACKOFF, Trigger.EMPTIED): State.PENDING,
    (State.BACKOFF, Trigger.STOP): State.GONE,
    (State.HELD, Trigger.EMPTIED): State.PENDING,
    (State.HELD, Trigger.STOP): State.GONE,
    (State.RESTARTING, Trigger.READY): State.RESTARTING,  # it became ready while the order to end was on its way
    (State.RESTARTING, Trigger.EMPTIED): State.PENDING,
    (State.RESTARTING, Trigger.STOP): State.STOPPING,
    (State.STOPPING, Trigger.READY): State.STOPPING,
    (State.STOPPING, Trigger.FINISH): State.GONE,
}
_WITH_PROCESS = frozenset({State.STARTING, State.READY, State.RESTARTING, State.STOPPING})


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The numbers of the policy. Times in seconds."""

    quick_crashes_max: int = 5
    settle_s: float = 5.0
    """An instance that stays ready this long has settled: its crashes before are forgotten."""
    backoff_min_s: float = 0.2
    backoff_max_s: float = 30.0
    drain_s: float = 25.0
    companion_stop_s: float = 3.0
    """What companions get to end before they are killed; instances are stopped after them."""
    stop_margin_s: float = 5.0
    """What is added to ``drain_s`` before everything that still runs is killed."""
    hold: bool = False
    """Hold a slot that cannot start until a file changes, instead of giving up. For ``--reload``."""

    def __post_init__(self) -> None:
        if self.quick_crashes_max < 1 or min(self.settle_s, self.drain_s, self.companion_stop_s) < 0:
            raise ValueError("limits: at least one quick crash, no negative time")
        if not 0 < self.backoff_min_s <= self.backoff_max_s:
            raise ValueError("limits: 0 < backoff_min_s <= backoff_max_s")

    @property
    def stop_s(self) -> float:
        """From the order to stop until everything is killed: companions and drain fit into it."""
        return self.drain_s + self.stop_margin_s


@final
@dataclass(slots=True)
class Slot:
    """One place for a process. Belongs to the plan: read it, never write it."""

    number: int
    companion: bool = False
    state: State = State.PENDING
    spawned_at_s: float = 0.0
    ready_at_s: float | None = None
    """When its present process became ready."""
    due_at_s: float | None = None
    """In BACKOFF: when it is started again."""
    failures: int = 0
    """Quick crashes since it last settled."""
    restarts: int = 0

    @property
    def has_process(self) -> bool:
        return self.state in _WITH_PROCESS

    def move(self, trigger: Trigger) -> None:
        self.state = TABLE[self.state, trigger]
