"""Connections of pages: who they are, what they may do, how long they may stay.

Invariants: a socket is in the rooms of its user's chat rooms and in no others; whatever a page asks is checked against
PostgreSQL or the socket's own rooms, never believed; the server ends a connection when its token does, unless the page
has handed in a fresh one before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, final

from flotta.errors import ConnectRefused, FlottaError
from flotta.fleet import Fleet
from flotta.realtime import Server
from quay.accounts.accounts import Accounts
from quay.bodies import Read, RoomOnly, Said, checked
from quay.live.online import Online
from quay.live.telling import Telling, room_of
from quay.problem import Problem, problem_of
from quay.rooms.rooms import Rooms

__all__ = ["Sockets"]


@final
class Sockets:
    """The pages that are connected to this instance."""

    def __init__(
        self,
        fleet: Fleet,
        server: Server,
        *,
        framework: str,
        accounts: Accounts,
        rooms: Rooms,
        telling: Telling,
        online: Online,
    ) -> None:
        self._fleet = fleet
        self._server = server
        self._framework = framework
        self._accounts = accounts
        self._rooms = rooms
        self._telling = telling
        self._online = online
        server.on("connect", self._connect)
        server.on("disconnect", self._disconnect)
        for name, handle in {
            "send": self._send,
            "typing": self._typing,
            "read": self._read,
            "sync": self._sync,
            "renew": self._renew,
        }.items():
            server.on(name, _answering(handle))

    # --- coming and going --------------------------------------------------------------------------------------------

    async def _connect(self, sid: str, _environ: dict[str, Any], auth: Any) -> None:
        try:
            claims = self._accounts.claims(auth.get("token") if isinstance(auth, dict) else None)
            await self._server.set_user(sid, str(claims.user_id), expires_at=claims.ends_s)
            await self._welcome(sid, claims.user_id)
        except ConnectRefused:
            raise
        except (Problem, FlottaError) as error:
            problem = problem_of(error)
            raise ConnectRefused(problem.message, {"code": problem.code}) from error

    async def _welcome(self, sid: str, user_id: int) -> None:
        """Into its rooms first, then what there is: what happens in between comes as an event after the picture."""
        user = await self._accounts.user(user_id)
        await self._server.save_session(sid, {"user": user})
        for room_id in await self._rooms.heads(user_id):
            await self._server.enter_room(sid, room_of(int(room_id)))
        rooms = await self._rooms.of_user(user_id)
        await self._accounts.seen(user_id)
        hello = {"me": user, "rooms": rooms, "served_by": self._served_by(), "online": self._online.users()}
        await self._server.emit("hello", hello, to=sid)

    async def _disconnect(self, sid: str, _reason: str) -> None:
        await self._accounts.seen(self._user(sid))

    def _user(self, sid: str) -> int:
        user = self._server.user_of(sid)
        assert user is not None, "every socket that got in has a user"
        return int(user)

    def _served_by(self) -> dict[str, Any]:
        instance = self._fleet.instance
        return {"instance": instance.id, "pid": instance.pid, "framework": self._framework}

    # --- events; each answers {"ok": ...} or {"error": ...} ----------------------------------------------------------

    async def _send(self, sid: str, data: Any) -> Any:
        """A message: stored, told to the room, acknowledged with its number and time."""
        said = checked(data, Said)
        return await self._telling.post(self._user(sid), said.room, said)

    async def _typing(self, sid: str, data: Any) -> Any:
        """Told to the others in the room; dropped for whoever is slow, stored nowhere."""
        room = room_of(checked(data, RoomOnly).room)
        if room not in self._server.rooms(sid):
            raise Problem(403, "not_a_member", "You are not in this room.")
        user = (await self._server.get_session(sid))["user"]
        await self._server.emit("typing", {"room": data["room"], "user": user}, room=room, skip_sid=sid, volatile=True)

    async def _read(self, sid: str, data: Any) -> Any:
        return await self._telling.read(self._user(sid), checked(data, Read))

    async def _sync(self, sid: str, _data: Any) -> Any:
        """The newest number of every room, and who is online: a page that finds that it missed something while Redis
        was away reads it. Asked now and then, which also says that the user is still here."""
        user_id = self._user(sid)
        await self._accounts.seen(user_id)
        return {
            "heads": await self._rooms.heads(user_id),
            "online": self._online.users(),
            "instances": self._online.instances(),
        }

    async def _renew(self, sid: str, token: Any) -> Any:
        """A fresh token of the same user lets the connection stay."""
        claims = self._accounts.claims(token)
        if claims.user_id != self._user(sid):
            raise Problem(403, "not_yours", "This token is another user's.")
        await self._server.extend(sid, claims.ends_s)


def _answering(handle: Callable[[str, Any], Awaitable[Any]]) -> Callable[..., Awaitable[dict[str, Any]]]:
    """``handle`` with its result or its problem as the acknowledgement."""

    async def answer(sid: str, data: Any = None, *_more: Any) -> dict[str, Any]:
        try:
            return {"ok": await handle(sid, data)}
        except (Problem, FlottaError) as error:
            return problem_of(error).body()

    return answer
