"""Feature flags: read locally in every request, changed everywhere at once.

Owns what a flag means. Invariants: asking never waits and never fails, also while Redis is gone; a subject's answer to
one flag stays the same while its percentage grows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Self, final

from flotta.errors import ConfigError, MapError, WireError
from flotta.redis import Redis
from flotta.rmap.codec import DataclassCodec
from flotta.rmap.map import Map

__all__ = ["FeatureFlags", "Flag"]

SWITCH_TRIES = 10


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """``enabled`` False: off for all. Else on for the subjects in ``only_for`` and for ``percent`` of the others."""

    enabled: bool = True
    percent: float = 100.0
    only_for: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise ConfigError("percent", self.percent, "0 to 100", source="Flag")


@final
class FeatureFlags:
    """``flags = await FeatureFlags.join(redis); if flags.is_on("new-checkout", subject=user_id): ...``."""

    def __init__(self, name: str = "flags", *, logger: Any = None) -> None:
        self.map: Map[Flag] = Map(name, codec=DataclassCodec(Flag), logger=logger)

    @classmethod
    async def join(cls, redis: str | Redis, name: str = "flags", *, logger: Any = None) -> Self:
        """Flags that are loaded. You owe them ``aclose``. Raises what ``Map.start`` raises."""
        flags = cls(name, logger=logger)
        await flags.map.start(redis)
        return flags

    def is_on(self, flag: str, *, subject: str | None = None, default: bool = False) -> bool:
        """Whether ``flag`` is on for ``subject`` (a user, a tenant; None: only a flag for all is on). Local.

        ``default`` stands where nobody has set the flag, or another program has put something unreadable there. Raises
        NotStarted.
        """
        try:
            found = self.map.get(flag)
        except WireError:
            return default
        if found is None:
            return default
        if not found.enabled or found.percent >= 100:
            return found.enabled
        return subject is not None and (subject in found.only_for or _share(flag, subject) < found.percent)

    async def set(self, flag: str, setting: Flag) -> None:
        """Change it for the whole fleet. Raises RedisError."""
        await self.map.set(flag, setting)

    async def switch(self, flag: str, *, on: bool) -> None:
        """Turn it on or off; its percentage and subjects stay. Raises RedisError, MapError if it keeps changing."""
        for _ in range(SWITCH_TRIES):
            before = self.map.get(flag)
            if before is None:
                if await self.map.set_if_absent(flag, Flag(enabled=on)):
                    return
            elif await self.map.test_and_set(flag, before, replace(before, enabled=on)):
                return
            if self.map.stale:
                await self.map.refresh()  # else the failed test has brought the copy up to what it met
        raise MapError(self.map.name, f"flag {flag!r} was changed by others {SWITCH_TRIES} times in a row")

    async def aclose(self) -> None:
        """Stop following; ``is_on`` goes on with what is here."""
        await self.map.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _share(flag: str, subject: str) -> float:
    """Where a subject stands between 0 and 100: the same in every process, another for every flag."""
    digest = hashlib.blake2b(f"{flag}\0{subject}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
