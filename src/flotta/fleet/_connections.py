"""The two servers of a fleet: opens Redis and PostgreSQL, waits for them at the start, asks them how they are.

At the start of a deploy the servers often come up beside their clients, so a refused connection is tried again until
the step's time is over; what trying again cannot cure (a wrong password, an unknown database, a server that is too old)
ends the start at once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, final

from flotta.errors import DatabaseUnavailable, FleetError, LinkUnavailable, PoolTimeout
from flotta.instance import Instance
from flotta.settings import Settings

if TYPE_CHECKING:
    from flotta.postgres import Pool
    from flotta.redis import Redis

__all__ = ["Connections", "client_name"]

RETRY_S: Final = 0.5
WAIT_SHARE: Final = 0.9
"""Of the step's time, so that the reason is raised and not a time-out."""
_REFUSED_FOR_GOOD: Final = re.compile(r"\b(WRONGPASS|NOAUTH|NOPERM|invalid password|certificate)\b", re.IGNORECASE)
_NOT_IN_CLIENT_NAMES: Final = re.compile(r"[^!-~]")


def client_name(instance: Instance) -> str:
    """``flotta:<service>:<instance>``: what CLIENT LIST shows. Redis takes printable ASCII only; the rest is ``_``."""
    return _NOT_IN_CLIENT_NAMES.sub("_", f"flotta:{instance.service}:{instance.id}")


@final
class Connections:
    """Redis, and PostgreSQL if it is configured. Opened and closed once per start of the fleet."""

    def __init__(self, log: Any, logger: Any | None) -> None:
        self._log = log
        self._logger = logger
        self.redis: Redis | None = None
        self.postgres: Pool | None = None

    async def open_redis(self, settings: Settings, instance: Instance) -> None:
        """Raises `ConfigError`, `ServerTooOld`, `LinkUnavailable`."""
        from flotta.redis import LinkOptions, Redis  # noqa: PLC0415 - what is not used is not imported

        options = LinkOptions(
            command_timeout_s=settings.redis_command_timeout_s,
            connect_timeout_s=settings.redis_connect_timeout_s,
            client_name=client_name(instance),
        )
        url = settings.require_redis()
        self.redis = Redis.from_url(url, namespace=settings.namespace, options=options, logger=self._logger)
        await self._until_up("Redis", self.redis.connect, settings.start_timeout_s)

    async def close_redis(self, _left_s: float) -> None:
        redis, self.redis = self.redis, None
        if redis is not None:
            await redis.aclose()

    async def open_postgres(self, settings: Settings, instance: Instance) -> None:
        """Raises `ConfigError`, `DatabaseUnavailable`, and `FleetError` if the driver is not installed."""
        url = settings.require_postgres()
        try:
            from flotta.postgres import Pool, PoolOptions, application_name  # noqa: PLC0415
        except ImportError as error:
            raise FleetError(
                f"DATABASE_URL is set, but the driver is missing ({error}): pip install 'flotta[postgres]'"
            ) from error
        options = PoolOptions(
            size_max=settings.postgres_size_max,
            size_min=settings.postgres_size_min,
            idle_s=settings.postgres_idle_s,
            lifetime_s=settings.postgres_lifetime_s,
            connect_timeout_s=settings.postgres_connect_timeout_s,
        )
        shown_as = application_name(instance.service, instance.id)
        self.postgres = pool = Pool(url, options=options, application_name=shown_as, logger=self._logger)
        await pool.start()
        await self._until_up("PostgreSQL", pool.check, settings.start_timeout_s)

    async def close_postgres(self, left_s: float) -> None:
        pool, self.postgres = self.postgres, None
        if pool is not None:
            await pool.aclose(timeout_s=left_s * WAIT_SHARE)

    def checks(self, timeout_s: float) -> dict[str, Callable[[], Awaitable[object]]]:
        """What to ask whom; each answers, or raises why it cannot a little before ``timeout_s`` is over."""
        limit_s = timeout_s * WAIT_SHARE
        checks: dict[str, Callable[[], Awaitable[object]]] = {}
        if (redis := self.redis) is not None:
            checks["redis"] = lambda: redis.link.call("PING", timeout_s=limit_s)
        if (pool := self.postgres) is not None:
            checks["postgres"] = lambda: pool.check(limit_s)
        return checks

    async def _until_up(self, name: str, attempt: Callable[[], Awaitable[object]], timeout_s: float) -> None:
        """Try until it succeeds. Raises what an attempt raised last, also if one more is under way at the deadline."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s * WAIT_SHARE
        last: Exception | None = None
        while True:
            try:
                async with asyncio.timeout_at(deadline if last is not None else None):
                    await attempt()
            except (LinkUnavailable, DatabaseUnavailable, PoolTimeout) as error:
                if _is_lasting(error) or loop.time() + RETRY_S >= deadline:
                    raise
                if last is None:
                    self._log.warning(f"waiting for {name}", reason=str(error))
                last = error
            except TimeoutError:
                if last is None:
                    raise
                raise last from None
            else:
                return
            await asyncio.sleep(RETRY_S)


def _is_lasting(error: Exception) -> bool:
    """Whether trying again cannot help."""
    if isinstance(error, DatabaseUnavailable):
        return error.lasting
    return isinstance(error, LinkUnavailable) and _REFUSED_FOR_GOOD.search(error.reason) is not None
