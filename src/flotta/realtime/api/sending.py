"""Events to clients: emit, send, and emit from other threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from flotta.errors import Closed, NotStarted, RealtimeError, StateError
from flotta.realtime.adapters import Adapter, Broadcast
from flotta.realtime.api.asking import CALLBACK_S, Asking
from flotta.realtime.api.base import Names, client_event, target_of

__all__ = ["Sending"]


class Sending(Asking):
    """The part of `Server` that sends."""

    async def emit(
        self,
        event: str,
        data: Any = None,
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str = "/",
        callback: Callable[..., Any] | None = None,
        timeout_s: float = CALLBACK_S,
        volatile: bool = False,
        may_see: str | None = None,
        local: bool = False,
        ignore_queue: bool = False,
    ) -> None:
        """Send an event to one session id, a room, a user, several of them, or (no target) to everybody, on every
        instance. An empty list of targets is nobody.

        The own clients get it before this returns (adapter ``"streams"``: in their turn, when it comes back from the
        stream); it waits only while too many broadcasts are on their way to Redis. While Redis is away the own clients
        still get it, the others do not (`ServerStats.adapter` counts them). Cancelling is harmless: what is sent is
        sent.

        Args:
            data: anything that JSON and bytes can carry; a tuple is several arguments, None is none.
            user: ids of users (`set_user`): all their clients.
            skip_sid: session ids or rooms that do not get it.
            callback: called with the acknowledgement's arguments; needs one session id as target, on any instance, and
                no ``may_see``.
            timeout_s: how long another instance's client may take for that, at most.
            volatile: may be dropped for a client that does not keep up.
            may_see: name of a filter that each recipient must pass (see `may_see`).
            local: only this instance's clients. python-socketio's name for it is ``ignore_queue``.

        Raises:
            NotStarted: before `start`.
            Closed: when `aclose` has ended; while it runs, the last handlers still send.
            TypeError, ValueError: ``data`` cannot be encoded; ``event`` is one of Socket.IO's own, such as ``connect``.
            RealtimeError: a ``callback`` without one session id as target (`call_all` asks several), or with a filter.
            LinkUnavailable: a ``callback`` for a client elsewhere, and Redis is away.
        """
        adapter = self._adapter_in_use
        local = local or ignore_queue
        target = target_of(namespace, to, room, user, skip_sid)
        if target is None:
            return
        args = client_event(event, data)
        if callback is not None:
            if may_see is not None:
                raise RealtimeError("of an event with a callback no filter is asked: leave out callback= or may_see=")
            if user is not None:
                raise RealtimeError("a callback needs one session id, and a user may have several clients: call_all")
            await self._emit_with_callback(target, args, callback, local=local, timeout_s=timeout_s)
            return
        self._broadcast(adapter, Broadcast(target, args, volatile=volatile, may_see=may_see), local=local)
        if not local:
            await adapter.wait_for_room()

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

    def _broadcast(self, adapter: Adapter, broadcast: Broadcast, *, local: bool) -> None:
        only_here = self._only_here(broadcast.target)
        packet = self._core.delivery.encode(broadcast)  # first: what cannot travel is sent to nobody
        echoes = adapter.echoes
        published = not local and (echoes or not only_here) and adapter.publish(broadcast)
        if not (published and echoes):
            keeper = self._core.keeper
            offset = None if keeper is None else keeper.offset_behind(broadcast.args)
            self._core.delivery.deliver(broadcast, packet if offset is None else None, offset=offset)
