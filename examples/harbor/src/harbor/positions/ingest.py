"""The way of a report: checked, added to the stream, noted as the latest, shown to whoever may see it.

Invariants: one request becomes at most one event of the stream, so it is accepted as a whole or not at all; the latest
fix is noted only after that, so a repeated request cannot be taken for a duplicate of something that was never added;
an answer is given only when Redis holds the positions and the broadcast. Every step may run twice: what is repeated
because an instance died is shown again, and pages leave out what they have.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from flotta.fleet import Fleet
from flotta.streaming import JSON
from harbor.config import HarborConfig
from harbor.devices.registry import Registry, Reporter
from harbor.live.broadcast import Broadcast
from harbor.positions.fix import Fix, fixes_to_wire
from harbor.positions.heard import Heard
from harbor.positions.latest import Latest
from harbor.positions.validation import Limits, Refusal, parse, plan

__all__ = ["EVENT", "Ingest", "Outcome"]

EVENT = "positions"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request's reports."""

    accepted: int
    duplicates: int
    refused: Sequence[Refusal]

    def as_json(self) -> dict[str, Any]:
        return {
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "rejected": [refusal.as_json() for refusal in self.refused],
        }


@final
class Ingest:
    """Takes reports in."""

    def __init__(
        self,
        fleet: Fleet,
        config: HarborConfig,
        *,
        registry: Registry,
        latest: Latest,
        heard: Heard,
        broadcast: Broadcast,
    ) -> None:
        self.stream = fleet.stream("positions", codec=JSON)
        self._registry = registry
        self._latest = latest
        self._heard = heard
        self._broadcast = broadcast
        self._limits = Limits(
            age_max_s=config.age_max_s, future_max_s=config.future_max_s, speed_kn_max=config.speed_kn_max
        )

    async def take(self, reporter: Reporter, said: Sequence[object]) -> Outcome:
        """Accepts what can be true. Raises what Redis raises: the same request may then be repeated."""
        now_ms = time.time_ns() // 1_000_000
        reports = [
            parse(index, item, device=reporter.device_id, now_ms=now_ms, limits=self._limits)
            for index, item in enumerate(said)
        ]
        devices = {report.device for report in reports if isinstance(report, Fix)}
        own = {device for device in devices if self._registry.owner_of(device) == reporter.account_id}
        last = await self._latest.of(own) if own else {}
        decided = plan(reports, last=last, may_report=own.__contains__, limits=self._limits)
        if decided.accepted:
            await self._add(decided.accepted)
        if decided.shown:
            await self._show(reporter.account_id, decided.shown)
        return Outcome(len(decided.accepted), decided.duplicates, decided.refused)

    async def _add(self, fixes: list[Fix]) -> None:
        """After this a page that opens finds them."""
        await self.stream.add(EVENT, fixes_to_wire(fixes))
        await self._latest.update(fixes)

    async def _show(self, owner_id: int, fixes: list[Fix]) -> None:
        """To the pages that are open. Sending does not wait for Redis; the note goes over the same connection, behind
        it, so Redis has both when this returns."""
        await self._broadcast.positions(owner_id, fixes)
        await self._heard.note({fix.device for fix in fixes})
