"""What a registry in Redis hears: revocations always, changes while somebody watches, and when something was missed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias, final

from flotta.errors import Closed, RedisError, WireError
from flotta.realtime.presence.records import PresenceChange, Revocation, read_change, read_control
from flotta.realtime.presence.registry import Told, batched
from flotta.realtime.presence.revocations import Revocations
from flotta.realtime.sampling import Junk
from flotta.redis import Redis

__all__ = ["Ears"]

MGET_USERS: Final = 500
RETRY_S: Final = 1.0

Revoke: TypeAlias = Callable[[str, float, float], Awaitable[None]]
"""Writes a revocation: the user, up to when (Unix seconds), for how many seconds."""


@final
class _Ear:
    """One channel's listener."""

    def __init__(self, take: Callable[[bytes], None], on_restored: Callable[[], None], junk: Junk) -> None:
        self._take = take
        self._restored = on_restored
        self._junk = junk

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Junk is counted and dropped."""
        try:
            self._take(payload)
        except WireError as error:
            self._junk.add(channel, error)

    def on_lost(self) -> None:
        """What matters is when messages arrive again."""

    def on_restored(self) -> None:
        """Something may have been missed."""
        self._restored()


@final
class Ears:
    """See the module. ``me``: the name under which this instance kicks."""

    def __init__(self, redis: Redis, prefix: str, told: Told, *, me: str, revoke: Revoke, logger: Any) -> None:
        self.revocations = Revocations()
        self._redis = redis
        self._prefix = prefix
        self._told = told
        self._me = me
        self._revoke = revoke
        self._junk = Junk("a presence", logger)
        self._subscriptions: list[Any] = []
        self._watching: asyncio.Lock = asyncio.Lock()
        self._watches = False
        self._checking: asyncio.Task[None] | None = None
        self._doubtful = False

    async def listen_to_control(self) -> None:
        """Hear of revocations. Raises LinkUnavailable."""
        ear = _Ear(self._on_control, self.check_soon, self._junk)
        self._subscriptions.append(await self._redis.hub.subscribe(f"{self._prefix}control", ear))

    async def listen_to_changes(self) -> None:
        """Hear of changes. Twice is once. Raises LinkUnavailable."""
        async with self._watching:
            if not self._watches:
                ear = _Ear(self._on_change, self.tell_gap, self._junk)
                self._subscriptions.append(await self._redis.hub.subscribe(f"{self._prefix}changes", ear))
                self._watches = True

    async def aclose(self) -> None:
        """Hear nothing more."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.aclose()

    def tell_gap(self) -> None:
        """Changes may have been missed."""
        if self._watches:
            self._told.on_change(PresenceChange("gap"))

    def _on_change(self, payload: bytes) -> None:
        self._told.on_change(read_change(payload))

    def _on_control(self, payload: bytes) -> None:
        said = read_control(payload)
        if isinstance(said, Revocation):
            self.revocations.add(said.user, said.until_s, time.time() + said.keep_s)
            self._told.on_revoked(said.user, said.until_s)
        elif said.origin != self._me:
            self._told.on_kicked(said.user, close=said.close, told=said.told)

    def check_soon(self) -> None:
        """Revocations may have been missed, by this process or by Redis: look as soon as Redis is there."""
        self._doubtful = True
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._check(), name="presence revocations")

    async def _check(self) -> None:
        while self._doubtful:
            self._doubtful = False
            try:
                await self._ask_for_users()
                await self.give_back()
            except RedisError:  # the subscription may be back before the connection for commands is
                self._doubtful = True
                await asyncio.sleep(RETRY_S)
            except Closed:
                return

    async def _ask_for_users(self) -> None:
        """Ask for every user who is here."""
        for page in batched(list(self._told.users()), MGET_USERS):
            for user, until_ms in zip(page, await self._read(page), strict=True):
                if until_ms is not None:
                    self._told.on_revoked(user, int(until_ms) / 1000)

    async def give_back(self) -> None:
        """Write what this process has heard of and Redis has lost: it came back empty, or with older data. Raises
        LinkUnavailable."""
        for page in batched(list(self.revocations.valid(time.time())), MGET_USERS):
            found = await self._read([user for user, *_ in page])
            lost = [
                self._revoke(user, until_s, keep_s)
                for (user, until_s, keep_s), until_ms in zip(page, found, strict=True)
                if until_ms is None or int(until_ms) < round(until_s * 1000)
            ]
            await asyncio.gather(*lost)

    async def _read(self, users: Sequence[str]) -> list[bytes | None]:
        """Up to when tokens of each are worth nothing (ms)."""
        found: list[bytes | None] = await self._redis.link.call(
            "MGET", *(f"{self._prefix}revoked:{user}" for user in users)
        )
        return found
