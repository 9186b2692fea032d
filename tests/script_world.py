"""Scripts of a pool from tests that are not asynchronous themselves: hypothesis' state machines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from flotta.redis import Redis

__all__ = ["World"]


class World:
    """One loop and one client for all examples."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.redis = Redis.from_url(url)
        self.pools = 0

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def call(self, *command: Any) -> Any:
        async def call() -> Any:
            return await self.redis.link.call(*command)

        return self.runner.run(call())

    def close(self) -> None:
        self.runner.run(self.redis.aclose())
        self.runner.close()
