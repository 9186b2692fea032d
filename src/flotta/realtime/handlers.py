"""The user's handlers of one namespace: found by name, called alike whether sync or async.

A handler's exception is logged with its traceback and ends nothing: the client keeps its connection, and its
acknowledgement, if it waits for one, does not come.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, final

__all__ = ["CATCH_ALL", "Handler", "Handlers", "MaySee", "Namespace", "finish"]

CATCH_ALL = "*"

Handler: TypeAlias = Callable[..., Any]
"""``handler(sid, *data)``, sync (quick: it runs in the event loop) or async."""

MaySee: TypeAlias = Callable[..., bool]
"""``may_see(sid, session, *data) -> bool``: whether this socket's user may see this event now. Sync and quick."""


def positional_count(handler: Handler) -> int:
    """How many positional arguments the handler takes, at most; a ``*args`` counts as very many."""
    count = 0
    for parameter in inspect.signature(handler).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return 1_000
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            count += 1
    return count


@final
class Handlers:
    """Handlers by event name, and the named filters for ``emit(may_see=)``."""

    __slots__ = ("_by_event", "_filters", "_widths")

    def __init__(self) -> None:
        self._by_event: dict[str, Handler] = {}
        self._widths: dict[str, int] = {}
        self._filters: dict[str, MaySee] = {}

    def add(self, event: str, handler: Handler) -> None:
        """Set the handler of ``event``; a second one replaces the first."""
        self._by_event[event] = handler
        self._widths[event] = positional_count(handler)

    def add_filter(self, name: str, may_see: MaySee) -> None:
        """Register a filter."""
        self._filters[name] = may_see

    def filter(self, name: str) -> MaySee | None:
        """The filter of this name."""
        return self._filters.get(name)

    def has(self, event: str) -> bool:
        """Whether ``event`` itself has a handler."""
        return event in self._by_event

    def call_event(self, event: str, sid: str, args: list[Any]) -> Any:
        """Call the handler of a client's event. Gives its result, which may be awaitable; None without a handler."""
        handler = self._by_event.get(event)
        if handler is not None:
            return handler(sid, *args)
        handler = self._by_event.get(CATCH_ALL)
        return None if handler is None else handler(event, sid, *args)

    def call_reserved(self, event: str, *args: Any) -> Any:
        """Call ``connect`` or ``disconnect`` with as many of the arguments as it takes."""
        handler = self._by_event.get(event)
        return None if handler is None else handler(*args[: self._widths[event]])


async def finish(result: Any) -> Any:
    """Await the result of a handler if there is something to await."""
    return await result if isinstance(result, Awaitable) else result


class Namespace:
    """Handlers of one namespace as a class: ``on_connect``, ``on_disconnect`` and ``on_<event>`` methods.

    Register an instance with `Server.register_namespace`. ``self.server`` is the server from then on.
    """

    server: Any = None

    def __init__(self, namespace: str = "/") -> None:
        self.namespace = namespace

    def handlers(self) -> dict[str, Handler]:
        """The handlers by event name."""
        return {
            name.removeprefix("on_"): method
            for name, method in inspect.getmembers(self, callable)
            if name.startswith("on_")
        }
