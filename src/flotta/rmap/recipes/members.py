"""Who is there: every instance announces itself and what others should know of it (control-plane state).

Owns the beats. Invariants: nobody's clock is compared with anybody else's: a member is alive while its beat keeps
changing, as seen on this process's own monotonic clock; one that stopped is gone after ``ttl_s``, and its entry is
removed by whoever notices. While Redis is gone nobody is judged: the members last known stay, and have a whole
``ttl_s`` to be heard once it is back.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, final

import structlog

from flotta.errors import ConfigError, RedisError, StateError, WireError
from flotta.redis import Redis
from flotta.rmap.codec import INT, JSON, Codec
from flotta.rmap.map import Map

__all__ = ["Members"]

V = TypeVar("V")
BEATS_PER_TTL = 3
"""A beat may be late twice before its member counts as gone."""


@final
@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    beat: int
    about: V


class _EntryCodec(Codec[_Entry[V]]):
    """The beat in decimal, a space, and what the member says of itself."""

    def __init__(self, about: Codec[V]) -> None:
        self._about = about

    def encode(self, value: _Entry[V], /) -> bytes:
        return b"%d %b" % (value.beat, self._about.encode(value.about))

    def decode(self, data: bytes, /) -> _Entry[V]:
        beat, space, about = data.partition(b" ")
        if not space:
            raise WireError("member", "has no beat", data)
        return _Entry(INT.decode(beat), self._about.decode(about))


@final
class Members(Generic[V]):
    """``members = await Members.join("workers", redis, me="host-1", about={"port": 8000}); members.alive()``.

    ``about`` is JSON by default (``codec``); ``update`` changes it. A member that closes is gone at once, one that dies
    after ``ttl_s`` seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        me: str,
        about: V,
        ttl_s: float = 15.0,
        codec: Codec[V] | None = None,
        logger: Any = None,
    ) -> None:
        if not 0 < ttl_s < float("inf"):
            raise ConfigError("ttl_s", ttl_s, "a finite number of seconds above 0", source="Members")
        self.me = me
        self.map: Map[_Entry[V]] = Map(name, codec=_EntryCodec(codec or JSON), logger=logger)
        self._about = about
        self._ttl_s = ttl_s
        self._seen: dict[str, tuple[int, float]] = {}
        self._looked_at_s = 0.0
        self._blind = False
        self._beat = time.time_ns()  # so that a restarted instance never repeats a beat
        self._task: asyncio.Task[None] | None = None
        self._logger = logger or structlog.get_logger("flotta.rmap")

    @classmethod
    async def join(
        cls,
        name: str,
        redis: str | Redis,
        *,
        me: str,
        about: V,
        ttl_s: float = 15.0,
        codec: Codec[V] | None = None,
        logger: Any = None,
    ) -> Members[V]:
        """Announced and beating. You owe it ``aclose``. Raises what ``Map.start`` and ``Map.set`` raise."""
        members = cls(name, me=me, about=about, ttl_s=ttl_s, codec=codec, logger=logger)
        await members.map.start(redis)
        try:
            await members.update(about)
        except BaseException:
            await members.map.aclose()
            raise
        members._task = asyncio.get_running_loop().create_task(members._keep(), name=f"flotta-members {name}")
        return members

    def alive(self) -> dict[str, V]:
        """The members that beat, and what they say of themselves. Local. Raises NotStarted, WireError."""
        self._look(time.monotonic())
        entries = self.map.snapshot()
        return {name: entries[name].about for name, age_s in self._ages_s() if age_s <= self._ttl_s}

    async def update(self, about: V) -> None:
        """Say something else of oneself. Raises RedisError."""
        self._about = about
        self._beat += 1
        await self.map.set_and_wait(self.me, _Entry(self._beat, about))

    async def aclose(self) -> None:
        """Leave. Redis gone: the entry expires by itself. Again: harmless."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        try:
            await self.map.delete(self.me)
        except (RedisError, StateError):
            return
        finally:
            await self.map.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _look(self, now_s: float) -> None:
        """Note when each beat was first seen here. A stale map shows no beats: then time stands still."""
        if self.map.stale:
            self._blind = True
            return
        entries = self.map.snapshot()
        for name, entry in entries.items():
            if self._blind or name not in self._seen or self._seen[name][0] != entry.beat:
                self._seen[name] = (entry.beat, now_s)
        for name in [name for name in self._seen if name not in entries]:
            del self._seen[name]
        self._blind = False
        self._looked_at_s = now_s

    def _ages_s(self) -> list[tuple[str, float]]:
        """How long each beat was unchanged at the last look."""
        content = self.map.keys()
        return [(name, self._looked_at_s - self._seen[name][1]) for name in content if name in self._seen]

    async def _keep(self) -> None:
        """Beat, and remove those that have been silent for twice the TTL."""
        while True:
            await asyncio.sleep(self._ttl_s / BEATS_PER_TTL)
            try:
                self._look(time.monotonic())
                self._beat += 1
                await self.map.set(self.me, _Entry(self._beat, self._about))
                await self._remove_silent()
            except (RedisError, WireError) as error:
                self._logger.warning("members.beat_failed", members=self.map.name, error=str(error))

    async def _remove_silent(self) -> None:
        entries = self.map.snapshot()
        for name, age_s in self._ages_s():
            if age_s > 2 * self._ttl_s:
                await self.map.test_and_delete(name, entries[name])
