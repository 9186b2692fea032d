"""Broadcasts over Redis Pub/Sub in the format of Node's ``@socket.io/redis-adapter``.

One pattern subscription per namespace hears every broadcast, one channel the requests; nothing is stored. What is
published while Redis is away, or while an instance's subscription is away, does not reach that instance: the counters
`AdapterStats.publish_lost` and `AdapterStats.gaps` say how often. Each instance goes on serving its own clients.

Everybody counts the servers by the subscribers of the request channel and waits for an answer from each: so there is
exactly one subscription per server and namespace (`Seat`), and every request that wants an answer gets one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Literal, Protocol, final

from flotta.errors import Closed, LinkUnavailable, RedisError, WireError
from flotta.realtime.adapters import (
    AdapterStats,
    Broadcast,
    Command,
    Node,
    OnAck,
    OnCount,
    SocketFacts,
    Target,
)
from flotta.realtime.adapters.classic_answers import answer, unsendable_is_junk
from flotta.realtime.adapters.classic_wire import (
    Channels,
    RequestType,
    read_broadcast,
    read_count,
    read_names,
    read_request,
    read_response,
    read_sockets,
    write_broadcast,
    write_question,
    write_request,
)
from flotta.realtime.adapters.seats import Seat
from flotta.realtime.adapters.wire import read_answer
from flotta.realtime.requests import Read, Requests, T
from flotta.redis import Hub, Redis

__all__ = ["ClassicAdapter"]

UID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_COMMANDS = {
    Command.JOIN: RequestType.REMOTE_JOIN,
    Command.LEAVE: RequestType.REMOTE_LEAVE,
    Command.DISCONNECT: RequestType.REMOTE_DISCONNECT,
}


class _Closeable(Protocol):
    async def aclose(self) -> None: ...


@final
class _Ear:
    """One subscription's listener: hands messages on, reports the loss."""

    __slots__ = ("_adapter", "_take")

    def __init__(self, adapter: ClassicAdapter, take: Callable[[bytes, bytes], None]) -> None:
        self._adapter = adapter
        self._take = take

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """A message came in. Junk is counted and dropped."""
        try:
            self._take(channel, payload)
        except WireError as error:
            self._adapter.on_junk(channel, error)

    def on_lost(self) -> None:
        """Messages may be missed from here on."""
        self._adapter.on_lost(self)

    def on_restored(self) -> None:
        """Messages arrive again."""
        self._adapter.on_restored(self)


@final
class ClassicAdapter:
    """The adapter of one server. ``prefix`` comes before every channel's name."""

    alone = False
    echoes = False
    wants_own_rooms = False

    def __init__(self, redis: Redis, *, prefix: str, in_flight_max: int, logger: Any) -> None:
        self.uid = "".join(secrets.choice(UID_LETTERS) for _ in range(6))
        self._redis = redis
        self._seat = Seat(redis, prefix)
        self._requests = Requests(self.uid)
        self._own = self.uid.encode()
        self._prefix = prefix
        self._in_flight_max = in_flight_max
        self._log = logger
        self._channels: dict[str, Channels] = {}
        self._subscriptions: dict[str, list[_Closeable]] = {}
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._deaf: set[_Ear] = set()
        self._published = self._publish_lost = self._received = self._junk = self._gaps = 0
        self._node: Node | None = None
        self.own: Node | None = None
        """Gets what this server itself has said, as it comes back, while it is set."""

    @property
    def hub(self) -> Hub:
        """The connection over which everything is heard."""
        return self._seat.hub

    async def listen_for(self, namespace: str, rooms: Iterable[str]) -> None:  # noqa: ARG002 - a pattern hears all
        """Hear what is sent to these rooms; returns when that is so."""
        await self.open_namespace(namespace)

    async def start(self, node: Node) -> None:
        """Subscribe for every namespace; returns when Redis has confirmed."""
        self._node = node
        for namespace in node.namespaces():
            await self.open_namespace(namespace)

    async def open_namespace(self, namespace: str) -> None:
        """Subscribe for one namespace; returns when Redis has confirmed. Twice is once."""
        assert self._node is not None, "start comes first"
        if namespace in self._channels:
            return
        node, channels = self._node, Channels(self._prefix, namespace)
        self._channels[namespace] = channels
        listen = partial(self._listen, namespace)
        await listen(channels.pattern, self._hear_in(node, channels, namespace), "pattern")
        await listen(channels.filtered, self._hear_filtered(node, namespace), "channel")
        # Answers first: whoever is counted by the request channel can be answered.
        await listen(channels.responses, self._take_response, "channel")
        await listen(channels.answers_to(self.uid), self._take_response, "channel")
        await listen(channels.requests, self._answer_in(node, channels, namespace), "channel")

    async def _listen(
        self, namespace: str, channel: str, take: Callable[[bytes, bytes], None], kind: Literal["channel", "pattern"]
    ) -> None:
        subscription = await self._seat.hub.subscribe(channel, _Ear(self, take), kind=kind)
        self._subscriptions.setdefault(namespace, []).append(subscription)

    async def close_namespace(self, namespace: str) -> None:
        """Unsubscribe for one namespace."""
        self._channels.pop(namespace, None)
        for subscription in self._subscriptions.pop(namespace, ()):
            await subscription.aclose()

    async def aclose(self) -> None:
        """Unsubscribe and let what is in flight end. Idempotent."""
        for namespace in list(self._subscriptions):
            await self.close_namespace(namespace)
        await self._seat.aclose()
        self._requests.close(lambda: Closed("the realtime server"))
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=1.0)

    # --- what others say ---

    def _hear_in(self, node: Node, channels: Channels, namespace: str) -> Callable[[bytes, bytes], None]:
        def take(channel: bytes, payload: bytes) -> None:
            room = channels.room(channel.decode("utf-8", "replace"))
            # A message for a room that nobody here is in is dropped unread.
            if not room or node.has_room(namespace, room):
                self._hear(node, namespace, payload)

        return take

    def _hear_filtered(self, node: Node, namespace: str) -> Callable[[bytes, bytes], None]:
        def take(_channel: bytes, payload: bytes) -> None:
            self._hear(node, namespace, payload)

        return take

    def _hear(self, node: Node, namespace: str, payload: bytes) -> None:
        heard = read_broadcast(payload)
        if heard.broadcast.target.namespace != namespace:
            return
        if heard.uid != self.uid:
            self._received += 1
            with unsendable_is_junk():
                node.deliver(heard.broadcast)
        elif self.own is not None:
            self.own.deliver(heard.broadcast)

    def _answer_in(self, node: Node, channels: Channels, namespace: str) -> Callable[[bytes, bytes], None]:
        def take(_channel: bytes, payload: bytes) -> None:
            request = read_request(payload, namespace)
            if request.uid == self.uid:
                if self.own is not None:
                    answer(self.own, request, lambda _: None)
            else:
                answer(node, request, partial(self._send, channels.answers_to(request.uid)))

        return take

    def _take_response(self, _channel: bytes, payload: bytes) -> None:
        if self._own not in payload:
            return  # for another server: every id of ours holds the uid
        response = read_response(payload)
        if not self._requests.has(response.id):
            self._requests.answer(response.id, None)  # too late
        elif response.type == RequestType.BROADCAST_CLIENT_COUNT:
            self._requests.count(response.id, read_count(response))
        elif response.type == RequestType.BROADCAST_ACK:
            self._requests.ack(response.id, read_answer(response.fields))
        else:
            self._requests.answer(response.id, response.fields)

    def on_junk(self, channel: bytes, error: WireError) -> None:
        """Count what was no message of ours; say it the 1st, 2nd, 4th, 8th... time, so that a flood floods no log."""
        self._junk += 1
        if self._junk & (self._junk - 1) == 0:
            self._log.warning(
                "junk on an adapter channel", channel=channel[:128], reason=error.reason, so_far=self._junk
            )

    def on_lost(self, ear: _Ear) -> None:
        """A subscription is gone."""
        if not self._deaf:
            self._gaps += 1
            self._log.warning("broadcasts of other instances do not arrive until Redis is back")
            self._requests.fail(lambda: self._away("the subscription was lost while others were asked"))
        self._deaf.add(ear)

    def on_restored(self, ear: _Ear) -> None:
        """A subscription is back."""
        self._deaf.discard(ear)
        if not self._deaf:
            self._log.info("broadcasts of other instances arrive again")

    # --- what we say ---

    def publish(self, broadcast: Broadcast) -> bool:
        """Give the broadcast to the other instances, without waiting; lost and counted while Redis is away."""
        channels = self._channels[broadcast.target.namespace]
        return self._send(channels.of(broadcast), write_broadcast(self.uid, broadcast))

    def command(self, command: Command, target: Target, *, rooms: Iterable[str] = (), close: bool = False) -> None:
        """Tell the other instances to do ``command`` with their sockets of ``target``."""
        fields: dict[str, Any] = {"close": close} if command is Command.DISCONNECT else {"rooms": list(rooms)}
        payload = write_request(self.uid, _COMMANDS[command], target, **fields)
        self._send(self._channels[target.namespace].requests, payload)

    def room_made(self, namespace: str, room: str) -> None:
        """The pattern hears every room."""

    def room_gone(self, namespace: str, room: str) -> None:
        """The pattern hears every room."""

    async def room_heard(self, namespace: str, room: str) -> None:
        """It is already."""

    # --- what we ask ---

    def _away(self, reason: str = "the other servers are out of reach") -> LinkUnavailable:
        return LinkUnavailable(self._redis.link.endpoint.address, reason, command="PUBLISH")

    def _request(self, namespace: str, payload: bytes) -> None:
        if not self._send(self._channels[namespace].requests, payload):
            raise self._away()

    async def server_count(self, namespace: str) -> int:
        """Who is subscribed to the request channel, this one included."""
        channel = self._channels[namespace].requests
        if self._deaf or not self._redis.link.connected:
            raise self._away()
        try:
            _, count = await self._redis.link.call("PUBSUB", "NUMSUB", channel)
        except RedisError as error:
            raise self._away("the other servers cannot be counted") from error
        return int(count)

    async def _gather(
        self, namespace: str, kind: RequestType, timeout_s: float, read: Read[T], name: str, **fields: Any
    ) -> list[T]:
        def send(request_id: str) -> None:
            self._request(namespace, write_request(self.uid, kind, requestId=request_id, **fields))

        others = await self.server_count(namespace) - 1
        return await self._requests.gather(name, expected=others, timeout_s=timeout_s, send=send, read=read)

    async def fetch_sockets(self, target: Target, timeout_s: float) -> list[SocketFacts]:
        """The sockets of ``target`` that the others hold."""
        options = {"rooms": list(target.rooms), "except": list(target.except_rooms)}
        return await self._gather(
            target.namespace, RequestType.REMOTE_FETCH, timeout_s, read_sockets, "fetch_sockets", opts=options
        )

    async def all_rooms(self, namespace: str, timeout_s: float) -> set[str]:
        """The rooms that sockets of the others are in."""
        return set(await self._gather(namespace, RequestType.ALL_ROOMS, timeout_s, read_names, "all_rooms"))

    def server_side_emit(self, namespace: str, args: list[Any]) -> None:
        """Give an event to the others' handlers."""
        payload = write_request(self.uid, RequestType.SERVER_SIDE_EMIT, data=args)
        self._send(self._channels[namespace].requests, payload)

    async def server_side_call(self, namespace: str, args: list[Any], timeout_s: float) -> list[Any]:
        """The same, and one answer of each of them."""
        return await self._gather(
            namespace,
            RequestType.SERVER_SIDE_EMIT,
            timeout_s,
            lambda fields: [fields.get("data")],
            f"server_side_call {args[0]}",
            data=args,
        )

    async def ask(self, target: Target, args: list[Any], on_count: OnCount, on_ack: OnAck, timeout_s: float) -> int:
        """Let the others send an event to their sockets of ``target``."""
        others = await self.server_count(target.namespace) - 1
        if others <= 0:
            return 0
        request_id = self._requests.listen(expected=others, on_count=on_count, on_ack=on_ack, timeout_s=timeout_s)
        try:
            self._request(target.namespace, write_question(self.uid, request_id, target, args, timeout_s))
        except BaseException:
            self._requests.forget(request_id)
            raise
        return others

    def _send(self, channel: str, payload: bytes) -> bool:
        if not self._redis.link.connected:
            self._publish_lost += 1
            return False
        self._published += 1
        reply: Awaitable[Any] = self._redis.link.call("PUBLISH", channel, payload)
        future = asyncio.ensure_future(reply)
        self._in_flight.add(future)
        if len(self._in_flight) >= self._in_flight_max:
            self._has_room.clear()
        future.add_done_callback(self._sent)
        return True

    def _sent(self, future: asyncio.Future[Any]) -> None:
        self._in_flight.discard(future)
        self._has_room.set()
        if future.cancelled():
            self._publish_lost += 1
            return
        error = future.exception()
        if error is None:
            return
        self._publish_lost += 1
        if not isinstance(error, RedisError):
            self._log.error("publishing a broadcast failed", exc_info=error)

    async def settled(self) -> None:
        """It always is: own broadcasts are delivered at once."""

    async def wait_for_room(self) -> None:
        """Return when fewer broadcasts are in flight than the limit."""
        await self._has_room.wait()

    @property
    def stats(self) -> AdapterStats:
        """Counters since the start."""
        return AdapterStats(
            connected=not self._deaf and self._redis.link.connected,
            published=self._published,
            publish_lost=self._publish_lost,
            received=self._received,
            junk=self._junk,
            gaps=self._gaps,
            in_flight=len(self._in_flight),
        )
