"""What a fleet says about itself: health asks the servers now, readiness looks at what is known.

Balancers use readiness. A Redis outage makes health fail and leaves readiness as it is, unless the service said that it
cannot do without (``FLOTTA_READY_REQUIRES``): otherwise one outage would take every instance away at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import final

__all__ = ["Check", "Health", "Readiness", "run_checks", "run_required"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The answer of one server. ``error`` is None if it answered in ``latency_s`` seconds."""

    name: str
    latency_s: float
    error: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The answers of all servers; ``error`` joins what is wrong, None if nothing is."""

    checks: tuple[Check, ...]
    error: str | None

    @property
    def ok(self) -> bool:
        return self.error is None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether new work may come here; if not, ``reasons`` says why."""

    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons


async def run_checks(
    checks: dict[str, Callable[[], Awaitable[object]]], timeout_s: float, redact: Callable[[str], str]
) -> tuple[Check, ...]:
    """Runs all checks at once; each ends within ``timeout_s``, in an answer or an error."""
    return tuple(await asyncio.gather(*(_check(name, ask, timeout_s, redact) for name, ask in checks.items())))


async def run_required(
    checks: dict[str, Callable[[], Awaitable[object]]],
    required: frozenset[str],
    timeout_s: float,
    redact: Callable[[str], str],
) -> Readiness:
    """Runs those of ``checks`` that are ``required``; one that does not exist is a reason too."""
    known = {name: ask for name, ask in checks.items() if name in required}
    answers = await run_checks(known, timeout_s, redact)
    missing = tuple(f"{name}: not configured" for name in sorted(required - known.keys()))
    return Readiness(reasons=tuple(answer.error for answer in answers if answer.error) + missing)


async def _check(
    name: str, ask: Callable[[], Awaitable[object]], timeout_s: float, redact: Callable[[str], str]
) -> Check:
    loop = asyncio.get_running_loop()
    began = loop.time()
    error: str | None = None
    try:
        async with asyncio.timeout(timeout_s):
            await ask()
    except TimeoutError:
        error = f"{name}: no answer within {timeout_s:g} s"
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is the answer to "is it well?"
        error = redact(f"{name}: {str(failure) or type(failure).__name__}")
    return Check(name=name, latency_s=loop.time() - began, error=error)
