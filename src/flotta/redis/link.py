"""Many callers, one socket: the commands of one loop tick leave in one write.

Owns: the one connection, the task that brings it back, and when what waits is written. Invariants:

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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, final

import hiredis
import structlog

from flotta.errors import AmbiguousOutcome, Closed, LinkBusy, LinkUnavailable, RedisError
from flotta.redis.connection import NOBODY, Arg, Batch, Connection, shown
from flotta.redis.endpoint import Endpoint
from flotta.redis.facts import LinkObserver, LinkState, LinkStats
from flotta.redis.greeting import Version, open_connection
from flotta.redis.options import LinkOptions
from flotta.redis.outage import OutageLog
from flotta.redis.waiting import Waiting

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
        self._on_push: Callable[[list[Any]], None] = _ignore if observer is None else observer.on_link_push
        self._logger = logger or structlog.get_logger("flotta.redis")
        self._log = OutageLog(self._logger, endpoint.address)
        self._state = LinkState.IDLE
        self._connection: Connection | None = None
        self._reason = "not connected yet"
        self._waiting = Waiting()
        self._ticking = False
        # Calls with a time limit of their own, and until when the watchdog is patient for each.
        self._timed: dict[Any, float] = {}
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
        waiting = self._waiting
        waiting.names.append(args[0])
        waiting.packed.append(packed)
        waiting.entries.append(future)
        if timeout_s is not None:
            self._limit(future, future, 1, timeout_s, args[0])
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
        waiting = self._waiting
        waiting.names += [command[0] for command in commands]
        waiting.packed += packed
        waiting.entries += [batch] * len(packed)
        if timeout_s is not None:
            self._limit(future, batch, len(packed), timeout_s, commands[0][0])
        if not self._ticking:
            self._ticking = True
            self._loop.call_soon(self._flush)
        return future

    def _limit(self, future: asyncio.Future[Any], entry: Any, count: int, timeout_s: float, command: Arg) -> None:
        """Give the call that was queued last (``count`` commands) its own time limit, in place of the common one."""
        timer = None
        if timeout_s < math.inf:
            place = self._waiting.end - count
            timer = self._loop.call_later(timeout_s, self._expire_one, future, place, timeout_s, command)
        # Only a limit above the common one asks the watchdog for patience.
        self._timed[entry] = self._loop.time() + timeout_s if timeout_s > self.options.command_timeout_s else 0.0

        def release(_: object) -> None:
            if timer is not None:
                timer.cancel()
            self._timed.pop(entry, None)

        future.add_done_callback(release)

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
            commands=self._waiting.left,
            in_flight=connection.in_flight if connection else 0,
            waiting=len(self._waiting),
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
            if self._keeper is not None:
                self._keeper.cancel()  # first: nothing may bring a new connection up while the old one drains
            await self._drain(drain_s)
        finally:
            self._shut()
            if self._keeper is not None:
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
        self._waiting.fail_newest(
            len(self._waiting), lambda name: LinkUnavailable(address, "the link was closed", command=shown(name))
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
        """Bring the connection back, for ever. One that ends as soon as it is up counts as an attempt that failed."""
        options = self.options
        pause_s = 0.0
        while True:
            ended = await self._attempt()
            up_s = self._loop.time()
            if ended is not None:
                await ended
            if self._loop.time() - up_s >= options.reconnect_max_s:
                pause_s = 0.0
                continue
            pause_s = min(max(2 * pause_s, options.reconnect_min_s), options.reconnect_max_s)
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
                lambda: Connection(self._loop, on_end=on_end, on_room=self._flush, on_push=self._on_push),
                _pack,
                timeout_s=self.options.connect_timeout_s,
            )
        except RedisError as error:
            self._failed_attempts += 1
            self._reason = error.reason if isinstance(error, LinkUnavailable) else str(error)
            self._log.refused(self._reason)
            self._settle_up(error)
            return None
        if connection.ended is None:
            was_up = True
            self._gain(connection, version)
        return ended

    def _gain(self, connection: Connection, version: Version) -> None:
        self._connection = connection
        self._state = LinkState.CONNECTED
        self.server_version = version
        self._connections += 1
        self._log.up(self._loop.time())
        self._settle_up(None)
        self._tell(lambda observer: observer.on_link_up())
        self._flush()

    def _lose(self, connection: Connection, reason: str) -> None:
        sent, received = self._past_bytes
        self._past_bytes = (sent + connection.bytes_sent, received + connection.bytes_received)
        self._connection = None
        self._reason = reason
        if self._state is LinkState.CONNECTED:
            self._state = LinkState.CONNECTING
            self._log.lost(reason, self._loop.time())
        self._tell(lambda observer: observer.on_link_down(reason))

    def _tell(self, say: Callable[[LinkObserver], None]) -> None:
        if self._observer is None:
            return
        try:
            say(self._observer)
        except Exception:  # an observer's bug must not end the task that brings the connection back
            self._logger.exception("a link observer raised", address=self.endpoint.address)

    def _settle_up(self, error: Exception | None) -> None:
        up, self._up = self._up, None
        if up is None or up.done():
            return
        if error is None:
            up.set_result(None)
        else:
            up.set_exception(error)
            up.exception()  # start() may have been cancelled: then nobody else asks

    # --- writing ------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what waits, as far as the connection takes it."""
        self._ticking = False
        waiting = self._waiting
        count = len(waiting.entries)
        connection = self._connection
        if (
            connection is not None
            and connection.writable
            and waiting.is_fresh
            and count <= _WRITE_COMMANDS_MAX
            and connection.in_flight + count <= self.options.in_flight_max
        ):
            if count:
                connection.send(*waiting.take_all())
            return
        self._flush_bounded()

    def _flush_bounded(self) -> None:
        """Write in pieces up to the limits; what does not fit waits, and what waits too long fails."""
        waiting, connection = self._waiting, self._connection
        waiting.drop_done()
        while connection is not None and connection.writable and waiting.entries:
            room = self.options.in_flight_max - connection.in_flight
            if room <= 0:
                break
            commands = waiting.take(min(room, _WRITE_COMMANDS_MAX))
            if commands[0]:
                connection.send(*commands)
        excess = len(waiting) - self.options.waiting_max
        if excess > 0:
            busy = connection.in_flight if connection else 0
            waiting.fail_newest(excess, lambda name: LinkBusy(busy, 0.0, command=shown(name)))
        waiting.note_age(self._loop.time())
        if connection is not None and connection.ended is None:
            connection.wants_room = bool(waiting.entries)

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
            if now_s - connection.heard_at_s >= heartbeat_s:
                connection.send([_pack(("PING",))], [NOBODY], ["PING"])
            return
        silent_s = now_s - max(connection.heard_at_s, oldest_s)
        if now_s - oldest_s >= limit_s:
            # A call with a longer limit of its own, perhaps a slow script, may be what the server is silent about.
            is_patient = any(until_s > now_s for until_s in self._timed.values())
            if silent_s >= min(limit_s, 1.0) and not is_patient:
                connection.end(f"no reply within {limit_s:g} s")
            else:
                connection.expire(now_s - limit_s, limit_s, spared=self._timed)
        elif silent_s >= heartbeat_s and not connection.awaited():
            connection.end(f"no answer to a heartbeat within {heartbeat_s:g} s")

    def _expire_waiting(self, now_s: float) -> None:
        limit_s = self.options.command_timeout_s
        for entry, name in self._waiting.overdue(now_s - limit_s):
            if entry not in self._timed:
                entry.set_exception(self._waited_too_long(limit_s, name))
        self._waiting.drop_done()

    def _expire_one(self, future: asyncio.Future[Any], place: int, timeout_s: float, command: Arg) -> None:
        if future.done():
            return
        if place >= self._waiting.left:
            future.set_exception(self._waited_too_long(timeout_s, command))
            return
        future.set_exception(AmbiguousOutcome(f"no reply within {timeout_s:g} s", command=shown(command)))
        # While a patient call is out the watchdog is patient too, so a silent peer is noticed here.
        limit_s = self.options.command_timeout_s
        connection = self._connection
        if timeout_s > limit_s and connection is not None and self._loop.time() - connection.heard_at_s >= limit_s:
            connection.end(f"no reply within {timeout_s:g} s")

    def _waited_too_long(self, waited_s: float, name: Arg) -> RedisError:
        connection, command = self._connection, shown(name)
        if connection is None:
            return LinkUnavailable(self.endpoint.address, f"{self._reason}; waited {waited_s:g} s", command=command)
        return LinkBusy(connection.in_flight, waited_s, command=command)


def _ignore(push: list[Any]) -> None:
    """A push that nobody asked for."""
