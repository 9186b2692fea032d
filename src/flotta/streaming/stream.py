"""A stream: where events are added, and the handle from which readers and sinks are made.

Owns adding (with its retention and time to live), removing and destroying; what a stream tells of itself is in
``description.py``, the way back from the dead-letter stream in ``deadletters.py``. Invariants: what ``add`` has
returned is on the server; an add is written once, so an error that does not say ``AmbiguousOutcome`` means that the
event is not there; a URL given to ``start`` makes a client that ``aclose`` closes, a client given to it is left open.

The keys, fields and maps are those of Go Pulse (``flotta.streaming.event``), so both may use one stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final, Generic, Self, TypeVar, cast, final

import structlog

from flotta.errors import Closed, CommandError, NotStarted, PayloadTooLarge
from flotta.redis import Redis
from flotta.rmap import Map
from flotta.rmap.codec import BYTES, Codec
from flotta.streaming.deadletters import DeadLetter, list_letters, redrive_letters
from flotta.streaming.description import StreamInfo, describe
from flotta.streaming.event import (
    Start,
    check_name,
    dead_stream_name,
    event_fields,
    parse_id,
    sinks_map_name,
    stream_key,
)
from flotta.streaming.options import ReaderOptions, SinkOptions
from flotta.streaming.reader import Reader, newest_id
from flotta.streaming.retention import Overflow, Retain, Retention, RetentionPolicy
from flotta.streaming.scripts import DESTROY, EXPIRE_ONCE
from flotta.streaming.sink import Sink

__all__ = ["Item", "Stream"]

E = TypeVar("E")

_DESTROY_TRIES: Final = 50

Item = tuple[str, E] | tuple[str, E, str | None]
"""What ``add_many`` takes: (name, payload) or (name, payload, topic)."""


@final
class Stream(Generic[E]):
    """A named stream of events in Redis.

    Options, all keyword-only:

    * ``codec``: what payloads are in the program; ``BYTES`` by default, ``TEXT``, ``JSON``, ``MSGPACK``,
      ``DataclassCodec(kind)`` (from ``flotta.rmap``) or anything with ``encode`` and ``decode``.
    * ``maxlen``: events always kept, the newest ones, approximately (10,000).
    * ``retain``: ``"until_acked"`` (default) also keeps whatever some sink still needs; ``"maxlen"`` keeps no more than
      the newest ``maxlen``, as Pulse does.
    * ``backlog_max``: events kept at most (1,000,000); ``overflow`` says what then happens: ``"raise"`` (default)
      refuses with ``StreamFull``, ``"drop"`` drops the oldest and counts them. Both hold to within two check intervals.
    * ``ttl_s``, ``sliding``: the stream ends that long after it was made, or (sliding) after its last event. None
      (default): never.
    * ``event_bytes_max``: name, payload and topic together (1 MiB).
    * ``logger``: a structlog-like logger.

    Raises ``InvalidName`` and ``ValueError`` at birth.
    """

    def __init__(
        self,
        name: str,
        *,
        codec: Codec[E] = cast("Codec[E]", BYTES),  # noqa: B008 - a constant without state
        maxlen: int = 10_000,
        retain: Retain = "until_acked",
        backlog_max: int = 1_000_000,
        overflow: Overflow = "raise",
        ttl_s: float | None = None,
        sliding: bool = False,
        event_bytes_max: int = 1024 * 1024,
        logger: Any = None,
    ) -> None:
        self.name = check_name("stream", name)
        self.codec = codec
        self.policy = RetentionPolicy(maxlen=maxlen, retain=retain, backlog_max=backlog_max, overflow=overflow)
        if ttl_s is not None and ttl_s < 0.001:
            raise ValueError(f"ttl_s: {ttl_s} s, at least a millisecond is needed (None: no time to live)")
        if event_bytes_max < 1:
            raise ValueError(f"event_bytes_max: {event_bytes_max}, at least 1 is needed")
        self.ttl_s = ttl_s
        self.sliding = sliding
        self.event_bytes_max = event_bytes_max
        self.logger: Any = logger or structlog.get_logger("flotta.streaming")
        self._redis: Redis | None = None
        self._owns_redis = False
        self._closed = False
        self._retention: Retention | None = None
        self._key = ""
        self._head: tuple[bytes, ...] = ()

    @classmethod
    async def open(
        cls,
        name: str,
        redis: str | Redis,
        *,
        codec: Codec[E] = cast("Codec[E]", BYTES),  # noqa: B008 - a constant without state
        maxlen: int = 10_000,
        retain: Retain = "until_acked",
        backlog_max: int = 1_000_000,
        overflow: Overflow = "raise",
        ttl_s: float | None = None,
        sliding: bool = False,
        event_bytes_max: int = 1024 * 1024,
        logger: Any = None,
    ) -> Stream[E]:
        """A started stream. You owe ``aclose``, or use it as an async context manager. Raises what both steps raise."""
        stream = cls(
            name,
            codec=codec,
            maxlen=maxlen,
            retain=retain,
            backlog_max=backlog_max,
            overflow=overflow,
            ttl_s=ttl_s,
            sliding=sliding,
            event_bytes_max=event_bytes_max,
            logger=logger,
        )
        await stream.start(redis)
        return stream

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self, redis: str | Redis) -> None:
        """Connect. Creates nothing on the server: a stream begins with its first event or sink. Again: harmless.

        Raises ``LinkUnavailable``, ``ServerTooOld``, ``Closed``. Cancelling leaves it unstarted.
        """
        if self._closed:
            raise Closed(f"stream {self.name!r}")
        if self._redis is not None:
            return
        client = Redis.from_url(redis) if isinstance(redis, str) else redis
        try:
            await client.connect()
        except BaseException:
            if client is not redis:
                await client.aclose()
            raise
        self._owns_redis = client is not redis
        self._key = client.key(stream_key(self.name))
        self._head = self._command_head()
        if self.policy.retain == "until_acked":
            self._retention = Retention(self.name, self._key, self.policy, client.link)
        self._redis = client

    async def aclose(self) -> None:
        """Close the handle (not the stream, nor its readers and sinks). Again, or before ``start``: harmless."""
        self._closed = True
        if self._retention is not None:
            await self._retention.aclose()
        redis, self._redis = self._redis, None
        if redis is not None and self._owns_redis:
            await redis.aclose()

    async def __aenter__(self) -> Self:
        if self._redis is None:
            raise NotStarted(f"stream {self.name!r}", "await start(redis) or use Stream.open")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def redis(self) -> Redis:
        """The client it works with. Raises ``NotStarted`` or ``Closed``."""
        if self._redis is None:
            if self._closed:
                raise Closed(f"stream {self.name!r}")
            raise NotStarted(f"stream {self.name!r}", "await start(redis) or use Stream.open")
        return self._redis

    @property
    def key(self) -> str:
        """Its key in Redis, namespace included. Raises like ``redis``."""
        assert self.redis is not None
        return self._key

    # --- adding -------------------------------------------------------------------------------------------------

    async def add(self, name: str, payload: E, *, topic: str | None = None, only_if_exists: bool = False) -> str | None:
        """Append one event; gives its id, or None with ``only_if_exists`` when there is no such stream.

        Adds of one loop tick share one write: call it from many tasks, or use ``add_many``. Raises ``StreamFull``,
        ``PayloadTooLarge``, whatever the codec raises, ``NotApplied`` (not added) and ``AmbiguousOutcome`` (may have
        been added; adding again may add twice). Cancelling: it may have been added.
        """
        link = self.redis.link
        if self._retention is not None and self._retention.count(1):
            await self._retention.admit()
        if topic is None and self.ttl_s is None and not only_if_exists:  # the usual add, kept short
            data = self.codec.encode(payload)
            if len(name) + len(data) > self.event_bytes_max:
                raise self._too_large(len(name) + len(data))
            added: bytes = await link.call(*self._head, b"n", name, b"p", data)
            return added.decode()
        fields = self._fields(name, payload, topic)
        if only_if_exists:
            command = (*self._head[:2], "NOMKSTREAM", *self._head[2:], *fields)
        else:
            command = (*self._head, *fields)
        if self.ttl_s is None:
            event_id = await link.call(*command)
        else:
            event_id = (await self._add_with_ttl([command]))[0]
        return None if event_id is None else event_id.decode()

    async def add_many(self, items: Iterable[Item[E]]) -> list[str]:
        """Append events in one write, in order and next to each other unless others add meanwhile; gives their ids.

        Not a transaction: raises like ``add``; after ``NotApplied`` none is there, after ``AmbiguousOutcome`` some may
        be.
        """
        link = self.redis.link
        commands = [
            (*self._head, *self._fields(item[0], item[1], item[2] if len(item) > 2 else None)) for item in items
        ]
        if self._retention is not None and self._retention.count(len(commands)):
            await self._retention.admit()
        if self.ttl_s is not None:
            replies = await self._add_with_ttl(commands)
        else:
            replies = _raised(await link.call_many(commands))
        return [event_id.decode() for event_id in replies]

    def _command_head(self) -> tuple[bytes, ...]:
        key = self._key.encode()
        if self.policy.retain == "maxlen":
            return (b"XADD", key, b"MAXLEN", b"~", b"%d" % self.policy.maxlen, b"*")
        return (b"XADD", key, b"*")

    def _fields(self, name: str, payload: E, topic: str | None) -> list[bytes | str]:
        data = self.codec.encode(payload)
        size = len(name) + len(data) + (len(topic) if topic else 0)
        if size > self.event_bytes_max:
            raise PayloadTooLarge(
                f"an event of stream {self.name!r}", size, self.event_bytes_max, option="event_bytes_max"
            )
        return event_fields(name, data, topic)

    def _too_large(self, size: int) -> PayloadTooLarge:
        what = f"an event of stream {self.name!r}"
        return PayloadTooLarge(what, size, self.event_bytes_max, option="event_bytes_max")

    async def _add_with_ttl(self, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
        link = self.redis.link
        ttl_ms = int((self.ttl_s or 0) * 1000)
        expire: list[tuple[bytes | str | int, ...]] = []
        if self.sliding:
            expire = [("PEXPIRE", self._key, ttl_ms)]
        elif link.server_version >= (7, 0, 0):
            expire = [("PEXPIRE", self._key, ttl_ms, "NX")]
        replies = _raised(await link.call_many([*commands, *expire]))
        if not expire:
            await EXPIRE_ONCE(link, keys=[self._key], args=[ttl_ms])
        return replies[: len(commands)]

    async def apply_ttl(self) -> None:
        """Give the key its time to live after something other than ``add`` made it (a sink)."""
        if self.ttl_s is not None:
            await self._add_with_ttl([])

    # --- removing -----------------------------------------------------------------------------------------------

    async def remove(self, *ids: str) -> int:
        """Delete events; gives how many were there. Sinks that hold one ack it as usual; its lag becomes unknown."""
        for event_id in ids:
            parse_id(event_id)
        return int(await self.redis.link.call("XDEL", self.key, *ids)) if ids else 0

    async def destroy(self) -> None:
        """Delete the stream, its sinks' groups and its list of consumers (not its dead-letter streams).

        Readers and sinks that run notice, log it and go on with what is added under the name from then on; a sink makes
        its group anew. Raises what ``Link.call`` raises; it may be repeated.
        """
        sinks: Map[str] = await Map.join(sinks_map_name(self.name), self.redis)
        async with sinks:
            await sinks.destroy()  # first: a sink that runs lists itself again once its group is gone
        for _ in range(_DESTROY_TRIES):
            if await DESTROY(self.redis.link, keys=[self.key]):
                return
            await asyncio.sleep(0.001)
        await self.redis.link.call("DEL", self.key)  # added to in every millisecond, or its ids lie in the future

    async def remove_sink(self, sink: str) -> bool:
        """Delete the consumer group of ``sink`` here, so that nothing is kept for it any more; True if there was one.

        A consumer of it that still runs makes it anew: stop them first.
        """
        existed = False
        try:
            existed = bool(await self.redis.link.call("XGROUP", "DESTROY", self.key, check_name("sink", sink)))
        except CommandError as error:
            if "requires the key to exist" not in error.text:
                raise
        sinks: Map[str] = await Map.join(sinks_map_name(self.name), self.redis)
        async with sinks:
            await sinks.delete(sink)
        return existed

    # --- describing ---------------------------------------------------------------------------------------------

    async def last_id(self) -> tuple[int, int]:
        """The newest id that the stream has given out, (0, 0) if there is no stream."""
        return await newest_id(self.redis, self.key) or (0, 0)

    async def info(self) -> StreamInfo:
        """Length, memory, and per sink lag and pending: three cheap commands and one more for each sink."""
        retention = self._retention.stats if self._retention is not None else None
        return await describe(self.redis.link, self.key, retention)

    # --- consuming ----------------------------------------------------------------------------------------------

    def reader(
        self,
        *more: Stream[E],
        start: Start = "new",
        topic: str | None = None,
        pattern: str | None = None,
        block_s: float = 5.0,
        polled_max: int = 1_000,
        buffer_max: int = 1_000,
    ) -> Reader[E]:
        """A reader of this stream and ``more``, not started: use ``async with``. Options as in ``ReaderOptions``."""
        options = ReaderOptions(
            start=start,
            topic=topic,
            pattern=pattern,
            block_s=block_s,
            polled_max=polled_max,
            buffer_max=buffer_max,
        )
        return Reader((self, *more), options)

    def sink(
        self,
        name: str,
        *more: Stream[E],
        start: Start = "new",
        topic: str | None = None,
        pattern: str | None = None,
        block_s: float = 5.0,
        polled_max: int = 1_000,
        buffer_max: int = 1_000,
        no_ack: bool = False,
        ack_grace_s: float = 20.0,
        max_deliveries: int | None = 5,
        dead_maxlen: int = 10_000,
    ) -> Sink[E]:
        """A consumer of sink ``name`` on this stream and ``more``, not started: use ``async with``.

        Options as in ``SinkOptions``.
        """
        options = SinkOptions(
            start=start,
            topic=topic,
            pattern=pattern,
            block_s=block_s,
            polled_max=polled_max,
            buffer_max=buffer_max,
            no_ack=no_ack,
            ack_grace_s=ack_grace_s,
            max_deliveries=max_deliveries,
            dead_maxlen=dead_maxlen,
        )
        return Sink(name, (self, *more), options)

    # --- dead letters -------------------------------------------------------------------------------------------

    async def dead_letters(self, sink: str, *, after: str = "0-0", max: int = 100) -> list[DeadLetter]:  # noqa: A002
        """What ``sink`` could not process, oldest first, from behind id ``after`` on."""
        return await list_letters(self.redis.link, self._dead_key(sink), after, max)

    async def redrive(self, sink: str, *ids: str) -> int:
        """Put dead letters of ``sink`` back: those with these ids, or all that are there now. Gives their number.

        They come as new events at the end of the stream, for this sink only (other Flotta readers and sinks pass over
        them, Go consumers do not know that). Each moves in one atomic step; cancelled, some have moved.
        """
        return await redrive_letters(self.redis.link, self._dead_key(sink), self.key, sink, ids)

    def _dead_key(self, sink: str) -> str:
        return self.redis.key(stream_key(dead_stream_name(self.name, sink)))

    def __repr__(self) -> str:
        return f"<Stream {self.name!r} {self.policy.retain} maxlen={self.policy.maxlen}>"


def _raised(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, CommandError):
            raise reply
    return replies
