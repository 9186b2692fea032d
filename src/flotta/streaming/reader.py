"""A reader: a cursor of its own over one or more streams; it sees every event and acknowledges nothing.

Invariants: each stream's cursor is a real id from the first step on (``"new"`` is resolved once), so nothing is lost
between two reads or over a lost connection; cursors move only when events are in the buffer; reads are repeated at
will, because reading changes nothing.

Why so: catching up is a non-blocking XREAD over the shared link, waiting is the business of one ``Tail`` per process
(docs/design/streams.md compares the ways).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, final

from flotta.errors import Closed, CommandError, NotStarted, Outcome, RedisError
from flotta.redis import Redis
from flotta.streaming.event import (
    Accept,
    Event,
    Origin,
    Start,
    TopicFilter,
    format_id,
    parse_entries,
    parse_id,
    start_id,
)
from flotta.streaming.inbox import Inbox
from flotta.streaming.options import ReaderOptions, ReaderStats
from flotta.streaming.tail import Tail, tail_of

if TYPE_CHECKING:  # a stream makes its readers
    from flotta.streaming.stream import Stream

__all__ = ["Reader", "newest_id"]

E = TypeVar("E")

_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 2.0


@final
class Reader(Generic[E]):
    """Made by ``Stream.reader``. Use it as ``async with stream.reader() as reader: async for event in reader: ...``.

    Iterating ends after ``aclose``. A lost connection is survived silently; an error that would come again and again
    (a key of another type, a missing permission) is raised to whoever iterates, after the events already read.
    """

    def __init__(self, streams: Sequence[Stream[E]], options: ReaderOptions) -> None:
        self.options = options
        self._streams: dict[str, Stream[E]] = {}
        self._starts: dict[str, Start] = {}
        for stream in streams:
            self._streams[stream.name] = stream
            self._starts[stream.name] = options.start
        self._accept = Accept(TopicFilter(topic=options.topic, pattern=options.pattern))
        self._cursors: dict[str, tuple[int, int]] = {}
        self._origins: dict[str, Origin[E]] = {}
        self._inbox: Inbox[E] = Inbox(options.buffer_max)
        self._task: asyncio.Task[None] | None = None
        self._tail: Tail | None = None
        self._redis: Redis
        self._closed = False
        self._delivered = self._filtered = self._malformed = self._reads = self._resets = self._retries = 0

    @property
    def name(self) -> str:
        """The streams it reads, for people."""
        return "+".join(self._streams)

    @property
    def stats(self) -> ReaderStats:
        """What has happened so far."""
        return ReaderStats(
            delivered=self._delivered - len(self._inbox),
            filtered=self._filtered,
            malformed=self._malformed,
            reads=self._reads,
            resets=self._resets,
            retries=self._retries,
            buffered=len(self._inbox),
        )

    @property
    def cursors(self) -> dict[str, str]:
        """Per stream, the id after which the next read begins. To resume, use the id of the last event handled."""
        return {self._origins[key].stream: format_id(cursor) for key, cursor in self._cursors.items()}

    async def start(self) -> None:
        """Resolve where to begin and start reading. Again: harmless. You owe ``aclose``.

        Raises ``NotStarted`` if a stream has not started and what ``Link.call`` raises. Cancelling leaves it unstarted.
        """
        if self._closed:
            raise Closed(f"the reader of {self.name}")
        if self._task is not None:
            return
        for stream in self._streams.values():
            await self._place(stream, self._starts[stream.name])
        self._redis = next(iter(self._streams.values())).redis
        self._tail = tail_of(self._redis)
        self._tail.acquire()
        self._task = asyncio.get_running_loop().create_task(self._run(self._tail), name=f"reader {self.name}")

    async def aclose(self) -> None:
        """Stop reading; whoever iterates gets what is buffered, then the end. Again: harmless."""
        if self._closed:
            return
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        self._inbox.end()
        if self._tail is not None:
            tail, self._tail = self._tail, None
            await tail.release()

    async def add_stream(self, stream: Stream[E], *, start: Start | None = None) -> None:
        """Read ``stream``, too, from ``start`` (default: this reader's). A stream that it reads already: no change.

        Raises and cancels like ``start``.
        """
        if stream.name in self._streams:
            return
        begin = self.options.start if start is None else start
        start_id(begin)
        if self._task is not None:
            await self._place(stream, begin)
        self._streams[stream.name] = stream
        self._starts[stream.name] = begin
        if self._tail is not None:
            self._tail.wake_all()

    async def remove_stream(self, stream: Stream[E]) -> None:
        """Read ``stream`` no more; what is buffered still comes. One that it does not read: no change."""
        if self._streams.pop(stream.name, None) is not None:
            self._cursors.pop(stream.key, None)
            if self._tail is not None:
                self._tail.wake_all()

    def __aiter__(self) -> AsyncIterator[Event[E]]:
        return self

    async def __anext__(self) -> Event[E]:
        """The next event. Cancelling loses none."""
        self._require_started()
        event = await self._inbox.get()
        if event is None:
            raise StopAsyncIteration
        return event

    async def batch(self, max: int = 500, wait_s: float = 0.05) -> list[Event[E]]:  # noqa: A002 - the field's word
        """1 to ``max`` events: waits for the first as long as it takes, then at most ``wait_s`` for more.

        Empty only after ``aclose``. Cancelling loses no event. Raises what iterating raises.
        """
        self._require_started()
        return await self._inbox.batch(max, wait_s)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- reading ------------------------------------------------------------------------------------------------

    def _require_started(self) -> None:
        if self._task is None and not self._closed:
            raise NotStarted(f"the reader of {self.name}", "use `async with`, or await start()")

    async def _place(self, stream: Stream[E], start: Start) -> None:
        bound = start_id(start)
        cursor = await stream.last_id() if bound == "$" else parse_id(bound)
        self._origins[stream.key] = Origin(stream.name, stream.codec)
        self._cursors[stream.key] = cursor

    async def _run(self, tail: Tail) -> None:
        try:
            await self._read_on(tail)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - handed to whoever iterates
            self._inbox.end(error)

    async def _read_on(self, tail: Tail) -> None:
        pause_s = _RETRY_MIN_S
        while True:
            await self._inbox.has_room()
            try:
                more = await self._read()
                if not more:
                    await tail.wait(dict(self._cursors), self.options.block_s)
            except RedisError as error:
                if error.outcome is Outcome.APP:
                    raise
                self._retries += 1
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause_s = min(2 * pause_s, _RETRY_MAX_S)
            else:
                pause_s = _RETRY_MIN_S

    async def _read(self) -> bool:
        """One non-blocking XREAD. True if there may be more at once."""
        keys = list(self._cursors)
        if not keys:
            return False
        count = max(1, min(self.options.polled_max, self._inbox.room // len(keys)))
        ids = [format_id(self._cursors[key]) for key in keys]
        reply = await self._redis.link.call("XREAD", "COUNT", count, "STREAMS", *keys, *ids)
        self._reads += 1
        if not reply:
            await self._notice_new_beginnings()
            return False
        full = False
        for raw_key, entries in reply.items():
            full = self._take(raw_key.decode(), entries) >= count or full
        return full

    def _take(self, key: str, entries: Sequence[Any]) -> int:
        if key not in self._cursors or not entries:  # removed while the read was under way
            return 0
        parsed = parse_entries(entries, self._origins[key], self._accept, 0)
        self._inbox.put(parsed.events)
        self._cursors[key] = parse_id(parsed.last_id)
        self._delivered += len(parsed.events)
        self._filtered += len(parsed.filtered)
        self._malformed += len(parsed.malformed)
        return len(entries)

    async def _notice_new_beginnings(self) -> None:
        """A stream whose newest id is below the cursor was destroyed, or its server lost data: begin at its start."""
        for key, cursor in list(self._cursors.items()):
            if cursor == (0, 0):
                continue
            newest = await newest_id(self._redis, key)
            if newest is not None and newest < cursor and self._cursors.get(key) == cursor:
                self._cursors[key] = (0, 0)
                self._resets += 1
                self._streams[self._origins[key].stream].logger.warning(
                    "stream begins anew", stream=self._origins[key].stream, cursor=format_id(cursor)
                )


async def newest_id(redis: Redis, key: str) -> tuple[int, int] | None:
    """The last id that the stream at ``key`` has given out; None if there is no such key."""
    try:
        reply = await redis.link.call("XINFO", "STREAM", key)
    except CommandError as error:
        if "no such key" in error.text:
            return None
        raise
    return parse_id(reply[b"last-generated-id"])
