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
from collections.abc import Iterable
from functools import partial
from typing import Any, final

from flotta.errors import Closed
from flotta.realtime.adapters import (
    AdapterStats,
    Broadcast,
    Command,
    Node,
    OnAck,
    OnCount,
    OnGone,
    SocketFacts,
    Target,
)
from flotta.realtime.adapters.classic_answers import answer
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
    write_command,
    write_question,
    write_request,
)
from flotta.realtime.adapters.pending import Read, Requests, T
from flotta.realtime.adapters.seats import Seat
from flotta.realtime.adapters.traffic import Ear, Take, Traffic
from flotta.realtime.adapters.wire import channel_bytes, read_answer, unsendable_is_junk
from flotta.redis import Hub, Kind, Redis, Subscription

__all__ = ["ClassicAdapter"]

UID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@final
class ClassicAdapter:
    """The adapter of one server. ``prefix`` comes before every channel's name."""

    alone = False
    echoes = False
    wants_own_rooms = False

    def __init__(self, redis: Redis, *, prefix: str, in_flight_max: int, logger: Any) -> None:
        self.uid = "".join(secrets.choice(UID_LETTERS) for _ in range(6))
        self._seat = Seat(redis, prefix)
        self._requests = Requests(self.uid)
        self._own = self.uid.encode()
        self._prefix = prefix
        self._traffic = Traffic(redis, in_flight_max=in_flight_max, on_deaf=self._fail_requests, logger=logger)
        self._open: dict[str, list[tuple[Subscription, Ear]]] = {}
        self._known: dict[str, Channels] = {}
        self._changing = asyncio.Lock()  # namespaces open and close one at a time
        self._node: Node | None = None
        self.own: Node | None = None
        """Gets what this server itself has said, as it comes back, while it is set."""

    @property
    def hub(self) -> Hub:
        """The connection over which everything is heard."""
        return self._seat.hub

    async def start(self, node: Node) -> None:
        """Subscribe for every namespace; returns when Redis has confirmed."""
        self._node = node
        for namespace in node.namespaces():
            await self.open_namespace(namespace)

    async def open_namespace(self, namespace: str) -> None:
        """Subscribe for one namespace; returns when Redis has confirmed. Twice is once."""
        assert self._node is not None, "start comes first"
        async with self._changing:
            if namespace in self._open:
                return
            channels = Channels(self._prefix, namespace)
            # The request channel comes last: whoever is counted by it hears broadcasts, and answers.
            wanted: list[tuple[str, Kind, Take]] = [
                (channels.pattern, "pattern", partial(self._take_broadcast, channels, namespace)),
                (channels.filtered, "channel", partial(self._take_filtered, namespace)),
                (channels.responses, "channel", self._take_response),
                (channels.answers_to(self.uid), "channel", self._take_response),
                (channels.requests, "channel", partial(self._take_request, channels, namespace)),
            ]
            made: list[tuple[Subscription, Ear]] = []
            try:
                for channel, kind, take in wanted:
                    ear = Ear(self._traffic, take)
                    made.append((await self._seat.hub.subscribe(channel_bytes(channel), ear, kind=kind), ear))
            except BaseException:
                await self._unsubscribe(made)
                raise
            self._open[namespace], self._known[namespace] = made, channels

    async def close_namespace(self, namespace: str) -> None:
        """Unsubscribe for one namespace."""
        async with self._changing:
            self._known.pop(namespace, None)
            await self._unsubscribe(self._open.pop(namespace, []))

    async def _unsubscribe(self, subscriptions: list[tuple[Subscription, Ear]]) -> None:
        for subscription, ear in subscriptions:
            await subscription.aclose()
            self._traffic.forget(ear)

    async def aclose(self) -> None:
        """Unsubscribe and let what is in flight end. Idempotent."""
        for namespace in list(self._open):
            await self.close_namespace(namespace)
        await self._seat.aclose()
        self._requests.close(lambda: Closed("the realtime server"))
        await self._traffic.drain(1.0)

    def _channels(self, namespace: str) -> Channels:
        """Also of a namespace that nobody here is in: others may be."""
        return self._known.get(namespace) or Channels(self._prefix, namespace)

    # --- what others say ---

    def _take_broadcast(self, channels: Channels, namespace: str, channel: bytes, payload: bytes) -> None:
        assert self._node is not None, "start comes first"
        room = channels.room(channel.decode("utf-8", "replace"))
        # A message for a room that nobody here is in is dropped unread.
        if not room or self._node.has_room(namespace, room):
            self._hear(self._node, namespace, payload)

    def _take_filtered(self, namespace: str, _channel: bytes, payload: bytes) -> None:
        assert self._node is not None, "start comes first"
        self._hear(self._node, namespace, payload)

    def _hear(self, node: Node, namespace: str, payload: bytes) -> None:
        heard = read_broadcast(payload)
        if heard.broadcast.target.namespace != namespace:
            return
        if heard.uid != self.uid:
            self._traffic.received += 1
            with unsendable_is_junk():
                node.deliver(heard.broadcast)
        elif self.own is not None:
            self.own.deliver(heard.broadcast)

    def _take_request(self, channels: Channels, namespace: str, _channel: bytes, payload: bytes) -> None:
        assert self._node is not None, "start comes first"
        request = read_request(payload, namespace)
        if request.uid != self.uid:
            answer(self._node, request, partial(self._send, channels.answers_to(request.uid)))
        elif self.own is not None:
            answer(self.own, request, lambda _: None)

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
        elif response.type == RequestType.BROADCAST_GONE:
            self._requests.gone(response.id)
        else:
            self._requests.answer(response.id, response.fields)

    def _fail_requests(self) -> None:
        self._requests.fail(lambda: self._traffic.away("the subscription was lost while they were asked"))

    # --- what we say ---

    def publish(self, broadcast: Broadcast) -> bool:
        """Give the broadcast to the other instances, without waiting; lost and counted while Redis is away."""
        channels = self._channels(broadcast.target.namespace)
        return self._send(channels.of(broadcast), write_broadcast(self.uid, broadcast))

    def command(self, command: Command, target: Target, *, rooms: Iterable[str] = (), close: bool = False) -> None:
        """Tell the other instances to do ``command`` with their sockets of ``target``."""
        payload = write_command(self.uid, command, target, rooms, close=close)
        self._send(self._channels(target.namespace).requests, payload)

    def room_made(self, namespace: str, room: str) -> None:
        """The pattern hears every room."""

    def room_gone(self, namespace: str, room: str) -> None:
        """The pattern hears every room."""

    async def room_heard(self, namespace: str, room: str) -> None:
        """It is already."""

    # --- what we ask ---

    def _request(self, namespace: str, payload: bytes) -> None:
        if not self._send(self._channels(namespace).requests, payload):
            raise self._traffic.away("Redis is away")

    async def server_count(self, namespace: str) -> int:
        """Who is subscribed to the request channel, this one included."""
        channel = channel_bytes(self._channels(namespace).requests)
        _, count = await self._traffic.ask("PUBSUB", "NUMSUB", channel)
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
        self._send(self._channels(namespace).requests, payload)

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

    async def ask(
        self, target: Target, args: list[Any], on_count: OnCount, on_ack: OnAck, on_gone: OnGone, *, timeout_s: float
    ) -> int:
        """Let the others send an event to their sockets of ``target``."""
        others = await self.server_count(target.namespace) - 1
        if others <= 0:
            return 0

        def send(request_id: str) -> None:
            self._request(target.namespace, write_question(self.uid, request_id, target, args, timeout_s))

        self._requests.listen(
            expected=others, on_count=on_count, on_ack=on_ack, on_gone=on_gone, timeout_s=timeout_s, send=send
        )
        return others

    def _send(self, channel: str, payload: bytes) -> bool:
        return self._traffic.send("PUBLISH", channel_bytes(channel), payload)

    async def settled(self) -> None:
        """It always is: own broadcasts are delivered at once."""

    async def wait_for_room(self) -> None:
        """Return when fewer broadcasts are in flight than the limit."""
        await self._traffic.wait_for_room()

    @property
    def stats(self) -> AdapterStats:
        """Counters since the start."""
        return self._traffic.stats
