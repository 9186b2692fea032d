"""Worker pools: keyed jobs that run on exactly one worker of the fleet, short tasks, tickers and schedulers."""

from __future__ import annotations

from flotta.pool.options import PoolOptions
from flotta.pool.workerpool import WorkerPool

__all__ = ["PoolOptions", "WorkerPool"]
