"""A pool's surroundings for tests of its job store: nodes, workers with leases, a slot table, without any process."""

from __future__ import annotations

from typing import Any

from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import SLOTS, slot_of
from flotta.pool.options import PoolOptions
from flotta.pool.wire import Bell, Ring, parse_bell, parse_reply
from flotta.redis import Redis

__all__ = ["Stage"]

_LEASE_MS = 600_000


class Stage:
    """Sets what membership would set, and reads what workers and nodes would read."""

    def __init__(self, redis: Redis, name: str, *, step_max: int = 100, **options: Any) -> None:
        self.redis = redis
        self.store = JobStore(redis, name, options=PoolOptions(**options), step_max=step_max)
        self.keys = self.store.keys

    async def _open(self, stream: str) -> None:
        await self.redis.link.call("XDEL", stream, await self.redis.link.call("XADD", stream, "*", "t", ""))

    async def _lease(self, worker: str, *, live: bool) -> None:
        seconds, _ = await self.redis.link.call("TIME")
        until_ms = int(seconds) * 1_000 + (_LEASE_MS if live else -_LEASE_MS)
        await self.redis.link.call("ZADD", self.keys.leases, until_ms, worker)

    async def node(self, node: str) -> None:
        await self._open(self.keys.replies(node))

    async def worker(self, worker: str, *, live: bool = True) -> None:
        await self._open(self.keys.inbox(worker))
        await self._lease(worker, live=live)

    async def expire(self, worker: str) -> None:
        await self._lease(worker, live=False)

    async def leave(self, worker: str) -> None:
        await self.redis.link.call("SADD", self.keys.leaving, worker)

    async def slots(self, worker: str) -> None:
        """Every slot is the worker's."""
        pairs = [part for slot in range(SLOTS) for part in (slot, worker)]
        await self.redis.link.call("HSET", self.keys.slots, *pairs)

    async def assign(self, key: str, worker: str) -> None:
        await self.redis.link.call("HSET", self.keys.slots, slot_of(key), worker)

    async def queued(self, key: str, *, payload: bytes = b"", crashes_max: int = 5, **facts: Any) -> int:
        """A job that was dispatched; gives its fence."""
        accepted = await self.store.dispatch(key, "watch", payload, did=f"d-{key}", crashes_max=crashes_max, **facts)
        return accepted.fence

    async def running(self, key: str, **facts: Any) -> int:
        """A job that its owner has claimed; gives its fence."""
        fence = await self.queued(key, **facts)
        info = await self.store.read(key)
        assert info is not None
        await self.store.claim(info.owner, key, fence)
        return fence

    async def bells(self, worker: str) -> list[Bell]:
        entries = await self.redis.link.call("XRANGE", self.keys.inbox(worker), "-", "+")
        return [bell for _, fields in entries for bell in parse_bell(fields)]

    async def notes(self, worker: str) -> list[tuple[bytes, Bell]]:
        entries = await self.redis.link.call("XRANGE", self.keys.inbox(worker), "-", "+")
        return [(entry_id, bell) for entry_id, fields in entries for bell in parse_bell(fields) if bell.type == "note"]

    async def entries(self, worker: str) -> int:
        count: int = await self.redis.link.call("XLEN", self.keys.inbox(worker))
        return count

    async def replies(self, node: str) -> list[list[Ring]]:
        entries = await self.redis.link.call("XRANGE", self.keys.replies(node), "-", "+")
        return [parse_reply(fields) for _, fields in entries]

    async def letters(self) -> list[dict[str, bytes]]:
        entries = await self.redis.link.call("XRANGE", self.keys.dead, "-", "+")
        return [dict(zip((name.decode() for name in fields[::2]), fields[1::2], strict=True)) for _, fields in entries]

    async def names(self) -> list[str]:
        """Every key of the pool, without its prefix."""
        prefix = self.keys.prefix
        return sorted(key.decode().removeprefix(prefix) for key in await self.redis.link.call("KEYS", prefix + "*"))
