"""Sessions of this instance whose WebSocket is on another one, on their way there.

A session is asked to go as soon as it is quiet: no handler of its client runs or waits, no packet is half read. Then

1. the other instance reads the client no further and says so (``Freeze``, ``Frozen``): all that came before is handled;
2. still quiet, the session leaves the rooms here, and the cut is asked for: what this server sends from now on goes to
   it over Redis like everything else;
3. what is heard before the cut still goes to it through the tunnel;
4. with the cut the session itself goes through the tunnel, as its last message, and is forgotten here. No
   ``disconnect`` handler runs: it has not been disconnected.

A session that is not quiet is thawed and asked again later; until then the tunnel serves it. From step 2 on there is
one way back: Redis refuses the cut (it has no memory left), and nobody has heard it. Whatever else fails ends the
connection, and the client comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any, Final, final

from flotta.realtime.client import Client, Socket
from flotta.realtime.core import Core
from flotta.realtime.engine.client import Reason
from flotta.realtime.engine.sessions import State
from flotta.realtime.relay.asks import seen
from flotta.realtime.relay.ground import Ground
from flotta.realtime.relay.taps import Tap
from flotta.realtime.relay.travel import Travelling, Unpackable
from flotta.realtime.relay.tunnels import Far
from flotta.realtime.relay.wire import Acked, Ended, Moved, MovedSocket

__all__ = ["Departures"]

STEP_TIMEOUT_S: Final = 5.0
RETRY_S_MIN: Final = 0.02
RETRY_S_MAX: Final = 5.0
AWAITED_MAX: Final = 10_000
"""Sockets that have moved and still owe acknowledgements."""


class _Step(Enum):
    WAITING = auto()
    """Not asked, or asked and not quiet."""
    ASKED = auto()
    THAWED = auto()
    """Thawed before it answered: until it has, nothing is asked anew."""
    CUTTING = auto()
    GONE = auto()


@final
class Departures:
    """All of one server."""

    def __init__(self, core: Core, tap: Tap, travelling: Travelling, ground: Ground, *, logger: Any) -> None:
        self.core = core
        self.tap = tap
        self.travelling = travelling
        self.ground = ground
        self.log = logger
        self.count = 0
        self._going: dict[str, _Departure] = {}
        self._awaited: dict[str, tuple[str, Socket]] = {}
        self._told = False

    def switched(self, far: Far, client: Client) -> None:
        """A session's WebSocket is elsewhere: it should be there too."""
        if self.ground.possible:
            self._going[far.tunnel] = _Departure(self, far, client)

    def frozen(self, far: Far, *, ready: bool) -> None:
        """The other instance answers."""
        departure = self._going.get(far.tunnel)
        if departure is not None:
            departure.on_frozen(ready=ready)

    def on_cut(self, tunnel: str) -> bool:
        """The cut of one of them was heard. False: none of these."""
        departure = self._going.get(tunnel)
        if departure is not None:
            departure.on_cut()
        return departure is not None

    def far_over(self, far: Far) -> None:
        """A tunnel has ended."""
        departure = self._going.pop(far.tunnel, None)
        if departure is not None:
            departure.on_tunnel_over()

    def close(self) -> None:
        """No more of it."""
        for departure in list(self._going.values()):
            departure.stop()

    def say_unpackable(self, error: Unpackable) -> None:
        """Once."""
        if not self._told:
            self._told = True
            cure = "keep only what JSON and bytes can carry in session()"
            self.log.warning("a session cannot move to its connection's instance", reason=str(error), cure=cure)

    # --- acknowledgements that come after the move ---

    def await_acks(self, near: str, socket: Socket) -> None:
        """Keep a socket that has gone for the acknowledgements that it still owes."""
        if len(self._awaited) >= AWAITED_MAX:
            self.forget(next(iter(self._awaited)))
        self._awaited[socket.sid] = (near, socket)

    def forget(self, sid: str) -> None:
        """Nothing more comes from a socket that has gone."""
        _, socket = self._awaited.pop(sid, (None, None))
        if socket is not None:
            socket.gone()

    def on_acked(self, message: Acked) -> None:
        """A client answered where it is now."""
        held = self._awaited.get(message.sid)
        if held is not None:
            held[1].acked(message.ack_id, self.travelling.unpack_args(message.args))
            if not held[1].is_awaited:
                del self._awaited[message.sid]

    def on_ended(self, message: Ended) -> None:
        """A socket that has moved is gone."""
        self.forget(message.sid)

    def on_gone(self, instance: str) -> None:
        """The instance where they are is gone."""
        for sid in [sid for sid, (near, _) in self._awaited.items() if near == instance]:
            self.forget(sid)

    def owners(self) -> Iterator[str]:
        """The instances that something is expected of."""
        return (near for near, _ in self._awaited.values())


@final
class _Departure:
    """One session that should go. A `Leaver` from the cut's asking to its hearing."""

    def __init__(self, all_: Departures, far: Far, client: Client) -> None:
        self._all = all_
        self._far = far
        self._client = client
        self._step = _Step.WAITING
        self._retry_s = RETRY_S_MIN
        self.rooms: dict[Socket, set[str]] = {}
        self._asked: dict[str, list[str]] = {}
        self._detached: dict[Socket, frozenset[str]] = {}
        self._timer = self._later(0.0, self._ask)

    def _later(self, delay_s: float, do: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_s, do)

    def stop(self) -> None:
        """No timer fires any more."""
        self._timer.cancel()

    @property
    def _quiet(self) -> bool:
        client, core = self._client, self._all.core
        return core.state is State.RUNNING and self._all.ground.possible and client.is_quiet

    # --- the steps ---

    def _ask(self) -> None:
        if not self._quiet or not self._packable():
            self._wait()
            return
        self._step = _Step.ASKED
        self._timer = self._later(STEP_TIMEOUT_S, self._give_up_asking)
        self._asked = self._rooms_now()
        self._far.freeze(self._asked)

    def _rooms_now(self) -> dict[str, list[str]]:
        spaces = self._all.core.spaces
        return {name: sorted(spaces[name].rooms.rooms_of(socket.sid)) for name, socket in self._client.sockets.items()}

    @property
    def _is_as_asked(self) -> bool:
        """The other instance listens to every room of the session: it has joined none since that one was asked."""
        now = self._rooms_now()
        return all(name in self._asked and set(rooms).issubset(self._asked[name]) for name, rooms in now.items())

    def _packable(self) -> bool:
        try:
            self._sockets()
        except Unpackable as error:
            self._all.say_unpackable(error)
            self._retry_s = RETRY_S_MAX
            return False
        return True

    def _wait(self) -> None:
        self._step = _Step.WAITING
        self._timer = self._later(self._retry_s, self._ask)
        self._retry_s = min(2 * self._retry_s, RETRY_S_MAX)

    def _give_up_asking(self) -> None:
        self._step = _Step.THAWED
        self._far.thaw()

    def on_frozen(self, *, ready: bool) -> None:
        """The client is read no further, there. Every asking is answered once."""
        if self._step is _Step.THAWED:
            self._wait()
        if self._step is not _Step.ASKED:
            return
        self._timer.cancel()
        if ready and self._quiet and self._is_as_asked and self._packable():
            self._cut()
            return
        if ready:
            self._far.thaw()
        self._wait()

    def _cut(self) -> None:
        self._step = _Step.CUTTING
        self._timer = self._later(STEP_TIMEOUT_S, self._fail)
        self._detached = self._all.core.detach(self._client)
        self.rooms = {socket: set(rooms) for socket, rooms in self._detached.items()}
        self._all.tap.leavers[self._far.tunnel] = self
        self._all.ground.cut(self._far.near, self._far.tunnel, on_refused=self._stay, on_unheard=self._fail)

    def _stay(self) -> None:
        """Redis has refused the cut. All that was heard meanwhile has reached the session as one that leaves."""
        if self._step is _Step.CUTTING:
            self._give_back(self._client)
            self._finish()
            self._far.thaw()
            self._wait()

    def on_cut(self) -> None:
        """Everything that is heard from now on is for the other instance to deliver."""
        if self._step is not _Step.CUTTING:
            return
        client = self._client
        try:
            moved = self._moved()
        except Unpackable as error:
            self._all.say_unpackable(error)
            self._fail()
            return
        self._finish()
        self._all.count += 1
        for socket in client.sockets.values():
            self._all.travelling.left(socket)
            if socket.is_awaited:
                self._all.await_acks(self._far.near, socket)
        self._far.hand_session(moved, lambda: self._not_arrived(client))

    def _sockets(self) -> list[MovedSocket]:
        spaces, travelling = self._all.core.spaces, self._all.travelling
        return [
            travelling.pack(socket, self.rooms.get(socket) or spaces[socket.namespace].rooms.rooms_of(socket.sid))
            for socket in self._client.sockets.values()
        ]

    def _moved(self) -> Callable[[str, int], Moved]:
        client, sockets = self._client, self._sockets()

        def make(tunnel: str, seq: int) -> Moved:
            return Moved(
                tunnel,
                seq,
                sid=client.sid,
                request=seen(client.request),
                namespaces=client.namespace_states,
                sockets=sockets,
            )

        return make

    # --- the end ---

    def _finish(self) -> None:
        self._timer.cancel()
        self._step = _Step.GONE
        self._all.tap.leavers.pop(self._far.tunnel, None)
        self._all.core.release_rooms(self._detached)

    def _fail(self) -> None:
        """The session can neither stay nor go: its connection ends."""
        if self._step is _Step.CUTTING:
            self._give_back(self._client)
            self._finish()
            self._client.close(Reason.TRANSPORT_ERROR, 1012)

    def _not_arrived(self, client: Client) -> None:
        """Nobody has heard that the session comes: it ends here, with its handlers."""
        for socket in client.sockets.values():
            self._all.forget(socket.sid)
        self._give_back(client)
        client.lost(Reason.TRANSPORT_ERROR)

    def _give_back(self, client: Client) -> None:
        """As if it had never left, for the handlers of its end."""
        if not client.over:
            self._all.core.adopt(client, {socket: frozenset(rooms) for socket, rooms in self.rooms.items()})

    def on_tunnel_over(self) -> None:
        """The WebSocket is gone, or the session has gone through."""
        self._timer.cancel()
        if self._step is _Step.CUTTING:
            self._give_back(self._client)
            self._finish()
