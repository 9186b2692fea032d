"""Lua scripts by their digest: one round trip, and a load only when the server does not know the script.

Owns: the repeat after NOSCRIPT, which is known not to have run. Invariant: the source is sent at most once per server
that forgot it, never with each call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, final

from flotta.errors import CommandError, RedisError
from flotta.redis.connection import Arg
from flotta.redis.effects import Effect
from flotta.redis.link import Link
from flotta.redis.repeating import call_repeating

__all__ = ["Script"]


@final
class Script:
    """One Lua script. ``name`` is for people; ``effect`` says what a second run would do (by default: never repeat)."""

    __slots__ = ("effect", "name", "sha", "source")

    def __init__(self, source: str, *, name: str, effect: Effect = Effect.NEVER) -> None:
        self.source = source
        self.name = name
        self.effect = effect
        # EVALSHA's name of a script is the SHA-1 of its source (redis.io/docs/latest/commands/evalsha).
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"Script({self.name!r}, {self.sha[:8]})"

    async def __call__(self, link: Link, *, keys: Sequence[Arg] = (), args: Sequence[Arg] = ()) -> Any:
        """Run it; gives the raw reply.

        After a lost reply it is repeated only if ``effect`` allows it. Raises what ``Link.call`` raises. Cancelled: it
        may have run.
        """
        command = ("EVALSHA", self.sha, len(keys), *keys, *args)
        try:
            return await link.call(*command)
        except RedisError as error:
            return await self._recover(link, command, error)

    async def _recover(self, link: Link, command: tuple[Arg, ...], error: RedisError) -> Any:
        try:
            if not _is_unknown(error):
                return await call_repeating(link, command, link.options, effect=self.effect, first_error=error)
        except CommandError as later:
            if not _is_unknown(later):
                raise
        _, reply = await link.call_many([("SCRIPT", "LOAD", self.source), command])
        if isinstance(reply, CommandError):
            raise reply
        return reply


def _is_unknown(error: RedisError) -> bool:
    return isinstance(error, CommandError) and error.code == "NOSCRIPT"
