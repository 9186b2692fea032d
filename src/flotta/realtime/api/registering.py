"""Handlers, class-based namespaces and filters: what a server is told before it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flotta.errors import RealtimeError, StateError
from flotta.realtime.api.base import Base
from flotta.realtime.delivery import Space
from flotta.realtime.handlers import Handler, MaySee, Namespace

__all__ = ["Registering"]

H = TypeVar("H", bound=Callable[..., Any])


class Registering(Base):
    """The part of `Server` that takes handlers."""

    def on(self, event: str, handler: Handler | None = None, *, namespace: str = "/") -> Any:
        """Register the handler of ``event``; without ``handler`` a decorator. ``"*"`` takes what no other does.

        ``connect(sid, environ, auth)`` may refuse by raising `ConnectRefused` or returning False;
        ``disconnect(sid, reason)``; any other event ``(sid, *data)``, the result is the acknowledgement;
        ``"*"`` gets ``(event, sid, *data)``. Sync handlers run in the event loop and must be quick.

        Raises:
            StateError: a namespace that is new after `start`.
        """
        if handler is not None:
            self._space_for_handlers(namespace).handlers.add(event, handler)
            return handler

        def decorate(function: H) -> H:
            self._space_for_handlers(namespace).handlers.add(event, function)
            return function

        return decorate

    def event(self, handler: H | None = None, *, namespace: str = "/") -> Any:
        """Decorator: register a handler under its function's name; ``@sio.event(namespace="/admin")`` also works."""
        if handler is not None:
            return self.on(handler.__name__, handler, namespace=namespace)
        return lambda function: self.on(function.__name__, function, namespace=namespace)

    def register_namespace(self, namespace: Namespace) -> None:
        """Register every ``on_<event>`` method of a class-based namespace."""
        namespace.server = self
        for event, handler in namespace.handlers().items():
            self.on(event, handler, namespace=namespace.namespace)

    def may_see(self, name: str, *, namespace: str = "/") -> Callable[[MaySee], MaySee]:
        """Decorator: register a filter for ``emit(..., may_see=name)``; every instance must register it.

        ``filter(sid, session, *data) -> bool`` is called for each recipient on the instance that holds it, when the
        event is sent; ``session`` is what `save_session` stored. It must be sync and quick (look into a replicated map,
        not into a database). Only True lets the event through: an instance that does not know the filter, or whose
        filter raises, sends to nobody.
        """

        def decorate(function: MaySee) -> MaySee:
            self._space_for_handlers(namespace).handlers.add_filter(name, function)
            return function

        return decorate

    def _space_for_handlers(self, namespace: str) -> Space:
        space = self._core.spaces.get(namespace)
        if space is None:
            if not namespace.startswith("/") or "," in namespace or "?" in namespace:
                raise RealtimeError(f"{namespace!r} is no namespace: it begins with / and holds neither , nor ?")
            if self.started:
                raise StateError("the realtime server", f"register namespace {namespace} before the server starts")
            space = self._core.delivery.add_space(namespace)
        return space
