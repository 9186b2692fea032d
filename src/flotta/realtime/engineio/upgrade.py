"""The way of a session from polling to WebSocket, as a machine over what the new transport receives.

WAITING -> ``2probe`` -> PROBED -> ``5`` -> DONE; anything else, or a time that is over, ends in FAILED and leaves the
session on polling, as if nothing had been tried.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import final

from flotta.realtime.engineio.packet import PacketType

__all__ = ["Step", "Upgrading"]

PROBE = PacketType.PING.value + "probe"
ANSWER = PacketType.PONG.value + "probe"


class Step(Enum):
    """What to do next."""

    ANSWER = auto()
    """Send ``3probe`` on the new transport, and free the pending poll with a noop."""
    SWITCH = auto()
    """The new transport is the session's from now on."""
    FAIL = auto()
    """Close the new transport."""
    NOTHING = auto()


class _State(Enum):
    WAITING = auto()
    PROBED = auto()
    DONE = auto()
    FAILED = auto()


_TABLE: dict[tuple[_State, str | bytes], tuple[_State, Step]] = {
    (_State.WAITING, PROBE): (_State.PROBED, Step.ANSWER),
    (_State.PROBED, PacketType.UPGRADE.value): (_State.DONE, Step.SWITCH),
}


@final
class Upgrading:
    """The machine of one attempt."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = _State.WAITING

    @property
    def over(self) -> bool:
        """Done or failed."""
        return self._state in {_State.DONE, _State.FAILED}

    def on_received(self, data: str | bytes) -> Step:
        """A message came in on the new transport."""
        if self.over:
            return Step.NOTHING
        self._state, step = _TABLE.get((self._state, data), (_State.FAILED, Step.FAIL))
        return step

    def on_given_up(self) -> Step:
        """The time is over, the new transport is lost, or the session has ended."""
        if self.over:
            return Step.NOTHING
        self._state = _State.FAILED
        return Step.FAIL
