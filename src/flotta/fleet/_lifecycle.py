"""The order of start and stop.

Invariants: what started last stops first; a start that fails, or is cancelled, stops what it had started before it
raises; every step has a bound; a part that fails to stop never keeps the parts below it from stopping. States change
only along `_MOVES`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from flotta.errors import StartTimeout, StateError, StopTimeout

__all__ = ["FleetState", "Hook", "Step", "Steps", "check_move", "name_of", "raise_all", "start_hook", "stop_hook"]

Hook = Callable[[], Awaitable[object] | object]
"""A function of the service without arguments, plain or ``async``."""

CLOSE_SECONDS_MIN: Final = 0.1
"""What a part gets to stop although the deadline has passed: enough to close its sockets."""


class FleetState(Enum):
    """Where a fleet is in its life."""

    NEW = "new"
    """Made, never started."""
    STARTING = "starting"
    STARTED = "started"
    """Every part is up, the schema is ready."""
    DRAINING = "draining"
    """Takes no new work; requests and realtime clients end."""
    STOPPING = "stopping"
    """Background tasks, hooks and connections end."""
    STOPPED = "stopped"
    """Nothing is left open. It may start again."""


_MOVES: Final[dict[FleetState, frozenset[FleetState]]] = {
    FleetState.NEW: frozenset({FleetState.STARTING}),
    FleetState.STARTING: frozenset({FleetState.STARTED, FleetState.STOPPING}),
    FleetState.STARTED: frozenset({FleetState.DRAINING}),
    FleetState.DRAINING: frozenset({FleetState.STOPPING}),
    FleetState.STOPPING: frozenset({FleetState.STOPPED}),
    FleetState.STOPPED: frozenset({FleetState.STARTING}),
}


def check_move(old: FleetState, new: FleetState) -> FleetState:
    """``new``, if it may follow ``old``."""
    if new not in _MOVES[old]:
        raise StateError("fleet", f"a fleet that is {old.value} cannot become {new.value}")
    return new


@dataclass(frozen=True, slots=True)
class Step:
    """One part: how it starts and how it stops. ``stop`` gets the seconds that it has."""

    name: str
    start: Callable[[], Awaitable[object]] | None
    stop: Callable[[float], Awaitable[object]] | None
    bounded: bool = True
    """False where the part bounds its own start (migrations wait for another instance)."""
    time_limit: Callable[[float], float] | None = None
    """Narrows the seconds that ``stop`` gets; None: all that are left."""
    lasting: Callable[[], str] | None = None
    """What of the part has not ended, in words; None: it is one thing."""


def start_hook(fn: Hook) -> Step:
    return Step(f"on_start {name_of(fn)}", lambda: _call(fn), None)


def stop_hook(fn: Hook) -> Step:
    return Step(f"on_stop {name_of(fn)}", None, lambda _left_s: _call(fn))


def name_of(fn: Hook) -> str:
    return str(getattr(fn, "__qualname__", repr(fn)))


async def _call(fn: Hook) -> None:
    result = fn()
    if inspect.isawaitable(result):
        await result


class Steps:
    """What has started, in order."""

    def __init__(self) -> None:
        self._started: list[Step] = []

    async def start(self, step: Step, timeout_s: float) -> None:
        """Starts ``step`` and remembers it. A step that fails while it starts is stopped too: it may hold a socket.

        Raises `StartTimeout`, or what the step raises, with the step's name as a note.
        """
        self._started.append(step)
        if step.start is None:
            return
        expired = asyncio.timeout(timeout_s if step.bounded else None)
        try:
            async with expired:
                await step.start()
        except TimeoutError as error:
            if expired.expired():
                raise StartTimeout(step.name, timeout_s) from error
            raise
        except Exception as error:
            error.add_note(f"while the fleet started: {step.name}")
            raise

    async def stop(self, deadline: float) -> list[Exception]:
        """Stops everything, the last first. ``deadline`` is in the loop's time. Returns what went wrong."""
        errors: list[Exception] = []
        while self._started:
            step = self._started.pop()
            if step.stop is not None and (error := await _stop_one(step, step.stop, deadline)) is not None:
                errors.append(error)
        return errors


async def _stop_one(step: Step, stop: Callable[[float], Awaitable[object]], deadline: float) -> Exception | None:
    left_s = max(deadline - asyncio.get_running_loop().time(), CLOSE_SECONDS_MIN)
    if step.time_limit is not None:
        left_s = max(step.time_limit(left_s), CLOSE_SECONDS_MIN)
    expired = asyncio.timeout(left_s)
    try:
        async with expired:
            await stop(left_s)
    except TimeoutError as error:
        part = step.name if step.lasting is None else f"{step.name} {step.lasting()}"
        return StopTimeout(part, left_s) if expired.expired() else error
    except Exception as error:  # noqa: BLE001 - collected: the parts below must stop all the same
        error.add_note(f"while the fleet stopped: {step.name}")
        return error
    return None


def raise_all(errors: list[Exception]) -> None:
    """Raises what went wrong while the fleet stopped; nothing if nothing did."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("the fleet did not stop cleanly", errors)
