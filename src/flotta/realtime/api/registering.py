"""Handlers, middleware, class-based namespaces and filters: what a server is told before it starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from flotta.realtime.api.base import Base
from flotta.realtime.api.namespace import Namespace
from flotta.realtime.handlers import OF_NODE, MaySee, check_event, check_name
from flotta.realtime.namespaces import NamespaceSpec

if TYPE_CHECKING:
    from flotta.realtime.server import Server

__all__ = ["Registering"]

H = TypeVar("H", bound=Callable[..., Any])


class Registering(Base):
    """The part of `Server` that takes handlers.

    ``namespace=`` is a name; or a compiled pattern of the whole name, a predicate ``f(name, auth, environ) -> bool``
    (sync or async), or ``"*"`` for any namespace. What is registered for more than one name gets the namespace's name
    as its first argument, after the event's name if it takes every event.
    """

    @overload
    def on(self, event: str, handler: H, *, namespace: NamespaceSpec = "/") -> H: ...

    @overload
    def on(self, event: str, handler: None = None, *, namespace: NamespaceSpec = "/") -> Callable[[H], H]: ...

    def on(self, event: str, handler: H | None = None, *, namespace: NamespaceSpec = "/") -> H | Callable[[H], H]:
        """Register the handler of ``event``; without ``handler`` a decorator. ``"*"`` takes what no other does.

        ``connect(sid, environ, auth)`` may refuse by raising `ConnectRefused` or returning False;
        ``disconnecting(sid, reason)`` and then ``disconnect(sid, reason)`` find the session and the rooms as they were;
        any other event ``(sid, *data)``, the result is the acknowledgement; ``"*"`` gets ``(event, sid, *data)``. Sync
        handlers run in the event loop and must be quick. A second handler of an event replaces the first.

        Raises:
            StateError: a namespace's name that is new after `start`.
            RealtimeError: ``namespace`` is none.
            TypeError: ``event`` is no text, or the handler takes no argument.
            ValueError: an event that is Socket.IO's own and that no client can send, such as ``connect_error``.
        """
        check_event(event)
        table = self._core.namespaces.table(namespace)

        def register(function: H) -> H:
            table.add(event, function)
            self._tell_of_node([event])
            return function

        return register if handler is None else register(handler)

    @overload
    def event(self, handler: H, *, namespace: NamespaceSpec = "/") -> H: ...

    @overload
    def event(self, handler: None = None, *, namespace: NamespaceSpec = "/") -> Callable[[H], H]: ...

    def event(self, handler: H | None = None, *, namespace: NamespaceSpec = "/") -> H | Callable[[H], H]:
        """Decorator: register a handler under its function's name; ``@sio.event(namespace="/admin")`` also works.
        Raises as `on`."""

        def register(function: H) -> H:
            name = getattr(function, "__name__", None)
            if name is None:
                raise TypeError(f"{function!r} has no name to be registered under: @sio.on('...') takes one")
            return self.on(name, function, namespace=namespace)

        return register if handler is None else register(handler)

    def register_namespace(self, namespace: Namespace) -> None:
        """Register every handler of a class-based namespace. A function that has one of the events keeps it.

        Raises:
            TypeError: it is no `Namespace`.
            ValueError: a method for an event that no client can send.
        """
        if not isinstance(namespace, Namespace):
            raise TypeError(f"register_namespace takes an instance of a Namespace, not {namespace!r}")
        namespace.bind(cast("Server", self))
        table = self._core.namespaces.table(namespace.namespace)
        handlers = namespace.handlers()
        for event, handler in handlers.items():
            table.add_method(event, handler)
        self._tell_of_node(handlers)

    def _tell_of_node(self, events: Iterable[str]) -> None:
        for event in OF_NODE.keys() & set(events):
            told = "a handler waits for an event that only Node's servers raise: clients do not send it by themselves"
            self._log.warning(told, realtime_event=event, cure=OF_NODE[event])

    @overload
    def use(self, guard: H, *, namespace: NamespaceSpec = "/") -> H: ...

    @overload
    def use(self, guard: None = None, *, namespace: NamespaceSpec = "/") -> Callable[[H], H]: ...

    def use(self, guard: H | None = None, *, namespace: NamespaceSpec = "/") -> H | Callable[[H], H]:
        """Register middleware per connection, sync or async; without ``guard`` a decorator.

        ``guard(sid, environ, auth)`` runs before the ``connect`` handler and refuses as that does. Those of ``"*"`` run
        first, then those of the namespace, each in the order of their registration; the first refusal ends it. All of
        them and the handler together have ``connect_timeout_s``. ``namespace="*"`` guards every namespace, and does not
        by itself let clients into any.
        """
        table = self._core.namespaces.table(namespace)

        def register(function: H) -> H:
            table.add_guard(function)
            return function

        return register if guard is None else register(guard)

    @overload
    def use_event(self, middleware: H, *, namespace: NamespaceSpec = "/") -> H: ...

    @overload
    def use_event(self, middleware: None = None, *, namespace: NamespaceSpec = "/") -> Callable[[H], H]: ...

    def use_event(self, middleware: H | None = None, *, namespace: NamespaceSpec = "/") -> H | Callable[[H], H]:
        """Register middleware per event; without ``middleware`` a decorator.

        ``async def middleware(sid, event, args, next)``: ``await next()`` runs the rest and gives what the handler
        returned (None if there is none), once; what the middleware returns is the acknowledgement. Without ``next`` the
        event goes no further; an exception is logged as a handler's is, and there is no acknowledgement. ``args`` may
        be changed in place. Those of ``"*"`` are outside of the namespace's own, the first registered outermost.
        """
        table = self._core.namespaces.table(namespace)

        def register(function: H) -> H:
            table.around.append(function)
            return function

        return register if middleware is None else register(middleware)

    def may_see(self, name: str, *, namespace: NamespaceSpec = "/") -> Callable[[MaySee], MaySee]:
        """Decorator: register a filter for ``emit(..., may_see=name)``; every instance must register it.

        ``filter(sid, session, *data) -> bool`` is called for each recipient on the instance that holds it, in the
        moment in which the event is written to its connection (after what it waited for: its ``connect`` handler, or
        what it missed); ``session`` is what `save_session` stored. It must be sync and quick (look into a replicated
        map, not into a database). Only True lets the event through: an instance that does not know the filter, or whose
        filter raises, sends to nobody.

        Raises:
            TypeError: ``name`` is no text, or the filter is no function, or an async one.
        """
        check_name(name, "may_see")
        table = self._core.namespaces.table(namespace)

        def decorate(function: MaySee) -> MaySee:
            if not _is_sync_function(function):
                raise TypeError(f"the filter {name!r} must be a function that is not async, not {function!r}")
            table.filters[name] = function
            return function

        return decorate


def _is_sync_function(given: object) -> bool:
    """It can be called, and a call gives nothing to await."""
    calls = (given, getattr(given, "__call__", None))  # noqa: B004 - the method of an object that can be called
    return callable(given) and not any(inspect.iscoroutinefunction(call) for call in calls)
