"""What the supervisor does next: who is spawned, ended, killed, and when everything stops.

Pure: a machine ``on_event(event, now_s) -> actions``. It never waits, reads no clock and starts no process; the shell
(:mod:`flotta.supervisor.shell`) carries out its actions and tells it what came of them.

Invariants

* A slot is in exactly one state; every change is a row of the table in :mod:`flotta.supervisor.states`, any other pair
  is our bug and raises.
* A slot has at most one process: ``Spawn`` is only asked for from a state without one.
* While no instance is ready only one instance is started (the *pathfinder*), so that an application that cannot start
  says so once, not once for each instance.
* After :class:`Stop` or :class:`GiveUp` no ``Spawn`` is asked for, and by ``stop_s`` every process has been killed.
* :class:`End` is asked for once, when no slot has a process.

Rules: a *quick crash* is an exit before ready or within ``settle_s`` of it. ``quick_crashes_max`` of them, with no
instance settling in between, end the service (or, where files are watched, hold it until one changes). The back-off of
a slot doubles with each of its quick crashes and starts anew once it has settled. A companion (a process beside the
instances) starts when all instances are ready, never ends the service, and is stopped first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import final

from flotta.supervisor.states import Limits, Slot, State, Trigger

__all__ = [
    "Action",
    "Announce",
    "Begin",
    "Changed",
    "Due",
    "End",
    "Event",
    "Exited",
    "GiveUp",
    "Hold",
    "Kill",
    "Phase",
    "Plan",
    "Ready",
    "Retry",
    "Spawn",
    "Stop",
    "Terminate",
]


class Phase(Enum):
    """Where the whole service is."""

    RUNNING = "running"
    STOPPING = "stopping"
    KILLING = "killing"
    ENDED = "ended"


# --- Events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Start everything. Once, first."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The process of ``slot`` serves."""

    slot: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The process of ``slot`` has ended with ``code`` (negative: by that signal). ``hopeless``: it says itself that
    another try would end the same way (the application cannot be imported)."""

    slot: int
    code: int
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """Time has passed: ``Plan.due_at_s`` is reached."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The operator asks to stop. The second time it is an order to kill."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Watched files have changed: run the new ones."""


Event = Begin | Ready | Exited | Due | Stop | Changed


# --- Actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    slot: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask the process to end (SIGTERM)."""

    slot: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process and everything it started (SIGKILL)."""

    slot: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Tell the operator: ``slot`` crashed and comes back in ``delay_s``."""

    slot: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Tell the operator: ``slot`` waits for a changed file."""

    slot: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the operator: all instances are ready (for the first time)."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell the operator: the service ends because ``slot`` crashed. ``crashes`` in a row."""

    slot: int
    crashes: int


@dataclass(frozen=True, slots=True)
class End:
    """No process is left: leave with ``code``."""

    code: int


Action = Spawn | Terminate | Kill | Retry | Hold | Announce | GiveUp | End


# --- The machine -----------------------------------------------------------------------------------------------------


@final
class Plan:
    """The policy for ``instances`` slots (numbered from 0) followed by ``companions`` slots.

    ``on_event`` returns the actions in the order in which they must be carried out. After each call arm a timer for
    :attr:`due_at_s` and send :class:`Due` then; an early or repeated ``Due`` does no harm. ``now_s`` never goes back.
    """

    def __init__(self, limits: Limits, *, instances: int, companions: int = 0) -> None:
        if instances < 1 or companions < 0:
            raise ValueError("at least one instance, no negative number of companions")
        self.limits = limits
        self.slots = [Slot(number) for number in range(instances)]
        self.slots += [Slot(instances + number, companion=True) for number in range(companions)]
        self.phase = Phase.RUNNING
        self.announced = False
        self.stop_at_s: float | None = None
        """Once stopping: when everything is killed."""
        self._quick_crashes = 0
        self._last_crash_at_s = float("-inf")
        self._companions_until_s: float | None = None
        self._code = 0

    @property
    def instances(self) -> list[Slot]:
        return [slot for slot in self.slots if not slot.companion]

    @property
    def companions(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.companion]

    @property
    def due_at_s(self) -> float | None:
        """When the machine wants to hear :class:`Due` next; None: not before another event."""
        times: list[float | None] = [slot.due_at_s for slot in self.slots if slot.state is State.BACKOFF]
        if self.phase is Phase.STOPPING:
            times += [self.stop_at_s, self._companions_until_s]
        return min((at_s for at_s in times if at_s is not None), default=None)

    def on_event(self, event: Event, now_s: float) -> list[Action]:
        """What to do about ``event`` at ``now_s``. Raises KeyError if the shell reports what cannot happen."""
        return self._decide(event, now_s) + self._end_if_empty()

    def _decide(self, event: Event, now_s: float) -> list[Action]:
        match event:
            case Begin():
                return self._spawn_pending(now_s)
            case Ready(number):
                return self._on_ready(self.slots[number], now_s)
            case Exited():
                return self._on_exited(event, now_s)
            case Due():
                return self._on_due(now_s)
            case Stop():
                return self._on_stop(now_s)
            case Changed():
                return self._on_changed(now_s)

    # -- running --

    def _spawn(self, slots: Iterable[Slot], now_s: float) -> list[Action]:
        actions: list[Action] = []
        for slot in slots:
            slot.move(Trigger.SPAWN)
            slot.spawned_at_s, slot.ready_at_s, slot.due_at_s = now_s, None, None
            actions.append(Spawn(slot.number))
        return actions

    def _spawn_pending(self, now_s: float) -> list[Action]:
        """All that wait if some instance proves that the application starts, else one of them to find out."""
        instances = self.instances
        pending = [slot for slot in instances if slot.state is State.PENDING]
        if any(slot.state is State.READY for slot in instances):
            return self._spawn(pending, now_s)
        if any(slot.state in (State.STARTING, State.BACKOFF) for slot in instances):
            return []
        return self._spawn(pending[:1], now_s)

    def _on_ready(self, slot: Slot, now_s: float) -> list[Action]:
        slot.move(Trigger.READY)
        if slot.state is not State.READY:
            return []
        slot.ready_at_s = now_s
        if slot.companion or self.phase is not Phase.RUNNING:
            return []
        actions = self._spawn_pending(now_s)
        if all(other.state is State.READY for other in self.instances):
            if not self.announced:
                self.announced = True
                actions.append(Announce())
            actions += self._spawn((other for other in self.companions if other.state is State.PENDING), now_s)
        return actions

    def _on_exited(self, event: Exited, now_s: float) -> list[Action]:
        slot = self.slots[event.slot]
        if self.phase is not Phase.RUNNING and slot.state is not State.STOPPING:
            slot.move(Trigger.STOP)  # its turn to stop had not come yet
        match slot.state:
            case State.STOPPING:
                slot.move(Trigger.FINISH)
                if event.code > 0 and not slot.companion:
                    self._code = 1  # it had to cut its own drain short
                return self._stop_instances()
            case State.RESTARTING:
                slot.move(Trigger.EMPTIED)
                slot.restarts += 1
                return self._spawn_pending(now_s)
            case _ if slot.companion and event.code == 0:
                slot.move(Trigger.FINISH)
                return []
            case _:
                return self._on_crash(slot, now_s, hopeless=event.hopeless)

    def _on_crash(self, slot: Slot, now_s: float, *, hopeless: bool) -> list[Action]:
        settled = slot.ready_at_s is not None and now_s - slot.ready_at_s >= self.limits.settle_s
        slot.failures = 1 if settled else slot.failures + 1
        if not slot.companion:
            self._count(now_s, quick=not settled)
            hopeless = hopeless and (self.limits.hold or not self.announced)
            if hopeless or self._quick_crashes >= self.limits.quick_crashes_max:
                return self._give_up(slot, now_s)
        delay_s = min(self.limits.backoff_min_s * 2 ** min(slot.failures - 1, 30), self.limits.backoff_max_s)
        slot.move(Trigger.RETRY)
        slot.due_at_s = now_s + delay_s
        return [Retry(slot.number, delay_s)]

    def _count(self, now_s: float, *, quick: bool) -> None:
        """Keep the number of quick crashes in a row: any instance that settled since the last one ends the row."""
        settle_s, last_s = self.limits.settle_s, self._last_crash_at_s
        settled = any(
            slot.ready_at_s is not None and last_s < slot.ready_at_s + settle_s <= now_s for slot in self.instances
        )
        self._quick_crashes = (0 if settled else self._quick_crashes) + quick
        self._last_crash_at_s = now_s

    def _give_up(self, slot: Slot, now_s: float) -> list[Action]:
        crashes, self._quick_crashes = self._quick_crashes, 0
        if self.limits.hold:
            slot.move(Trigger.HOLD)
            return [Hold(slot.number)]
        slot.move(Trigger.RETRY)  # it has no process; stopping empties the slot
        self._code = 1
        return [GiveUp(slot.number, crashes), *self._begin_stop(now_s)]

    def _on_changed(self, now_s: float) -> list[Action]:
        if self.phase is not Phase.RUNNING:
            return []
        actions: list[Action] = []
        self._quick_crashes = 0
        for slot in self.instances:
            slot.failures = 0
            if slot.state in (State.STARTING, State.READY):
                slot.move(Trigger.RESTART)
                actions.append(Terminate(slot.number))
            elif slot.state in (State.BACKOFF, State.HELD):
                slot.move(Trigger.EMPTIED)
        return actions + self._spawn_pending(now_s)

    def _on_due(self, now_s: float) -> list[Action]:
        if self.phase is Phase.RUNNING:
            late = [slot for slot in self.slots if slot.state is State.BACKOFF and _reached(slot.due_at_s, now_s)]
            for slot in late:
                slot.restarts += 1
            return self._spawn(late, now_s)
        if self.phase is not Phase.STOPPING:
            return []
        if _reached(self.stop_at_s, now_s):
            return self._kill_all()
        if _reached(self._companions_until_s, now_s):
            self._companions_until_s = None
            return [Kill(slot.number) for slot in self.companions if slot.has_process]
        return []

    # -- stopping --

    def _on_stop(self, now_s: float) -> list[Action]:
        match self.phase:
            case Phase.RUNNING:
                return self._begin_stop(now_s)
            case Phase.STOPPING:
                return self._kill_all()
            case _:
                return []

    def _begin_stop(self, now_s: float) -> list[Action]:
        self.phase = Phase.STOPPING
        self.stop_at_s = now_s + self.limits.stop_s
        self._companions_until_s = now_s + self.limits.companion_stop_s
        actions: list[Action] = []
        for slot in self.slots:
            if slot.companion or not slot.has_process:
                actions += self._stop_slot(slot)
        return actions + self._stop_instances()

    def _stop_slot(self, slot: Slot) -> list[Action]:
        if slot.state in (State.STOPPING, State.GONE):
            return []
        told = slot.state is State.RESTARTING  # it drains already; a second SIGTERM would force it
        slot.move(Trigger.STOP)
        return [Terminate(slot.number)] if slot.has_process and not told else []

    def _stop_instances(self) -> list[Action]:
        """Once the companions have ended: what they feed must not go on into instances that drain."""
        if any(slot.has_process for slot in self.companions):
            return []
        self._companions_until_s = None
        return [action for slot in self.instances for action in self._stop_slot(slot)]

    def _kill_all(self) -> list[Action]:
        self.phase = Phase.KILLING
        self._code = 1
        actions: list[Action] = []
        for slot in self.slots:
            if slot.state not in (State.STOPPING, State.GONE):
                slot.move(Trigger.STOP)
            if slot.has_process:
                actions.append(Kill(slot.number))
        return actions

    def _end_if_empty(self) -> list[Action]:
        stopping = self.phase in (Phase.STOPPING, Phase.KILLING)
        if not stopping or any(slot.state is not State.GONE for slot in self.slots):
            return []
        self.phase = Phase.ENDED
        return [End(self._code)]


def _reached(at_s: float | None, now_s: float) -> bool:
    return at_s is not None and now_s >= at_s
