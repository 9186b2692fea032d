"""What ``dispatch`` gives: a job by its key, and the node through which to reach it."""

from __future__ import annotations

from typing import Protocol, final

from flotta.pool.jobs.records import JobInfo

__all__ = ["JobHandle"]


class _Node(Protocol):
    async def notify(self, key: str, payload: bytes) -> None: ...

    async def stop(self, key: str, *, timeout_s: float | None = None) -> None: ...

    async def job_info(self, key: str) -> JobInfo | None: ...


@final
class JobHandle:
    """A job that was dispatched from here. It holds nothing: the job goes on without it."""

    __slots__ = ("_node", "fence", "key", "worker")

    def __init__(self, node: _Node, key: str, fence: int, worker: str) -> None:
        self._node = node
        self.key = key
        self.fence = fence
        """Its fencing token when it started; each later owner has a higher one."""
        self.worker = worker
        """The worker that started it."""

    def __repr__(self) -> str:
        return f"JobHandle({self.key!r}, worker={self.worker!r}, fence={self.fence})"

    async def notify(self, payload: bytes) -> None:
        """As ``Node.notify``."""
        await self._node.notify(self.key, payload)

    async def stop(self, *, timeout_s: float | None = None) -> None:
        """As ``Node.stop``."""
        await self._node.stop(self.key, timeout_s=timeout_s)

    async def info(self) -> JobInfo | None:
        """As ``Node.job_info``."""
        return await self._node.job_info(self.key)
