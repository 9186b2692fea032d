"""Broadcasts over Redis Pub/Sub in the format of Node's ``@socket.io/redis-adapter``.

One pattern subscription per namespace hears every broadcast, one channel the requests; nothing is stored. What is
published while Redis is away, or while an instance's subscription is away, does not reach that instance: the counters
`AdapterStats.publish_lost` and `AdapterStats.gaps` say how often. Each instance goes on serving its own clients.

Node counts the servers by the subscribers of the request channel and waits for an answer from each: so there is exactly
one subscription per process and namespace, and every request that wants an answer gets one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, final

from flotta.errors import RedisError, WireError
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
from flotta.realtime.adapters.classic_wire import (
    Channels,
    Request,
    RequestType,
    read_broadcast,
    read_question,
    read_request,
    read_rooms,
    socket_fields,
    write_ack,
    write_broadcast,
    write_request,
    write_response,
)
from flotta.redis import Redis

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

    def __init__(self, redis: Redis, *, prefix: str, in_flight_max: int, logger: Any) -> None:
        self.uid = "".join(secrets.choice(UID_LETTERS) for _ in range(6))
        self._redis = redis
        self._prefix = prefix
        self._in_flight_max = in_flight_max
        self._log = logger
        self._channels: dict[str, Channels] = {}
        self._subscriptions: list[_Closeable] = []
        self._in_flight: set[asyncio.Future[Any]] = set()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._deaf: set[_Ear] = set()
        self._published = self._publish_lost = self._received = self._junk = self._gaps = 0
        self._node: Node | None = None

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
        await self._listen(channels.pattern, self._hear_in(node, channels, namespace), "pattern")
        await self._listen(channels.filtered, self._hear_filtered(node, namespace), "channel")
        await self._listen(channels.requests, self._answer_in(node, channels, namespace), "channel")

    async def _listen(
        self, channel: str, take: Callable[[bytes, bytes], None], kind: Literal["channel", "pattern"]
    ) -> None:
        self._subscriptions.append(await self._redis.hub.subscribe(channel, _Ear(self, take), kind=kind))

    async def aclose(self) -> None:
        """Unsubscribe and let what is in flight end. Idempotent."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.aclose()
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
        if heard.uid != self.uid and heard.broadcast.target.namespace == namespace:
            self._received += 1
            with _unsendable_is_junk():
                node.deliver(heard.broadcast)

    def _answer_in(self, node: Node, channels: Channels, namespace: str) -> Callable[[bytes, bytes], None]:
        def take(_channel: bytes, payload: bytes) -> None:
            request = read_request(payload, namespace)
            if request.uid == self.uid:
                return
            if request.type is RequestType.BROADCAST:
                answer = self._ask(node, channels, request)
            else:
                answer = _answer(node, request)
            if answer is not None:
                self._send(channels.responses, answer)

        return take

    def _ask(self, node: Node, channels: Channels, request: Request) -> bytes | None:
        """Another server's broadcast with acknowledgements: first how many clients were asked, then each answer."""
        request_id = request.id
        if request_id is None:
            return None

        def on_ack(args: list[Any]) -> None:
            self._send(channels.responses, write_ack(request_id, args))

        args, timeout_s = read_question(request)
        with _unsendable_is_junk():
            count = node.ask(request.target, args, on_ack, timeout_s)
        return write_response(request_id, type=int(RequestType.BROADCAST_CLIENT_COUNT), clientCount=count)

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

    async def server_count(self, namespace: str) -> int:
        """Who is subscribed to the request channel, this one included."""
        _, count = await self._redis.link.call("PUBSUB", "NUMSUB", self._channels[namespace].requests)
        return int(count)

    async def fetch_sockets(self, target: Target, timeout_s: float) -> list[SocketFacts]:
        """The sockets of ``target`` that the others hold."""
        raise NotImplementedError

    async def all_rooms(self, namespace: str, timeout_s: float) -> set[str]:
        """The rooms that sockets of the others are in."""
        raise NotImplementedError

    async def ask(self, target: Target, args: list[Any], on_count: OnCount, on_ack: OnAck, timeout_s: float) -> int:
        """Let the others send an event to their sockets of ``target``."""
        raise NotImplementedError

    def server_side_emit(self, namespace: str, args: list[Any]) -> None:
        """Give an event to the others' handlers."""
        raise NotImplementedError

    async def server_side_call(self, namespace: str, args: list[Any], timeout_s: float) -> list[Any]:
        """The same, and one answer of each of them."""
        raise NotImplementedError

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


@contextmanager
def _unsendable_is_junk() -> Iterator[None]:
    """MessagePack carries more than Socket.IO's JSON does: NaN, for one."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise WireError("adapter message", f"cannot be sent to clients: {error}") from error


def _answer(node: Node, request: Request) -> bytes | None:
    """Do what another server asks; its answer if it wants one."""
    if request.type in {RequestType.REMOTE_JOIN, RequestType.REMOTE_LEAVE, RequestType.REMOTE_DISCONNECT}:
        return _command(node, request)
    write = _ANSWERS.get(request.type)
    return None if write is None or request.id is None else write_response(request.id, **write(node, request.target))


# Nobody here listens for server-side events, but who emits one with an acknowledgement counts on every server's answer.
_ANSWERS: dict[RequestType, Callable[[Node, Target], dict[str, Any]]] = {
    RequestType.SOCKETS: lambda node, target: {"sockets": [facts.sid for facts in node.sockets(target)]},
    RequestType.ALL_ROOMS: lambda node, target: {"rooms": node.rooms(target.namespace)},
    RequestType.REMOTE_FETCH: lambda node, target: {"sockets": list(map(socket_fields, node.sockets(target)))},
    RequestType.SERVER_SIDE_EMIT: lambda _node, _target: {"type": int(RequestType.SERVER_SIDE_EMIT), "data": None},
}


def _command(node: Node, request: Request) -> bytes | None:
    """Join, leave or disconnect. Only the form for one socket (of older servers) wants an answer, from its holder."""
    target, fields, answer = request.target, request.fields, None
    if not fields.get("opts"):
        target = Target(target.namespace, read_rooms([fields.get("sid", "")]))
        if request.id is not None and node.sockets(target):
            answer = write_response(request.id)
    if request.type is RequestType.REMOTE_DISCONNECT:
        node.disconnect(target, close=bool(fields.get("close")))
        return answer
    names = read_rooms(fields.get("rooms") or [fields.get("room")])
    (node.join if request.type is RequestType.REMOTE_JOIN else node.leave)(target, names)
    return answer
