"""Which other workers can run a job, as Redis knows them.

Invariants: nothing is remembered between calls; every call costs the workers, never the jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, final

from flotta.pool.inspection import list_workers
from flotta.pool.keys import PoolKeys
from flotta.pool.members.membership import WorkerInfo
from flotta.redis import Arg, Link

__all__ = ["Peers"]


@final
class Peers:
    """Asked over ``link``; raises what ``Link.call`` raises. Cancelling is harmless."""

    def __init__(self, link: Link, keys: PoolKeys) -> None:
        self._link = link
        self._keys = keys

    async def able(self, kind: str, *, but: Collection[str]) -> tuple[str, int]:
        """The live worker with the fewest jobs that knows ``kind`` and is none of ``but``; '' if there is none.

        And how many changes there had been among the members before it looked."""
        members = int(await self._link.call("HGET", self._keys.meta, "members") or 0)
        able = [
            (worker.jobs, worker.id)
            for worker in await list_workers(self._link, self._keys)
            if worker.lives and not worker.leaves and kind in worker.info.kinds and worker.id not in but
        ]
        return (min(able)[1] if able else ""), members

    async def kinds_by_slot(self, slots: Iterable[int]) -> dict[int, tuple[str, ...]]:
        """Which kinds the present owner of each slot knows; nothing for a slot without an owner."""
        asked = list(slots)
        owners = await self._read(self._keys.slots, asked)
        workers = list({owner for owner in owners if owner is not None})
        facts = await self._read(self._keys.workers, workers)
        kinds = {
            worker: WorkerInfo.decode(raw).kinds for worker, raw in zip(workers, facts, strict=True) if raw is not None
        }
        return {slot: kinds.get(owner, ()) for slot, owner in zip(asked, owners, strict=True) if owner is not None}

    async def _read(self, key: str, fields: Collection[Arg]) -> list[Any]:
        if not fields:
            return []
        return list(await self._link.call("HMGET", key, *fields))
