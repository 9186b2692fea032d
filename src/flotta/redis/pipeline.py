"""redis-py's pipeline as one contiguous write on the shared link.

Owns: what may go that way. Invariant: MULTI, its commands and EXEC leave in one write with nothing between; a pipeline
that watches, blocks or changes its connection's state takes a connection of its own, as in redis-py.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, final

from redis.asyncio.client import Pipeline as DriverPipeline
from redis.client import EMPTY_RESPONSE
from redis.exceptions import ResponseError

from flotta.errors import Closed, CommandError, Outcome, RedisError
from flotta.redis.driver_errors import DriverClosed, to_driver_error, within_reply
from flotta.redis.effects import effect_of_batch
from flotta.redis.repeating import repeating
from flotta.redis.routing import Route, route_of

if TYPE_CHECKING:
    from flotta.redis.client import Redis

__all__ = ["Pipeline"]


@final
class Pipeline(DriverPipeline):
    """Collects commands; ``execute`` sends them. Made by ``Redis.pipeline``."""

    def __init__(self, owner: Redis, *, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(owner.connection_pool, owner.response_callbacks, transaction, shard_hint)
        self._owner = owner

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - redis-py's signature
        """Send everything collected; gives the parsed replies in order.

        The whole is repeated as a single command would be, if a second run of the whole does no harm. Cancelling is
        harmless to others; the commands may have run. Raises what ``Redis.execute_command`` raises, and ``WatchError``
        as redis-py.
        """
        stack = list(self.command_stack)
        if self.watching or self.connection is not None or not all(_may_share(args) for args, _ in stack):
            return list(await super().execute(raise_on_error))
        if not stack:
            return []
        try:
            await self._load_missing_scripts()
            return await self._execute_shared(stack, raise_on_error=raise_on_error)
        except RedisError as error:
            raise to_driver_error(error) from None
        except Closed as error:
            raise DriverClosed(error.what) from None
        finally:
            await self.reset()  # type: ignore[no-untyped-call]

    async def _load_missing_scripts(self) -> None:
        scripts = list(self.scripts)
        if not scripts:
            return
        known = await self._owner.script_exists(*[script.sha for script in scripts])
        for script, exists in zip(scripts, known, strict=True):
            if not exists:
                await self._owner.script_load(script.script)

    async def _execute_shared(self, stack: list[Any], *, raise_on_error: bool) -> list[Any]:
        commands = [self._wire(args) for args, options in stack if EMPTY_RESPONSE not in options]
        if self.is_transaction or self.explicit_transaction:
            answers = await self._send(lambda: self._transact(commands), commands)
        else:
            answers = await self._send(lambda: self._owner.link.call_many(commands), commands)
        return await self._shape(stack, answers, raise_on_error=raise_on_error)

    async def _send(self, send: Callable[[], Awaitable[list[Any]]], commands: list[tuple[Any, ...]]) -> list[Any]:
        answers: list[Any] = await repeating(send, effect_of_batch(commands), self._owner.options)
        return answers

    async def _transact(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        return _unwrap_transaction(await self._owner.link.call_many([("MULTI",), *commands, ("EXEC",)]))

    def _wire(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        name = args[0].decode() if isinstance(args[0], bytes) else str(args[0])
        return self._owner.encoded((*name.split(), *args[1:]))

    async def _shape(self, stack: list[Any], answers: list[Any], *, raise_on_error: bool) -> list[Any]:
        """Every answer as its command's method would have returned it; errors as redis-py's, with their place."""
        due = iter(answers)
        shaped: list[Any] = []
        for place, (args, options) in enumerate(stack, start=1):
            reply = options[EMPTY_RESPONSE] if EMPTY_RESPONSE in options else within_reply(next(due))
            if not isinstance(reply, Exception):
                reply = self._owner.parsed(self._owner.plan(args[0]), reply, dict(options))
                reply = await reply if inspect.isawaitable(reply) else reply
            elif raise_on_error:
                self.annotate_exception(reply, place, args)
                raise reply
            shaped.append(reply)
        return shaped


def _may_share(args: tuple[Any, ...]) -> bool:
    name = args[0].decode() if isinstance(args[0], bytes) else str(args[0])
    return route_of((*name.split(), *args[1:])) is Route.LINK


def _unwrap_transaction(replies: list[Any]) -> list[Any]:
    """The answers inside EXEC; if it was refused, the error that caused it."""
    *queued, executed = replies
    if isinstance(executed, list):
        return executed
    if isinstance(executed, CommandError):
        causes = [reply for reply in queued if isinstance(reply, CommandError)]
        cause = causes[0] if causes else executed
        if isinstance(queued[0], CommandError):
            cause.outcome = Outcome.APP  # MULTI itself was refused: what followed it may have run by itself
        raise cause
    raise ResponseError("EXEC gave no list of replies")
