"""The persister: one sink on all instances that writes the stream's positions into PostgreSQL, each exactly once.

Invariants: an event is acknowledged only after the commit that stored its positions; storing twice is storing once (the
key is device and time). So an instance may die at any moment: what it had not acknowledged comes to another one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, final

import psycopg
import structlog

from flotta.errors import PostgresError
from flotta.fleet import Fleet
from flotta.streaming import Event, Stream
from harbor.positions.fix import Fix, fixes_from_wire

__all__ = ["Persister"]

SINK = "persister"
BATCH_EVENTS_MAX = 200
BATCH_WAIT_S = 0.05
DELIVERIES_MAX = 100
"""Every instance that dies with an event in its hands uses up one; an accepted position must outlive many of them."""
RETRY_S_MIN, RETRY_S_MAX = 0.2, 5.0
RATE_WINDOW_S = 10.0

_log = structlog.get_logger("harbor.persister")


@final
class Persister:
    """Stores what the stream brings to this instance."""

    def __init__(self, fleet: Fleet, stream: Stream[Any], *, ack_grace_s: float) -> None:
        self._fleet = fleet
        self._stream = stream
        self._ack_grace_s = ack_grace_s
        self._recent: deque[tuple[float, int]] = deque()

    @property
    def per_second(self) -> float:
        """Positions that this instance stored per second, over the last 10 s."""
        now_s = time.monotonic()
        while self._recent and self._recent[0][0] < now_s - RATE_WINDOW_S:
            self._recent.popleft()
        return sum(count for _, count in self._recent) / RATE_WINDOW_S

    async def run(self) -> None:
        """Runs until it is cancelled; what it holds then and has not acknowledged goes to another instance."""
        # "oldest": what was accepted before the sink existed must be stored as well.
        async with self._stream.sink(
            SINK, start="oldest", ack_grace_s=self._ack_grace_s, max_deliveries=DELIVERIES_MAX
        ) as sink:
            while True:
                events = await sink.batch(max=BATCH_EVENTS_MAX, wait_s=BATCH_WAIT_S)
                if events:
                    await sink.ack(*await self._store_events(events))

    async def _store_events(self, events: Sequence[Event[Any]]) -> Sequence[Event[Any]]:
        """Gives those that are stored. One that cannot be must not keep the others: it stays with the sink, comes
        again, and ends up among the stream's dead letters."""
        try:
            await self._store_stubbornly(events)
        except (psycopg.DataError, TypeError, ValueError, OverflowError) as error:
            if len(events) == 1:
                _log.error("positions cannot be stored", event=events[0].id, error=str(error))
                return ()
            return [stored for event in events for stored in await self._store_events([event])]
        return events

    async def _store_stubbornly(self, events: Sequence[Event[Any]]) -> None:
        """Tries again while the database is away. Raises its other errors."""
        fixes = [fix for event in events for fix in fixes_from_wire(event.payload)]
        pause_s = RETRY_S_MIN
        while True:
            try:
                self._note(await self._store(fixes))
            except (PostgresError, psycopg.OperationalError) as error:
                _log.warning("positions wait for the database", positions=len(fixes), error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(RETRY_S_MAX, pause_s * 2)
            else:
                return

    async def _store(self, fixes: Sequence[Fix]) -> int:
        """One transaction; how many positions were new."""
        async with self._fleet.postgres.connection() as connection, connection.cursor() as cursor:
            await cursor.execute(_STAGE)
            async with cursor.copy(_COPY) as copy:
                copy.set_types(_TYPES)
                for fix in fixes:
                    await copy.write_row(_row(fix))
            await cursor.execute(_MOVE)
            stored = cursor.rowcount
            await cursor.execute(_COUNT, (self._fleet.instance.id, stored, len(fixes) - stored))
        return stored

    def _note(self, stored: int) -> None:
        self._recent.append((time.monotonic(), stored))


def _row(fix: Fix) -> tuple[Any, ...]:
    moment = datetime.fromtimestamp(fix.time_ms / 1_000, UTC)
    return (fix.device, moment, fix.lat, fix.lon, fix.speed_kn, fix.course_deg, fix.heading_deg)


# A staging table per connection: COPY itself cannot skip rows that are there already.
_STAGE = "CREATE TEMP TABLE IF NOT EXISTS incoming (LIKE positions) ON COMMIT DELETE ROWS"
_COPY = "COPY incoming FROM STDIN (FORMAT BINARY)"
_TYPES = ["text", "timestamptz", "float8", "float8", "float4", "float4", "float4"]
# Ordered, so that two instances that store the same rows wait for each other and never deadlock.
_MOVE = """
INSERT INTO positions
SELECT DISTINCT ON (device_id, time) * FROM incoming ORDER BY device_id, time
ON CONFLICT DO NOTHING
"""
_COUNT = """
INSERT INTO persisted AS known (instance, stored, duplicates) VALUES (%s, %s, %s)
ON CONFLICT (instance) DO UPDATE SET stored = known.stored + EXCLUDED.stored,
    duplicates = known.duplicates + EXCLUDED.duplicates
"""
