"""What the sharded and the streams adapter share above the wire: Node's ``ClusterAdapter``, whatever carries it.

A subclass carries messages: it says them to all (`_say`), to one (`_reply`), counts the servers (`_census`), and hands
in what it hears (`_hear`). This class gives them their meaning. Invariants:

- every request of another server that wants an answer gets exactly one from here;
- a request of this server ends when all others have answered, when those that have not are gone, when its time is over,
  or when answers cannot arrive any more;
- junk raises WireError out of `_hear` and changes nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias, TypeVar

from flotta.errors import Closed, RedisError
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
    obey,
)
from flotta.realtime.adapters import cluster_wire as wire
from flotta.realtime.adapters.cluster_wire import Message, MessageType
from flotta.realtime.adapters.pending import Requests
from flotta.realtime.adapters.traffic import Traffic
from flotta.realtime.adapters.wire import unsendable_is_junk
from flotta.redis import Redis

__all__ = ["Census", "ClusterAdapter"]

RECOUNT_S = 0.5
"""How often it is looked who of those that owe an answer is still there."""
DRAIN_S = 1.0

T = TypeVar("T")


class Census(NamedTuple):
    """Who is there now."""

    servers: int
    """All servers, this one included."""
    answered: int
    """How many of those that have answered are among them."""


class ClusterAdapter(ABC):
    """See the module."""

    alone = False

    def __init__(self, redis: Redis, *, in_flight_max: int, logger: Any) -> None:
        self.uid = secrets.token_hex(8)
        self._redis = redis
        self._log = logger
        self._node: Node | None = None
        self._requests = Requests(self.uid)
        self._recounting: set[asyncio.Task[None]] = set()
        self._traffic = Traffic(redis, in_flight_max=in_flight_max, on_deaf=self._fail_requests, logger=logger)
        # Heartbeats have no handler: servers are counted by their subscriptions.
        self._handlers: dict[MessageType, _Handle] = {
            MessageType.BROADCAST: self._on_broadcast,
            MessageType.FILTERED: self._on_broadcast,
            MessageType.SOCKETS_JOIN: self._on_command,
            MessageType.SOCKETS_LEAVE: self._on_command,
            MessageType.DISCONNECT_SOCKETS: self._on_command,
            MessageType.FETCH_SOCKETS: self._on_fetch,
            MessageType.SERVER_SIDE_EMIT: self._on_server_side,
            **dict.fromkeys(_ANSWERS, self._on_answer),
        }

    # --- what a subclass gives ---

    @abstractmethod
    def _say(self, message: Message) -> bool:
        """Send to all others, without waiting. False: Redis is away, nobody gets it. Raises what the wire raises."""

    @abstractmethod
    def _reply(self, uid: str, message: Message) -> None:
        """Send to the server ``uid``, without waiting. Raises what the wire raises."""

    @abstractmethod
    async def _census(self, namespace: str, answered: Collection[str]) -> Census:
        """Count the servers, and those of the ``answered`` uids that are still there. Raises as `Traffic.ask`."""

    # --- what others say ---

    def _hear(self, message: Message, *, offset: str | None = None) -> None:
        """Do what a message of another server asks; ``offset``: its place in a stream. Raises WireError for junk."""
        assert self._node is not None, "start comes first"
        handle = self._handlers.get(message.type)
        if handle is not None:
            handle(self._node, message, offset)

    def _hear_own(self, node: Node, message: Message) -> None:
        """Give ``node`` what this server itself has said and what has come back. Raises WireError for junk."""
        if self._handlers.get(message.type) == self._on_command:
            self._on_command(node, message, None)
        elif message.type in {MessageType.BROADCAST, MessageType.FILTERED}:
            if message.data.get("requestId") is None:
                node.deliver(wire.read_broadcast(message))
            else:
                question = wire.read_question(message)
                node.ask(question.target, question.args, lambda _: None, question.timeout_s)

    def _on_broadcast(self, node: Node, message: Message, offset: str | None) -> None:
        if message.data.get("requestId") is not None:
            self._on_question(node, message)
            return
        broadcast = wire.read_broadcast(message)
        self._traffic.received += 1
        with unsendable_is_junk():
            node.deliver(broadcast, offset=offset)

    def _on_question(self, node: Node, message: Message) -> None:
        """Another server's broadcast with acknowledgements: first how many clients were asked, then each answer, or
        that there will be none."""
        question = wire.read_question(message)

        def on_ack(args: list[Any]) -> None:
            # A client may nest deeper than any wire carries: then what it said is lost, not that it answered.
            data = wire.ack_data(args, question.id)
            self._respond(message, MessageType.BROADCAST_ACK, data, lambda: wire.ack_data([], question.id))

        def on_gone() -> None:  # who leaves at once leaves behind the count
            data = wire.gone_data(question.id)
            asyncio.get_running_loop().call_soon(self._respond, message, MessageType.BROADCAST_GONE, data)

        with unsendable_is_junk():
            tell = on_gone if question.tell_gone else None
            count = node.ask(question.target, question.args, on_ack, question.timeout_s, tell)
        self._respond(message, MessageType.BROADCAST_CLIENT_COUNT, wire.count_data(count, question.id))

    def _on_command(self, node: Node, message: Message, _offset: str | None) -> None:
        order = wire.read_command(message)
        obey(node, order.command, order.target, order.rooms, close=order.close)

    def _on_fetch(self, node: Node, message: Message, _offset: str | None) -> None:
        target, request_id = wire.read_fetch(message)
        sockets = node.sockets(target)

        def bare() -> dict[str, Any]:
            return wire.found_data([facts._replace(data=None) for facts in sockets], request_id)

        self._respond(message, MessageType.FETCH_SOCKETS_RESPONSE, wire.found_data(sockets, request_id), bare)

    def _on_server_side(self, node: Node, message: Message, _offset: str | None) -> None:
        event = wire.read_event(message)
        request_id, open_ = event.id, True
        if request_id is None:
            node.server_side(message.namespace, event.args, None)
            return

        def answer(value: Any) -> None:
            nonlocal open_
            if open_:
                open_ = False
                data = wire.ack_data([value], request_id)
                kind = MessageType.SERVER_SIDE_EMIT_RESPONSE
                self._respond(message, kind, data, lambda: wire.ack_data([None], request_id))

        node.server_side(message.namespace, event.args, answer)

    def _respond(
        self, request: Message, kind: MessageType, data: Any, instead: Callable[[], Any] | None = None
    ) -> None:
        """Answer a request; with what ``instead`` makes if ``data`` cannot travel: who asked counts on an answer."""
        try:
            self._reply(request.uid, Message(self.uid, request.namespace, kind, data))
        except (TypeError, ValueError):
            if instead is None:
                raise
            self._log.warning("an answer to another server cannot travel, it gets none of it", answer=kind.name)
            self._reply(request.uid, Message(self.uid, request.namespace, kind, instead()))

    def _on_answer(self, _node: Node, message: Message, _offset: str | None) -> None:
        if message.type is MessageType.FETCH_SOCKETS_RESPONSE:
            found = wire.read_found(message)
            self._requests.answer(found.id, found.sockets, message.uid)
        elif message.type is MessageType.SERVER_SIDE_EMIT_RESPONSE:
            ack = wire.read_ack(message)
            self._requests.answer(ack.id, ack.args, message.uid)
        elif message.type is MessageType.BROADCAST_CLIENT_COUNT:
            count = wire.read_count(message)
            self._requests.count(count.id, count.clients, message.uid)
        elif message.type is MessageType.BROADCAST_GONE:
            self._requests.gone(wire.read_gone(message))
        else:
            ack = wire.read_ack(message)
            self._requests.ack(ack.id, ack.args)

    def _fail_requests(self) -> None:
        self._requests.fail(lambda: self._traffic.away("the subscription was lost while others were asked"))

    # --- what we say ---

    def publish(self, broadcast: Broadcast) -> bool:
        """Give the broadcast to the other instances, without waiting; lost and counted while Redis is away."""
        return self._say(wire.broadcast_message(self.uid, broadcast))

    def command(self, command: Command, target: Target, *, rooms: Iterable[str] = (), close: bool = False) -> None:
        """Tell the others to do ``command`` with their sockets of ``target``."""
        kind, data = wire.command_data(command, target, list(rooms), close=close)
        self._say(Message(self.uid, target.namespace, kind, data))

    def server_side_emit(self, namespace: str, args: list[Any]) -> None:
        """Give an event to the others' handlers."""
        self._say(Message(self.uid, namespace, MessageType.SERVER_SIDE_EMIT, wire.server_side_data(args)))

    async def settled(self) -> None:  # noqa: B027 - not abstract: most have nothing to wait for
        """It always is: own broadcasts are delivered at once."""

    async def wait_for_room(self) -> None:
        """Return when fewer broadcasts are in flight than the limit."""
        await self._traffic.wait_for_room()

    @property
    def stats(self) -> AdapterStats:
        """Counters since the start."""
        return self._traffic.stats

    # --- what we ask ---

    async def server_count(self, namespace: str) -> int:
        """How many servers there are, this one included."""
        return (await self._census(namespace, ())).servers

    async def fetch_sockets(self, target: Target, timeout_s: float) -> list[SocketFacts]:
        """The sockets of ``target`` that the others hold."""
        kind = MessageType.FETCH_SOCKETS
        return await self._gather(
            "fetch_sockets", kind, target.namespace, timeout_s, lambda request_id: wire.fetch_data(target, request_id)
        )

    async def all_rooms(self, namespace: str, timeout_s: float) -> set[str]:
        """The rooms that sockets of the others are in: no message asks for them, the sockets' facts tell."""
        found = await self.fetch_sockets(Target(namespace), timeout_s)
        return {room for facts in found for room in (facts.sid, *facts.rooms)}

    async def server_side_call(self, namespace: str, args: list[Any], timeout_s: float) -> list[Any]:
        """Give an event to the others' handlers, and get one answer of each of them."""
        kind, name = MessageType.SERVER_SIDE_EMIT, f"server_side_call {args[0]}"
        return await self._gather(
            name, kind, namespace, timeout_s, lambda request_id: wire.server_side_data(args, request_id)
        )

    async def _gather(
        self, name: str, kind: MessageType, namespace: str, timeout_s: float, make: Callable[[str], Any]
    ) -> list[Any]:
        """Ask all others; what they answer, joined."""
        servers = (await self._census(namespace, ())).servers
        recounting: list[asyncio.Task[None]] = []

        def send(request_id: str) -> None:
            self._ask_others(Message(self.uid, namespace, kind, make(request_id)))
            recounting.append(self._begin_recount(namespace, request_id, timeout_s))

        try:
            return await self._requests.gather(
                name, expected=servers - 1, timeout_s=timeout_s, send=send, read=_as_it_is
            )
        finally:
            for task in recounting:
                task.cancel()

    async def ask(
        self, target: Target, args: list[Any], on_count: OnCount, on_ack: OnAck, on_gone: OnGone, *, timeout_s: float
    ) -> int:
        """Let the others send an event to their sockets of ``target``."""
        others = (await self._census(target.namespace, ())).servers - 1
        if others <= 0:
            return 0

        def send(request_id: str) -> None:
            data = wire.question_data(target, args, request_id, timeout_s)
            self._ask_others(Message(self.uid, target.namespace, MessageType.BROADCAST, data))
            self._begin_recount(target.namespace, request_id, timeout_s)

        self._requests.listen(
            expected=others, on_count=on_count, on_ack=on_ack, on_gone=on_gone, timeout_s=timeout_s, send=send
        )
        return others

    def _ask_others(self, message: Message) -> None:
        if not self._say(message):
            raise self._traffic.away("Redis is away")

    def _begin_recount(self, namespace: str, request_id: str, timeout_s: float) -> asyncio.Task[None]:
        work = self._recount(namespace, request_id, timeout_s)
        task = asyncio.create_task(work, name=f"realtime recount {request_id}")
        self._recounting.add(task)
        task.add_done_callback(self._recounting.discard)
        return task

    async def _recount(self, namespace: str, request_id: str, timeout_s: float) -> None:
        """While a request waits, look who is still there: a server that was killed costs no whole time-out."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._requests.has(request_id):
                    await asyncio.sleep(RECOUNT_S)
                    with suppress(RedisError):  # whether answers can still come is not decided here
                        census = await self._census(namespace, self._requests.heard(request_id))
                        missing = census.servers - 1 - census.answered
                        self._requests.settle(request_id, missing)
                        if missing <= 0:
                            return

    async def _end(self) -> None:
        """For a subclass's `aclose`, after it has stopped to listen: end what waits, let what is in flight end."""
        self._requests.close(lambda: Closed("the realtime server"))
        for task in self._recounting:
            task.cancel()
        await self._traffic.drain(DRAIN_S)


_Handle: TypeAlias = Callable[[Node, Message, str | None], None]
_ANSWERS = (
    MessageType.FETCH_SOCKETS_RESPONSE,
    MessageType.SERVER_SIDE_EMIT_RESPONSE,
    MessageType.BROADCAST_CLIENT_COUNT,
    MessageType.BROADCAST_ACK,
    MessageType.BROADCAST_GONE,
)


def _as_it_is(answer: list[T]) -> list[T]:
    return answer
