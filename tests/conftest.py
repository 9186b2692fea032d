"""Servers and names that every test may use. Real servers only: Valkey and PostgreSQL come from wheels."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from postgres_fixtures import database_url, postgres_folder, postgres_server

__all__ = [
    "database_url",
    "own_valkey",
    "postgres_folder",
    "postgres_server",
    "redis",
    "unique",
    "valkey",
    "valkey_url",
]


@pytest.fixture
def unique() -> str:
    """A short text that no other test uses: put it into the names of keys, maps, streams and tables."""
    return secrets.token_hex(4)


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedRedis]:
    """The server of the whole test run (one per xdist worker). Never stop or flush it: use ``own_valkey`` for that."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_url(valkey: EmbeddedRedis) -> str:
    """Where that server is. Tests share it: use ``unique`` in every name."""
    return valkey.url


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """A connected Flotta client on the shared server."""
    client = Redis.from_url(valkey_url)
    await client.connect()
    yield client
    await client.aclose()


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedRedis]:
    """A server of this test alone: it may be killed, paused and restarted. Its data is kept (appendfsync always)."""
    with EmbeddedRedis(appendonly=True, appendfsync="always") as server:
        yield server
