"""Pools in the process of a test, whose jobs and tasks write histories like those of the real processes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from flotta.pool import WorkerPool
from flotta.pool.keys import PoolKeys
from flotta.redis import LinkOptions, Redis
from pool_history import History, Span, What
from pool_journal import Journal, read_events
from pool_worker import Declared, Scene, Setup, declare

__all__ = ["Crewman", "crewman", "history_of", "leftovers", "open_runs"]


@dataclass
class Crewman:
    """One worker in this process: its pool and what it declared."""

    pool: WorkerPool
    declared: Declared
    journal: Journal

    async def dispatch(self, number: int, mode: str = "stay", *, dispatch: int = 0) -> Any:
        """Dispatch the job ``watch:<number>``, told to the journal."""
        handle = await self.declared.watch.dispatch(number, dispatch or number, mode)
        self.journal.say(What.DISPATCHED, f"watch:{number}", dispatch=dispatch or number)
        return handle


@contextlib.asynccontextmanager
async def crewman(setup: Setup, name: str, **changes: Any) -> AsyncIterator[Crewman]:
    """A pool of both roles under ``name``; ``changes``: to its setup."""
    setup = msgspec.structs.replace(setup, process=name, **changes)
    journal = Journal(Path(setup.folder), name)
    options = LinkOptions(client_name=name, command_timeout_s=2.0, reconnect_max_s=0.2)
    async with Redis.from_url(setup.ledger_url) as ledger, Redis.from_url(setup.url, options=options) as redis:
        pool = WorkerPool(setup.pool, options=setup.pool_options())
        declared = declare(pool, setup.code, Scene(journal, ledger, setup.every_s, pool, setup.careless))
        async with pool.running(redis):
            yield Crewman(pool, declared, journal)
    journal.close()


def history_of(setup: Setup) -> History:
    """What all of that run have written up to now."""
    return History(read_events(Path(setup.folder)))


def open_runs(setup: Setup, process: str | None = None) -> dict[str, Span]:
    """Key -> the run that has begun and not ended (of ``process``)."""
    spans = [spans[-1] for spans in history_of(setup).jobs.values()]
    return {span.key: span for span in spans if not span.how and process in (None, span.process)}


async def leftovers(redis: Redis, pool: str) -> list[str]:
    """Every key of ``pool`` that is in Redis, without its prefix."""
    prefix = PoolKeys(pool, namespace=redis.namespace).prefix
    found: list[str] = []
    cursor: Any = b"0"
    while True:
        cursor, keys = await redis.link.call("SCAN", cursor, "COUNT", 1_000)
        found += [key.decode().removeprefix(prefix) for key in keys if key.startswith(prefix.encode())]
        if int(cursor) == 0:
            return sorted(set(found))
