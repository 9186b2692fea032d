"""Taking sessions over: how a client that comes back gets its own from whoever has it, and how that one hears of it.

Invariants:

- of any number of instances that claim a session at once one gets it;
- whoever had a session that was claimed is told, here or by a message, also if the claim's answer was lost; if the
  message is lost too, its next save is refused;
- a session that was claimed and cannot be used is given back or ended, never left behind as if a client were connected.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias, final

from flotta.errors import Closed, CommandError, Outcome, RedisError, WireError
from flotta.realtime.client import Socket
from flotta.realtime.recovery.plan import Asked, begins, is_complete
from flotta.realtime.recovery.replay import Missed, Replay, is_current
from flotta.realtime.recovery.session import Position, Session, read_session
from flotta.realtime.recovery.store import Loaded, Saved, Store
from flotta.redis import Redis

__all__ = ["Claims", "make_owner"]

OWNER_BYTES: Final = 13  # 18 characters
RETRY_S: Final = 0.2
CLAIMS_MAX: Final = 5
"""Attempts at a session that changes while it is claimed."""

Enter: TypeAlias = Callable[[Socket, Session, Position, Missed], None]
"""Gives a socket a session that is this instance's now, and what was missed behind that position. It waits for nothing:
what is missed ends where what is held begins."""
Lose: TypeAlias = Callable[[str], bool]
"""An owner's session is another's now. False: that owner is not here."""
Run: TypeAlias = Callable[[Coroutine[Any, Any, None], str], None]


def make_owner() -> str:
    """A name for one holding of a session, which no other has."""
    return secrets.token_urlsafe(OWNER_BYTES)


@final
class Claims:
    """See the module. One per server.

    Args:
        channel: where owners are told.
        reached: returns when everything up to a position has been delivered here.
        live_ttl_s: how long a session lives that nobody refreshes.
        window_s: how long one lives whose client has gone.
        run: runs a coroutine beside.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        store: Store,
        channel: str,
        replay: Replay,
        reached: Callable[[Position], Awaitable[None]],
        enter: Enter,
        lose: Lose,
        live_ttl_s: float,
        window_s: float,
        run: Run,
        logger: Any,
    ) -> None:
        self._redis = redis
        self._store = store
        self._channel = channel
        self._replay = replay
        self._reached = reached
        self._enter = enter
        self._lose = lose
        self._live_ttl_s = live_ttl_s
        self._window_s = window_s
        self._run = run
        self._log = logger
        self._subscription: Any = None

    async def start(self) -> None:
        """Hear of sessions that others claim. Raises what subscribing raises."""
        ear = _Ear(lambda owner: self._lose(owner.decode("ascii", "replace")))
        self._subscription = await self._redis.hub.subscribe(self._channel, ear, kind="channel")

    async def aclose(self) -> None:
        """Hear nothing more. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.aclose()

    async def take(self, socket: Socket, wanted: Asked) -> None:
        """Let the socket enter the session that it asks for, if it can be had. You bound the time: while Redis is away
        this waits for it. Raises CommandError for what it refuses."""
        owners: set[str] = set()
        while True:
            try:
                await self._take(socket, wanted, owners)
            except (RedisError, Closed) as error:
                if isinstance(error, CommandError) and error.outcome is Outcome.APP:
                    raise  # a right that is missing, no memory: asking again gives the same
                await asyncio.sleep(RETRY_S)  # until it is back, or the time is over
            else:
                return

    async def _take(self, socket: Socket, wanted: Asked, owners: set[str]) -> None:
        claimed = await self._claim(socket, wanted, owners)
        if claimed is None:
            return
        session, begin = claimed
        missed = await self._replay.missed(session, socket.namespace, begin)
        if missed is None:
            await self._store.forget(session.pid, session.owner, self._live_ttl_s)
        elif is_current(socket):
            self._enter(socket, session, begin, missed)
        else:
            await self._store.save([Saved.of(session._replace(live=False), self._window_s)])

    async def _claim(self, socket: Socket, wanted: Asked, owners: set[str]) -> tuple[Session, Position] | None:
        """``owners`` gets those that may still hold the client: an attempt whose answer was lost may be the one that
        has taken it from them."""
        for _ in range(CLAIMS_MAX):
            loaded = await self._store.load(wanted.pid)
            found = None if loaded is None else self._checked(socket, wanted, loaded)
            if loaded is None or found is None:
                return None
            session, begin = found
            await self._reached(begin)
            if not is_current(socket):
                return None
            mine = session._replace(owner=make_owner(), namespace=socket.namespace, seen=begin, live=True)
            if session.live:
                owners.add(session.owner)
            if await self._store.claim(loaded, mine, self._live_ttl_s):
                for owner in owners:
                    self._tell(owner)
                return mine, begin
        return None

    def _checked(self, socket: Socket, wanted: Asked, loaded: Loaded) -> tuple[Session, Position] | None:
        """The session and from where on it is to be replayed; None: not this session, or not all of it."""
        try:
            session = read_session(loaded.value)
        except WireError as error:
            self._log.warning("a saved session is junk", reason=error.reason)
            return None
        if session.pid != wanted.pid or session.namespace not in {None, socket.namespace}:
            return None
        begin = begins(session, wanted.offset)
        return None if begin is None or not is_complete(begin, loaded.stream) else (session, begin)

    def _tell(self, owner: str) -> None:
        """The last owner of a session may still hold the connection that the client has left."""
        if not self._lose(owner):
            self._run(self._publish(owner), "realtime recovery claimed")

    async def _publish(self, owner: str) -> None:
        try:
            await self._redis.link.call("PUBLISH", self._channel, owner)
        except (RedisError, Closed) as error:  # it finds out when it saves
            self._log.info("a claim could not be announced", reason=str(error))


@final
class _Ear:
    """Hears who was claimed. What is missed while Redis is away is noticed at the next save."""

    __slots__ = ("_take",)

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take

    def on_message(self, _channel: bytes, payload: bytes) -> None:
        """An owner's name."""
        self._take(payload)

    def on_lost(self) -> None:
        """Nothing to do."""

    def on_restored(self) -> None:
        """Nothing to do."""
