"""What python-socketio's server offers beside sockets and events: small things that programs use by these names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from flotta.realtime.api.base import Base

__all__ = ["Familiar"]

T = TypeVar("T")


class Familiar(Base):
    """The part of `Server` for programs that come from python-socketio."""

    def transport(self, sid: str, *, namespace: str = "/") -> str | None:
        """``"websocket"`` or ``"polling"``; None if the client is not connected to this instance."""
        socket = self._socket(sid, namespace)
        return None if socket is None else socket.client.transport.name

    def start_background_task(
        self, target: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any
    ) -> asyncio.Task[T]:
        """``target(*args, **kwargs)`` as a task that the server holds: an exception that nobody asks for is logged, and
        `aclose` cancels it. Needs a running event loop."""
        return self._core.dispatcher.keep(target(*args, **kwargs), getattr(target, "__qualname__", "background task"))

    async def sleep(self, seconds: float = 0) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(seconds)
