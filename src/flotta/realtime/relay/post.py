"""How instances reach each other: one Pub/Sub channel each, on the connections that broadcasts take too.

What an instance sends leaves in the order of the calls, and between it and its broadcasts nothing changes places: both
leave over the one link, and both arrive over the one subscription. `send` never waits and never raises for a Redis that
is away: who cannot be reached is reported, at the latest when Redis has said that nobody listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias, final

from flotta.errors import Closed, RedisError, WireError
from flotta.realtime.relay.pace import Pace
from flotta.realtime.relay.wire import Cut, Deaf, Message, decode, encode
from flotta.realtime.sampling import Junk
from flotta.redis import Hub, Link

__all__ = ["Post", "Unheard"]

ANNOUNCE_RETRY_S = 1.0

Unheard: TypeAlias = Callable[[], Any]
"""Called when nobody got the message, or nobody knows whether somebody did."""


class _Reader(Protocol):
    def on_message(self, message: Message) -> None: ...
    def on_deaf(self) -> None: ...


class _Closeable(Protocol):
    async def aclose(self) -> None: ...


@final
class Post:
    """One instance's channel. ``prefix`` is that of the server's other channels."""

    def __init__(self, link: Link, hub: Hub, *, prefix: str, logger: Any) -> None:
        self.junk = Junk("a relay", logger)
        self.pace = Pace(self.send, lambda: self._instance)
        """For what tunnels carry."""
        self._link = link
        self._hub = hub
        self._prefix = prefix
        self._reader: _Reader | None = None
        self._instance = ""
        self._subscriptions: list[_Closeable] = []
        self._deaf: set[bytes] = set()
        self._in_flight: set[asyncio.Future[Any]] = set()

    async def start(self, instance: str, reader: _Reader) -> None:
        """Listen as ``instance``; returns when Redis has confirmed and the others know."""
        self._reader, self._instance = reader, instance
        for name in (instance, ""):
            channel = self.channel(name)
            ear = _Ear(self, channel.encode())
            self._subscriptions.append(await self._hub.subscribe(channel, ear))
        await self._link.call("PUBLISH", self.channel(""), encode(Deaf(instance)))

    async def rename(self, instance: str) -> None:
        """Listen as ``instance`` instead. Raises LinkUnavailable; then nothing has changed."""
        channel = self.channel(instance)
        subscription = await self._hub.subscribe(channel, _Ear(self, channel.encode()))
        old, self._subscriptions[0] = self._subscriptions[0], subscription
        await old.aclose()
        self._deaf.discard(self.channel(self._instance).encode())
        self._instance = instance

    async def aclose(self) -> None:
        """Stop listening and let what is in flight end. Idempotent."""
        self.pace.close()
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.aclose()
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=1.0)

    def channel(self, instance: str) -> str:
        """Where ``instance`` listens; empty: where all do."""
        return f"{self._prefix}-relay#{instance}"

    @property
    def connected(self) -> bool:
        """Messages leave and arrive."""
        return bool(self._subscriptions) and not self._deaf and self._link.connected

    # --- out ---

    def send(self, to: str, message: Message, on_unheard: Unheard, on_sent: Callable[[], None] | None = None) -> None:
        """Give ``message`` to an instance. ``on_sent``: Redis has it, or never will."""
        if not self.connected:
            asyncio.get_running_loop().call_soon(_both, on_unheard, on_sent)
            return
        reply = self._link.call("PUBLISH", self.channel(to), encode(message))
        self._follow(reply, lambda heard: heard > 0, on_unheard, on_sent)

    async def is_there(self, instance: str) -> bool:
        """Whether an instance listens, or nobody can say."""
        try:
            counts = await self._link.call("PUBSUB", "NUMSUB", self.channel(instance))
        except (RedisError, Closed):
            return True
        return bool(counts[1] if isinstance(counts, list) else next(iter(counts.values())))

    def cut(self, one: str, other: str, tunnel: str, on_unheard: Unheard) -> None:
        """Let two instances hear the same moment: what either of them hears before, the other hears before it too."""
        if not self.connected:
            asyncio.get_running_loop().call_soon(on_unheard)
            return
        payload = encode(Cut(tunnel))
        publish = [("PUBLISH", self.channel(instance), payload) for instance in (one, other)]
        # A transaction and no script: one that the server did not know would be sent anew, behind later broadcasts.
        reply = self._link.call_many([("MULTI",), *publish, ("EXEC",)])
        self._follow(reply, _both_heard, on_unheard, None)

    def _follow(
        self, reply: Any, is_heard: Callable[[Any], bool], on_unheard: Unheard, on_sent: Callable[[], None] | None
    ) -> None:
        future: asyncio.Future[Any] = asyncio.ensure_future(reply)
        self._in_flight.add(future)

        def done(_: object) -> None:
            self._in_flight.discard(future)
            if on_sent is not None:
                on_sent()
            if future.cancelled() or future.exception() is not None or not is_heard(future.result()):
                on_unheard()

        future.add_done_callback(done)

    # --- in (told by the hub) ---

    def take(self, channel: bytes, payload: bytes) -> None:
        """A message came in. Junk is counted and dropped."""
        assert self._reader is not None
        try:
            self._reader.on_message(decode(payload))
        except WireError as error:
            self.junk.add(channel, error)

    def lose(self, channel: bytes) -> None:
        """Messages may be missed from here on."""
        assert self._reader is not None
        was_deaf = bool(self._deaf)
        self._deaf.add(channel)
        if not was_deaf:
            self._reader.on_deaf()

    def restore(self, channel: bytes) -> None:
        """Messages arrive again: tell those who wait for an answer to one that did not."""
        self._deaf.discard(channel)
        if not self._deaf:
            self._announce()

    def _announce(self) -> None:
        if not self._subscriptions or self._link.closed:
            return  # stopped meanwhile
        again = partial(asyncio.get_running_loop().call_later, ANNOUNCE_RETRY_S, self._announce)
        reply = self._link.call("PUBLISH", self.channel(""), encode(Deaf(self._instance)))
        self._follow(reply, lambda heard: heard > 0, again, None)


@final
class _Ear:
    """Hands on what one subscription hears."""

    __slots__ = ("_channel", "_post")

    def __init__(self, post: Post, channel: bytes) -> None:
        self._post = post
        self._channel = channel

    def on_message(self, channel: bytes, payload: bytes) -> None:
        self._post.take(channel, payload)

    def on_lost(self) -> None:
        self._post.lose(self._channel)

    def on_restored(self) -> None:
        self._post.restore(self._channel)


def _both_heard(replies: list[Any]) -> bool:
    heard = replies[-1]  # a monitor that listens to every channel is counted too
    return isinstance(heard, list) and len(heard) == 2 and all(isinstance(count, int) and count for count in heard)


def _both(on_unheard: Unheard, on_sent: Callable[[], None] | None) -> None:
    if on_sent is not None:
        on_sent()
    on_unheard()
