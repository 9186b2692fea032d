"""Subscriptions of one process: one connection, any number of listeners, and the truth about gaps.

Owns: which channels are wanted and by whom. Invariants: nothing published after ``subscribe`` returned is missed
without ``on_lost``; between ``on_lost`` and ``on_restored`` nothing is delivered; every ``on_lost`` is followed by
``on_restored`` once the server has confirmed the channel anew, unless the subscription is closed before. Confirmations
are handled in the reading loop itself, so that no message can overtake ``on_restored``. Commands leave in the order in
which listeners come and go, so a channel ends subscribed exactly if somebody listens.

Why a connection of its own: the server ends a subscriber that reads too slowly (client-output-buffer-limit pubsub).
That must cost a gap, which listeners are told of, and not the commands of the whole process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Final, Literal, Protocol, final

import structlog

from flotta.errors import Closed, CommandError, LinkUnavailable, Outcome, RedisError
from flotta.redis.effects import Effect
from flotta.redis.endpoint import Endpoint
from flotta.redis.link import Link
from flotta.redis.options import LinkOptions
from flotta.redis.repeating import call_repeating

__all__ = ["Hub", "Kind", "Listener", "Subscription"]

Kind = Literal["channel", "pattern", "shard"]
_SUBSCRIBE: Final[dict[Kind, str]] = {"channel": "SUBSCRIBE", "pattern": "PSUBSCRIBE", "shard": "SSUBSCRIBE"}
_UNSUBSCRIBE: Final[dict[Kind, str]] = {"channel": "UNSUBSCRIBE", "pattern": "PUNSUBSCRIBE", "shard": "SUNSUBSCRIBE"}
_MESSAGE: Final[dict[Kind, bytes]] = {"channel": b"message", "pattern": b"pmessage", "shard": b"smessage"}
_CONFIRMED: Final[dict[bytes, Kind]] = {b"subscribe": "channel", b"psubscribe": "pattern", b"ssubscribe": "shard"}


class Listener(Protocol):
    """Called from the reading loop: be quick, never wait. What it raises is logged and goes no further."""

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """One message. For a pattern ``channel`` is the channel it was published on."""

    def on_lost(self) -> None:
        """The connection is gone: messages may be missed from here on."""

    def on_restored(self) -> None:
        """Subscribed again, confirmed by the server: everything between is missed."""


class TopicState(Enum):
    """What the server knows of one channel."""

    ASKED = "asked"
    LIVE = "live"
    LOST = "lost"


class _Topic:
    """One channel, pattern or shard channel and who listens to it."""

    __slots__ = ("channel", "is_lasting", "kind", "listeners", "ready", "state")

    def __init__(self, kind: Kind, channel: bytes, ready: asyncio.Future[None]) -> None:
        self.kind = kind
        self.channel = channel
        self.state = TopicState.ASKED
        self.ready = ready
        self.is_lasting = False  # asked for until it is live, however long that takes
        self.listeners: tuple[Listener, ...] = ()  # replaced, never changed: a listener may leave while others are told


@final
class Subscription:
    """One listener on one channel, until ``aclose``."""

    __slots__ = ("_hub", "_listener", "_topic")

    def __init__(self, hub: Hub, topic: _Topic, listener: Listener) -> None:
        self._hub = hub
        self._topic: _Topic | None = topic
        self._listener = listener

    @property
    def live(self) -> bool:
        """The server has confirmed it: what is published from now on arrives."""
        return self._topic is not None and self._topic.state is TopicState.LIVE

    async def wait_live(self) -> None:
        """Return when it is `live` (at once if it is closed). No time limit of its own; cancelling is harmless.

        Raises what the server or the link refused it with; it is asked again all the same.
        """
        while self._topic is not None and self._topic.state is not TopicState.LIVE:
            await asyncio.shield(self._topic.ready)

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    def close(self) -> None:
        """Nothing is delivered from the moment of the call. Calling it again is harmless."""
        topic, self._topic = self._topic, None
        if topic is not None:
            self._hub._leave(topic, self._listener)  # noqa: SLF001 - one room, two classes


@final
class Hub:
    """Subscriptions over one connection that comes back by itself and then subscribes to everything again."""

    def __init__(self, url: str | Endpoint, *, options: LinkOptions | None = None, logger: Any = None) -> None:
        self._logger = logger or structlog.get_logger("flotta.redis")
        self._link = Link(url, options=options, observer=self, logger=logger)
        self._options = self._link.options
        self._topics: dict[Kind, dict[bytes, _Topic]] = {kind: {} for kind in _MESSAGE}
        # The same dictionaries by the first word of a message, for the reading loop.
        self._topics_of_message = {word: self._topics[kind] for kind, word in _MESSAGE.items()}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether its connection is up at this moment."""
        return self._link.connected

    async def subscribe(self, channel: str | bytes, listener: Listener, *, kind: Kind = "channel") -> Subscription:
        """Listen to ``channel``; returns when the server has confirmed it, so nothing published later is missed.

        You owe the subscription ``aclose``. Cancelled or failed: nothing is subscribed. Raises ``LinkUnavailable`` if
        there is no connection in time, ``CommandError`` if the server refuses (``NOPERM``), ``Closed``.
        """
        topic = self._join(channel, listener, kind)
        try:
            await self._wait_until_live(topic)
        except BaseException:
            self._leave(topic, listener)
            raise
        return Subscription(self, topic, listener)

    def listen(self, channel: str | bytes, listener: Listener, *, kind: Kind = "channel") -> Subscription:
        """Listen to ``channel`` from when the server has confirmed it; does not wait for that (`Subscription.wait_live`
        does), and asks until it has: for channels that come and go with their users.

        If it cannot be asked for now the listener is told `on_lost`, and later `on_restored`. You owe the subscription
        ``close``. Raises ``Closed``.
        """
        topic = self._join(channel, listener, kind)
        topic.is_lasting = True
        return Subscription(self, topic, listener)

    def _join(self, channel: str | bytes, listener: Listener, kind: Kind) -> _Topic:
        if self._closed:
            raise Closed("the hub")
        name = channel.encode() if isinstance(channel, str) else bytes(channel)
        topic = self._topics[kind].get(name)
        if topic is None:
            topic = _Topic(kind, name, asyncio.get_running_loop().create_future())
            self._topics[kind][name] = topic
            self._ask(topic)
        topic.listeners += (listener,)
        return topic

    async def _wait_until_live(self, topic: _Topic) -> None:
        limit_s = self._options.command_timeout_s * 2
        try:
            async with asyncio.timeout(limit_s):
                while topic.state is not TopicState.LIVE:
                    await asyncio.shield(topic.ready)
        except TimeoutError:
            address = self._link.endpoint.address
            raise LinkUnavailable(address, f"not subscribed after {limit_s:g} s", command="SUBSCRIBE") from None

    async def aclose(self) -> None:
        """Close the connection and forget every subscription; listeners hear nothing more. Again: harmless."""
        self._closed = True
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        for topic in self._all():
            self._forget(topic)
            topic.listeners = ()
            if not topic.ready.done():
                topic.ready.set_exception(Closed("the hub"))
                topic.ready.exception()
        await self._link.aclose(drain_s=0.0)
        if tasks:
            await asyncio.wait(tasks)

    # --- one topic ----------------------------------------------------------------------------------------------

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ask(self, topic: _Topic) -> None:
        """Subscribe on the server. Its confirmation arrives as a push; only failures are of interest here."""
        reply = asyncio.ensure_future(self._link.call(_SUBSCRIBE[topic.kind], topic.channel))
        reply.add_done_callback(partial(self._asked, topic))

    def _asked(self, topic: _Topic, reply: asyncio.Future[Any]) -> None:
        error = reply.exception()
        if self._closed:
            return
        if isinstance(error, RedisError):
            self._spawn(self._ask_again(topic, error), f"flotta-hub subscribe {topic.channel!r}")
        else:
            self._drop_unwanted(topic)

    async def _ask_again(self, topic: _Topic, error: Exception | None) -> None:
        """After a first failure: as often as is right."""
        command = (_SUBSCRIBE[topic.kind], topic.channel)
        while True:
            try:
                await call_repeating(self._link, command, self._options, effect=Effect.READ, first_error=error)
            except (RedisError, Closed) as last:
                self._refuse(topic, last)
                is_answer = isinstance(last, Closed) or last.outcome is Outcome.APP
                if not is_answer and topic.state is TopicState.LOST and self._link.connected and self._is_wanted(topic):
                    error = None
                    await asyncio.sleep(
                        self._options.reconnect_max_s
                    )  # without a new connection nobody else asks again
                    continue
            break
        self._drop_unwanted(topic)

    def _drop_unwanted(self, topic: _Topic) -> None:
        if topic.channel not in self._topics[topic.kind] and self._link.connected:
            self._unsubscribe(topic)  # everybody left while the server was being asked

    def _refuse(self, topic: _Topic, error: Exception) -> None:
        if topic.state is TopicState.ASKED and not topic.ready.done():
            ready = topic.ready
            if topic.is_lasting and self._is_wanted(topic) and not isinstance(error, Closed):
                self._lose(topic)
            else:
                self._forget(topic)
            ready.set_exception(error)
            ready.exception()  # the subscriber may have been cancelled: then nobody else asks
        if topic.state is TopicState.LOST and isinstance(error, CommandError):
            self._logger.error("a subscription was refused", channel=topic.channel, reason=error.text)

    def _confirm(self, topic: _Topic) -> None:
        was, topic.state = topic.state, TopicState.LIVE
        if not topic.ready.done():
            topic.ready.set_result(None)
        if was is TopicState.LOST:
            self._tell(topic, lambda listener: listener.on_restored())

    def _all(self) -> list[_Topic]:
        return [topic for topics in self._topics.values() for topic in topics.values()]

    def _is_wanted(self, topic: _Topic) -> bool:
        return self._topics[topic.kind].get(topic.channel) is topic

    def _forget(self, topic: _Topic) -> bool:
        """Whether it was still wanted."""
        if not self._is_wanted(topic):
            return False
        del self._topics[topic.kind][topic.channel]
        return True

    def _leave(self, topic: _Topic, listener: Listener) -> None:
        listeners = list(topic.listeners)
        if listener in listeners:
            listeners.remove(listener)
        topic.listeners = tuple(listeners)
        if topic.listeners or not self._forget(topic):
            return
        if topic.state is TopicState.LIVE and not self._closed:
            self._unsubscribe(topic)

    def _unsubscribe(self, topic: _Topic) -> None:
        reply = asyncio.ensure_future(self._link.call(_UNSUBSCRIBE[topic.kind], topic.channel))
        # If it fails the connection is gone, and the subscription with it.
        reply.add_done_callback(asyncio.Future.exception)

    # --- told by the link ---------------------------------------------------------------------------------------

    def on_link_up(self) -> None:
        """Subscribe to everything that was lost; the link writes it in pieces."""
        for topic in self._all():
            if topic.state is TopicState.LOST:
                self._ask(topic)

    def on_link_down(self, reason: str) -> None:  # noqa: ARG002 - the observer's signature
        """Tell every listener of a channel that was live."""
        for topic in self._all():
            if topic.state is TopicState.LIVE:  # what is being asked for goes on being asked for
                self._lose(topic)

    def _lose(self, topic: _Topic) -> None:
        topic.state = TopicState.LOST
        topic.ready = asyncio.get_running_loop().create_future()
        self._tell(topic, lambda listener: listener.on_lost())

    def on_link_push(self, push: list[Any]) -> None:
        """Hand a message to the listeners of its channel or pattern, or take note of a confirmation."""
        topics = self._topics_of_message.get(push[0])
        topic = topics.get(push[1]) if topics is not None else None
        if topic is None:
            self._take_note(push)
            return
        channel, payload = push[-2], push[-1]
        for listener in topic.listeners:
            try:
                listener.on_message(channel, payload)
            except Exception:  # a listener's bug must not end the connection of all
                self._logger.exception("a listener raised", channel=channel)

    def _take_note(self, push: list[Any]) -> None:
        kind = _CONFIRMED.get(push[0])
        topic = self._topics[kind].get(push[1]) if kind is not None else None
        if topic is not None:
            self._confirm(topic)
        elif push[0] == b"sunsubscribe":
            topic = self._topics["shard"].get(push[1])
            # Nobody here asked for it: the slot has moved to another server. (Our own SUNSUBSCRIBE is confirmed before
            # the channel can be live anew.)
            if topic is not None and topic.state is TopicState.LIVE:
                self._lose(topic)
                self._ask(topic)

    def _tell(self, topic: _Topic, say: Callable[[Listener], None]) -> None:
        for listener in topic.listeners:
            try:
                say(listener)
            except Exception:
                self._logger.exception("a listener raised", channel=topic.channel)
