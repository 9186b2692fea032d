"""redis-py's pipeline as one contiguous write on the shared link.

Owns: what may go that way. Invariant: MULTI, its commands and EXEC leave in one write with nothing between; a pipeline
that watches, blocks or changes its connection's state takes a connection of its own, as in redis-py.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, final

from redis.asyncio.client import Pipeline as DriverPipeline
from redis.client import EMPTY_RESPONSE
from redis.exceptions import ResponseError

from flotta.errors import Closed, CommandError, RedisError
from flotta.redis.driver_errors import DriverClosed, to_driver_error, within_reply
from flotta.redis.effects import Effect, effect_of
from flotta.redis.repeating import Failures, may_repeat
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

        The whole is repeated as a single command would be, by its riskiest part. Cancelling is harmless to others; the
        commands may have run. Raises what ``Redis.execute_command`` raises, and ``WatchError`` as redis-py.
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
        effect = max((effect_of(command) for command in commands), default=Effect.READ)
        if self.is_transaction or self.explicit_transaction:
            replies = await self._send([("MULTI",), *commands, ("EXEC",)], effect)
            answers = _unwrap_transaction(replies)
        else:
            answers = await self._send(commands, effect)
        return await self._shape(stack, answers, raise_on_error=raise_on_error)

    async def _send(self, commands: list[tuple[Any, ...]], effect: Effect) -> list[Any]:
        options = self._owner.options
        repeats = 0
        failures = Failures()
        while True:
            try:
                return await self._owner.link.call_many(commands)
            except RedisError as error:
                failures.add(error)
                if repeats == options.retries or not may_repeat(error, effect):
                    raise failures.verdict() from error
            repeats += 1
            await asyncio.sleep(options.retry_delay_s)

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
        raise causes[0] if causes else executed
    raise ResponseError("EXEC gave no list of replies")
