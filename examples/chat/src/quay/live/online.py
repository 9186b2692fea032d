"""Who is online, and on which instance.

The realtime server's presence knows it for all instances, in Redis. Every instance keeps the whole picture, so that a
page that comes is shown it without a question, and tells its own pages what changes. An instance that dies takes its
users along within `TTL_S`; who came back to another one meanwhile was never gone.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, final

from flotta.errors import RedisError
from flotta.fleet import Fleet
from flotta.realtime import Server
from flotta.realtime.presence import PresenceChange
from flotta.rmap.recipes import Members

__all__ = ["TTL_S", "Online"]

TTL_S: Final = 6.0
GATHER_S: Final = 0.1
"""Changes of so long are told together."""
RETRY_S: Final = 0.5
PAGE: Final = 1_000


@final
class Online:
    """The picture, and who keeps it."""

    def __init__(self, fleet: Fleet, server: Server) -> None:
        self._fleet = fleet
        self._server = server
        self._instances: Members[Any] | None = None
        self._where: dict[str, set[str]] = {}
        """User -> the realtime ids of the instances that its sockets are on."""
        self._changed: set[str] = set()
        self._look_again = True
        self._news = asyncio.Event()
        server.presence.on_change(self._heard)

    async def open(self) -> None:
        """Tell the others what this instance is called."""
        instance = self._fleet.instance
        about = {"pid": instance.pid, "server": self._server.stats.instance}
        self._instances = await Members.join(
            "quay:instances", self._fleet.redis, me=instance.id, about=about, ttl_s=TTL_S
        )
        self._news.set()

    async def aclose(self) -> None:
        """This instance stops. Without `open` before, nothing."""
        if self._instances is not None:
            await self._instances.aclose()

    def users(self) -> dict[str, list[str]]:
        """Users by id, each with the instances that it is connected to. Local."""
        names = self._names()
        return {user: sorted(names.get(server, server) for server in where) for user, where in self._where.items()}

    def instances(self) -> list[dict[str, Any]]:
        """The instances that are alive, and how many users are on each. Local."""
        alive = {} if self._instances is None else self._instances.alive()
        return [
            {
                "name": name,
                "pid": about["pid"],
                "users": sum(about["server"] in where for where in self._where.values()),
            }
            for name, about in sorted(alive.items())
        ]

    async def keep(self) -> None:
        """Keep the picture, and tell the pages of this instance what changes. Runs for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            before = self.users()
            try:
                await self._catch_up()
            except RedisError:  # what was not answered is asked again
                self._news.set()
                await asyncio.sleep(RETRY_S)
                continue
            now = self.users()
            news = {user: now.get(user, []) for user in before.keys() | now.keys() if before.get(user) != now.get(user)}
            if news:
                await self._server.emit("online", news, local=True)
            await asyncio.sleep(GATHER_S)

    async def _catch_up(self) -> None:
        """Ask what has changed; what changes meanwhile is for the next time. Raises RedisError: then all of it is."""
        look_again, self._look_again = self._look_again, False
        changed, self._changed = self._changed, set()
        try:
            if look_again:
                self._where = await self._everybody()
            found = await self._ask(sorted(changed))
        except RedisError:
            self._look_again |= look_again
            self._changed |= changed
            raise
        for user, where in found.items():
            self._where[user] = where
            if not where:
                del self._where[user]

    def _heard(self, change: PresenceChange) -> None:
        if change.kind == "gap":
            self._look_again = True
        else:
            self._changed.add(change.user)
        self._news.set()

    async def _everybody(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        after = ""
        while page := await self._server.presence.users(after=after, count=PAGE):
            found |= {user: where for user, where in (await self._ask(page)).items() if where}
            after = page[-1]
        return found

    async def _ask(self, users: list[str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for at in range(0, len(users), PAGE):
            sockets = await self._server.presence.sockets(users[at : at + PAGE])
            found |= {user: {socket.server_id for socket in online} for user, online in sockets.items()}
        return found

    def _names(self) -> dict[str, str]:
        alive = {} if self._instances is None else self._instances.alive()
        return {about["server"]: name for name, about in alive.items()}
