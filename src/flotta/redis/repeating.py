"""Repeating a command that failed: only when its first run certainly did not happen, or a second one does no harm.

Owns: the decision's consequences in time. Invariants: at most ``retries`` repeats, ``retry_delay_s`` apart; a command
that already waited its whole time for a connection is not made to wait again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from flotta.errors import Closed, LinkBusy, LinkUnavailable, RedisError
from flotta.redis.effects import Effect, effect_of, is_repeatable
from flotta.redis.link import Link
from flotta.redis.options import LinkOptions

__all__ = ["call_repeating", "may_repeat"]


def may_repeat(error: BaseException, effect: Effect) -> bool:
    """Whether a command of ``effect`` that failed with ``error`` should be tried once more."""
    if not isinstance(error, RedisError) or isinstance(error, LinkUnavailable | LinkBusy):
        return False
    return is_repeatable(error.outcome, effect)


async def call_repeating(
    link: Link,
    args: tuple[Any, ...],
    options: LinkOptions,
    *,
    effect: Effect | None = None,
    first_error: Exception | None = None,
) -> Any:
    """The reply to ``args``, after up to ``options.retries`` repeats. ``first_error``: how the first run has failed.

    ``effect`` None: by the command's name. Raises the last error. Cancelling: as ``Link.call``.
    """
    effect = effect_of(args) if effect is None else effect
    repeats = 0
    error = first_error
    while True:
        if error is not None and isinstance(error, RedisError | Closed):
            if repeats == options.retries or not may_repeat(error, effect):
                raise error
            repeats += 1
            await asyncio.sleep(options.retry_delay_s)
        try:
            return await link.call(*args)
        except RedisError as failed:
            error = failed
