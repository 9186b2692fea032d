"""Send to the clients of a cluster from a process with an event loop and no server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from flotta.realtime.adapters import Command
from flotta.realtime.emitter.commands import Arg, EmitterOptions, Words
from flotta.realtime.option_names import options_of
from flotta.realtime.targets import Names
from flotta.redis import Redis

__all__ = ["Emitter"]


@final
class Emitter:
    """Sends to the clients of a cluster, Node's servers included, without being one of its servers.

    ::

        async with Emitter("redis://localhost:6379") as emitter:
            await emitter.emit("price", {"eur": 12}, room="shop:7")

    You owe `aclose`. It hears nothing: what asks for answers needs a `Server`.

    Args:
        redis: a client, which stays yours, or a URL. A client's namespace goes before all names, as in `Server`.
        namespace: the namespace that is meant where a call names none.
        options: how the servers talk to each other; or give single ones by name
            (``Emitter(url, adapter="streams")``).

    Raises:
        ConfigError: an option, or the URL, is wrong.
        TypeError: an option that does not exist.
    """

    def __init__(
        self,
        redis: str | Redis,
        *,
        namespace: str = "/",
        options: EmitterOptions | None = None,
        **single_options: Any,
    ) -> None:
        self.options = options_of(EmitterOptions, options, single_options)
        self._redis = Redis.from_url(redis) if isinstance(redis, str) else redis
        self._owned = isinstance(redis, str)
        self._words = Words(self.options, namespace=namespace, key_prefix=self._redis.namespace)

    async def _call(self, words: list[Arg] | None) -> None:
        if words is not None:
            await self._redis.link.call(*words)

    async def emit(
        self,
        event: str,
        data: Any = None,
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str | None = None,
        volatile: bool = False,
        may_see: str | None = None,
    ) -> None:
        """Send an event to session ids, rooms, users, or (no target) to every client of every server. An empty list of
        targets is nobody. Returns when Redis has it; cancelling is harmless, it may have been sent.

        Args:
            data: anything that JSON and bytes can carry; a tuple is several arguments, None is none.
            user: ids of users (`Server.set_user`): all their clients.
            skip_sid: session ids or rooms that do not get it.
            volatile: may be dropped for a client that does not keep up.
            may_see: name of a filter that each recipient must pass (`Server.may_see`); Node servers do not get it.

        Raises:
            LinkUnavailable: Redis is away; nobody gets it.
            AmbiguousOutcome: the connection broke; it may have been sent.
            TypeError, ValueError: ``data`` cannot be encoded, or ``event`` is one of Socket.IO's own.
        """
        target = self._words.whom(namespace, to, room, user, skip_sid)
        await self._call(self._words.emit(target, event, data, volatile=volatile, may_see=may_see))

    async def sockets_join(
        self,
        rooms: str | Iterable[str],
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str | None = None,
    ) -> None:
        """Put the clients of a room, a user, or all, into ``rooms``. Targets and errors as in `emit`."""
        target = self._words.whom(namespace, to, room, user, skip_sid)
        await self._call(self._words.command(Command.JOIN, target, rooms))

    async def sockets_leave(
        self,
        rooms: str | Iterable[str],
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str | None = None,
    ) -> None:
        """Take the clients of a room, a user, or all, out of ``rooms``. Targets and errors as in `emit`."""
        target = self._words.whom(namespace, to, room, user, skip_sid)
        await self._call(self._words.command(Command.LEAVE, target, rooms))

    async def disconnect_sockets(
        self,
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str | None = None,
        close: bool = False,
    ) -> None:
        """Disconnect the clients of a room, a user, or all, from the namespace; ``close``: end their connections.
        Targets and errors as in `emit`."""
        target = self._words.whom(namespace, to, room, user, skip_sid)
        await self._call(self._words.command(Command.DISCONNECT, target, close=close))

    async def server_side_emit(self, event: str, *args: Any, namespace: str | None = None) -> None:
        """Send an event to the servers' `Server.on_server_side` handlers. Errors as in `emit`."""
        await self._call(self._words.server_side(namespace, event, args))

    async def aclose(self) -> None:
        """Close the connection if it is the emitter's own. Idempotent."""
        if self._owned:
            await self._redis.aclose()

    async def __aenter__(self) -> Emitter:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
