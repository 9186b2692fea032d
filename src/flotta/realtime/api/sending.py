"""Events to clients: emit, send, call, and emit from other threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from flotta.errors import AckTimeout, Closed, NotStarted, RealtimeError, StateError
from flotta.realtime.adapters import Broadcast, Target
from flotta.realtime.api.base import Base, args_of, names_of
from flotta.realtime.delivery import encode_event
from flotta.realtime.handlers import finish

__all__ = ["Sending"]


class Sending(Base):
    """The part of `Server` that sends."""

    async def emit(
        self,
        event: str,
        data: Any = None,
        *,
        to: str | Iterable[str] | None = None,
        room: str | Iterable[str] | None = None,
        skip_sid: str | Iterable[str] | None = None,
        namespace: str = "/",
        callback: Callable[..., Any] | None = None,
        volatile: bool = False,
        may_see: str | None = None,
        local: bool = False,
    ) -> None:
        """Send an event to one session id, a room, several of them, or (no target) to everybody, on every instance.
        An empty list of targets is nobody.

        The own clients get it before this returns; it waits only while too many broadcasts are on their way to Redis.
        While Redis is away the own clients still get it, the others do not (`ServerStats.adapter` counts them).
        Cancelling is harmless: what is sent is sent.

        Args:
            data: anything that JSON and bytes can carry; a tuple is several arguments, None is none.
            skip_sid: session ids or rooms that do not get it.
            callback: called with the acknowledgement's arguments; needs a session id of this instance as target.
            volatile: may be dropped for a client that does not keep up.
            may_see: name of a filter that each recipient must pass (see `may_see`).
            local: only this instance's clients.

        Raises:
            NotStarted: before `start`.
            TypeError, ValueError: ``data`` cannot be encoded.
        """
        if callback is not None:
            self._emit_with_callback(event, data, names_of(to, room), namespace, callback)
            return
        names = names_of(to, room)
        if not names and (to is not None or room is not None):
            return  # an empty list of targets is nobody, not everybody
        target = Target(namespace, names, names_of(skip_sid))
        self._broadcast(Broadcast(target, [event, *args_of(data)], volatile=volatile, may_see=may_see), local=local)
        if self._core.adapter is not None and not local:
            await self._core.adapter.wait_for_room()

    async def send(self, data: Any, **targets: Any) -> None:
        """`emit` of the event ``message``."""
        await self.emit("message", data, **targets)

    def emit_sync(self, event: str, data: Any = None, *, timeout_s: float = 5.0, **targets: Any) -> None:
        """`emit` from another thread (WSGI code, a worker thread): returns when it is done.

        Raises:
            TimeoutError: the event loop did not come to it in time; it may still.
            StateError: called in the event loop's own thread, where it would wait for itself.
            Closed: the event loop has ended.
        """
        loop = self._core.loop
        if loop is None:
            raise NotStarted("the realtime server")
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            raise StateError("the realtime server", "emit_sync is for other threads: await emit here")
        if loop.is_closed():
            raise Closed("the realtime server")
        asyncio.run_coroutine_threadsafe(self.emit(event, data, **targets), loop).result(timeout_s)

    def _broadcast(self, broadcast: Broadcast, *, local: bool) -> None:
        core = self._core
        if core.adapter is None:
            raise NotStarted("the realtime server")
        self._space(broadcast.target.namespace)
        packet = encode_event(broadcast)  # first: what cannot travel is sent to nobody
        rooms = broadcast.target.rooms
        # A single session id of this instance: nobody elsewhere can be meant.
        only_here = len(rooms) == 1 and self._socket(rooms[0], broadcast.target.namespace) is not None
        echoes = core.adapter.echoes
        published = not local and (echoes or not only_here) and core.adapter.publish(broadcast)
        if not (published and echoes):
            core.delivery.deliver(broadcast, packet)

    def _emit_with_callback(
        self, event: str, data: Any, targets: tuple[str, ...], namespace: str, callback: Callable[..., Any]
    ) -> None:
        socket = self._socket(targets[0], namespace) if len(targets) == 1 else None
        if socket is None:
            raise RealtimeError("a callback needs one session id of this instance as its target")

        def on_ack(args: list[Any]) -> None:
            self._core.dispatcher.run(_call(callback, args), f"ack of {event}")

        socket.emit([event, *args_of(data)], on_ack)

    async def call(
        self, event: str, data: Any = None, *, to: str, namespace: str = "/", timeout_s: float = 60.0
    ) -> Any:
        """Send an event to one client of this instance and wait for its acknowledgement.

        Gives its argument, a tuple if there are several, None if there is none. Cancelling stops the waiting only.

        Raises:
            AckTimeout: none came within ``timeout_s``, or the client left (then at once).
            RealtimeError: ``to`` is no session id of this instance.
        """
        socket = self._socket(to, namespace)
        if socket is None:
            raise RealtimeError(f"{to!r} is not connected to {namespace} on this instance")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any] | None] = loop.create_future()
        began_s, ack_id = loop.time(), socket.ask([event, *args_of(data)], answer)
        try:
            async with asyncio.timeout(timeout_s):
                args = await answer
        except TimeoutError:
            raise AckTimeout(event, timeout_s) from None
        finally:
            socket.forget_ack(ack_id)
        if args is None:
            raise AckTimeout(event, loop.time() - began_s)
        return args[0] if len(args) == 1 else (tuple(args) or None)


async def _call(callback: Callable[..., Any], args: list[Any]) -> None:
    await finish(callback(*args))
