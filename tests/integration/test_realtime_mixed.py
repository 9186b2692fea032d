"""Servers of one Redis that cannot hear each other because their adapters differ."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flotta.realtime import Server
from flotta.realtime.relay import leases
from flotta.redis import Redis
from realtime_fixtures import until

WHAT = "other servers with this channel_prefix use another adapter"


class Log:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **facts: Any) -> None:
        self.errors.append((event, facts))

    def __getattr__(self, _level: str) -> Any:
        return lambda *_args, **_facts: None


async def test_the_one_that_came_later_says_which_adapters_there_are_once(
    redis: Redis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TTL_S", 1.5)
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    first, later, same = Log(), Log(), Log()
    options: dict[str, Any] = {"channel_prefix": unique}
    async with Server(redis, adapter="classic", logger=first, **options):
        key = redis.key(f"{unique}-instance#adapter")
        await until(lambda: redis.link.connected)
        while await redis.link.call("GET", key) is None:
            await asyncio.sleep(0.02)
        async with (
            Server(redis, adapter="streams", stream_name=unique, logger=later, **options),
            Server(redis, adapter="classic", logger=same, **options),
        ):
            await until(lambda: later.errors)
            await asyncio.sleep(0.5)  # it is said once: wait for what must not come
    assert first.errors == same.errors == []
    ((event, facts),) = later.errors
    assert event.startswith(WHAT)
    assert facts["here"] == f"streams, stream {unique}"
    assert facts["there"] == "classic"
    assert facts["cure"]


async def test_a_server_that_takes_the_place_of_one_with_another_adapter_says_nothing(
    redis: Redis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TTL_S", 0.4)
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    key, log = redis.key(f"{unique}-instance#adapter"), Log()
    await redis.link.call("SET", key, "classic", "PX", 300)
    async with Server(redis, adapter="streams", stream_name=unique, channel_prefix=unique, logger=log):
        while await redis.link.call("GET", key) != f"streams, stream {unique}".encode():
            await asyncio.sleep(0.02)
    assert log.errors == []
