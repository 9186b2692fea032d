"""Send to the clients of a cluster from code without an event loop: WSGI, Celery tasks, threads, scripts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from flotta.realtime.adapters import Command
from flotta.realtime.emitter.commands import Arg, EmitterOptions, Words
from flotta.realtime.option_names import options_of
from flotta.realtime.targets import Names
from flotta.redis import PlainRedis

__all__ = ["SyncEmitter"]


@final
class SyncEmitter:
    """Sends to the clients of a cluster, Node's servers included, from code without an event loop.

    Make one for the process: threads share it, and after a fork (Celery's workers, gunicorn's) each process has its own
    connections. A call while Redis is away waits some seconds for it to come back.

    ::

        emitter = SyncEmitter("redis://localhost:6379")
        emitter.emit("price", {"eur": 12}, room="shop:7")

    You owe `close`. It hears nothing: what asks for answers needs a `Server`.

    Args:
        redis: a URL.
        namespace: the namespace that is meant where a call names none.
        options: how the servers talk to each other; or give single ones by name
            (``SyncEmitter(url, adapter="streams")``).

    Raises:
        ConfigError: an option, or the URL, is wrong.
        TypeError: an option that does not exist.
    """

    def __init__(
        self,
        redis: str,
        *,
        namespace: str = "/",
        options: EmitterOptions | None = None,
        **single_options: Any,
    ) -> None:
        self.options = options_of(EmitterOptions, options, single_options)
        self._redis = PlainRedis(redis)
        self._words = Words(self.options, namespace=namespace)

    def _call(self, words: list[Arg] | None) -> None:
        if words is not None:
            self._redis.call(*words)

    def emit(
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
        targets is nobody. Returns when Redis has it.

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
        self._call(self._words.emit(target, event, data, volatile=volatile, may_see=may_see))

    def sockets_join(
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
        self._call(self._words.command(Command.JOIN, target, rooms))

    def sockets_leave(
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
        self._call(self._words.command(Command.LEAVE, target, rooms))

    def disconnect_sockets(
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
        self._call(self._words.command(Command.DISCONNECT, target, close=close))

    def server_side_emit(self, event: str, *args: Any, namespace: str | None = None) -> None:
        """Send an event to the servers' `Server.on_server_side` handlers. Errors as in `emit`."""
        self._call(self._words.server_side(namespace, event, args))

    def close(self) -> None:
        """Close the connections of this process. Idempotent."""
        self._redis.close()

    def __enter__(self) -> SyncEmitter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
