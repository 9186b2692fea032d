"""Class-based namespaces: a namespace's handlers as methods, and the server's methods bound to that namespace."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from flotta.errors import NotStarted, RealtimeError
from flotta.realtime.api.asking import CALLBACK_S
from flotta.realtime.api.base import Names
from flotta.realtime.handlers import ALL_EVENTS, RESERVED, Handler, positional_count
from flotta.realtime.middleware import finish
from flotta.realtime.namespaces import NamespaceSpec

if TYPE_CHECKING:
    from flotta.realtime.server import Server

__all__ = ["Namespace"]


class Namespace:
    """Handlers of one namespace as a class, to be subclassed and given to `Server.register_namespace`.

    ::

        class Chat(Namespace):
            async def on_connect(self, sid, environ, auth):
                await self.enter_room(sid, "everybody")

            async def on_say(self, sid, text):
                await self.emit("said", text, room="everybody", skip_sid=sid)

        sio.register_namespace(Chat("/chat"))

    ``on_connect``, ``on_disconnecting``, ``on_disconnect`` and ``on_<event>`` are what functions of these names would
    be; ``catch_all(event, sid, *data)``, if there is one, takes what no other does. A function that was registered for
    the same event takes its place. One instance serves all clients: keep what belongs to one of them in its session.

    The methods below are the server's, for this namespace unless told otherwise. A class for many namespaces (a
    pattern, a predicate, ``"*"``) gets the namespace's name before ``sid``, and must say ``namespace=`` itself.
    """

    def __init__(self, namespace: NamespaceSpec = "/") -> None:
        self.namespace = namespace
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """The server that it was registered with.

        Raises:
            NotStarted: it has not been registered.
        """
        if self._server is None:
            raise NotStarted(f"namespace {self.namespace!r}, which was registered with no server,")
        return self._server

    def bind(self, server: Server) -> None:
        """`Server.register_namespace` says whose it is."""
        self._server = server

    # --- handlers ---

    def handlers(self) -> dict[str, Handler]:
        """The handlers by event name."""
        methods = self._methods()
        if type(self).trigger_event is Namespace.trigger_event:
            if catch_all := getattr(self, "catch_all", None):
                methods[ALL_EVENTS] = catch_all
            return methods
        return {ALL_EVENTS: self.trigger_event} | {event: self._triggering(event) for event in RESERVED}

    def _methods(self) -> dict[str, Handler]:
        return {
            name.removeprefix("on_"): method
            for name, method in inspect.getmembers(self, callable)
            if name.startswith("on_")
        }

    def _triggering(self, event: str) -> Handler:
        async def handler(*args: Any) -> Any:
            return await self.trigger_event(event, *args)

        return handler

    async def trigger_event(self, event: str, *args: Any) -> Any:
        """Call the handler of ``event``. Override it to have every event, ``connect`` and ``disconnect`` too, in one
        place; ``await super().trigger_event(event, *args)`` goes on to the methods. The result is the acknowledgement.
        """
        handler = getattr(self, f"on_{event}", None)
        if callable(handler):
            return await finish(handler(*(args[: positional_count(handler)] if event in RESERVED else args)))
        catch_all = None if event in RESERVED else getattr(self, "catch_all", None)
        return None if catch_all is None else await finish(catch_all(event, *args))

    # --- the server's methods ---

    def _of(self, namespace: str | None) -> str:
        if namespace is not None:
            return namespace
        if isinstance(self.namespace, str) and self.namespace != "*":
            return self.namespace
        raise RealtimeError("these handlers serve many namespaces: say which with namespace=")

    async def emit(
        self,
        event: str,
        data: Any = None,
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str | None = None,
        callback: Callable[..., Any] | None = None,
        timeout_s: float = CALLBACK_S,
        volatile: bool = False,
        may_see: str | None = None,
        local: bool = False,
        ignore_queue: bool = False,
    ) -> None:
        """`Server.emit`."""
        await self.server.emit(
            event,
            data,
            to=to,
            room=room,
            user=user,
            skip_sid=skip_sid,
            namespace=self._of(namespace),
            callback=callback,
            timeout_s=timeout_s,
            volatile=volatile,
            may_see=may_see,
            local=local,
            ignore_queue=ignore_queue,
        )

    async def send(self, data: Any, *, namespace: str | None = None, **targets: Any) -> None:
        """`Server.send`."""
        await self.server.send(data, namespace=self._of(namespace), **targets)

    async def call(
        self,
        event: str,
        data: Any = None,
        *,
        to: str | None = None,
        sid: str | None = None,
        namespace: str | None = None,
        timeout_s: float = CALLBACK_S,
        local: bool = False,
    ) -> Any:
        """`Server.call`."""
        name = self._of(namespace)
        return await self.server.call(event, data, to=to, sid=sid, namespace=name, timeout_s=timeout_s, local=local)

    async def enter_room(self, sid: str, room: str, *, namespace: str | None = None) -> bool:
        """`Server.enter_room`."""
        return await self.server.enter_room(sid, room, namespace=self._of(namespace))

    async def leave_room(self, sid: str, room: str, *, namespace: str | None = None) -> None:
        """`Server.leave_room`."""
        await self.server.leave_room(sid, room, namespace=self._of(namespace))

    async def close_room(self, room: str, *, namespace: str | None = None) -> None:
        """`Server.close_room`."""
        await self.server.close_room(room, namespace=self._of(namespace))

    def rooms(self, sid: str, *, namespace: str | None = None) -> list[str]:
        """`Server.rooms`."""
        return self.server.rooms(sid, namespace=self._of(namespace))

    async def get_session(self, sid: str, *, namespace: str | None = None) -> dict[str, Any]:
        """`Server.get_session`."""
        return await self.server.get_session(sid, namespace=self._of(namespace))

    async def save_session(self, sid: str, session: dict[str, Any], *, namespace: str | None = None) -> bool:
        """`Server.save_session`."""
        return await self.server.save_session(sid, session, namespace=self._of(namespace))

    def session(self, sid: str, *, namespace: str | None = None) -> AbstractAsyncContextManager[dict[str, Any]]:
        """`Server.session`."""
        return self.server.session(sid, namespace=self._of(namespace))

    async def disconnect(self, sid: str, *, namespace: str | None = None) -> None:
        """`Server.disconnect`."""
        await self.server.disconnect(sid, namespace=self._of(namespace))
