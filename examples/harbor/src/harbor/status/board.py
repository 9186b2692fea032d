"""The board: each instance writes its own entry into a replicated map, every instance reads all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, final

import structlog

from flotta.errors import FlottaError
from flotta.fleet import Fleet
from flotta.rmap import JSON
from harbor.status.alive import Alive

__all__ = ["Board"]

BEAT_S = 1.0
COUNT_AGE_S = 0.5

_log = structlog.get_logger("harbor.status")


@final
class Board:
    """What `GET /api/status` answers."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        per_second: Callable[[], float],
        jobs: Callable[[], int],
        viewers: Callable[[], int],
    ) -> None:
        """What this instance tells of itself: positions stored per second, jobs, and signed-in pages."""
        self._fleet = fleet
        self._entries = fleet.map("harbor:instances", codec=JSON)
        self._per_second = per_second
        self._jobs = jobs
        self._viewers = viewers
        self._alive = Alive()
        self._started = time.monotonic()
        self._beats = 0
        self._stored = (0, float("-inf"))
        self._counting = asyncio.Lock()

    async def beat(self) -> None:
        """Writes the own entry every second, and tidies up after instances that are gone. Runs for ever."""
        while True:
            try:
                await self.beat_once()
            except FlottaError as error:
                _log.warning("status not told", error=str(error))  # the next beat tells it
            await asyncio.sleep(BEAT_S)

    async def beat_once(self) -> None:
        self._beats += 1
        entry = {
            "pid": self._fleet.instance.pid,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "viewers": self._viewers(),
            "jobs": self._jobs(),
            "per_second": round(self._per_second(), 2),
            "beat": self._beats,
        }
        await self._entries.set(self._fleet.instance.id, entry)
        now_s = time.monotonic()
        self._alive.look(self._entries.snapshot(), now_s=now_s)
        for name in self._alive.gone(now_s=now_s):
            await self._entries.delete(name)

    async def leave(self) -> None:
        """Takes the own entry away: this instance stops."""
        await self._entries.delete(self._fleet.instance.id)

    async def status(self) -> dict[str, Any]:
        """The fleet now."""
        names = self._alive.look(self._entries.snapshot(), now_s=time.monotonic())
        entries = [(name, entry) for name in names if (entry := self._entries.get(name)) is not None]
        return {
            "instances": [
                {"name": name, **{key: entry[key] for key in ("pid", "uptime_s", "viewers", "jobs")}}
                for name, entry in entries
            ],
            "positions_stored": await self._positions_stored(),
            "positions_per_second": round(sum(entry["per_second"] for _, entry in entries), 1),
            "viewers": sum(entry["viewers"] for _, entry in entries),
        }

    async def _positions_stored(self) -> int:
        """Asked at most twice a second, however many ask; a zero is asked anew, for it ends with the first position."""
        async with self._counting:
            count, asked = self._stored
            if count == 0 or time.monotonic() - asked > COUNT_AGE_S:
                row = await self._fleet.postgres.fetch_one("SELECT coalesce(sum(stored), 0)::bigint FROM persisted")
                count = int(row[0]) if row is not None else 0
                self._stored = (count, time.monotonic())
            return count
