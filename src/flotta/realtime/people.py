"""Who the sockets of this instance belong to: their users, until when each may stay, and the end of those who may not.

The room ``user:<id>`` is a plain room, so that emitters and Node servers reach a user too. What other instances must
know of it (limits, presence, revocations) is the `Registry`'s.

Invariants:

- a socket is in the room of its user from the moment that `People.set_user` has said yes until it has left;
- a socket whose user was revoked, or whose time is over, is not in any namespace any more when this returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, final

from flotta.errors import AccessExpired, AccessRevoked, Closed, RealtimeError, RedisError, UserFull
from flotta.realtime.adapters import Target
from flotta.realtime.client import Reason, Socket
from flotta.realtime.deadlines import Deadlines
from flotta.realtime.delivery import Delivery
from flotta.realtime.presence.records import Online, PresenceChange, check_status, check_user
from flotta.realtime.presence.registry import Entered, Entry, Registry, RegistryStats
from flotta.realtime.presence.watching import Watchers
from flotta.realtime.rooms import user_room

__all__ = ["People", "PeopleStats", "Person"]

CLOSE_POLICY: Final = 1008

Run: TypeAlias = Callable[[Coroutine[Any, Any, Any], str], None]
"""Runs a coroutine beside the handlers; its exception is logged."""


@dataclass(slots=True)
class Person:
    """One socket's user."""

    socket: Socket
    online: Online
    issued_at: float
    """When the access was granted (Unix seconds); a later revocation ends it."""
    expires_at: float | None
    revoked: bool = False

    @property
    def entry(self) -> Entry:
        """What the registry writes down."""
        return Entry(self.online, self.socket.client.sid)


class PeopleStats(NamedTuple):
    """Who is here, and who was not let in, since the start."""

    users: int
    """Users with a socket on this instance."""
    sockets: int
    """Sockets of this instance that have a user."""
    refused_revoked: int
    refused_full: int
    refused_expired: int
    registry: RegistryStats | None
    """None: not started."""


@final
class People:
    """The people of one server."""

    def __init__(
        self, delivery: Delivery, *, instance: str, connections_max: int | None, run: Run, logger: Any
    ) -> None:
        self.watchers = Watchers(logger)
        self._run = run
        self.registry: Registry | None = None
        self.closed = False
        self._delivery = delivery
        self._instance = instance
        self._connections_max = connections_max
        self._persons: dict[str, Person] = {}
        self._by_user: dict[str, set[str]] = {}
        self._deadlines = Deadlines(self._expire)
        self.refused_revoked = self.refused_full = self.refused_expired = 0

    # --- life ---

    def take_name(self, instance: str) -> None:
        """This instance is called so from now on."""
        self._instance = instance

    async def start(self, registry: Registry) -> None:
        """Know of the other instances' people. Raises LinkUnavailable."""
        self.registry, self.closed = registry, False
        await registry.start(self)
        if self.watchers.wanted:
            await registry.watch()
        self.watchers.start()

    async def aclose(self) -> None:
        """Forget everybody. Idempotent."""
        self._deadlines.clear()
        if self.registry is not None:
            await self.registry.aclose()
        await self.watchers.aclose()
        self.closed = True

    # --- who is who ---

    def get(self, sid: str) -> Person | None:
        """The person of a socket."""
        return self._persons.get(sid)

    def users(self) -> Collection[str]:
        """Who has a socket here."""
        return self._by_user.keys()

    @property
    def stats(self) -> PeopleStats:
        """Counters and sizes."""
        return PeopleStats(
            users=len(self._by_user),
            sockets=len(self._persons),
            refused_revoked=self.refused_revoked,
            refused_full=self.refused_full,
            refused_expired=self.refused_expired,
            registry=None if self.registry is None else self.registry.stats,
        )

    def __len__(self) -> int:
        return len(self._persons)

    async def set_user(self, socket: Socket, user: str, *, expires_at: float | None, issued_at: float | None) -> None:
        """See `Server.set_user`."""
        now = time.time()
        if expires_at is not None and expires_at <= now:
            self.refused_expired += 1
            raise AccessExpired(user, expires_at)
        if issued_at is None:
            issued_at = socket.since if socket.connecting else now
        online = Online(check_user(user), socket.sid, self._instance, socket.namespace, socket.since)
        before = self._persons.get(socket.sid)
        if before is not None:
            if before.online.user == user:
                online = before.online
            else:
                self._forget(before)
        person = Person(socket, online, issued_at, expires_at)
        self._add(person)
        try:
            await self._enter(person)
        except BaseException:
            self._forget(person)
            socket.person = None
            raise

    async def _enter(self, person: Person) -> None:
        assert self.registry is not None, "used before start"
        user, limit = person.online.user, self._connections_max
        answer = await self.registry.enter(person.entry, issued_at=person.issued_at, connections_max=limit)
        if person.revoked or answer is Entered.REVOKED:
            self.refused_revoked += 1
            raise AccessRevoked(user)
        unsure_full = answer is Entered.UNSURE and limit is not None and self._connections_of(user) > limit
        if answer is Entered.FULL or unsure_full:
            assert limit is not None
            self.refused_full += 1
            raise UserFull(user, limit)
        if self._persons.get(person.online.socket_id) is not person:
            return  # it has left, or is another user's meanwhile
        if not self._delivery.enter(person.socket, user_room(user)):
            raise RealtimeError(f"{person.online.socket_id!r} is in too many rooms to be put into that of its user")

    def _connections_of(self, user: str) -> int:
        return len({self._persons[sid].socket.client.sid for sid in self._by_user.get(user, ())})

    def _add(self, person: Person) -> None:
        sid, user = person.online.socket_id, person.online.user
        self._persons[sid] = person.socket.person = person
        self._by_user.setdefault(user, set()).add(sid)
        if person.expires_at is None:
            self._deadlines.drop(sid)
        else:
            self._deadlines.put(sid, person.expires_at)

    def _forget(self, person: Person, *, moved: bool = False) -> None:
        """The socket is not this user's any more, or not here."""
        sid, user = person.online.socket_id, person.online.user
        if self._persons.get(sid) is not person:
            return
        del self._persons[sid]
        sids = self._by_user[user]
        sids.discard(sid)
        if not sids:
            del self._by_user[user]
        self._deadlines.drop(sid)
        space = self._delivery.spaces.get(person.socket.namespace)
        if space is not None:
            space.rooms.leave(sid, user_room(user))
        if self.registry is not None:
            (self.registry.release if moved else self.registry.leave)(sid)

    def left(self, socket: Socket) -> None:
        """A socket is gone."""
        person = self._persons.get(socket.sid)
        if person is not None and person.socket is socket:
            self._forget(person)
        elif person is None and self.registry is not None:
            self.registry.leave(socket.sid)  # it was to go on elsewhere and has not got there

    def moved(self, socket: Socket) -> None:
        """A socket goes on at another instance, with what `facts` has said."""
        person = self._persons.get(socket.sid)
        if person is not None:
            self._forget(person, moved=True)

    def extend(self, sid: str, expires_at: float | None) -> bool:
        """See `Server.extend`."""
        person = self._persons.get(sid)
        if person is None:
            return False
        person.expires_at = expires_at
        if expires_at is None:
            self._deadlines.drop(sid)
        else:
            self._deadlines.put(sid, expires_at)
        return True

    def set_status(self, sid: str, status: str | None, state: Any, *, keep_state: bool) -> bool:
        """See `Presence.set_status`."""
        person = self._persons.get(sid)
        if person is None or self.registry is None:
            return False
        online = person.online
        changed = online._replace(status=online.status if status is None else status)
        changed = changed._replace(state=check_status(changed.status, online.state if keep_state else state))
        if changed != online:
            person.online = changed
            self.registry.update(person.entry)
        return True

    # --- sessions that go on elsewhere ---

    def facts(self, sid: str) -> dict[str, Any] | None:
        """What a session takes along that is recovered or moved; MessagePack. None: it has no user."""
        person = self._persons.get(sid)
        if person is None:
            return None
        online = person.online
        return {
            "user": online.user,
            "issuedAt": person.issued_at,
            "expiresAt": person.expires_at,
            "connectedAt": online.connected_at,
            "status": online.status,
            "state": online.state,
        }

    def restore(self, socket: Socket, facts: dict[str, Any]) -> None:
        """The session that had these facts goes on here. Does not wait: a revocation that this instance has not heard
        of is found right after, and ends it then. A time that is over ends it at once (in the loop's next turn)."""
        online = Online(
            check_user(facts["user"]),
            socket.sid,
            self._instance,
            socket.namespace,
            float(facts["connectedAt"]),
            str(facts["status"]),
            facts["state"],
        )
        before = self._persons.get(socket.sid)
        if before is not None:
            self._forget(before)
        expires_at = facts["expiresAt"]
        person = Person(socket, online, float(facts["issuedAt"]), None if expires_at is None else float(expires_at))
        self._add(person)
        self._delivery.enter(socket, user_room(online.user))
        if self.registry is not None:
            self.registry.restore(person.entry)
            self._run(self._check(person), f"revocation of {socket.sid}")

    async def _check(self, person: Person) -> None:
        assert self.registry is not None
        try:
            revoked = await self.registry.is_revoked(person.online.user, person.issued_at)
        except (RedisError, Closed):
            return  # the registry asks for everybody who is here when Redis is back
        if revoked:
            person.socket.client.expel(Reason.REVOKED, CLOSE_POLICY)

    # --- the end ---

    def on_revoked(self, user: str, until_s: float) -> None:
        """End every socket of ``user`` whose access was granted up to then."""
        for sid in tuple(self._by_user.get(user, ())):
            person = self._persons.get(sid)
            if person is not None and person.issued_at <= until_s:
                person.revoked = True
                person.socket.client.expel(Reason.REVOKED, CLOSE_POLICY)

    def disconnect(self, user: str, *, close: bool, but: Collection[str] = ()) -> None:
        """Disconnect every socket in the user's room here, but for the namespaces ``but``."""
        room = user_room(user)
        for name in [name for name in self._delivery.spaces if name not in but]:
            self._delivery.disconnect(Target(name, (room,)), close=close)

    def on_kicked(self, user: str, *, close: bool, told: Collection[str]) -> None:
        """Another instance says `disconnect`."""
        self.disconnect(user, close=close, but=told)

    def kick(self, user: str, *, close: bool, told: Collection[str]) -> None:
        """Let all other instances `disconnect`. Does not wait."""
        if self.registry is not None:
            self._run(self.registry.kick(user, close=close, told=told), f"sign-out of {user}")

    def _expire(self, sid: str) -> None:
        """Close without more: official clients come back by themselves, and can show something new then."""
        person = self._persons.get(sid)
        if person is not None:
            person.socket.client.close(Reason.EXPIRED, CLOSE_POLICY)

    # --- what the registry tells ---

    def on_change(self, change: PresenceChange) -> None:
        """For those who watch."""
        self.watchers.tell(change)
