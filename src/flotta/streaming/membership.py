"""One consumer of a sink among the others: how it joins, shows that it lives, takes over from the dead, and leaves.

Owns the consumer's name, its entries in the two replicated maps that Pulse keeps, and the lease under which one
consumer looks after the whole sink. Invariants:

* Liveness is judged by the server's clock (XINFO idle times, TIME); a keep-alive only ever speaks for a consumer.
* A consumer is deleted only if it holds nothing, in the step that looks (``lua/forget.lua``): XGROUP DELCONSUMER drops
  what a consumer holds.
* A keep-alive is written before its consumer exists: Go Pulse deletes a consumer that has none.
* Events that wait in a live consumer's buffer are touched before their grace period ends (``lua/touch.lua``).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from flotta.errors import Closed, CommandError, FlottaError
from flotta.redis import Redis
from flotta.rmap import BYTES, Map
from flotta.streaming.event import keepalive_map_name, lease_key, sinks_map_name, ulid
from flotta.streaming.scripts import COUNT, FORGET, LEASE, LEAVE, TAKEOVER, TOUCH

__all__ = ["CHECK_PERIOD_S", "Claimed", "Membership", "is_dead"]

CHECK_PERIOD_S: Final = 0.5  # Pulse's period of looking for idle events
_LEASE_MS: Final = 495
_CLAIMED_PER_STEP_MAX: Final = 100
_TOUCHED_PER_STEP_MAX: Final = 500
# One below the highest id: the server takes the highest itself for ">" and would hand out new events.
_BEYOND_ALL: Final = f"{2**64 - 1}-{2**64 - 2}"


@final
@dataclass(frozen=True, slots=True)
class Claimed:
    """What one step of taking over gave. ``lost``: entries trimmed while pending; ``buried``: to the dead letters."""

    entries: list[Any]
    deliveries: list[int]
    lost: int
    buried: int
    more: bool


def is_dead(idle_ms: int, keepalive: bytes | None, now_ms: int, grace_s: float) -> bool:
    """Whether a consumer is dead: silent for twice the grace period, and no keep-alive that speaks for it.

    A Go consumer may block for ever in one read; then its keep-alive (unix nanoseconds) is its only sign of life.
    """
    limit_ms = 2 * grace_s * 1000
    if idle_ms <= limit_ms:
        return False
    try:
        alive_ms = int(keepalive or b"0") // 1_000_000
    except ValueError:
        alive_ms = 0
    return now_ms - alive_ms > limit_ms


@final
class Membership:
    """One consumer. ``keys`` maps the names of the sink's streams to (key, key of the dead-letter stream)."""

    def __init__(self, sink: str, redis: Redis, keys: Mapping[str, tuple[str, str]], *, grace_s: float) -> None:
        self.sink = sink
        self._redis = redis
        self._keys = keys
        self._grace_s = grace_s
        self._lease = redis.key(lease_key(sink))
        self._keepalive = Map(keepalive_map_name(sink), codec=BYTES)
        self._sinks: dict[str, Map[str]] = {}
        self._now_s = asyncio.get_running_loop().time
        self._beat_at_s = 0.0
        self._swept_at_s = 0.0
        self.consumer = ""

    # --- joining and leaving --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Name the consumer and write its first sign of life."""
        await self._keepalive.start(self._redis)
        seconds, _ = await self._redis.link.call("TIME")
        self.consumer = ulid(int(seconds) * 1000, secrets.token_bytes(10))
        await self._write_keepalive()

    async def join(self, stream: str, start: str, *, ttl_s: float | None, sliding: bool) -> str:
        """Make the group (at ``start`` unless it exists) and the consumer on ``stream``; gives the group's position."""
        key, _ = self._keys[stream]
        if stream not in self._sinks:
            consumers: Map[str] = Map(sinks_map_name(stream), ttl_s=ttl_s, sliding=sliding)
            await consumers.start(self._redis)
            self._sinks[stream] = consumers
        await self._sinks[stream].append_unique_values(self.sink, self.consumer)
        link = self._redis.link
        try:
            await link.call("XGROUP", "CREATE", key, self.sink, start, "MKSTREAM")
        except CommandError as error:
            if error.code != "BUSYGROUP":
                raise
        await link.call("XGROUP", "CREATECONSUMER", key, self.sink, self.consumer)
        for group in await link.call("XINFO", "GROUPS", key):
            if group[b"name"].decode("utf-8", "replace") == self.sink:
                position: bytes = group[b"last-delivered-id"]
                return position.decode()
        return start

    async def part(self, stream: str, unseen: Sequence[str]) -> bool:
        """Leave ``stream``: what is held may be taken over at once. True if nothing is held and the consumer is gone.

        ``unseen`` are the held events that were never handed out: this delivery of them is not counted.
        """
        key, _ = self._keys[stream]
        held = 0
        with contextlib.suppress(CommandError):  # NOGROUP: destroyed meanwhile, nothing is held
            grace_ms = int(self._grace_s * 1000)
            held = await LEAVE(self._redis.link, keys=[key], args=[self.sink, self.consumer, grace_ms, *unseen])
        consumers = self._sinks.pop(stream)
        if not held:
            await consumers.remove_values(self.sink, self.consumer)
        await consumers.aclose()
        return not held

    async def leave(self, unseen: Mapping[str, Sequence[str]]) -> None:
        """Leave every stream; the keep-alive stays if something is held, so that Go consumers do not drop it."""
        gone = [await self.part(stream, unseen.get(stream, ())) for stream in list(self._sinks)]
        if all(gone):
            await self._keepalive.delete(self.consumer)

    async def aclose(self) -> None:
        """Close the maps. Never raises for a lost connection."""
        for consumers in self._sinks.values():
            with contextlib.suppress(FlottaError):
                await consumers.aclose()
        with contextlib.suppress(FlottaError):
            await self._keepalive.aclose()
        self._sinks.clear()

    # --- showing life ---------------------------------------------------------------------------------------------

    def is_late(self) -> bool:
        """True if this process was held up for so long that others may think it dead."""
        return self._now_s() - self._beat_at_s > self._grace_s

    def is_due(self) -> bool:
        """True four times in each grace period."""
        return self._now_s() - self._beat_at_s >= self._grace_s / 4

    async def beat(self) -> None:
        """Show life: to Pulse by the keep-alive, to the server by reading this consumer's history beyond its end."""
        began_s = self._now_s()
        await self._write_keepalive()
        keys = [self._keys[stream][0] for stream in self._sinks]
        if keys:
            group = ("GROUP", self.sink, self.consumer)
            ids = [_BEYOND_ALL] * len(keys)
            await self._redis.link.call("XREADGROUP", *group, "COUNT", 1, "STREAMS", *keys, *ids)
        self._beat_at_s = began_s

    async def touch(self, stream: str, ids: Sequence[str], *, adopt: bool) -> set[tuple[str, str]]:
        """Start the grace period of buffered events anew; gives those that are not this consumer's any more.

        ``adopt``: what is pending for nobody becomes this consumer's (the group was made anew).
        """
        key, _ = self._keys[stream]
        gone: set[tuple[str, str]] = set()
        for first in range(0, len(ids), _TOUCHED_PER_STEP_MAX):
            part = ids[first : first + _TOUCHED_PER_STEP_MAX]
            arguments = (self.sink, self.consumer, "1" if adopt else "0", *part)
            mine = await TOUCH(self._redis.link, keys=[key], args=arguments)
            gone.update((stream, event_id) for event_id, still in zip(part, mine, strict=True) if not still)
        return gone

    async def count(self, stream: str, deliveries: Sequence[tuple[str, int]]) -> set[tuple[str, str]]:
        """Set how often events have been delivered, by (id, deliveries); gives those that are others' by now."""
        key, _ = self._keys[stream]
        arguments = [value for pair in deliveries for value in pair]
        mine = await COUNT(self._redis.link, keys=[key], args=(self.sink, self.consumer, *arguments))
        return {(stream, event_id) for (event_id, _), still in zip(deliveries, mine, strict=True) if not still}

    async def _write_keepalive(self) -> None:
        began_s = self._now_s()
        seconds, micros = await self._redis.link.call("TIME")
        await self._keepalive.set(self.consumer, b"%d" % (int(seconds) * 1_000_000_000 + int(micros) * 1000))
        self._beat_at_s = began_s

    # --- looking after the sink -----------------------------------------------------------------------------------

    async def take_lease(self) -> int | None:
        """The server's time in ms if this consumer now looks after the sink, None if another one does."""
        taken, now_ms = await LEASE(self._redis.link, keys=[self._lease], args=[_LEASE_MS])
        return int(now_ms) if taken else None

    async def claim(self, stream: str, max_deliveries: int | None, dead_maxlen: int) -> Claimed:
        """Take over up to 100 events that were not acked within the grace period."""
        key, dead = self._keys[stream]
        limits = (int(self._grace_s * 1000), _CLAIMED_PER_STEP_MAX, max_deliveries or 0, dead_maxlen)
        reply = await TAKEOVER(self._redis.link, keys=[key, dead], args=(self.sink, self.consumer, *limits, stream))
        entries, deliveries, lost, buried, more = reply
        return Claimed(entries, deliveries, lost, buried, bool(more))

    async def sweep(self, now_ms: int, on_gone: Callable[[str, str], None]) -> None:
        """Forget dead consumers that hold nothing; at most twice in a grace period. ``now_ms``: the server's time."""
        now_s = self._now_s()
        if now_s - self._swept_at_s < self._grace_s / 2:
            return
        self._swept_at_s = now_s
        seen: set[str] = {self.consumer}
        for stream, consumers in list(self._sinks.items()):
            if stream in self._sinks:  # else this consumer has left it meanwhile
                seen |= await self._sweep_stream(stream, consumers, now_ms, on_gone)
        for name, value in self._keepalive.items():
            if name not in seen and is_dead(2**62, value, now_ms, self._grace_s):
                await self._keepalive.delete(name)

    async def _sweep_stream(
        self, stream: str, consumers: Map[str], now_ms: int, on_gone: Callable[[str, str], None]
    ) -> set[str]:
        key, _ = self._keys[stream]
        limit_ms = int(2 * self._grace_s * 1000)
        left: set[str] = set()
        for info in await self._redis.link.call("XINFO", "CONSUMERS", key, self.sink):
            name = info[b"name"].decode("utf-8", "replace")
            left.add(name)
            if name == self.consumer or not is_dead(info[b"idle"], self._keepalive.get(name), now_ms, self._grace_s):
                continue
            if await FORGET(self._redis.link, keys=[key], args=(self.sink, name, limit_ms)):
                with contextlib.suppress(Closed):  # this consumer has left the stream meanwhile
                    await consumers.remove_values(self.sink, name)
                left.discard(name)
                on_gone(stream, name)
        return left
