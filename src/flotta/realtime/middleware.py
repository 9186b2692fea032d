"""Middleware per event: functions around each event of a namespace, the first registered outermost.

``async def middleware(sid, event, args, next)``: ``await next()`` runs the rest and gives what the handler returned;
what the middleware returns is the acknowledgement. Not calling ``next`` keeps the event from its handler; raising is as
when the handler raised. ``args`` is the list that the handler gets, to be changed in place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from flotta.errors import RealtimeError

__all__ = ["EventMiddleware", "Layer", "Next", "finish", "through"]

Next: TypeAlias = Callable[[], Awaitable[Any]]
"""Runs what is inside of a middleware: once."""
EventMiddleware: TypeAlias = Callable[..., Any]
"""``middleware(sid, event, args, next)``, sync or async."""
Layer: TypeAlias = tuple[EventMiddleware, tuple[str, ...]]
"""A middleware, and what it gets before its own arguments."""


async def through(
    layers: list[Layer], handle: Callable[[], Any], sid: str, event: str, args: list[Any], *, unhandled: Any
) -> Any:
    """The result of the outermost middleware. ``unhandled``: what ``handle`` gives if there is no handler; so does
    this, if no middleware has an answer either."""
    inner: list[Any] = []  # what the handler gave, once it did
    begun = 0

    async def step(at: int) -> Any:
        nonlocal begun
        if at < begun:
            raise RealtimeError(f"next() was awaited twice for {event!r}")
        begun = at + 1
        if at < len(layers):
            middleware, lead = layers[at]
            return await finish(middleware(*lead, sid, event, args, partial(step, at + 1)))
        inner.append(await finish(handle()))
        return None if inner[0] is unhandled else inner[0]

    result = await step(0)
    return unhandled if result is None and inner and inner[0] is unhandled else result


async def finish(result: Any) -> Any:
    """Await the result of a function of the user's if there is something to await."""
    return await result if isinstance(result, Awaitable) else result
