"""What a worker under a lease needs of its node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from flotta.pool.inbox import Inbox
from flotta.pool.jobs.peers import Peers
from flotta.pool.jobs.runs import JobKind
from flotta.pool.jobs.store import JobStore
from flotta.pool.members.membership import Membership
from flotta.pool.options import PoolOptions
from flotta.pool.stats import Counts
from flotta.pool.taskside import WorkerTasks

__all__ = ["Surroundings"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a tenure needs of its node."""

    store: JobStore
    inbox: Inbox
    membership: Membership
    options: PoolOptions
    counts: Counts
    logger: Any
    kind_of: Callable[[str], JobKind | None]
    """How jobs of a kind run here; None: not here."""
    peers: Peers
    tasks: WorkerTasks
    on_shutdown: Callable[[], None]
    zombies: dict[str, asyncio.Task[None]]
    """Runs of this process, of any tenure, that were lost and whose functions have not ended, by key."""
