"""All instances as one: who is connected, in which rooms, and servers that talk to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast, final, overload

from flotta.errors import ClusterTimeout
from flotta.realtime.adapters import Command, SocketFacts, Target, obey
from flotta.realtime.api.asking import CALLBACK_S
from flotta.realtime.api.base import Base, Names, names_of, server_event, target_of
from flotta.realtime.handlers import check_name

if TYPE_CHECKING:
    from flotta.realtime.server import Server

__all__ = ["Cluster", "RemoteSocket"]

H = TypeVar("H", bound=Callable[..., Any])


@final
@dataclass(frozen=True, slots=True)
class RemoteSocket:
    """One client as it was when it was asked for, on this instance or another one, Node's included."""

    id: str
    namespace: str
    rooms: frozenset[str]
    """Its own id included."""
    handshake: Mapping[str, Any]
    """What its instance says of the request: Flotta ``address``, ``url``, ``secure`` and ``issued`` (Unix ms), but no
    headers, query or cookies; Node everything."""
    data: Any
    """What `Server.save_session` stored; Node's ``socket.data``. None: it cannot travel."""
    _server: Server = field(repr=False, compare=False)

    async def emit(self, event: str, data: Any = None, *, volatile: bool = False) -> None:
        """Send it an event, as `Server.emit`."""
        await self._server.emit(event, data, to=self.id, namespace=self.namespace, volatile=volatile)

    async def call(self, event: str, data: Any = None, *, timeout_s: float = CALLBACK_S) -> Any:
        """Send it an event and wait for the acknowledgement, as `Server.call`."""
        return await self._server.call(event, data, to=self.id, namespace=self.namespace, timeout_s=timeout_s)

    async def join(self, rooms: str | Iterable[str]) -> None:
        """Put it into rooms, as `Server.sockets_join`."""
        await self._server.sockets_join(rooms, to=self.id, namespace=self.namespace)

    async def leave(self, rooms: str | Iterable[str]) -> None:
        """Take it out of rooms, as `Server.sockets_leave`."""
        await self._server.sockets_leave(rooms, to=self.id, namespace=self.namespace)

    async def disconnect(self, *, close: bool = False) -> None:
        """Disconnect it, as `Server.disconnect_sockets`."""
        await self._server.disconnect_sockets(to=self.id, namespace=self.namespace, close=close)


class Cluster(Base):
    """The part of `Server` for all instances together.

    Requests to the others raise LinkUnavailable while Redis is away, ClusterTimeout (with ``.answers``) when not all of
    them answer within ``timeout_s`` (None: the option ``request_timeout_s``), NotStarted before `start`. A server that
    has died without a word is waited for until Redis has noticed. Cancelling one stops the waiting.
    """

    # --- who is there ---

    async def server_count(self, *, namespace: str = "/") -> int:
        """How many servers there are, this one included."""
        self._space(namespace)
        async with self._hearing(namespace):
            return await self._adapter_in_use.server_count(namespace)

    async def fetch_sockets(
        self,
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str = "/",
        local: bool = False,
        timeout_s: float | None = None,
    ) -> list[RemoteSocket]:
        """The clients of a room, a user, or all, on every instance (``local``: on this one). Targets as in `emit`.

        It is a question to every server whose answers hold every client: for a page of somebody's, not for each event.
        """
        target = target_of(namespace, to, room, user, skip_sid)
        if target is None:
            return []
        self._space(namespace)
        adapter = self._adapter_in_use
        found = self._core.delivery.sockets(target)
        try:
            if not (local or adapter.alone):
                async with self._hearing(namespace):
                    found += await adapter.fetch_sockets(target, self._limit_s(timeout_s))
        except ClusterTimeout as error:
            found += error.answers
            raise _with_answers(error, self._remote(found, namespace)) from None
        return self._remote(found, namespace)

    def _remote(self, found: list[SocketFacts], namespace: str) -> list[RemoteSocket]:
        server = cast("Server", self)
        return [RemoteSocket(facts.sid, namespace, facts.rooms, facts.handshake, facts.data, server) for facts in found]

    async def all_rooms(self, *, namespace: str = "/", timeout_s: float | None = None) -> set[str]:
        """The rooms that somebody is in on any instance, those of the clients' own ids included."""
        self._space(namespace)
        adapter = self._adapter_in_use
        rooms = set(self._core.delivery.rooms(namespace))
        if adapter.alone:
            return rooms
        try:
            async with self._hearing(namespace):
                return rooms | await adapter.all_rooms(namespace, self._limit_s(timeout_s))
        except ClusterTimeout as error:
            raise _with_answers(error, sorted(rooms.union(error.answers))) from None

    def _limit_s(self, timeout_s: float | None) -> float:
        return self._core.options.request_timeout_s if timeout_s is None else timeout_s

    # --- orders ---

    async def sockets_join(
        self,
        rooms: str | Iterable[str],
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str = "/",
        local: bool = False,
    ) -> None:
        """Put the clients of a room, a user, or all, into ``rooms``, on every instance. Targets as in `emit`.

        The own clients are in when this returns. The other instances are told: whoever is elsewhere gets in within
        moments, and not at all while Redis is away.
        """
        target = target_of(namespace, to, room, user, skip_sid)
        await self._order(Command.JOIN, target, rooms=names_of(rooms), local=local)

    async def sockets_leave(
        self,
        rooms: str | Iterable[str],
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str = "/",
        local: bool = False,
    ) -> None:
        """Take the clients of a room, a user, or all, out of ``rooms``: as `sockets_join`."""
        target = target_of(namespace, to, room, user, skip_sid)
        await self._order(Command.LEAVE, target, rooms=names_of(rooms), local=local)

    async def disconnect_sockets(
        self,
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str = "/",
        close: bool = False,
        local: bool = False,
    ) -> None:
        """Disconnect the clients of a room, a user, or all, from the namespace, on every instance, as `sockets_join`;
        ``close``: end their connections, whatever other namespaces they are in."""
        target = target_of(namespace, to, room, user, skip_sid)
        await self._order(Command.DISCONNECT, target, close=close, local=local)

    async def _order(
        self,
        command: Command,
        target: Target | None,
        *,
        rooms: tuple[str, ...] = (),
        close: bool = False,
        local: bool = False,
    ) -> None:
        if target is None:
            return
        self._space(target.namespace)
        adapter, delivery = self._adapter_in_use, self._core.delivery
        await adapter.settled()
        if not local:
            adapter.command(command, target, rooms=rooms, close=close)
        obey(delivery, command, target, rooms, close=close)
        if not local:
            await adapter.wait_for_room()

    # --- servers among themselves ---

    @overload
    def on_server_side(self, event: str, handler: H, *, namespace: str = "/") -> H: ...

    @overload
    def on_server_side(self, event: str, handler: None = None, *, namespace: str = "/") -> Callable[[H], H]: ...

    def on_server_side(self, event: str, handler: H | None = None, *, namespace: str = "/") -> H | Callable[[H], H]:
        """Register the handler of other servers' ``event`` (their `server_side_emit`, `server_side_call`, Node's
        ``serverSideEmit``); without ``handler`` a decorator.

        ``handler(*args)``, sync (quick: it runs in the event loop) or async; what it returns is the answer to a
        `server_side_call`. One that raises is logged and answers nothing; a server without a handler answers None.

        Raises:
            StateError: a namespace's name that is new after `start`.
            ValueError: a name that Node's servers keep for themselves, which no server can send.
        """
        check_name(event, "on_server_side")
        server_event(event, ())
        handlers = self._core.namespaces.named(namespace).server_side

        def register(function: H) -> H:
            handlers[event] = function
            return function

        return register if handler is None else register(handler)

    async def server_side_emit(self, event: str, *args: Any, namespace: str = "/") -> None:
        """Send an event to the other servers' `on_server_side` handlers. While Redis is away it is lost.

        Raises:
            ValueError: a name that Node's servers keep for themselves.
            TypeError, ValueError: ``args`` cannot be encoded.
        """
        self._space(namespace)
        adapter = self._adapter_in_use
        adapter.server_side_emit(namespace, server_event(event, args))
        await adapter.wait_for_room()

    async def server_side_call(
        self, event: str, *args: Any, namespace: str = "/", timeout_s: float | None = None
    ) -> list[Any]:
        """The same, and wait for what each of the other servers' handlers returns, in the order of their coming.

        A Node server answers if its listener calls the callback.
        """
        self._space(namespace)
        event_args = server_event(event, args)
        async with self._hearing(namespace):
            return await self._adapter_in_use.server_side_call(namespace, event_args, self._limit_s(timeout_s))


def _with_answers(error: ClusterTimeout, answers: list[Any]) -> ClusterTimeout:
    return ClusterTimeout(
        error.request, expected=error.expected, answered=error.answered, waited_s=error.waited_s, answers=answers
    )
