"""The heartbeat of all clients: one task over queues of deadlines (see `Wheel`), not a timer per client."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Any, final

from flotta.realtime.engine.client import EngineClient, Reason
from flotta.realtime.engineio.wheel import Wheel

__all__ = ["Heartbeat"]

SWEEP_S_MAX = 1.0
STALL_S = 0.5
LATE_MAX = 3
"""Late sweeps in a row that judge nobody."""


@final
class Heartbeat:
    """Who is due when, and the task that looks."""

    def __init__(
        self,
        *,
        ping_interval_s: float,
        ping_timeout_s: float,
        connect_timeout_s: float | None,
        idle_s: float | None = None,
        logger: Any,
    ) -> None:
        self._resting: Wheel[EngineClient] = Wheel(ping_interval_s)
        self._pinged: Wheel[EngineClient] = Wheel(ping_timeout_s)
        self._joining: Wheel[EngineClient] = Wheel(math.inf if connect_timeout_s is None else connect_timeout_s)
        self._idle: Wheel[EngineClient] | None = None if idle_s is None else Wheel(idle_s)
        self._log = logger
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="realtime heartbeat")

    async def aclose(self) -> None:
        """Stop looking. Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    def now(self) -> float:
        """The loop's clock."""
        return asyncio.get_running_loop().time()

    # --- who is due ---

    def watch(self, client: EngineClient, now_s: float) -> None:
        """A client has come."""
        self._resting.put(client, now_s)
        self._joining.put(client, now_s)
        self.active(client, now_s)

    def active(self, client: EngineClient, now_s: float) -> None:
        """The client has sent something that counts against being idle."""
        if self._idle is not None:
            self._idle.put(client, now_s)

    def reschedule(self, client: EngineClient, now_s: float) -> None:
        """Put the client where its new deadline belongs."""
        self._resting.drop(client)
        self._pinged.drop(client)
        (self._pinged if client.pinged else self._resting).put(client, now_s)

    def joined(self, client: EngineClient) -> None:
        """The client is in a namespace, or about to be: it may stay."""
        self._joining.drop(client)

    def left_all(self, client: EngineClient, now_s: float) -> None:
        """The client is in no namespace: it may not stay for ever."""
        self._joining.put(client, now_s)

    def forget(self, client: EngineClient) -> None:
        """A client is gone."""
        for wheel in self._wheels():
            wheel.drop(client)

    def _wheels(self) -> tuple[Wheel[EngineClient], ...]:
        wheels = (self._resting, self._pinged, self._joining)
        return wheels if self._idle is None else (*wheels, self._idle)

    # --- the task ---

    async def _sweep(self) -> None:
        wheels = self._wheels()
        shortest_s = min(wheel.delay_s for wheel in wheels)
        least_s, most_s = shortest_s / 1_000, min(SWEEP_S_MAX, shortest_s)
        late = 0
        while True:
            before_s = self.now()
            due_in_s = min(wheel.next_due_s() for wheel in wheels) - before_s
            pause_s = min(max(due_in_s, least_s), most_s)
            await asyncio.sleep(pause_s)
            # If the loop stood still, pongs may lie unread in the sockets: nobody is judged before they are. A loop
            # that is late every time judges all the same, or the dead would stay.
            late = late + 1 if self.now() - before_s > pause_s + STALL_S else 0
            if late in {0, LATE_MAX}:
                self._sweep_once()
                late = 0

    def _sweep_once(self) -> None:
        now_s = self.now()
        for client in self._pinged.take_due(now_s) + self._resting.take_due(now_s):
            self._judge(client, client.tick)
        for client in self._joining.take_due(now_s):
            if not client.joined:
                self._judge(client, partial(client.close, Reason.CONNECT_TIMEOUT, 1008))
        for client in () if self._idle is None else self._idle.take_due(now_s):
            self._judge(client, partial(client.expel, Reason.IDLE, 1008))

    def _judge(self, client: EngineClient, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception:  # noqa: BLE001 - our bug, or an adapter's, but the heartbeat of all others must go on
            self._log.exception("the heartbeat of a client failed", sid=client.sid)
