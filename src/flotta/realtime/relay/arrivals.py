"""Sessions of other instances whose WebSocket is here, on their way here. The other half of `departures`.

1. The holder asks (``Freeze``): what the session needs here is made ready, then its client is read no further.
2. The cut is heard: from now on everything that is heard is kept for it, own broadcasts that come back too.
3. The session comes, as the tunnel's last message: it gets its rooms, then what was kept, in order.
4. What this server sent before it came may still be on its way back from Redis. A message to itself says when all has
   come: until then what it sends is held for the session, so that nothing of one sender changes places.
5. Then the client is read again, and nothing distinguishes it from one that has always been here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final, final

from flotta.errors import FlottaError, WireError
from flotta.realtime.client import Client, Socket
from flotta.realtime.core import Core
from flotta.realtime.engine.client import Reason
from flotta.realtime.engine.sessions import State
from flotta.realtime.relay.ground import Ground
from flotta.realtime.relay.post import Post
from flotta.realtime.relay.taps import Tap
from flotta.realtime.relay.travel import Travelling, Unpackable
from flotta.realtime.relay.tunnels import Near, request_of
from flotta.realtime.relay.wire import Acked, Ended, Flush, Moved
from flotta.realtime.transports import Outgoing, Transport

__all__ = ["Arrivals"]

ARRIVE_TIMEOUT_S: Final = 15.0
"""From the client's being read no further to its session's being here."""

LOST_MAX: Final = 1_000
"""Tunnels remembered that ended so."""


@final
class Arrivals:
    """All of one server."""

    def __init__(
        self, core: Core, post: Post, tap: Tap, travelling: Travelling, ground: Ground, *, logger: Any
    ) -> None:
        self.core = core
        self.post = post
        self.tap = tap
        self.travelling = travelling
        self.ground = ground
        self.log = logger
        self.count = 0
        self._coming: dict[str, _Arrival] = {}
        self._preparing: dict[str, asyncio.Task[bool]] = {}
        self._lost: dict[str, bool] = {}
        """Tunnels that ended while the session might come through any moment, the oldest first."""

    def freeze_asked(self, near: Near, rooms: dict[str, list[str]]) -> None:
        """The holder asks whether the session may come: answered once, whatever happens meanwhile."""
        name = f"relay prepare {near.tunnel}"
        task = asyncio.get_running_loop().create_task(self._prepare(rooms), name=name)
        self._preparing[near.tunnel] = task
        task.add_done_callback(lambda _: self._prepared(near, rooms, task))

    async def _prepare(self, rooms: dict[str, list[str]]) -> bool:
        """Whether everything is ready; if so, it is to be released."""
        try:
            return self._welcome and await self.ground.prepare(rooms)
        except FlottaError as error:  # Redis is away: the holder asks again
            self.log.info("nothing is ready for a session that would come", reason=str(error))
            return False

    def _prepared(self, near: Near, rooms: dict[str, list[str]], task: asyncio.Task[bool]) -> None:
        wanted = self._preparing.get(near.tunnel) is task
        if wanted:
            del self._preparing[near.tunnel]
        done = not task.cancelled() and task.result()
        ready = done and wanted and self._welcome and not near.over
        if ready:
            self._coming[near.tunnel] = _Arrival(self, near, rooms)
            self.ground.listen_to_own(on=True)
        elif done:
            self.ground.release(rooms)
        near.answer_freeze(ready=ready)

    @property
    def _welcome(self) -> bool:
        core = self.core
        return self.ground.possible and core.state is State.RUNNING and len(core.clients) < core.connections_max

    def thawed(self, near: Near) -> None:
        """It does not come now."""
        arrival = self._coming.get(near.tunnel)
        if arrival is not None:
            self.drop(arrival)
        self._forget_preparing(near)

    def _forget_preparing(self, near: Near) -> None:
        task = self._preparing.pop(near.tunnel, None)
        if task is not None:
            task.cancel()

    def on_cut(self, tunnel: str) -> None:
        """The cut of one of them was heard."""
        arrival = self._coming.get(tunnel)
        if arrival is not None:
            arrival.on_cut()

    def moved(self, near: Near, message: Moved) -> None:
        """The session has come."""
        arrival = self._coming.get(near.tunnel)
        if arrival is None:
            near.broken()
        else:
            arrival.on_moved(message)

    def stranded(self, message: Moved) -> None:
        """A session has come whose WebSocket is gone, and its first instance knows it no more: it ends here, with its
        handlers."""
        if self._lost.pop(message.tunnel, False) is False:
            return  # nobody here has ever waited for it
        try:
            client, rooms = self.make(message, _Nowhere(), "")  # who awaits its answers hears it wherever it is
            self.core.adopt(client, rooms)
        except WireError as error:
            self.log.warning("a session that came cannot be read", reason=error.reason)
            return
        try:
            self.arrive(message, rooms)
        except WireError as error:
            self.log.warning("a session that came cannot be read", reason=error.reason)
        client.lost(Reason.TRANSPORT_ERROR)

    def make(self, message: Moved, transport: Transport, holder: str) -> tuple[Client, dict[Socket, frozenset[str]]]:
        """The client of a session that has come, and its sockets' rooms. Raises WireError."""
        core = self.core
        if message.sid in core.clients or any(moved.namespace not in core.spaces for moved in message.sockets):
            raise WireError("moved session", "it is here already, or its namespace is not")
        try:
            client = core.make_moved(message.sid, transport, request_of(message.request), message.namespaces)
        except ValueError as error:
            raise WireError("moved session", str(error)) from error
        rooms: dict[Socket, frozenset[str]] = {}
        for moved in message.sockets:
            socket = Socket(moved.sid, moved.namespace, client)
            socket.resume(
                self.travelling.unpack_session(moved), moved.last_ack, transport.write, transport.write_volatile
            )
            socket.since = moved.since
            if moved.is_awaited:
                socket.elder = _Elder(self.post, holder, self.travelling, moved.sid)
            client.sockets[moved.namespace] = socket
            rooms[socket] = frozenset(moved.rooms)
        return client, rooms

    def arrive(self, message: Moved, sockets: Iterable[Socket]) -> None:
        """What features keep for its sockets goes on here. Raises WireError."""
        for socket, moved in zip(sockets, message.sockets, strict=True):
            self.travelling.arrive(socket, moved)

    def on_flush(self, message: Flush) -> None:
        """Everything that was sent before has come back."""
        arrival = self._coming.get(message.tunnel)
        if arrival is not None:
            arrival.finish()

    def near_over(self, near: Near) -> None:
        """The tunnel has ended: broken, or because the session is here."""
        arrival = self._coming.get(near.tunnel)
        if arrival is not None and not arrival.is_here:
            self.drop(arrival)
            self._lost[near.tunnel] = True
            if len(self._lost) > LOST_MAX:
                del self._lost[next(iter(self._lost))]
        self._forget_preparing(near)

    def drop(self, arrival: _Arrival) -> None:
        """It is here for good, or does not come."""
        arrival.stop()
        tunnel = arrival.near.tunnel
        self._coming.pop(tunnel, None)
        self.tap.comers.pop(tunnel, None)
        self.tap.shorten()
        self.ground.release(arrival.rooms)
        if not self._coming:
            self.ground.listen_to_own(on=False)

    def close(self) -> None:
        """No more of it."""
        for arrival in list(self._coming.values()):
            arrival.stop()
        for task in self._preparing.values():
            task.cancel()


@final
class _Arrival:
    """One session on its way here; a `Comer` once its cut was heard."""

    def __init__(self, all_: Arrivals, near: Near, rooms: dict[str, list[str]]) -> None:
        self._all = all_
        self.near = near
        self.rooms = rooms
        self.begin = 0
        self.is_cut = False
        self._moved: Moved | None = None
        self._client: Client | None = None
        self._held: list[Outgoing] = []
        self._held_bytes = 0
        self._timer = asyncio.get_running_loop().call_later(ARRIVE_TIMEOUT_S, near.broken)

    def stop(self) -> None:
        """No timer fires any more."""
        self._timer.cancel()

    # --- Comer ---

    @property
    def is_here(self) -> bool:
        """It is in the rooms of this instance."""
        return self._client is not None

    @property
    def sockets(self) -> Iterable[Socket]:
        """Its sockets, once it is here."""
        return () if self._client is None else self._client.sockets.values()

    def overflow(self) -> None:
        """More was heard than is kept."""
        if self._client is None:
            self.near.broken()

    # --- the steps ---

    def on_cut(self) -> None:
        """From here on everything is for this instance to deliver."""
        if not self.is_cut:
            self.is_cut = True
            self.begin = self._all.tap.end
            self._all.tap.comers[self.near.tunnel] = self
            if self._moved is not None:
                self.on_moved(self._moved)

    def on_moved(self, message: Moved) -> None:
        """The session is here. A stream may be read there before it is here: then it waits for the cut."""
        if not self.is_cut:
            self._moved = message
            return
        tap = self._all.tap
        kept = tap.entries(self.begin)
        try:
            client = self._settle(message)
        except WireError as error:
            self._all.log.warning("a session that came cannot be read", reason=error.reason)
            half, self._client = self._client, None
            self.near.broken()
            if half is not None:
                half.lost(Reason.TRANSPORT_ERROR)
            return
        self._all.count += 1
        for socket in list(client.sockets.values()):
            for entry in kept:
                tap.do(entry, socket)
        tap.shorten()
        core = self._all.core
        self._all.post.send(core.instance, Flush(self.near.tunnel), self.finish)

    def _settle(self, message: Moved) -> Client:
        client, rooms = self._all.make(message, self.near.transport, self.near.holder)
        for socket in rooms:
            socket.write, socket.write_volatile = self._hold, self._hold_volatile
        self._all.core.adopt(client, rooms)
        self._client = client
        self._all.arrive(message, rooms)
        self.near.settle(client)
        return client

    def _hold(self, packet: Outgoing) -> None:
        """What is heard goes at once; what this server sends waits for what it sent before."""
        if self._all.tap.hears:
            self.near.transport.write(packet)
            return
        self._held_bytes += packet.size_bytes
        self._held.append(packet)
        if self._held_bytes > self._all.core.options.send_bytes_max and self._client is not None:
            self._held.clear()
            self._client.close(Reason.SLOW_CLIENT, 1008)

    def _hold_volatile(self, packet: Outgoing) -> bool:
        return self._all.tap.hears and self.near.transport.write_volatile(packet)

    def finish(self) -> None:
        """Everything that this server sent before the session came has come back (or Redis is away, and nothing
        does)."""
        client = self._client
        if client is None or self.near.tunnel not in self._all.tap.comers:
            return
        self._all.drop(self)
        held, self._held = self._held, []
        for packet in held:
            self.near.transport.write(packet)
        for socket in client.sockets.values():
            socket.rebind()
        self.near.read_on()


@final
class _Nowhere:
    """The `Transport` of a client that has none any more."""

    name = "websocket"
    unsent_bytes = 0

    def write(self, packet: Outgoing) -> None:
        """Nobody gets it."""

    def write_volatile(self, packet: Outgoing) -> bool:  # noqa: ARG002 - a Transport's
        """Nobody gets it."""
        return False

    def write_control(self, text: str) -> None:
        """Nobody gets it."""

    def release_polls(self, *, on: bool) -> None:
        """There are none."""

    def hand_over(self, successor: Transport) -> None:
        """Nothing waits."""

    def pause(self) -> None:
        """Nothing is read."""

    def resume(self) -> None:
        """Nothing is read."""

    def close(self, code: int, reason: str) -> None:
        """It is."""


@final
class _Elder:
    """The instance where a socket was before: it may wait for acknowledgements."""

    __slots__ = ("_instance", "_post", "_sid", "_travelling")

    def __init__(self, post: Post, instance: str, travelling: Travelling, sid: str) -> None:
        self._post = post
        self._instance = instance
        self._travelling = travelling
        self._sid = sid

    def acked(self, ack_id: int, args: list[Any]) -> None:
        """An acknowledgement that nobody here waits for."""
        try:
            packed = self._travelling.pack_args(args)
        except Unpackable:  # a client may count higher than MessagePack does
            packed = self._travelling.pack_args([None] * len(args))
        self._post.send(self._instance, Acked(self._sid, ack_id, packed), _nothing)

    def gone(self) -> None:
        """The client has left."""
        self._post.send(self._instance, Ended(self._sid), _nothing)


def _nothing() -> None:
    pass
