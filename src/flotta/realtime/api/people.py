"""Users: which sockets are whose, for how long, and the end of what they may."""

from __future__ import annotations

import time

from flotta.errors import RealtimeError
from flotta.realtime.adapters import Command, Target
from flotta.realtime.api.base import Base
from flotta.realtime.people import People
from flotta.realtime.presence import Presence
from flotta.realtime.presence.records import check_user
from flotta.realtime.rooms import user_room

__all__ = ["PeopleApi"]

REVOCATION_KEEP_S = 86_400.0
UNIX_S_MAX = 1e11
"""The year 5138. Milliseconds of today are above it: taken for seconds, an access would never end."""


class PeopleApi(Base):
    """The part of `Server` for users. What changes something raises NotStarted before `start` and Closed when `aclose`
    has ended."""

    presence: Presence
    """Who is online, on all instances; needs ``presence=True``."""

    @property
    def _people(self) -> People:
        """Raises as `_adapter_in_use`."""
        _ = self._adapter_in_use
        return self._core.people

    async def set_user(
        self,
        sid: str,
        user: str,
        *,
        expires_at: float | None = None,
        issued_at: float | None = None,
        namespace: str = "/",
    ) -> None:
        """Say whose socket of this instance that is; usually in the ``connect`` handler, when the token is checked.

        From then on `emit` reaches it by ``user=``, `disconnect_user` and `revoke` end it, and it counts for
        ``connections_per_user_max`` and in `presence`. What this raises is a `ConnectRefused`: let it through in a
        ``connect`` handler and the client is refused. A second user takes the place of the first. One round trip to
        Redis if there is one; while it is away, the limit counts only the connections of this instance and revocations
        that this instance has heard of. Cancelling it leaves the socket without a user.

        Args:
            user: any text of up to 256 whole characters (no lone surrogates, which JSON can hold).
            expires_at: Unix seconds; the connection is closed at that moment. None: never. `extend` moves it.
            issued_at: Unix seconds, when the access was granted (``iat`` of a JWT): an access that is not newer than
                the last revocation is refused. None: while the ``connect`` handler runs, when the client asked to
                connect; later, now.

        Raises:
            ValueError: a time is no Unix seconds but, say, milliseconds.
            AccessExpired: ``expires_at`` is over.
            AccessRevoked: the user was revoked at or after ``issued_at``.
            UserFull: the user has ``connections_per_user_max`` other connections, on all instances together.
            InvalidName: ``user`` is no such text.
            UnknownClient: ``sid`` was never a client of this instance in this namespace. Nothing happens if it is gone.
            RealtimeError: the socket is in too many rooms.
        """
        _check_seconds("expires_at", expires_at)
        _check_seconds("issued_at", issued_at)
        people = self._people
        if self._mine(sid, namespace) is not None and (socket := self._socket(sid, namespace)) is not None:
            await people.set_user(socket, user, expires_at=expires_at, issued_at=issued_at)

    def user_of(self, sid: str, *, namespace: str = "/") -> str | None:
        """The user of a socket of this instance; None if it has none or is gone. Its last handlers still see it."""
        socket = self._known(sid, namespace)
        return None if socket is None or socket.person is None else str(socket.person.online.user)

    async def extend(self, sid: str, expires_at: float | None) -> bool:
        """The user of this instance's socket has shown a newer token: its connection may last until then (Unix
        seconds; a moment that is over ends it at once; None: for ever). False: it is gone or has no user.

        Raises:
            ValueError: as `set_user`.
        """
        _check_seconds("expires_at", expires_at)
        return self._people.extend(sid, expires_at)

    async def disconnect_user(self, user: str, *, close: bool = True) -> None:
        """Disconnect every socket of ``user``, in every namespace of every instance, and on the Node servers of the
        cluster in the namespaces that there are here. ``close``: their connections too. They may come back; see
        `revoke`. Does not wait for the others; an instance that is cut off from Redis does not hear of it.

        Raises:
            InvalidName: ``user`` is no id of a user.
            NotStarted: before `start`.
            Closed: when `aclose` has ended.
        """
        room = user_room(check_user(user))
        adapter = self._adapter_in_use
        await adapter.settled()
        # Node's servers and ours hear of the namespaces that are here; ours may have others, which these do not name.
        told = list(self._core.spaces)
        for namespace in told:
            adapter.command(Command.DISCONNECT, Target(namespace, (room,)), close=close)
        self._core.people.disconnect(user, close=close)
        self._core.people.kick(user, close=close, told=told)
        await adapter.wait_for_room()

    async def revoke(self, user: str, *, issued_before: float | None = None, keep_s: float = REVOCATION_KEEP_S) -> None:
        """End the access of ``user`` that was granted up to ``issued_before`` (Unix seconds; None: now), everywhere:
        own connections before this returns, those of other instances within a moment, and who is just connecting is
        refused. `set_user` refuses accesses as old for ``keep_s`` seconds (a day): give the lifetime of your tokens.

        Connections of Node servers end only if ``issued_before`` is None. An instance that cannot be reached now learns
        it when it has its Redis again.

        Raises:
            ValueError: ``issued_before`` is no Unix seconds but, say, milliseconds.
            LinkUnavailable: Redis is away: only the own connections were ended. Try again.
        """
        _check_seconds("issued_before", issued_before)
        people = self._people
        if not keep_s > 0:
            raise RealtimeError("keep_s must be above 0")
        assert people.registry is not None, "it starts before the adapter does"
        until_s = time.time() if issued_before is None else issued_before
        people.on_revoked(check_user(user), until_s)
        await people.registry.revoke(user, until_s, keep_s)
        if issued_before is None:
            await self.disconnect_user(user)


def _check_seconds(name: str, value: float | None) -> None:
    if value is not None and not value < UNIX_S_MAX:  # NaN is not below it either
        raise ValueError(f"{name}: {value!r} is no time in Unix seconds (milliseconds? divide by 1000)")
