"""A cache that all instances share and each reads locally.

Owns expiry and size. Invariants: a hit never leaves the process; one instance loads a missing key once, whatever the
number of its callers; at most ``keys_max`` entries; an entry is never served after its time by this process's clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, final

from flotta.errors import ConfigError, WireError
from flotta.redis import Redis
from flotta.rmap.codec import JSON, Codec
from flotta.rmap.map import Map

__all__ = ["Cache"]

V = TypeVar("V")
EXPIRY_BYTES = 8
EVICT_SHARE = 10
"""When full, every tenth entry makes room: the ones that expire first."""


@final
@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    expires_ms: int
    value: V


class _EntryCodec(Codec[_Entry[V]]):
    """Unix milliseconds (8 bytes, big-endian), then the value."""

    def __init__(self, value: Codec[V]) -> None:
        self._value = value

    def encode(self, value: _Entry[V], /) -> bytes:
        return value.expires_ms.to_bytes(EXPIRY_BYTES, "big") + self._value.encode(value.value)

    def decode(self, data: bytes, /) -> _Entry[V]:
        if len(data) < EXPIRY_BYTES:
            raise WireError("cache entry", "is too short", data)
        return _Entry(int.from_bytes(data[:EXPIRY_BYTES], "big"), self._value.decode(data[EXPIRY_BYTES:]))


@final
class Cache(Generic[V]):
    """``cache = await Cache.join("users", redis, ttl_s=60); user = await cache.get_or_load(key, load)``.

    Values are JSON unless ``codec`` says otherwise. Every instance holds all entries: keep them few and small.
    """

    def __init__(
        self,
        name: str,
        *,
        ttl_s: float,
        keys_max: int = 10_000,
        codec: Codec[V] | None = None,
        logger: Any = None,
    ) -> None:
        if not 0 < ttl_s < float("inf"):
            raise ConfigError("ttl_s", ttl_s, "a finite number of seconds above 0", source="Cache")
        if keys_max < 1:
            raise ConfigError("keys_max", keys_max, "a whole number from 1 on", source="Cache")
        self._ttl_s = ttl_s
        self._keys_max = keys_max
        self._loading: dict[str, asyncio.Task[V]] = {}
        # A cache that nobody fills any more is forgotten by Redis as a whole.
        self.map: Map[_Entry[V]] = Map(name, codec=_EntryCodec(codec or JSON), ttl_s=ttl_s, sliding=True, logger=logger)

    @classmethod
    async def join(
        cls,
        name: str,
        redis: str | Redis,
        *,
        ttl_s: float,
        keys_max: int = 10_000,
        codec: Codec[V] | None = None,
        logger: Any = None,
    ) -> Cache[V]:
        """A cache that is loaded. You owe it ``aclose``. Raises what ``Map.start`` raises."""
        cache = cls(name, ttl_s=ttl_s, keys_max=keys_max, codec=codec, logger=logger)
        await cache.map.start(redis)
        return cache

    def get(self, key: str) -> V | None:
        """The value if it is here and not expired. Local. Raises NotStarted, WireError."""
        entry = self.map.get(key)
        return entry.value if entry is not None and entry.expires_ms > _now_ms() else None

    async def set(self, key: str, value: V) -> None:
        """Put it in for all instances. Raises RedisError."""
        if len(self.map) >= self._keys_max and key not in self.map:
            await self._evict()
        await self.map.set_and_wait(key, _Entry(_now_ms() + round(self._ttl_s * 1000), value))

    async def get_or_load(self, key: str, load: Callable[[], Awaitable[V]]) -> V:
        """The value, loaded if it is missing: once per instance, however many ask.

        Raises what ``load`` and ``set`` raise. Cancelled: the loading goes on for the others.
        """
        found = self.get(key)
        if found is not None:
            return found
        task = self._loading.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._load(key, load), name=f"flotta-cache {key}")
            self._loading[key] = task
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(task)

    async def _load(self, key: str, load: Callable[[], Awaitable[V]]) -> V:
        value = await load()
        await self.set(key, value)
        return value

    async def invalidate(self, key: str) -> None:
        """Remove it everywhere. Raises RedisError."""
        await self.map.delete(key)

    async def clear(self) -> None:
        """Remove everything everywhere. Raises RedisError."""
        await self.map.reset()

    async def _evict(self) -> None:
        entries = sorted(self.map.items(), key=lambda item: item[1].expires_ms)
        oldest = entries[: max(1, self._keys_max // EVICT_SHARE)]
        await asyncio.gather(*(self.map.test_and_delete(key, entry) for key, entry in oldest))

    async def aclose(self) -> None:
        """Stop following; loads under way are cancelled."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.map.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
