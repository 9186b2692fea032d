"""A pool as a service declares it: its jobs and tasks, and this process' part in running them."""

from __future__ import annotations

from typing import Any, final

from flotta.pool.options import PoolOptions

__all__ = ["WorkerPool"]


@final
class WorkerPool:
    """The pool ``name``. Making it does no I/O."""

    def __init__(self, name: str, *, options: PoolOptions | None = None, logger: Any = None) -> None:
        self.name = name
        self.options = options or PoolOptions()
        self._logger = logger
