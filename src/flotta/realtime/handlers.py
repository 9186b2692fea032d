"""The user's handlers: kept by namespace, found by the event's name, called alike whether sync or async.

A `Table` is what was registered for one ``namespace=``; `Handlers` is what holds in one namespace: its own table, and
behind it that of ``"*"``, any namespace. Handlers of a table that serves many namespaces get the namespace's name as
their first argument, after the event's name if they take every event.

A handler's exception is logged with its traceback and ends nothing: the client keeps its connection, and its
acknowledgement, if it waits for one, does not come.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, final

from flotta.realtime.middleware import EventMiddleware, Layer, finish, through
from flotta.realtime.socketio.packet import RESERVED_EVENTS

__all__ = [
    "ALL_EVENTS",
    "OF_NODE",
    "RESERVED",
    "UNHANDLED",
    "Handler",
    "Handlers",
    "MaySee",
    "Table",
    "check_event",
    "check_name",
    "finish",
]

ALL_EVENTS: Final = "*"
RESERVED: Final = ("connect", "disconnecting", "disconnect")
"""Handlers of these are called by the server, never by a client's event, and ``"*"`` does not take them."""
OF_NODE: Final[Mapping[str, str]] = {
    "connection": "@sio.event async def connect(sid, environ, auth)",
    "new_namespace": "register under a pattern or a predicate; its connect handler hears of each client",
}
"""What Node's servers tell a program by an event, and what takes its place here. A client may send events of these
names all the same, so their handlers are only told of."""
UNHANDLED: Final[Any] = object()
"""The result of an event that nobody takes: it is not acknowledged."""
ANY_NUMBER = 1_000

Handler: TypeAlias = Callable[..., Any]
"""``handler(sid, *data)``, sync (quick: it runs in the event loop) or async."""

MaySee: TypeAlias = Callable[..., bool]
"""``may_see(sid, session, *data) -> bool``: whether this socket's user may see this event now. Sync and quick."""


def positional_count(handler: Handler) -> int:
    """How many positional arguments the handler takes, at most; a ``*args`` counts as very many."""
    try:
        parameters = inspect.signature(handler).parameters.values()
    except ValueError:  # written in C, without a signature
        return ANY_NUMBER
    count = 0
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return ANY_NUMBER
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            count += 1
    return count


def check_name(name: object, method: str) -> None:
    """Raises TypeError for what is no text: a decorator that was given its function instead of a name would take it
    for one, and the function would never be called."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name; it takes a name: @sio.{method}('...')")


def check_event(event: str) -> None:
    """Raises TypeError for what is no event's name, ValueError for one that no client can send."""
    check_name(event, "on")
    if event in RESERVED_EVENTS and event not in RESERVED:
        raise ValueError(f"{event!r} is an event of Socket.IO itself: no client can send it")


@final
class Table:
    """What was registered for one ``namespace=``."""

    __slots__ = ("_methods", "around", "by_event", "catch_all", "filters", "guards", "widths")

    def __init__(self) -> None:
        self.by_event: dict[str, Handler] = {}
        self.catch_all: Handler | None = None
        """Takes the events that no other does. Not in `by_event`: a client may call its event ``"*"``."""
        self._methods: set[str] = set()
        self.widths: dict[str, int] = {}
        """How many arguments the handlers of the reserved events take."""
        self.guards: list[tuple[Handler, int]] = []
        """Middleware per connection, each with the number of its arguments."""
        self.around: list[EventMiddleware] = []
        """Middleware per event, the outermost first."""
        self.filters: dict[str, MaySee] = {}

    def add(self, event: str, handler: Handler) -> None:
        """Set the handler of ``event``; a second one replaces the first.

        Raises:
            TypeError: it cannot be called with the arguments that a handler gets.
            ValueError: as `check_event`.
        """
        check_event(event)
        if not callable(handler):
            raise TypeError(f"the handler of {event!r} must be a function, not {handler!r}")
        if positional_count(handler) == 0:
            raise TypeError(f"the handler of {event!r} takes no argument: its first one is the session id, sid")
        self._methods.discard(event)
        if event == ALL_EVENTS:
            self.catch_all = handler
        else:
            self.by_event[event] = handler
        if event in RESERVED:
            self.widths[event] = positional_count(handler)

    def add_method(self, event: str, handler: Handler) -> None:
        """Set the handler of ``event``, unless a function is; a later function or method replaces it."""
        taken = self.catch_all is not None if event == ALL_EVENTS else event in self.by_event
        if not taken or event in self._methods:
            self.add(event, handler)
            self._methods.add(event)

    @property
    def takes_events(self) -> bool:
        """Some handler is registered."""
        return bool(self.by_event) or self.catch_all is not None

    def add_guard(self, guard: Handler) -> None:
        """Add middleware per connection."""
        self.guards.append((guard, positional_count(guard)))


@final
class Handlers:
    """What holds in one namespace. ``lead``: what the handlers of ``own`` get first."""

    __slots__ = ("_everywhere", "_lead", "_name", "_own", "own")

    def __init__(
        self, name: str = "/", own: Table | None = None, everywhere: Table | None = None, *, lead: tuple[str, ...] = ()
    ) -> None:
        self.own = own if own is not None else Table()
        self._own = self.own.by_event
        self._everywhere = everywhere if everywhere is not None else Table()
        self._lead = lead
        self._name = name

    def filter(self, name: str) -> MaySee | None:
        """The filter of this name."""
        return self.own.filters.get(name) or self._everywhere.filters.get(name)

    def has(self, event: str) -> bool:
        """Whether ``event`` itself, one of the reserved, has a handler."""
        return event in self._own or event in self._everywhere.by_event

    @property
    def asks_connect(self) -> bool:
        """Somebody decides whether a client may come in."""
        return bool(self.has("connect") or self.own.guards or self._everywhere.guards)

    def guards(self, sid: str, environ: dict[str, Any], auth: Any) -> list[Callable[[], Any]]:
        """The middleware of a connection, ready to be called: that of any namespace first, then the own."""
        args = (sid, environ, auth)
        calls = [_cut(guard, width, (self._name, *args)) for guard, width in self._everywhere.guards]
        if self.own is not self._everywhere:
            calls += [_cut(guard, width, (*self._lead, *args)) for guard, width in self.own.guards]
        return calls

    def call_reserved(self, event: str, *args: Any) -> Any:
        """Call the handler of a reserved event with as many of the arguments as it takes."""
        handler = self._own.get(event)
        if handler is not None:
            return handler(*(*self._lead, *args)[: self.own.widths[event]])
        handler = self._everywhere.by_event.get(event)
        return None if handler is None else handler(*(self._name, *args)[: self._everywhere.widths[event]])

    def call_event(self, event: str, sid: str, args: list[Any]) -> Any:
        """Handle a client's event. Gives the result, which may be awaitable; UNHANDLED if nobody takes it."""
        if self.own.around or self._everywhere.around:
            handle = partial(self._call, event, sid, args)
            return through(self._layers(), handle, sid, event, args, unhandled=UNHANDLED)
        return self._call(event, sid, args)

    def _call(self, event: str, sid: str, args: list[Any]) -> Any:
        handler = self._own.get(event)
        if handler is not None:
            return handler(*self._lead, sid, *args)
        handler = self.own.catch_all
        if handler is not None:
            return handler(event, *self._lead, sid, *args)
        handler = self._everywhere.by_event.get(event)
        if handler is not None:
            return handler(self._name, sid, *args)
        handler = self._everywhere.catch_all
        return UNHANDLED if handler is None else handler(event, self._name, sid, *args)

    def _layers(self) -> list[Layer]:
        layers: list[Layer] = [(middleware, (self._name,)) for middleware in self._everywhere.around]
        if self.own is not self._everywhere:
            layers += [(middleware, self._lead) for middleware in self.own.around]
        return layers


def _cut(guard: Handler, width: int, args: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: guard(*args[:width])
