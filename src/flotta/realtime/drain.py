"""The end of serving: clients are sent away in jittered batches, so that they come back elsewhere, not all at once."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar, final

from flotta.realtime.engine.client import EngineClient, Reason

__all__ = ["CLOSE_RESTART", "Drain", "Work"]

C = TypeVar("C", bound=EngineClient)

BATCHES_PER_S = 10
SHARE = 0.6
"""Part of the deadline that the closing may take; the rest is for handlers to end."""
CLOSE_RESTART: Final = 1012  # "service restart": clients come back by themselves


class Work(Protocol):
    """The handlers of the clients."""

    @property
    def running(self) -> int:
        """How many run."""
        ...

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until none runs. False: some still do."""
        ...


@final
class Drain(Generic[C]):
    """One drain of the clients that are there when it runs.

    ``farewell`` is called with each right before its close, and with the milliseconds that it would best wait before it
    comes back: a random part of the time that the whole drain takes.
    """

    def __init__(
        self,
        clients: Mapping[str, C],
        work: Work,
        *,
        clients_per_s: float,
        farewell: Callable[[C, int], None],
        logger: Any,
    ) -> None:
        self._clients = clients
        self._farewell = farewell
        self._work = work
        self._clients_per_s = clients_per_s
        self._log = logger

    async def run(self, deadline_s: float) -> None:
        """Do it; at the latest after ``deadline_s``."""
        now = asyncio.get_running_loop().time
        end_s = now() + deadline_s
        clients = list(self._clients.values())
        random.shuffle(clients)
        spread_s = min(deadline_s * SHARE, len(clients) / self._clients_per_s)
        batches = max(1, math.ceil(spread_s * BATCHES_PER_S))
        size = max(1, math.ceil(len(clients) / batches))
        self._log.info("draining", clients=len(clients), deadline_s=deadline_s)
        for at in range(0, len(clients), size):
            for client in clients[at : at + size]:
                self._farewell(client, round(random.uniform(0.0, max(spread_s, 1.0)) * 1000))  # noqa: S311
                client.close(Reason.DRAINING, CLOSE_RESTART)
            if at + size < len(clients):
                # Jitter keeps instances that drain together from sending their clients back in step.
                await asyncio.sleep(spread_s / batches * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        if not await self._work.wait_idle(max(0.0, end_s - now())):
            self._log.warning("handlers still run at the end of the drain", handlers=self._work.running)
