"""Which instances live: one key in Redis per instance, refreshed, and a watch over those that this one deals with.

``<prefix>-instance#<4 characters>`` holds the incarnation of the process whose session ids begin with them, and lives
`TTL_S`. It is claimed before the first session is opened, so no two living processes give out the same first
characters.

``<prefix>-instance#adapter`` names the adapter of the instances, so that one that has another can say so.

An instance counts as gone when its key is gone for two beats, its value is another one, or nobody listens on its
channel any more. The last is noticed first: the server knows of a killed process' closed socket at once. A key that is
gone says nothing while Redis refuses to write (no memory, a replica): then nobody can refresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, final

from flotta.errors import Closed, ConfigError, RedisError
from flotta.realtime.sampling import is_told
from flotta.redis import Effect, Redis, Script

__all__ = ["TTL_S", "Leases"]

TTL_S = 6.0
BEAT_S = TTL_S / 4
RETRY_S = 0.25
DRAWS_MAX = 32

# KEYS[1] the lease; ARGV: our incarnation, milliseconds.
_CLAIM = Script(
    """
    local held = redis.call('GET', KEYS[1])
    if held and held ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    return 1
    """,
    name="relay claim",
    effect=Effect.LAST_WRITE_WINS,
)
_RELEASE = Script(
    """
    if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
    return 0
    """,
    name="relay release",
    effect=Effect.LAST_WRITE_WINS,
)


@final
class Leases:
    """The own lease, and the watch over others: ``watched`` gives those, ``on_gone`` is told of each end."""

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str,
        channel: Callable[[str], str],
        watched: Callable[[], Iterable[str]],
        on_gone: Callable[[str], None],
        on_lost: Callable[[], Awaitable[None]],
        adapter: str,
        logger: Any,
    ) -> None:
        self.instance = ""
        self._adapter = adapter.encode()
        self._differing = 0
        self._differing_told = False
        self._refused = 0
        """Looks that Redis did not allow."""
        self._redis = redis
        self._prefix = prefix
        self._channel = channel
        self._watched = watched
        self._on_gone = on_gone
        self._on_lost = on_lost
        self._log = logger
        self._incarnation = secrets.token_urlsafe(9)
        self._known: dict[str, bytes] = {}
        self._missing: set[str] = set()
        """Watched ones whose leases were not there a beat ago."""
        self._refused_s = -math.inf
        """When the own lease could not be refreshed last."""
        self._beating: asyncio.Task[None] | None = None

    def _key(self, instance: str) -> str:
        return f"{self._prefix}-instance#{instance}"

    # --- the own lease ---

    async def claim(self, wanted: str | None) -> str:
        """Claim the first characters of session ids: ``wanted``, or random ones. Gives them.

        A wanted name that is taken is waited for as long as a dead owner's lease may last.

        Raises:
            ConfigError: ``wanted`` is another living instance's.
            LinkUnavailable: Redis cannot be reached.
        """
        if wanted is None:
            for _ in range(DRAWS_MAX):
                if await self._try(instance := secrets.token_urlsafe(3)):
                    break
            else:
                raise ConfigError("instance", None, "fewer instances with this channel_prefix", source="realtime")
        else:
            instance = wanted
            await self._wait_for(instance)
        self.instance = instance
        return instance

    async def _wait_for(self, instance: str) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + TTL_S + BEAT_S
        while not await self._try(instance):
            if loop.time() > end_s:
                allowed = "4 characters that no other living instance with this channel_prefix has"
                raise ConfigError("instance", instance, allowed, source="realtime.ServerOptions")
            await asyncio.sleep(RETRY_S)

    async def _try(self, instance: str) -> bool:
        args = (self._incarnation, round(TTL_S * 1000))
        return bool(await _CLAIM(self._redis.link, keys=[self._key(instance)], args=args))

    def start(self) -> None:
        """Begin to refresh and to watch."""
        self._beating = asyncio.get_running_loop().create_task(self._beat(), name=f"relay lease {self.instance}")

    async def aclose(self) -> None:
        """Give the lease back and stop. Idempotent."""
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
        if self.instance and self._redis.link.connected:
            with contextlib.suppress(RedisError):  # then it ends by itself
                await _RELEASE(self._redis.link, keys=[self._key(self.instance)], args=[self._incarnation])

    async def _refresh(self) -> None:
        try:
            held = await self._try(self.instance)
        except RedisError:
            self._refused_s = asyncio.get_running_loop().time()
            return  # the link says when Redis is away, presence and the adapter when it refuses
        if held:
            return
        old = self.instance
        with contextlib.suppress(RedisError):  # then at the next beat
            await self._on_lost()
            why = "this process slept for longer than its lease, and another one took the name"
            self._log.error("the instance goes on under another name", was=old, now=self.instance, reason=why)

    # --- the others ---

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self._refresh()
                await self._look()
                await self._compare()
            except Closed:  # whoever gave the Redis has closed it first
                self._log.warning("the Redis was closed before the server", what="lease", instance=self.instance)
                return
            except Exception:  # noqa: BLE001 - our bug, but an instance without a lease counts as gone
                self._log.exception("looking after the lease failed", instance=self.instance)

    async def _compare(self) -> None:
        """Servers whose adapters differ do not hear each other, and nothing else would say so: a key names what those
        use that were there first. Nobody refreshes the key of the dead: what is there for longer is somebody's."""
        key = self._key("adapter")
        with contextlib.suppress(RedisError):
            used = await self._redis.link.call("GET", key)
            if used is None or used == self._adapter:
                await self._redis.link.call("SET", key, self._adapter, "PX", round(TTL_S * 1000))
                self._differing = 0
                return
            self._differing += 1
            if self._differing * BEAT_S > TTL_S and not self._differing_told:
                self._differing_told = True
                what = "other servers with this channel_prefix use another adapter: events do not reach each other"
                cure = "the same adapter everywhere, or another channel_prefix"
                self._log.error(what, here=self._adapter.decode(), there=used.decode(errors="replace"), cure=cure)

    async def _look(self) -> None:
        watched = sorted(set(self._watched()))
        self._known = {instance: value for instance, value in self._known.items() if instance in watched}
        if not watched:
            return
        link = self._redis.link
        try:
            # One command for each lease: on a Redis Cluster, of one node too, their keys lie in different slots.
            asked = [("PUBSUB", "NUMSUB", *map(self._channel, watched)), *(("GET", self._key(it)) for it in watched)]
            listening, *leases = await link.call_many(asked)
        except RedisError:
            return
        refused = next((reply for reply in (listening, *leases) if isinstance(reply, RedisError)), None)
        if refused is not None:
            self._refused += 1
            if is_told(self._refused):
                self._log.error("the instances' leases cannot be read", reason=str(refused), so_far=self._refused)
            return
        counts = listening[1::2] if isinstance(listening, list) else list(listening.values())
        missed, self._missing = self._missing, set()
        # After a refusal each of them must have had its turn.
        unsure = asyncio.get_running_loop().time() - self._refused_s < 2 * BEAT_S
        for instance, value, count in zip(watched, leases, counts, strict=True):
            if value is None and count and (unsure or instance not in missed):
                self._missing.add(instance)  # Redis may have lost it: who lives claims it again within a beat
            elif value is None or not count or self._known.setdefault(instance, value) != value:
                self._known.pop(instance, None)
                self._on_gone(instance)
