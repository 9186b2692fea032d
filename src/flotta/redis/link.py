"""Many callers, one socket: the commands of one loop tick leave in one write.

Owns: what has not been written yet, the one connection, and the task that brings it back. Invariants:

* Commands leave in the order of the calls; a batch leaves contiguously.
* A command is handed to a socket at most once. Until then its failure is ``NotApplied``, from then on it is ambiguous.
* Every call ends: with a reply, an error reply, or a typed error when its time is over.
* At most ``in_flight_max`` replies are due (a batch may pass that by its own length) and at most ``waiting_max``
  commands of earlier ticks wait.

Why so: a write per command costs a system call on both sides; folded per tick the wire carries twenty times as much
(docs/design/redis.md). Nothing here is thread-safe: a link belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, final

import hiredis
import structlog

from flotta.errors import AmbiguousOutcome, Closed, LinkBusy, LinkUnavailable, RedisError
from flotta.redis.connection import NOBODY, Arg, Batch, Connection
from flotta.redis.endpoint import Endpoint
from flotta.redis.facts import LinkObserver, LinkState, LinkStats
from flotta.redis.greeting import Version, open_connection
from flotta.redis.options import LinkOptions

__all__ = ["Arg", "Link", "LinkObserver", "LinkOptions", "LinkStats"]

_pack: Callable[..., bytes] = hiredis.pack_command
_WATCH_PERIOD_S_MAX = 0.5
_WRITE_COMMANDS_MAX = 2_000


@final
class Link:
    """One multiplexed connection that comes back by itself. The first call, or ``start``, opens it."""

    def __init__(
        self,
        url: str | Endpoint,
        *,
        options: LinkOptions | None = None,
        observer: LinkObserver | None = None,
        logger: Any = None,
    ) -> None:
        self.options = options or LinkOptions()
        endpoint = url if isinstance(url, Endpoint) else Endpoint.from_url(url)
        if self.options.client_name is not None:
            endpoint = replace(endpoint, client_name=self.options.client_name)
        self.endpoint = endpoint
        self.server_version: Version = (0, 0, 0)
        self._observer = observer
        self._logger = logger or structlog.get_logger("flotta.redis")
        self._state = LinkState.IDLE
        self._connection: Connection | None = None
        self._reason = "not connected yet"
        self._logged_reason = ""
        # What waits to be written: three lists in step, the oldest first. Entries leave only in _flush.
        self._packed: list[bytes] = []
        self._entries: list[Any] = []
        self._names: list[Arg] = []
        self._waiting_since: deque[tuple[int, float]] = deque()
        self._left = 0
        self._ticking = False
        self._patience_until_s = 0.0
        self._timed: set[Any] = set()
        self._create_future: Callable[[], asyncio.Future[Any]] = self._bind_and_create_future
        self._loop: asyncio.AbstractEventLoop
        self._keeper: asyncio.Task[None] | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._up: asyncio.Future[None] | None = None
        self._connections = 0
        self._failed_attempts = 0
        self._past_bytes = (0, 0)

    @classmethod
    async def connect(cls, url: str, *, options: LinkOptions | None = None, logger: Any = None) -> Link:
        """A link that is connected.

        You owe it ``aclose``. Raises ``LinkUnavailable`` or ``ServerTooOld`` if the first attempt fails; cancelling
        closes it.
        """
        link = cls(url, options=options, logger=logger)
        try:
            await link.start()
        except BaseException:
            await link.aclose()
            raise
        return link

    # --- calling ------------------------------------------------------------------------------------------------

    def call(self, *args: Arg, timeout_s: float | None = None) -> Awaitable[Any]:
        """Send one command; awaiting gives its raw RESP3 reply (bytes, int, float, bool, None, list, dict).

        It is written with everything else that is called in this tick, whether you await it or not. ``timeout_s``
        replaces ``command_timeout_s``, waiting for a connection included. Cancelling is harmless to others: if it is
        not written yet it never will be.

        Raises ``CommandError`` (error reply), ``LinkUnavailable`` or ``LinkBusy`` (never written),
        ``AmbiguousOutcome`` (written, reply lost), ``Closed``; and ``TypeError`` at once for an argument that is no
        ``Arg``.
        """
        future = self._create_future()
        packed = _pack(args)
        # The three lists must stay in step: nothing may raise from here on.
        self._names.append(args[0])
        self._packed.append(packed)
        self._entries.append(future)
        if timeout_s is not None:
            self._limit(future, future, 1, timeout_s, str(args[0]))
        if not self._ticking:
            self._ticking = True
            self._loop.call_soon(self._flush)
        return future

    def call_many(self, commands: Sequence[Sequence[Arg]], *, timeout_s: float | None = None) -> Awaitable[list[Any]]:
        """Send ``commands`` as one contiguous write; awaiting gives their replies in order.

        Error replies come back in their place as ``CommandError`` instances; a lost connection fails the whole.
        Otherwise as ``call``.
        """
        future = self._create_future()
        if not commands:
            future.set_result([])
            return future
        packed = [_pack(tuple(command)) for command in commands]
        batch = Batch(future, len(packed))
        self._names += [command[0] for command in commands]
        self._packed += packed
        self._entries += [batch] * len(packed)
        if timeout_s is not None:
            self._limit(future, batch, len(packed), timeout_s, str(commands[0][0]))
        if not self._ticking:
            self._ticking = True
            self._loop.call_soon(self._flush)
        return future

    def _limit(self, future: asyncio.Future[Any], entry: Any, count: int, timeout_s: float, command: str) -> None:
        """Give the call that was queued last (``count`` commands) its own time limit, in place of the common one."""
        place = self._left + len(self._entries) - count
        timer = None
        if timeout_s < math.inf:
            timer = self._loop.call_later(timeout_s, self._expire_one, future, place, timeout_s, command)
        self._timed.add(entry)

        def release(_: object) -> None:
            if timer is not None:
                timer.cancel()
            self._timed.discard(entry)

        future.add_done_callback(release)
        if timeout_s > self.options.command_timeout_s:
            self._patience_until_s = max(self._patience_until_s, self._loop.time() + timeout_s)

    def _bind_and_create_future(self) -> asyncio.Future[Any]:
        if self._state is LinkState.CLOSED:
            raise Closed(f"the link to {self.endpoint.address}")
        self._begin()
        return self._create_future()

    # --- life ---------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a greeted connection exists at this moment."""
        return self._connection is not None

    @property
    def closed(self) -> bool:
        """Whether ``aclose`` was called."""
        return self._state is LinkState.CLOSED

    @property
    def stats(self) -> LinkStats:
        """What has happened so far."""
        connection = self._connection
        sent, received = self._past_bytes
        return LinkStats(
            connected=connection is not None,
            commands=self._left,
            in_flight=connection.in_flight if connection else 0,
            waiting=len(self._entries),
            connections=self._connections,
            failed_attempts=self._failed_attempts,
            bytes_sent=sent + (connection.bytes_sent if connection else 0),
            bytes_received=received + (connection.bytes_received if connection else 0),
        )

    async def start(self) -> None:
        """Return when connected. Raises what the first attempt from now raises; the link goes on trying meanwhile.

        Calling it again is harmless; cancelling it leaves the link trying.
        """
        if self._state is LinkState.CLOSED:
            raise Closed(f"the link to {self.endpoint.address}")
        self._begin()
        if self._connection is not None:
            return
        if self._up is None:
            self._up = self._loop.create_future()
        await asyncio.shield(self._up)

    async def aclose(self, *, drain_s: float = 1.0) -> None:
        """Close. What is in flight and still awaited gets up to ``drain_s``; then it fails as ambiguous.

        What is not written fails as ``LinkUnavailable``. Calling it again is harmless; cancelling closes at once.
        """
        if self._state is LinkState.CLOSED:
            return
        was_idle, self._state = self._state is LinkState.IDLE, LinkState.CLOSED
        self._create_future = self._bind_and_create_future
        if was_idle:
            return
        try:
            await self._drain(drain_s)
        finally:
            self._shut()
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.wait([self._keeper])

    async def _drain(self, drain_s: float) -> None:
        self._flush()
        awaited = self._connection.awaited() if self._connection is not None else set()
        if awaited and drain_s > 0:
            await asyncio.wait(awaited, timeout=drain_s)

    def _shut(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        if self._connection is not None:
            self._connection.end("the link was closed")
        address = self.endpoint.address
        self._fail_newest(
            len(self._entries), lambda name: LinkUnavailable(address, "the link was closed", command=name)
        )
        self._settle_up(Closed(f"the link to {self.endpoint.address}"))

    def _begin(self) -> None:
        if self._state is not LinkState.IDLE:
            return
        self._loop = asyncio.get_running_loop()
        self._state = LinkState.CONNECTING
        self._create_future = self._loop.create_future
        self._keeper = self._loop.create_task(self._keep(), name=f"flotta-link {self.endpoint.address}")
        self._watch()

    async def _keep(self) -> None:
        """Bring the connection back, for ever."""
        pause_s = 0.0
        while True:
            ended = await self._attempt()
            if ended is not None:
                pause_s = 0.0
                await ended
                continue
            pause_s = min(max(2 * pause_s, self.options.reconnect_min_s), self.options.reconnect_max_s)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret

    async def _attempt(self) -> asyncio.Future[None] | None:
        """One attempt. Connected: a future that is done when that connection has ended."""
        ended: asyncio.Future[None] = self._loop.create_future()
        was_up = False

        def on_end(connection: Connection, reason: str) -> None:
            if was_up:
                self._lose(connection, reason)
            if not ended.done():
                ended.set_result(None)

        try:
            connection, version = await open_connection(
                self.endpoint,
                lambda: Connection(self._loop, on_end=on_end, on_room=self._flush, on_push=self._receive_push),
                _pack,
                timeout_s=self.options.connect_timeout_s,
            )
        except RedisError as error:
            self._failed_attempts += 1
            self._reason = error.reason if isinstance(error, LinkUnavailable) else str(error)
            self._log_failure()
            self._settle_up(error)
            return None
        if connection.ended is None:
            was_up = True
            self._gain(connection, version)
        return ended

    def _log_failure(self) -> None:
        # An outage of hours is one line for each reason, not one for each attempt.
        log = self._logger.debug if self._reason == self._logged_reason else self._logger.warning
        self._logged_reason = self._reason
        log("redis link cannot connect", address=self.endpoint.address, reason=self._reason)

    def _gain(self, connection: Connection, version: Version) -> None:
        self._connection = connection
        self._state = LinkState.CONNECTED
        self.server_version = version
        self._connections += 1
        if self._connections > 1:
            self._logger.info("redis link is back", address=self.endpoint.address)
        self._logged_reason = ""
        self._settle_up(None)
        if self._observer is not None:
            self._observer.on_link_up()
        self._flush()

    def _lose(self, connection: Connection, reason: str) -> None:
        sent, received = self._past_bytes
        self._past_bytes = (sent + connection.bytes_sent, received + connection.bytes_received)
        self._connection = None
        self._patience_until_s = 0.0
        self._reason = reason
        if self._state is LinkState.CONNECTED:
            self._state = LinkState.CONNECTING
            self._logger.warning("redis link lost", address=self.endpoint.address, reason=reason)
        if self._observer is not None:
            self._observer.on_link_down(reason)

    def _settle_up(self, error: Exception | None) -> None:
        up, self._up = self._up, None
        if up is None or up.done():
            return
        if error is None:
            up.set_result(None)
        else:
            up.set_exception(error)
            up.exception()  # start() may have been cancelled: then nobody else asks

    def _receive_push(self, push: list[Any]) -> None:
        if self._observer is not None:
            self._observer.on_link_push(push)

    # --- writing ------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what waits, as far as the connection takes it."""
        self._ticking = False
        entries = self._entries
        connection = self._connection
        if (
            connection is not None
            and connection.writable
            and not self._waiting_since
            and len(entries) <= _WRITE_COMMANDS_MAX
            and connection.in_flight + len(entries) <= self.options.in_flight_max
        ):
            if entries:
                packed, names = self._packed, self._names
                self._packed, self._entries, self._names = [], [], []
                self._left += len(entries)
                connection.send(packed, entries, names)
            return
        self._flush_bounded()

    def _flush_bounded(self) -> None:
        """Write in pieces up to the limits; what does not fit waits, and what waits too long fails."""
        self._drop_done()
        connection = self._connection
        while connection is not None and connection.writable and self._entries:
            room = self.options.in_flight_max - connection.in_flight
            if room <= 0:
                break
            self._send_first(connection, self._end_of_batch(min(room, _WRITE_COMMANDS_MAX)))
        self._note_waiting()
        if connection is not None and connection.ended is None:
            connection.wants_room = bool(self._entries)

    def _send_first(self, connection: Connection, count: int) -> None:
        packed, entries, names = self._packed[:count], self._entries[:count], self._names[:count]
        self._forget_first(count)
        if any(entry.done() for entry in entries):
            live = [place for place, entry in enumerate(entries) if not entry.done()]
            packed, names = [packed[place] for place in live], [names[place] for place in live]
            entries = [entries[place] for place in live]
        if entries:
            connection.send(packed, entries, names)

    def _forget_first(self, count: int) -> None:
        del self._packed[:count], self._entries[:count], self._names[:count]
        self._left += count
        while self._waiting_since and self._waiting_since[0][0] <= self._left:
            self._waiting_since.popleft()

    def _end_of_batch(self, count: int) -> int:
        """``count``, or a little more: up to the end of the batch that it would cut."""
        entries = self._entries
        while 0 < count < len(entries) and entries[count] is entries[count - 1]:
            count += 1
        return min(count, len(entries))

    def _drop_done(self) -> None:
        """Take out from the front what nobody waits for any more: it is never written."""
        count = 0
        for entry in self._entries:
            if not entry.done():
                break
            count += 1
        if count:
            self._forget_first(count)

    def _note_waiting(self) -> None:
        options = self.options
        excess = len(self._entries) - options.waiting_max
        if excess > 0:
            busy = self._connection.in_flight if self._connection else 0
            self._fail_newest(excess, lambda name: LinkBusy(busy, 0.0, command=name))
        end = self._left + len(self._entries)
        if self._entries and (not self._waiting_since or self._waiting_since[-1][0] < end):
            self._waiting_since.append((end, self._loop.time()))

    def _fail_newest(self, count: int, make_error: Callable[[str], RedisError]) -> None:
        keep = len(self._entries) - count
        while keep > 0 and self._entries[keep] is self._entries[keep - 1]:
            keep -= 1
        for entry, name in zip(self._entries[keep:], self._names[keep:], strict=True):
            if not entry.done():
                entry.set_exception(make_error(str(name)))
        del self._packed[keep:], self._entries[keep:], self._names[keep:]
        self._trim_marks()

    def _trim_marks(self) -> None:
        """After the newest were taken out: no mark may reach past the end, or later calls would inherit its time."""
        end = self._left + len(self._entries)
        since_s = None
        while self._waiting_since and self._waiting_since[-1][0] > end:
            _, since_s = self._waiting_since.pop()
        before = self._waiting_since[-1][0] if self._waiting_since else self._left
        if since_s is not None and end > before:
            self._waiting_since.append((end, since_s))

    # --- time ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Every fraction of a time limit: fail what is overdue, ping what is idle, end what is silent."""
        options = self.options
        period_s = min(options.command_timeout_s / 8, options.heartbeat_s / 4, _WATCH_PERIOD_S_MAX)
        self._watcher = self._loop.call_later(period_s, self._watch)
        now_s = self._loop.time()
        self._expire_waiting(now_s)
        if self._connection is not None:
            self._watch_connection(self._connection, now_s)

    def _watch_connection(self, connection: Connection, now_s: float) -> None:
        limit_s = self.options.command_timeout_s
        heartbeat_s = self.options.heartbeat_s
        oldest_s = connection.oldest_written_s
        if oldest_s is None:
            self._patience_until_s = 0.0
            if now_s - connection.heard_at_s >= heartbeat_s:
                connection.send([_pack(("PING",))], [NOBODY], ["PING"])
            return
        silent_s = now_s - max(connection.heard_at_s, oldest_s)
        if now_s < self._patience_until_s:
            return
        if now_s - oldest_s >= limit_s:
            if silent_s >= min(limit_s, 1.0):
                connection.end(f"no reply within {limit_s:g} s")
            else:
                connection.expire(now_s - limit_s, limit_s)
        elif silent_s >= heartbeat_s and not connection.awaited():
            connection.end(f"no answer to a heartbeat within {heartbeat_s:g} s")

    def _expire_waiting(self, now_s: float) -> None:
        limit_s = self.options.command_timeout_s
        while self._waiting_since and now_s - self._waiting_since[0][1] >= limit_s:
            count = self._waiting_since.popleft()[0] - self._left
            # They stay in their place, done, and are never written.
            for entry, name in zip(self._entries[:count], self._names[:count], strict=True):
                if not entry.done() and entry not in self._timed:
                    entry.set_exception(self._waited_too_long(limit_s, str(name)))
            self._drop_done()

    def _expire_one(self, future: asyncio.Future[Any], place: int, timeout_s: float, command: str) -> None:
        if future.done():
            return
        if place >= self._left:
            future.set_exception(self._waited_too_long(timeout_s, command))
            return
        future.set_exception(AmbiguousOutcome(f"no reply within {timeout_s:g} s", command=command))
        # While a patient call is out the watchdog is patient too, so a silent peer is noticed here.
        limit_s = self.options.command_timeout_s
        connection = self._connection
        if timeout_s > limit_s and connection is not None and self._loop.time() - connection.heard_at_s >= limit_s:
            connection.end(f"no reply within {timeout_s:g} s")

    def _waited_too_long(self, waited_s: float, command: str) -> RedisError:
        connection = self._connection
        if connection is None:
            return LinkUnavailable(self.endpoint.address, f"{self._reason}; waited {waited_s:g} s", command=command)
        return LinkBusy(connection.in_flight, waited_s, command=command)
