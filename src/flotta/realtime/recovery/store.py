"""The keys of sessions in Redis: loaded, saved, claimed and forgotten in one atomic step each.

Invariant: a session has one owner, the last who claimed it. Whoever was it before finds out at the next save, and
changes nothing any more. What has ended stays ended: an empty value is left in its place for as long as an instance
that was stopped, or is late, may come and save it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple, final

from flotta.errors import CommandError
from flotta.realtime.adapters.streams_wire import read_facts
from flotta.realtime.recovery.plan import StreamFacts
from flotta.realtime.recovery.session import Session, mark, write_session
from flotta.redis import Effect, Redis, Script

__all__ = ["Loaded", "Saved", "Store"]


def _load(name: str, effect: Effect) -> Script:
    source = files("flotta.realtime.recovery").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return Script(source, name=f"recovery {name}", effect=effect)


_SAVE: Final = _load("save", Effect.LAST_WRITE_WINS)
_CLAIM: Final = _load("claim", Effect.LAST_WRITE_WINS)
_FORGET: Final = _load("forget", Effect.LAST_WRITE_WINS)


class Loaded(NamedTuple):
    """A session as it lies in Redis, and what Redis says of the stream right after."""

    value: bytes
    stream: StreamFacts


class Saved(NamedTuple):
    """A session ready to be saved."""

    pid: str
    owner: str
    value: bytes
    ttl_s: float
    elder: str | None = None
    """The owner from whom this one has it."""

    @classmethod
    def of(cls, session: Session, ttl_s: float, elder: str | None = None) -> Saved:
        """Raises TypeError or ValueError for data that cannot travel."""
        return cls(session.pid, session.owner, write_session(session), ttl_s, elder)


@final
class Store:
    """The sessions under ``key_prefix``; ``stream`` is the key of the stream that their positions are in."""

    def __init__(self, redis: Redis, *, key_prefix: str, stream: str) -> None:
        self._redis = redis
        self._key_prefix = key_prefix
        self._stream = stream
        self._asking = asyncio.Lock()
        self._next: asyncio.Task[StreamFacts | None] | None = None
        """The next asking for the state of the stream, until it begins."""

    @property
    def reachable(self) -> bool:
        """Redis can be asked without waiting for a connection."""
        return self._redis.link.connected

    async def load(self, pid: str) -> Loaded | None:
        """The session; None: there is none. Raises what `Link.call` raises."""
        value = await self._redis.link.call("GET", self._key_prefix + pid)
        facts = await self._facts() if value else None  # anybody may name an id that there is not
        return None if facts is None else Loaded(value, facts)

    async def _facts(self) -> StreamFacts | None:
        """What Redis says of the stream from now on; None: there is none. Its oldest and newest event come along,
        however large: of a crowd the first asks for itself, and the next one for all others."""
        turn = self._next
        if turn is None:
            turn = self._next = asyncio.get_running_loop().create_task(self._ask(), name="realtime recovery facts")
            turn.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asked may have gone
        return await asyncio.shield(turn)

    async def _ask(self) -> StreamFacts | None:
        async with self._asking:
            self._next = None
            try:
                return read_facts(await self._redis.link.call("XINFO", "STREAM", self._stream))
            except CommandError as error:
                if "no such key" in str(error):
                    return None
                raise

    async def claim(self, loaded: Loaded, session: Session, ttl_s: float) -> bool:
        """Become the owner (``session.owner``) of what was loaded. False: somebody was quicker.

        Raises what `Link.call` raises; then the claim may have been made.
        """
        arguments = (loaded.value, write_session(session), _ms(ttl_s))
        return bool(await _CLAIM(self._redis.link, keys=[self._key_prefix + session.pid], args=arguments))

    async def save(self, sessions: Sequence[Saved]) -> list[bool]:
        """Save sessions, with one write. False in its place: it has another owner now, or has ended. Raises what
        `Link.call` raises."""
        if not sessions:
            return []
        # The script goes along: nothing may have to be sent a second time, older than what was said since.
        saves = [
            (
                *("EVALSHA", _SAVE.sha, 1, self._key_prefix + saved.pid),
                *(*_marks(saved.owner, saved.elder), saved.value, _ms(saved.ttl_s)),
            )
            for saved in sessions
        ]
        _, *replies = await self._redis.link.call_many([("SCRIPT", "LOAD", _SAVE.source), *saves])
        return [_checked(reply) for reply in replies]

    async def forget(self, pid: str, owner: str, grave_s: float, elder: str | None = None) -> None:
        """End the session, if it is still its owner's, or that of ``elder`` from whom it came; for ``grave_s`` nobody
        can save it again. Raises what `Link.call` raises."""
        args = (*_marks(owner, elder), round(grave_s * 1000))
        await _FORGET(self._redis.link, keys=[self._key_prefix + pid], args=args)


def _marks(owner: str, elder: str | None) -> tuple[bytes, bytes]:
    return mark(owner), mark(elder or owner)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _checked(reply: Any) -> bool:
    if isinstance(reply, CommandError):
        raise reply
    return bool(reply)
