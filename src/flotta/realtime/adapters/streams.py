"""Broadcasts through a Redis Stream, in the format of Node's ``@socket.io/redis-streams-adapter``.

Everybody, this server included, delivers what lies in the stream in the stream's order; so all clients of all servers
see one order, and an entry's id says how far a client has come, which is what recovery stands on. Requests and their
answers, which nobody wants later, go over Pub/Sub.

Invariants: own broadcasts are delivered when they are read, never before; own commands are not obeyed twice; what is
published in one order lies in the stream in that order.

Node's ``streamCount`` (several streams, a namespace to each) is not supported: there is one stream.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final, final

from flotta.errors import Closed, CommandError, NotApplied, RedisError, WireError
from flotta.realtime.adapters import AdapterStats, Broadcast, Node
from flotta.realtime.adapters import cluster_wire as wire
from flotta.realtime.adapters.channels import channel
from flotta.realtime.adapters.cluster import Census, ClusterAdapter
from flotta.realtime.adapters.cluster_wire import Message, pack_message, read_entry, read_message
from flotta.realtime.adapters.seats import Seat
from flotta.realtime.adapters.streams_reader import StreamReader
from flotta.realtime.adapters.streams_wire import MARKER, Entry, is_ephemeral, read_loss
from flotta.realtime.adapters.traffic import Ear
from flotta.realtime.adapters.wire import unsendable_is_junk
from flotta.realtime.options import ServerOptions
from flotta.realtime.recovery.history import History, Past
from flotta.realtime.recovery.past import BROADCASTS, Archive
from flotta.realtime.recovery.session import Position
from flotta.redis import Hub, Redis, Subscription
from flotta.streaming.event import format_id, parse_id

__all__ = ["StreamsAdapter"]

HISTORY_BYTES_MAX: Final = 16 * 2**20
UPKEEP_S = 5.0
SETTLE_S = 1.0
CUT: Final = "cut"
CUT_TYPE: Final = "104"


@final
class StreamsAdapter(ClusterAdapter):
    """The adapter of one server. ``keep_s``: how long events stay in the stream; None: as ``maxlen`` has it."""

    echoes = True
    wants_own_rooms = False

    def __init__(self, redis: Redis, options: ServerOptions, *, keep_s: float | None, logger: Any) -> None:
        super().__init__(redis, in_flight_max=options.publish_in_flight_max, logger=logger)
        self.redis = redis
        self.stream = redis.key(options.stream_name)
        self.prefix = redis.key(options.channel_prefix)
        self.recovers = options.recovery_s is not None
        self._maxlen = options.stream_maxlen
        self._keep_s = keep_s
        self._seat = Seat(redis, self.prefix)
        self._subscriptions: dict[str, list[tuple[Subscription, Ear]]] = {}
        self._reader = StreamReader(
            redis,
            self.stream,
            count=options.stream_read_count,
            full=min(options.stream_read_count, options.stream_maxlen),
            take=self._take,
            on_lost=self._on_lost,
            logger=logger,
        )
        self._history = History((0, 0), count_max=2 * options.stream_maxlen, bytes_max=HISTORY_BYTES_MAX)
        self.archive = Archive(redis, self.stream, self._history)
        self._own_openings = wire.own_openings(self.uid)
        self._upkeep_task: asyncio.Task[None] | None = None
        self._newest: Position = (0, 0)
        self._added: asyncio.Future[Any] | None = None
        self._unanswered: dict[asyncio.Future[Any], Message] = {}
        """Own broadcasts that are on their way to Redis, in their order."""
        self._ahead = 0
        """Own entries that were sent and have not come back."""
        self._ahead_max = max(1, options.stream_maxlen // 4)
        self._not_far_ahead = asyncio.Event()
        self._not_far_ahead.set()
        self._cut_told = False
        self.own: Node | None = None
        """Gets this server's own commands as they come back, while it is set; its broadcasts `Node` gets anyway."""
        self.on_cut: Callable[[str], None] | None = None
        """Told of every `cut`, of any server, when it is read."""
        self.on_missed: Callable[[], None] | None = None
        """Told when events are gone that the clients of this server, and only they, have not got."""

    # --- life ---

    async def start(self, node: Node) -> None:
        """Subscribe for every namespace, and read the stream from its end; returns when nothing more is missed."""
        self._node = node
        for namespace in node.namespaces():
            await self.open_namespace(namespace)
        await self._reader.start()
        self._history.restart(self._reader.position)
        self._upkeep_task = asyncio.get_running_loop().create_task(self._upkeep(), name="realtime stream upkeep")

    async def open_namespace(self, namespace: str) -> None:
        """Hear the requests of a namespace; its broadcasts are in the stream anyway."""
        if namespace in self._subscriptions:
            return
        found = self._subscriptions[namespace] = []
        try:
            for channel in (self._channel(namespace), self._channel(namespace, self.uid)):
                ear = Ear(self._traffic, self._take_message)
                found.append((await self._seat.hub.subscribe(channel, ear, kind="channel"), ear))
        except BaseException:
            await self.close_namespace(namespace)
            raise

    async def close_namespace(self, namespace: str) -> None:
        """Hear them no more."""
        for subscription, ear in self._subscriptions.pop(namespace, ()):
            subscription.close()
            self._traffic.forget(ear)

    async def aclose(self) -> None:
        """Stop reading and listening. Idempotent."""
        task, self._upkeep_task = self._upkeep_task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await self._reader.aclose()
        for namespace in list(self._subscriptions):
            await self.close_namespace(namespace)
        await self._end()
        await self._seat.aclose()

    @property
    def hub(self) -> Hub:
        """The connection over which requests are heard."""
        return self._seat.hub

    def cut(self, tunnel: str, on_refused: Callable[[], None]) -> bool:
        """Put a mark into the stream that all servers meet at the same place. Node's take it for a message of a type
        that they do not know. False: Redis is away; ``on_refused`` is told if Redis has certainly not taken it."""
        fields = ("uid", self.uid, "nsp", "/", "type", CUT_TYPE, CUT, tunnel)
        if not self._traffic.send("XADD", self.stream, "MAXLEN", "~", self._maxlen, "*", *fields):
            return False
        assert self._traffic.last is not None
        self._traffic.last.add_done_callback(lambda added: on_refused() if _is_not_applied(added) else None)
        return True

    def room_made(self, namespace: str, room: str) -> None:
        """Everybody reads everything."""

    def room_gone(self, namespace: str, room: str) -> None:
        """Everybody reads everything."""

    async def room_heard(self, namespace: str, room: str) -> None:
        """At once."""

    # --- the stream ---

    @property
    def position(self) -> Position:
        """Everything up to here has been delivered."""
        return self._reader.position

    async def reached(self, position: Position) -> None:
        """Return when everything up to ``position`` has been delivered. You bound the time."""
        await self._reader.reached(position)

    async def settled(self) -> None:
        """Return when the own clients have been sent all that this server has published before."""
        self._take_back()
        added = self._added
        if added is None or (added.done() and self._is_delivered(added)):
            self._added = None
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await asyncio.wait({added})
                if not self._is_delivered(added):
                    await self._reader.reached(parse_id(added.result()))

    def _is_delivered(self, added: asyncio.Future[Any]) -> bool:
        """Also if it was not added: then nobody waits for it."""
        failed = added.cancelled() or added.exception() is not None
        return failed or parse_id(added.result()) <= self._reader.position

    def _take(self, position: Position, entry: Entry) -> int:
        """Do what an entry says; how many packets it made."""
        if MARKER in entry:
            self._come_to_marker(position, entry)
            return 0
        if CUT.encode() in entry:
            self._history.move(position)
            if self.on_cut is not None:
                self.on_cut(entry[CUT.encode()].decode("utf-8", "replace"))
            return 0
        try:
            message = read_entry(entry)
            if message.uid == self.uid:
                self._come_back()
            if message.type in BROADCASTS and message.data.get("requestId") is None:
                return self._deliver(position, message, entry.get(b"data", b""))
            if message.uid != self.uid:
                self._hear(message)
            elif self.own is not None:
                self._hear_own(self.own, message)
        except WireError as error:
            self._traffic.junk.add(self.stream.encode(), error)
        self._history.move(position)
        return 0

    def _come_to_marker(self, position: Position, entry: Entry) -> None:
        read = read_loss(entry)
        if read is None:
            self._history.move(position)
            return
        self._history.restart(position)
        if self._reader.missed(read):
            self._log.error(
                "Redis has lost events that other servers had read: clients here begin anew",
                stream=self.stream,
                position=format_id(self._reader.position),
                others=format_id(read),
            )
            self._send_clients_back()

    def _deliver(self, position: Position, message: Message, data: bytes) -> int:
        assert self._node is not None, "start comes first"
        broadcast = wire.read_broadcast(message)
        self._traffic.received += message.uid != self.uid
        if self.recovers and not broadcast.volatile:
            self._history.append(Past(position, message.namespace, data))
        else:
            self._history.move(position)
        with unsendable_is_junk():
            return self._node.deliver(broadcast, offset=self._offset(broadcast, position))

    def _offset(self, broadcast: Broadcast, position: Position) -> str | None:
        """What clients get as the last argument. They take any text that stands there for an offset: so behind text
        comes one in any case."""
        if not self.recovers or (broadcast.volatile and not isinstance(broadcast.args[-1], str)):
            return None
        return format_id(position)

    def _on_lost(self, only_here: bool) -> None:  # noqa: FBT001 - a callback
        self._history.restart(self._reader.position)
        self._ahead = 0
        self._not_far_ahead.set()
        if only_here:
            self._send_clients_back()

    def _send_clients_back(self) -> None:
        if self.on_missed is not None:
            self.on_missed()

    # --- what we say ---

    def _say(self, message: Message) -> bool:
        if is_ephemeral(message):
            return self._traffic.send("PUBLISH", self._channel(message.namespace), pack_message(message))
        entry = wire.write_entry(message)
        if not self._traffic.send("XADD", self.stream, "MAXLEN", "~", self._maxlen, "*", *entry):
            self._take_back()  # what waits to be written: the own clients get it before what is said now
            return False
        self._added = added = self._traffic.last
        assert added is not None
        self._ahead += 1
        if self._ahead > self._ahead_max:
            self._not_far_ahead.clear()
        if message.type in BROADCASTS:
            self._unanswered[added] = message
        added.add_done_callback(self._on_added)
        return True

    def _on_added(self, added: asyncio.Future[Any]) -> None:
        """What Redis refuses (it has no memory left, or is read-only), or has certainly not got, the own clients get as
        while it is away. What it may have got, they do not: if it has, it comes back, and they would get it twice."""
        message = self._unanswered.pop(added, None)
        if not added.cancelled() and added.exception() is None:
            return
        self._come_back()
        if message is not None and _is_not_applied(added):
            self._give(message)

    def _take_back(self) -> None:
        """While Redis is away: give the own clients, in its order, what it has certainly not got. What the link still
        holds is not written any more; what was written has failed with the connection."""
        if self._redis.link.connected:
            return
        for added, message in list(self._unanswered.items()):
            if added.cancel() or _is_not_applied(added):
                del self._unanswered[added]
                self._give(message)

    def _give(self, message: Message) -> None:
        assert self._node is not None, "start comes first"
        broadcast = wire.read_broadcast(message)
        text_last = self.recovers and isinstance(broadcast.args[-1], str)
        self._node.deliver(broadcast, offset=format_id(self._reader.position) if text_last else None)

    def _come_back(self) -> None:
        self._ahead = max(0, self._ahead - 1)
        if self._ahead <= self._ahead_max:
            self._not_far_ahead.set()

    async def wait_for_room(self) -> None:
        """Return when fewer broadcasts are in flight than the limit, and the own reader is not so far behind them that
        they could be trimmed before it comes to them; the latter for a while only."""
        await super().wait_for_room()
        if self._ahead > self._ahead_max and self._reader.connected:
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await self._not_far_ahead.wait()

    def _reply(self, uid: str, message: Message) -> None:
        self._traffic.send("PUBLISH", self._channel(message.namespace, uid), pack_message(message))

    def _channel(self, namespace: str, uid: str | None = None) -> bytes:
        return channel(self.prefix, namespace, uid)

    def _take_message(self, _channel: bytes, payload: bytes) -> None:
        if not payload.startswith(self._own_openings):
            message = read_message(payload)
            if message.uid != self.uid:
                self._hear(message)

    async def _census(self, namespace: str, answered: Collection[str]) -> Census:
        channels = [self._channel(namespace), *(self._channel(namespace, uid) for uid in answered)]
        reply = await self._traffic.ask("PUBSUB", "NUMSUB", *channels)
        counts = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        return Census(counts[channels[0]], sum(counts[channel] > 0 for channel in channels[1:]))

    # --- upkeep ---

    async def _upkeep(self) -> None:
        """Trim by time, and look how far behind the reader is."""
        while True:
            await asyncio.sleep(UPKEEP_S * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, no secret
            self._history.rest()
            try:
                await self._keep_up()
            except RedisError as error:
                self._log.debug("the stream was not looked after", reason=str(error))
            except Closed:
                return  # the reader says it
            except Exception:  # noqa: BLE001 - our bug, but the stream must be looked after
                self._log.exception("looking after the stream failed")

    async def _keep_up(self) -> None:
        facts = await self._reader.facts()
        if facts is None:
            return
        self._newest = facts.last
        if self._keep_s is None:
            return
        seconds, microseconds = await self._redis.link.call("TIME")
        cutoff_ms = int(seconds) * 1000 + int(microseconds) // 1000 - round(self._keep_s * 1000)
        if facts.first is not None and facts.first[0] > cutoff_ms:
            await self._warn_if_cut()
            return
        # The newest entry that is older than the window stays: it is where a client that has seen all of it stands.
        older = await self._redis.link.call("XREVRANGE", self.stream, str(cutoff_ms), "-", "COUNT", 1)
        if older:
            await self._redis.link.call("XTRIM", self.stream, "MINID", "~", older[0][0])

    async def _warn_if_cut(self) -> None:
        if self._cut_told or await self._redis.link.call("XLEN", self.stream) < self._maxlen:
            return
        self._cut_told = True
        self._log.warning(
            "stream_maxlen keeps fewer events than recovery_s promises: clients away for long begin anew",
            stream=self.stream,
            stream_maxlen=self._maxlen,
            keep_s=self._keep_s,
        )

    @property
    def stats(self) -> AdapterStats:
        """Counters since the start."""
        position = self._reader.position
        return self._traffic.stats._replace(
            connected=self._traffic.open and self._reader.connected,
            gaps=self._reader.gaps,
            position=format_id(position),
            lag_s=max(0, self._newest[0] - position[0]) / 1000,
        )


def _is_not_applied(added: asyncio.Future[Any]) -> bool:
    """Of one that is done."""
    return not added.cancelled() and isinstance(added.exception(), CommandError | NotApplied)
