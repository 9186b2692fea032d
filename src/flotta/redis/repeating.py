"""Repeating a command that failed: only when its first run certainly did not happen, or a second one does no harm.

Owns: the decision's consequences in time. Invariants: at most ``retries`` repeats, ``retry_delay_s`` apart; a command
that already waited its whole time for a connection is not made to wait again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from flotta.errors import Closed, LinkBusy, LinkUnavailable, Outcome, RedisError
from flotta.redis.effects import Effect, effect_of, is_repeatable
from flotta.redis.link import Link
from flotta.redis.options import LinkOptions

__all__ = ["Failures", "call_repeating", "may_repeat", "repeating"]


def may_repeat(error: BaseException, effect: Effect) -> bool:
    """Whether a command of ``effect`` that failed with ``error`` should be tried once more."""
    if not isinstance(error, RedisError) or isinstance(error, LinkUnavailable | LinkBusy):
        return False
    return is_repeatable(error.outcome, effect)


class Failures:
    """What all runs of one command together say. One ambiguous run makes the whole ambiguous."""

    __slots__ = ("_ambiguous", "_last")

    def __init__(self) -> None:
        self._last: Exception | None = None
        self._ambiguous: RedisError | None = None

    def add(self, error: Exception) -> None:
        """One more run has failed."""
        self._last = error
        if isinstance(error, RedisError) and error.outcome is Outcome.AMBIGUOUS:
            self._ambiguous = error

    def verdict(self) -> Exception:
        """What to raise: a later "certainly not run" is not true of the earlier run that may have."""
        assert self._last is not None
        is_sure = isinstance(self._last, RedisError) and self._last.outcome is Outcome.APP
        return self._last if is_sure or self._ambiguous is None else self._ambiguous


async def repeating(
    send: Callable[[], Awaitable[Any]], effect: Effect, options: LinkOptions, *, first_error: Exception | None = None
) -> Any:
    """What ``send`` gives, after up to ``options.retries`` repeats. ``first_error``: how a run before this has failed.

    Raises the last error, or the ambiguous one if a run may have been applied. Cancelling: as ``send``.
    """
    repeats = 0
    failures = Failures()
    error = first_error
    while True:
        if isinstance(error, RedisError | Closed):
            failures.add(error)
            if repeats == options.retries or not may_repeat(error, effect):
                raise failures.verdict()
            repeats += 1
            await asyncio.sleep(options.retry_delay_s)
        try:
            return await send()
        except (RedisError, Closed) as failed:
            error = failed


async def call_repeating(
    link: Link,
    args: tuple[Any, ...],
    options: LinkOptions,
    *,
    effect: Effect | None = None,
    first_error: Exception | None = None,
) -> Any:
    """``repeating`` for one command on ``link``; ``effect`` None: by the command's name."""
    return await repeating(
        lambda: link.call(*args), effect_of(args) if effect is None else effect, options, first_error=first_error
    )
