"""What an adapter gives to Redis and hears from it: bounded in flight, counted, and honest about gaps.

Invariants: nothing is queued for a Redis that is away (it is lost, and counted); at most about ``in_flight_max`` sends
wait for Redis' answer before `wait_for_room` holds their callers; a loss of several subscriptions at once is one gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, final

from flotta.errors import CommandError, LinkBusy, LinkUnavailable, RedisError, WireError
from flotta.realtime.adapters import AdapterStats
from flotta.realtime.sampling import Junk, is_told
from flotta.redis import Redis

__all__ = ["Ear", "Take", "Traffic"]

Take = Callable[[bytes, bytes], None]
"""Takes a channel and what was said on it. Raises WireError for junk."""

TOO_MUCH: Final = "send less at a time, or raise in_flight_max of the Redis client's LinkOptions"
TOO_SLOW: Final = "look for what ended the connection to Redis, or held its answers up for command_timeout_s"


@final
class Ear:
    """One subscription's listener: hands messages on, reports the loss."""

    __slots__ = ("_take", "_traffic")

    def __init__(self, traffic: Traffic, take: Take) -> None:
        self._traffic = traffic
        self._take = take

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """A message came in. Junk is counted and dropped."""
        try:
            self._take(channel, payload)
        except WireError as error:
            self._traffic.junk.add(channel, error)

    def on_lost(self) -> None:
        """Messages may be missed from here on."""
        self._traffic.on_lost(self)

    def on_restored(self) -> None:
        """Messages arrive again."""
        self._traffic.on_restored(self)


@final
class Traffic:
    """The traffic of one adapter. ``on_deaf`` is called when what others say has ceased to arrive."""

    def __init__(self, redis: Redis, *, in_flight_max: int, on_deaf: Callable[[], None], logger: Any) -> None:
        self.received = 0
        """Broadcasts of other instances."""
        self.junk = Junk("an adapter", logger)
        self._redis = redis
        self._in_flight_max = in_flight_max
        self._on_deaf = on_deaf
        self._log = logger
        self.last: asyncio.Future[Any] | None = None
        """Redis' answer to what was sent last."""
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._deaf: set[object] = set()
        self._published = self._publish_lost = self._underway_lost = self._refused = self._gaps = 0

    # --- out ---

    @property
    def open(self) -> bool:
        """Redis can be spoken to, and what others say arrives."""
        return not self._deaf and self._redis.link.connected

    def away(self, reason: str) -> LinkUnavailable:
        """The error of a request that reaches no other server."""
        return LinkUnavailable(self._redis.link.endpoint.address, f"the other servers are out of reach: {reason}")

    async def ask(self, *command: bytes | str) -> Any:
        """What Redis knows of the other servers. Cancelling stops the waiting.

        Raises:
            LinkUnavailable: they are out of reach.
            CommandError: Redis refuses to say it.
        """
        if not self.open:
            raise self.away("Redis is away")
        try:
            return await self._redis.link.call(*command)
        except CommandError:
            raise
        except RedisError as error:
            raise self.away(str(error)) from error

    def send(self, *command: bytes | str | int) -> bool:
        """Send a command of which only the failure matters, without waiting. False: Redis is away."""
        if not self._redis.link.connected:
            self._publish_lost += 1
            return False
        self._published += 1
        reply: Awaitable[Any] = self._redis.link.call(*command)
        future = self.last = asyncio.ensure_future(reply)
        self._in_flight.add(future)
        if len(self._in_flight) >= self._in_flight_max:
            self._has_room.clear()
        future.add_done_callback(self._sent)
        return True

    def _sent(self, future: asyncio.Future[Any]) -> None:
        self._in_flight.discard(future)
        self._has_room.set()
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled():
            return
        self._publish_lost += 1
        if isinstance(error, CommandError):
            self._refused += 1
            if is_told(self._refused):
                self._log.error("Redis refuses broadcasts", reason=error.text, so_far=self._refused)
        elif error is None or isinstance(error, RedisError):
            self._tell_loss(error)
        else:
            self._log.error("publishing failed", exc_info=error)

    def _tell_loss(self, error: RedisError | None) -> None:
        """None: it was taken back before it was written."""
        self._underway_lost += 1
        if not is_told(self._underway_lost):
            return
        self._log.warning(
            "a broadcast was lost on its way",
            reason="the connection broke before it was written" if error is None else str(error),
            so_far=self._underway_lost,
            cure=TOO_MUCH if isinstance(error, LinkBusy) else TOO_SLOW,
        )

    async def wait_for_room(self) -> None:
        """Return when fewer sends are in flight than the limit."""
        await self._has_room.wait()

    async def drain(self, timeout_s: float) -> None:
        """Let what is in flight end."""
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=timeout_s)

    # --- in ---

    def on_lost(self, source: object) -> None:
        """A subscription (or a reader) is gone."""
        if not self._deaf:
            self._gaps += 1
            self._log.warning("broadcasts of other instances do not arrive until Redis is back")
            self._on_deaf()
        self._deaf.add(source)

    def on_restored(self, source: object) -> None:
        """A subscription is back."""
        if source in self._deaf:
            self.forget(source)
            if not self._deaf:
                self._log.info("broadcasts of other instances arrive again")

    def forget(self, source: object) -> None:
        """A subscription that is wanted no more."""
        self._deaf.discard(source)

    @property
    def stats(self) -> AdapterStats:
        """Counters since the start."""
        return AdapterStats(
            connected=self.open,
            published=self._published,
            publish_lost=self._publish_lost,
            received=self.received,
            junk=self.junk.count,
            gaps=self._gaps,
            in_flight=len(self._in_flight),
        )
