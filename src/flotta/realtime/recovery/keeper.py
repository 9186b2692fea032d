"""Recovery as a server does it: gives each socket a private id, keeps its session saved, and brings back who returns.

A CONNECT passes here three times. Before the ``connect`` handler (`restore`): a client that names its private id gets
its session, unless it is gone, or something that it missed is; the socket is in its rooms from then on, and holds what
comes. After the handler (`admit`): the session is stored before the client hears that it is in. Then (`accepted`): what
it missed is sent, and what was held.

Invariants:

- a session has one owner (`claims`); a socket whose session was claimed by another is dropped here without touching it;
- the rooms of a recovered socket are entered in the tick in which the reader's position is noted, so each event reaches
  it exactly one way: as missed up to there, live after it;
- a client that cannot be given everything that it missed is told so: it gets another private id.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, final

from flotta.errors import Closed, CommandError, ConnectRefused, RedisError, WireError
from flotta.realtime.adapters.wire import unsendable_is_junk
from flotta.realtime.client import Client, Reason, Socket
from flotta.realtime.delivery import Delivery
from flotta.realtime.recovery.claims import Claims, make_owner
from flotta.realtime.recovery.history import Past
from flotta.realtime.recovery.kept import Kept
from flotta.realtime.recovery.past import Archive, broadcast_of
from flotta.realtime.recovery.plan import asked, refresh_s_of, revoked
from flotta.realtime.recovery.replay import Missed, Replay, is_current
from flotta.realtime.recovery.saver import Saver
from flotta.realtime.recovery.session import Position, Session, User
from flotta.realtime.recovery.store import Saved, Store
from flotta.realtime.transports import Outgoing
from flotta.redis import Redis
from flotta.streaming.event import format_id

__all__ = ["Keeper", "Stream"]

PID_BYTES = 15  # 20 characters of base64, as Node's
RESTORE_S = 10.0
"""How long a client that comes back waits for Redis, at most."""
CLOSE_TRY_AGAIN: Final = 1013
ACK_ID_MAX = 2**31
_NOWHERE: Final[Position] = (0, 0)
_KEPT_REASONS: Final = frozenset(
    {
        Reason.TRANSPORT_CLOSE,
        Reason.TRANSPORT_ERROR,
        Reason.PING_TIMEOUT,
        Reason.SLOW_CLIENT,
        Reason.DRAINING,
    }
)
"""Why a connection may end without ending the session."""


class Stream(Protocol):
    """What recovery asks of the adapter."""

    @property
    def position(self) -> Position:
        """Everything up to here has been delivered."""
        ...

    @property
    def archive(self) -> Archive:
        """What was delivered, and before."""
        ...

    async def reached(self, position: Position) -> None:
        """Return when everything up to ``position`` has been delivered."""
        ...

    on_missed: Callable[[], None] | None
    """Told when events are gone that were not delivered here."""


class Users(Protocol):
    """What recovery asks of `People`."""

    async def set_user(self, socket: Socket, user: str, *, expires_at: float | None, issued_at: float | None) -> None:
        """Say whose the socket is. Raises ConnectRefused."""
        ...


@final
class Keeper:
    """See the module. One per server."""

    def __init__(
        self,
        redis: Redis,
        stream: Stream,
        *,
        store: Store,
        channel: str,
        delivery: Delivery,
        people: Users,
        window_s: float,
        skips_connect: bool,
        pace_bytes: int,
        logger: Any,
    ) -> None:
        self.restored = self.refused = 0
        self._stream = stream
        self._store = store
        self._delivery = delivery
        self._people = people
        self._window_s = window_s
        self._skips_connect = skips_connect
        self._replay = Replay(stream.archive, pace_bytes=pace_bytes)
        self._log = logger
        self._owned: dict[str, Socket] = {}
        refresh_s = refresh_s_of(window_s)
        self._live_ttl_s = window_s + 2 * refresh_s
        self._saver = Saver(
            store,
            refresh_s=refresh_s,
            saved_of=self._saved_of,
            on_taken=self._lose,
            logger=logger,
        )
        self._claims = Claims(
            redis,
            store=store,
            channel=channel,
            replay=self._replay,
            reached=stream.reached,
            enter=self._enter,
            lose=self._lose_owner,
            live_ttl_s=self._live_ttl_s,
            window_s=window_s,
            run=self._saver.run,
            logger=logger,
        )

    async def start(self) -> None:
        """Hear of sessions that others claim. Raises what subscribing raises."""
        await self._claims.start()
        self._delivery.watch_rooms(self._room_changed)
        self._stream.on_missed = self._send_back
        self._saver.start()

    async def aclose(self) -> None:
        """Let the last sessions be saved. Idempotent."""
        await self._claims.aclose()
        await self._saver.aclose()

    # --- a connection moves (`relay`) ---

    def adopt(self, socket: Socket, kept: Kept) -> None:
        """A socket has come here with its connection, from an instance that has let it go (`release`). It has another
        owner here: what that instance has written and Redis not yet got, over a connection that stalls, is refused."""
        kept.elder, kept.owner = kept.owner, make_owner()
        self._own(socket, kept)
        self._saver.changed(socket)

    def release(self, socket: Socket) -> Kept | None:
        """A socket goes elsewhere with its connection: its session is the other's to keep, as it is."""
        kept, socket.kept = socket.kept, None
        if kept is not None:
            self._owned.pop(kept.owner, None)
            self._saver.forget(socket)
            kept.settle(socket.client.heard)
        return kept

    # --- a client comes ---

    async def restore(self, socket: Socket, auth: Any) -> bool:
        """Give the socket its old session, if it asks for one that can be had. False: it has gone meanwhile."""
        wanted = asked(auth)
        if wanted is not None:
            try:
                async with asyncio.timeout(RESTORE_S):
                    await self._claims.take(socket, wanted)
            except TimeoutError:
                self._log.warning("a session was not restored in time", namespace=socket.namespace)
                if self._store.reachable:  # this instance is too slow: the client tries again, perhaps elsewhere
                    socket.client.close(Reason.TRANSPORT_CLOSE, CLOSE_TRY_AGAIN)
            except CommandError as error:
                self._saver.tell("Redis refuses to restore sessions: their clients begin anew", error)
            except Exception:  # noqa: BLE001 - our bug, or what lies in Redis; the client must get an answer
                self._log.exception("restoring a session failed: the client begins anew", namespace=socket.namespace)
        if not is_current(socket) or socket.kept is None:
            return False
        self.refused += wanted is not None and not socket.kept.recovered
        return True

    def begin(self, socket: Socket) -> None:
        """A socket is in its namespace from now on, and holds what is sent to it."""
        pid, owner = secrets.token_urlsafe(PID_BYTES), make_owner()
        self._own(socket, Kept(pid, owner, self._stream.position))

    def _own(self, socket: Socket, kept: Kept) -> None:
        socket.kept = kept
        self._owned[kept.owner] = socket

    def _enter(self, socket: Socket, session: Session, begin: Position, missed: Missed) -> None:
        """Nothing waits in here: what is missed ends where what is held begins."""
        rooms = self._delivery.spaces[socket.namespace].rooms
        zombie = rooms.get(session.sid)
        if zombie is not None:
            self._lose(zombie)
        assert socket.kept is not None, "begin comes first"
        del self._owned[socket.kept.owner]
        rooms.remove(socket.sid)
        socket.take_held()  # it is among what was missed, if it was for this session
        socket.sid = session.sid
        socket.session = session.data if isinstance(session.data, dict) else {}
        socket.last_ack = secrets.randbelow(ACK_ID_MAX)  # a late answer to the old connection must not fit a new event
        rooms.add(session.sid, socket)
        for room in session.rooms:
            rooms.join(session.sid, room)
        kept = Kept.of(session, session.owner, begin)
        kept.missed = self._replay.complete(missed)
        self._own(socket, kept)
        self.restored += 1

    # --- it is let in ---

    def trusts(self, socket: Socket) -> bool:
        """The session is proof enough: nobody is asked again."""
        return self._skips_connect and socket.kept is not None and socket.kept.recovered

    async def admit(self, socket: Socket) -> ConnectRefused | None:
        """The session is stored when this returns, unless Redis is away or slow. Whoever had it has it again, if the
        ``connect`` handler has not said who it is; a refusal if that user may not."""
        kept = socket.kept
        if kept is not None and kept.user is not None:
            try:
                await self._readmit(socket, kept.user)
            except ConnectRefused as refusal:
                return refusal
        await self._saver.stored(socket)
        return None

    async def _readmit(self, socket: Socket, user: User) -> None:
        if socket.person is None:
            await self._people.set_user(socket, user.name, expires_at=user.expires_at, issued_at=user.issued_at)
        elif socket.person.online.user != user.name:
            self._log.info("a client came back as another user: it begins anew", sid=socket.sid)
            self.renounce(socket)

    async def accepted(self, socket: Socket) -> None:
        """Send what was missed, then what was held meanwhile, no faster than the client takes it."""
        kept = socket.kept
        if kept is None or not socket.holding:
            return
        missed, kept.missed = kept.missed, []
        due: Iterator[Outgoing] = self._due(socket, kept, missed)
        while await self._replay.write(socket, due):
            held = socket.take_held()
            if not held:
                break
            due = socket.still_due(held)
        else:
            return
        socket.flow()
        # A ping that was sent before says nothing of this.
        socket.client.mark, socket.client.heard = _NOWHERE if socket.client.pinged else None, None

    def _due(self, socket: Socket, kept: Kept, missed: list[Past]) -> Iterator[Outgoing]:
        for past in missed:
            if self._may_get(socket, kept, past):
                try:
                    with unsendable_is_junk():
                        packet = self._packet(past)
                except WireError:  # told when it was delivered
                    continue
                yield packet

    def _may_get(self, socket: Socket, kept: Kept, past: Past) -> bool:
        broadcast = broadcast_of(past)
        return not revoked(broadcast.target, kept.revoked, socket.sid) and self._delivery.may_get(socket, broadcast)

    def _packet(self, past: Past) -> Any:
        if past.packet is None:
            past.packet = self._delivery.encode(broadcast_of(past), format_id(past.position))
        return past.packet

    def offset_behind(self, args: list[Any]) -> str | None:
        """What must follow an event that is not in the stream: clients take text at the end for an offset."""
        return format_id(self._stream.position) if isinstance(args[-1], str) else None

    # --- it changes ---

    def _room_changed(self, socket: Socket, room: str, joined: bool) -> None:  # noqa: FBT001 - a callback
        kept = socket.kept
        if kept is None:
            return
        if joined:
            kept.joined(room, self._stream.position)
        elif socket.connecting and kept.recovered:
            kept.revoke(room)
        else:
            kept.quit(room, self._stream.position)
        self._save_if_in(socket)

    def _save_if_in(self, socket: Socket) -> None:
        if not socket.connecting:  # until then `admit` saves all at once
            self._saver.changed(socket)

    async def stored(self, socket: Socket) -> None:
        """Return when the rooms and the data of the socket are stored, or Redis is away or slow."""
        if socket.kept is not None and not socket.connecting:
            await self._saver.stored(socket)

    def beat(self, client: Client) -> None:
        """A ping has been sent, or its pong has come: then all that was sent before the ping has arrived."""
        if not client.pinged:
            if client.mark is not None:
                client.heard, client.mark = client.mark, None
        elif client.mark is None:  # now or never: of the same ping this is called again when its deadline moves
            holds = any(socket.holding for socket in client.sockets.values())
            client.mark = _NOWHERE if holds else self._stream.position

    def _saved_of(self, socket: Socket) -> Saved | None:
        kept = socket.kept
        if kept is None or not is_current(socket) or not self._is_in(socket):
            return None
        return self._pack(socket, kept, live=True)

    def _is_in(self, socket: Socket) -> bool:
        """It is in its rooms. One that is on its way to another instance is not, for a moment."""
        return self._delivery.spaces[socket.namespace].rooms.get(socket.sid) is socket

    def _pack(self, socket: Socket, kept: Kept, *, live: bool) -> Saved | None:
        """None: its data cannot be stored, so nothing of it is, or older data would come back."""
        session = self._session(socket, kept, live=live)
        try:
            return Saved.of(session, self._live_ttl_s if live else self._window_s, kept.elder)
        except (TypeError, ValueError) as error:
            self._saver.run(self._forget(kept, grave_s=0.0), "realtime recovery forget")
            if not kept.unsavable:
                kept.unsavable = True
                self._log.warning(
                    "a session cannot be stored, so its client cannot be recovered",
                    sid=socket.sid,
                    reason=str(error),
                    cure="save_session only what MessagePack carries: text, numbers, bytes, lists, maps with text keys",
                )
            return None

    def _session(self, socket: Socket, kept: Kept, *, live: bool) -> Session:
        if not socket.holding:
            kept.settle(socket.client.heard)
        rooms = self._delivery.spaces[socket.namespace].rooms.rooms_of(socket.sid)
        person = socket.person
        user = None if person is None else User(person.online.user, person.expires_at, person.issued_at)
        return kept.session(socket.sid, socket.namespace, rooms, socket.session or {}, live=live, user=user)

    # --- it goes ---

    def leaving(self, socket: Socket, reason: str) -> None:
        """The socket is about to leave its rooms: keep its session for its return, or end it."""
        kept, socket.kept = socket.kept, None
        if kept is None:
            return
        del self._owned[kept.owner]
        self._saver.forget(socket)
        if socket.connecting and not kept.recovered:
            return  # nobody knows of it
        if reason not in _KEPT_REASONS:
            self._saver.run(self._forget(kept, grave_s=self._live_ttl_s), "realtime recovery forget")
        elif (saved := self._pack(socket, kept, live=False)) is not None:
            self._saver.run(self._save_last(saved), "realtime recovery save")

    async def _save_last(self, saved: Saved) -> None:
        try:
            await self._store.save([saved])
        except (RedisError, Closed) as error:
            self._saver.tell("the last state of a session could not be saved", error)

    async def _forget(self, kept: Kept, *, grave_s: float) -> None:
        try:
            await self._store.forget(kept.pid, kept.owner, grave_s, kept.elder)
        except (RedisError, Closed) as error:
            self._saver.tell("a session that has ended could not be deleted", error)

    def renounce(self, socket: Socket) -> None:
        """The client is somebody else now: the session ends, and so does the connection. The client comes back by
        itself, and finds nothing of it."""
        socket.client.close(Reason.SERVER_DISCONNECT)

    def _lose_owner(self, owner: str) -> bool:
        """Another has the session that this owner had. False: it is not here."""
        socket = self._owned.get(owner)
        if socket is not None:
            self._lose(socket)
        return socket is not None

    def _send_back(self) -> None:
        """Events are gone that nobody here has got: who is connected comes back, and is told that it begins anew."""
        for client in {socket.client for socket in self._owned.values()}:
            client.close(Reason.TRANSPORT_ERROR, CLOSE_TRY_AGAIN)

    def _lose(self, socket: Socket) -> None:
        """Somebody else has the session now: the socket goes, the session stays as it is."""
        kept, socket.kept = socket.kept, None
        if kept is not None:
            self._owned.pop(kept.owner, None)
        self._saver.forget(socket)
        socket.client.abandon(socket)
