"""A sink: consumers of one name share a stream's events; each event is handed to one of them until it is acked.

Owns the two tasks of a consumer (reading on, looking after the sink) and the recovery from whatever cuts it off. What
is buffered belongs to ``custody.py``, the connection to ``groupread.py``, the place among the other consumers to
``membership.py``, acks on their way to ``acks.py``. Invariants:

* At least once: an event leaves the group only by an ack, by the dead-letter stream, or because somebody trimmed it;
  what is buffered, handed out or lost with a connection stays pending on the server and comes again.
* A reply that was lost is asked for again (this consumer's history above the last id it has seen), so that a broken
  connection does not cost a grace period.
* What a filter drops is acked here; what is no event goes to the dead-letter stream.

Why a connection for each sink: XREADGROUP names one group and one consumer, so two sinks cannot share a blocking read,
and waking every consumer for every event instead would cost a round trip for each of them (docs/design/streams.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, final

from flotta.errors import Closed, CommandError, FlottaError, NotStarted, Outcome, RedisError
from flotta.redis import Redis
from flotta.streaming.acks import Acks
from flotta.streaming.custody import Custody, group_is_gone
from flotta.streaming.event import (
    Accept,
    Event,
    Origin,
    Start,
    TopicFilter,
    check_name,
    dead_stream_name,
    parse_entries,
    parse_id,
    start_id,
    stream_key,
)
from flotta.streaming.groupread import GroupReads
from flotta.streaming.membership import CHECK_PERIOD_S, Membership
from flotta.streaming.options import SinkOptions, SinkStats
from flotta.streaming.reader import newest_id
from flotta.streaming.scripts import BURY

if TYPE_CHECKING:  # a stream makes its sinks
    from flotta.streaming.stream import Stream

__all__ = ["Sink"]

E = TypeVar("E")

_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 2.0
_CLOSE_STEP_S: Final = 2.0
_NOT_PRINTABLE: Final = re.compile(r"[^!-~]")  # what CLIENT SETNAME refuses
_MALFORMED: Final = "malformed: fields n and p are needed"


@final
@dataclass(slots=True)
class _Counts:
    received: int = 0
    redelivered: int = 0
    filtered: int = 0
    buried: int = 0
    gap: int = 0
    reads: int = 0
    retries: int = 0
    regroups: int = 0
    forgotten: int = 0


@final
class Sink(Generic[E]):
    """One consumer of a sink, made by ``Stream.sink``.

    ::

        async with stream.sink("persister") as sink:
            async for event in sink:
                await handle(event)
                sink.ack(event)

    Any number of tasks may take events from it. Iterating ends after ``aclose``. Lost connections are survived
    silently; an error that would come again and again (a key of another type, a missing permission) is raised to
    whoever iterates, after the events already read.
    """

    def __init__(self, name: str, streams: Sequence[Stream[E]], options: SinkOptions) -> None:
        self.name = check_name("sink", name)
        self.options = options
        self._streams: dict[str, Stream[E]] = {stream.name: stream for stream in streams}
        self._accept = Accept(TopicFilter(topic=options.topic, pattern=options.pattern), self.name)
        self._keys: dict[str, tuple[str, str]] = {}
        self._origins: dict[str, Origin[E]] = {}
        self._seen: dict[str, str] = {}  # per key the highest id that has come in: where a lost reply begins
        self._custody: Custody[E] = Custody(options)
        self._inbox = self._custody.inbox
        self._counts = _Counts()
        self._lagging = True
        self._recover = False
        self._closing = False
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._redis: Redis
        self._reads: GroupReads
        self._member: Membership
        self._acks: Acks

    @property
    def consumer(self) -> str:
        """The name of this consumer in the group, a ULID. Raises ``NotStarted``."""
        self._require_started()
        return self._member.consumer

    @property
    def stats(self) -> SinkStats:
        """What has happened so far."""
        counts = self._counts
        return SinkStats(
            received=counts.received,
            redelivered=counts.redelivered,
            acked=self._acks.acked if self._tasks or self._closed else 0,
            filtered=counts.filtered,
            buried=counts.buried,
            gap=counts.gap,
            reads=counts.reads,
            retries=counts.retries,
            regroups=counts.regroups,
            forgotten=counts.forgotten,
            buffered=len(self._inbox),
        )

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the group on every stream (it is made if need be) and start reading. Again: harmless.

        You owe ``aclose``. Raises ``NotStarted`` if a stream has not started, and what ``Link.call`` raises.
        Cancelling leaves.
        """
        if self._closing:
            raise Closed(f"sink {self.name!r}")
        if self._tasks:
            return
        options = self.options
        self._redis = next(iter(self._streams.values())).redis
        self._member = Membership(self.name, self._redis, self._keys, grace_s=options.ack_grace_s)
        self._acks = Acks(self._redis.link, self.name, self._key_of, patience_s=options.ack_grace_s)
        self._custody.begin(self._member)
        try:
            await self._member.start()
            for stream in list(self._streams.values()):
                await self._join(stream, start_id(options.start))
        except BaseException:
            await self._member.aclose()
            raise
        link = self._redis.dedicated("sink-" + _NOT_PRINTABLE.sub("_", self.name))
        self._reads = GroupReads(link, self._redis.link, self.name, self._member.consumer, options)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._guard(self._read_on), name=f"sink {self.name} read"),
            loop.create_task(self._guard(self._tend), name=f"sink {self.name} tend"),
        ]

    async def aclose(self) -> None:
        """Stop reading, send the acks, hand back what is not acked (others get it at once), leave. Again: harmless.

        Bounded in time also when Redis is gone (then others take over after the grace period). Cancelling leaves
        without handing back.
        """
        if self._closing:
            return
        self._closing = True
        if not self._tasks:
            self._inbox.end()
            return
        reading, tending = self._tasks
        try:
            tending.cancel()
            await self._stop_reading(reading)
            await asyncio.wait({tending})
            unseen = self._custody.close()
            with contextlib.suppress(FlottaError, TimeoutError):
                async with asyncio.timeout(_CLOSE_STEP_S):
                    await self._acks.flush()
                async with asyncio.timeout(_CLOSE_STEP_S):
                    await self._member.leave(unseen)
        finally:
            self._closed = True
            for task in self._tasks:
                task.cancel()
            self._custody.close()
            await self._member.aclose()
            await self._reads.aclose()

    async def add_stream(self, stream: Stream[E], *, start: Start | None = None) -> None:
        """Consume ``stream``, too; its group begins at ``start`` (default: this sink's) unless it exists.

        A stream that it consumes already: no change. Raises what ``start`` raises.
        """
        if self._closing:
            raise Closed(f"sink {self.name!r}")
        if stream.name in self._streams:
            return
        bound = start_id(self.options.start if start is None else start)
        if self._tasks:
            await self._join(stream, bound)
        self._streams[stream.name] = stream
        if self._tasks:
            await self._reads.interrupt()

    async def remove_stream(self, stream: Stream[E]) -> None:
        """Consume ``stream`` no more; what is not acked goes to other consumers. The group stays (its events are kept
        for it): delete it with ``Stream.remove_sink`` once nobody consumes it. One not consumed: no change.
        """
        if self._streams.pop(stream.name, None) is None:
            return
        key, _ = self._keys.get(stream.name, ("", ""))
        self._seen.pop(key, None)
        if self._tasks:
            await self._reads.interrupt()
            unseen = self._custody.remove(stream.name)
            await self._acks.flush()
            await self._member.part(stream.name, unseen)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- taking and acking --------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Event[E]]:
        return self

    async def __anext__(self) -> Event[E]:
        """The next event. Cancelling loses none: one that was handed out and is not acked comes again."""
        self._require_started()
        event = await self._custody.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def batch(self, max: int = 500, wait_s: float = 0.05) -> list[Event[E]]:  # noqa: A002 - the field's word
        """1 to ``max`` events: waits for the first as long as it takes, then at most ``wait_s`` for more.

        An event whose last delivery this is (``max_deliveries``) comes alone. Empty only after ``aclose``. Cancelling
        loses no event. Raises what iterating raises.
        """
        self._require_started()
        return await self._custody.batch(max, wait_s)

    def ack(self, *events: Event[E]) -> asyncio.Future[None]:
        """Say that ``events`` are done. It is on its way at once: acks of one loop tick leave together.

        Await the result to know that the server has it; need not be awaited. Raises there what ``Link.call`` raises,
        after trying again for a grace period: those events come again. Cancelling does not take the ack back.
        """
        self._require_started()
        return self._acks.add(() if self.options.no_ack else events)

    async def dead_letter(self, event: Event[E], reason: str) -> bool:
        """Move ``event`` to the dead-letter stream in one atomic step, which acks it.

        False if it was not pending any more. Raises what ``Link.call`` raises; may be repeated.
        """
        self._require_started()
        return await self._bury(event.stream, event.id, reason, event.deliveries)

    # --- reading ------------------------------------------------------------------------------------------------

    def _require_started(self) -> None:
        if not self._tasks:
            raise NotStarted(f"sink {self.name!r}", "use `async with`, or await start()")

    def _key_of(self, stream: str) -> str:
        return self._keys[stream][0]

    async def _join(self, stream: Stream[E], bound: str) -> None:
        dead = self._redis.key(stream_key(dead_stream_name(stream.name, self.name)))
        self._keys[stream.name] = (stream.key, dead)
        self._origins[stream.key] = Origin(stream.name, stream.codec)
        self._seen[stream.key] = await self._enter(stream, bound)

    async def _enter(self, stream: Stream[E], bound: str) -> str:
        position = await self._member.join(stream.name, bound, ttl_s=stream.ttl_s, sliding=stream.sliding)
        await stream.apply_ttl()
        return position

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - handed to whoever iterates
            self._inbox.end(error)

    async def _read_on(self) -> None:
        pause_s = _RETRY_MIN_S
        while not self._closing:
            if self._inbox.room * 2 < self._inbox.limit:
                self._lagging = True
                await self._inbox.has_room()
            try:
                await self._read_or_regroup()
                pause_s = _RETRY_MIN_S
            except RedisError as error:
                if error.outcome is Outcome.APP and not group_is_gone(error):
                    raise
                self._recover = True
                self._counts.retries += 1
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause_s = min(2 * pause_s, _RETRY_MAX_S)

    async def _read_or_regroup(self) -> None:
        try:
            await self._read()
        except CommandError as error:
            if not group_is_gone(error):
                raise
            await self._regroup()
            await asyncio.sleep(_RETRY_MIN_S)

    async def _read(self) -> None:
        if self._member.is_late():
            await self._custody.show_life()
        keys = list(self._seen)
        if not keys:
            await asyncio.sleep(CHECK_PERIOD_S)
            return
        if self._recover:
            await self._recover_lost()
        count = max(1, min(self.options.polled_max, self._inbox.room // len(keys)))
        gaps = self._reads.ask_gaps(keys) if self._lagging else None
        reply = await self._reads.new(keys, count)
        self._counts.reads += 1
        full = False
        for raw_key, entries in reply.items():
            full = len(entries) >= count or full
            await self._take(raw_key.decode(), entries, 1)
        self._lagging = full
        if gaps is not None:
            found = self._reads.sum_gaps(keys, await gaps)
            self._counts.gap += found
            self._lagging = full or found > 0

    async def _recover_lost(self) -> None:
        """Ask again for what a lost reply held: this consumer's pending events above the last id that came in."""
        if not self.options.no_ack:
            for raw_key, entries in (await self._reads.history(list(self._seen.items()))).items():
                await self._take(raw_key.decode(), entries, 1)
        self._recover = False
        self._lagging = True

    async def _take(self, key: str, entries: Sequence[Any], deliveries: int | Sequence[int]) -> None:
        """Buffer what the server gave: fresh (``deliveries`` is 1) or taken over (what the next one is for each)."""
        if key not in self._seen or not entries:  # removed while the read was under way: others take it over
            return
        origin = self._origins[key]
        parsed = parse_entries(entries, origin, self._accept, deliveries)
        fresh = deliveries == 1
        self._custody.add(parsed.events, taken_over=not fresh)
        if fresh or parse_id(parsed.last_id) > parse_id(self._seen[key]):
            self._seen[key] = parsed.last_id
        counts = self._counts
        counts.received += len(parsed.events)
        counts.filtered += len(parsed.filtered)
        if self.options.no_ack:
            return
        self._acks.add_ids(origin.stream, parsed.filtered)
        for event_id in parsed.malformed:
            counts.buried += await self._bury(origin.stream, event_id, _MALFORMED, 1)

    async def _bury(self, stream: str, event_id: str, reason: str, deliveries: int) -> bool:
        arguments = (self.name, event_id, reason, deliveries, self.options.dead_maxlen, stream)
        return bool(await BURY(self._redis.link, keys=self._keys[stream], args=arguments))

    # --- the group gone -------------------------------------------------------------------------------------------

    async def _regroup(self) -> None:
        """Make the group anew where this consumer was, or at the beginning of a stream that has begun anew.

        What was handed out is forgotten by the server; buffered events still come out. Nothing that was added later is
        missed; events that other consumers had read meanwhile may come again.
        """
        for name, stream in list(self._streams.items()):
            grouped = await self._is_grouped(stream.key)
            newest = await newest_id(self._redis, stream.key)
            seen = self._seen.get(stream.key)
            if seen is None:  # removed meanwhile
                continue
            begin = seen if newest is not None and newest >= parse_id(seen) else "0-0"
            position = await self._enter(stream, begin)
            self._custody.regrouped(name)
            self._reads.regrouped(stream.key)
            if not grouped:  # else another consumer was quicker
                self._seen[stream.key] = position
                self._counts.regroups += 1
                stream.logger.warning("sink makes its group anew", stream=name, sink=self.name, after=begin)
        await self._member.beat()

    async def _is_grouped(self, key: str) -> bool:
        try:
            groups = await self._redis.link.call("XINFO", "GROUPS", key)
        except CommandError as error:
            if "no such key" not in error.text:
                raise
            return False
        return any(group[b"name"].decode("utf-8", "replace") == self.name for group in groups)

    async def _stop_reading(self, reading: asyncio.Task[None]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_STEP_S):
                if not reading.done():
                    await self._reads.interrupt()
        await asyncio.wait({reading}, timeout=0.05)
        reading.cancel()
        await asyncio.wait({reading})

    # --- looking after the sink -----------------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Every half second: show life, keep what is buffered, and (one consumer at a time) take over from others."""
        while True:
            await asyncio.sleep(min(CHECK_PERIOD_S, self.options.ack_grace_s / 4) * random.uniform(0.9, 1.1))  # noqa: S311
            try:
                await self._custody.show_life()
                await self._look_after()
            except RedisError as error:
                if error.outcome is Outcome.APP and not group_is_gone(error):
                    raise
                self._counts.retries += 1

    async def _look_after(self) -> None:
        if self._inbox.room <= 0:  # let a consumer with room do it
            return
        now_ms = await self._member.take_lease()
        if now_ms is None:
            return
        if not self.options.no_ack:
            for stream in list(self._streams):
                await self._claim(stream)
        await self._member.sweep(now_ms, self._note_gone)

    async def _claim(self, stream: str) -> None:
        more = True
        while more and self._inbox.room > 0 and stream in self._streams:
            claimed = await self._member.claim(stream, self.options.max_deliveries, self.options.dead_maxlen)
            more = claimed.more
            self._counts.gap += claimed.lost
            self._counts.buried += claimed.buried
            waiting = {event.id for event in self._inbox.waiting() if event.stream == stream}
            fresh = [
                (entry, count)
                for entry, count in zip(claimed.entries, claimed.deliveries, strict=True)
                if entry[0].decode() not in waiting
            ]
            self._counts.redelivered += len(fresh)
            await self._take(self._key_of(stream), [entry for entry, _ in fresh], [count for _, count in fresh])

    def _note_gone(self, stream: str, consumer: str) -> None:
        self._counts.forgotten += 1
        self._streams[stream].logger.info("dead consumer deleted", stream=stream, sink=self.name, consumer=consumer)
