"""Fixtures for tests that need PostgreSQL. ``conftest.py`` makes them known everywhere.

One server per test process, started at the first use; a fresh, empty database for every test that asks for one. A test
that kills, stops or fills a server starts one of its own, in ``postgres_folder`` if the data must be kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from flotta.postgres import EmbeddedPostgres, Pool, PoolStats

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A server for the whole test process. A test that kills or stops a server starts one of its own."""
    with EmbeddedPostgres(durable=False, settings={"max_connections": "60"}) as server:
        yield server


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database that only this test uses; dropped afterwards, whoever is still connected."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    yield postgres_server.url_for(name)
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def settled(pool: Pool, reached: Callable[[PoolStats], bool]) -> PoolStats:
    """Wait for the pool's own signal that its books have changed."""
    async with asyncio.timeout(10):
        await pool._keeper.until(lambda: reached(pool.stats))
    return pool.stats


def await_end(processes: Iterable[psutil.Process], timeout_s: float = 10.0) -> None:
    """Wait until all of them have ended. A zombie has: whoever reaps orphans here may take seconds."""
    deadline_s = time.monotonic() + timeout_s
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline_s, f"{process} has not ended after {timeout_s:g} s"
                time.sleep(0.005)


@pytest.fixture
def postgres_folder() -> Iterator[Path]:
    """A folder for the data of a server. (pytest's ``tmp_path`` has mode 0700: as root the server could not get in.)"""
    folder = Path(tempfile.mkdtemp(prefix="flotta-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)
