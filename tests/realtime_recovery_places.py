"""Servers that recover, for tests that decide every step of their clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from flotta.errors import ConnectRefused
from flotta.realtime import Server
from flotta.streaming.event import parse_id
from realtime_fixtures import serving, until
from realtime_recovery_stage import Raw

__all__ = ["Place", "connections", "gone", "make", "one", "place", "two"]


class Place(NamedTuple):
    """A server and its port."""

    sio: Server
    port: int

    @property
    def position(self) -> str:
        """The last entry that it has delivered."""
        stats = self.sio.stats.adapter
        assert stats is not None
        assert stats.position is not None
        return stats.position

    async def has_read(self, other: Place) -> None:
        """Return when it has delivered what ``other`` has."""
        await until(lambda: parse_id(self.position) >= parse_id(other.position))


def make(url: str, prefix: str, **options: Any) -> Server:
    """A server whose clients are in the rooms that their auth names, and that writes down what its handlers see."""
    names = {"stream_name": prefix, "channel_prefix": prefix, "recovery_key_prefix": f"{prefix}:session:"}
    sio = Server(url, adapter="streams", **{**names, **options})
    happened: list[tuple[Any, ...]] = []
    sio.happened = happened  # type: ignore[attr-defined]

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        happened.append(("connect", sid, environ["flotta.recovered"], sio.recovered(sid)))
        for room in (auth or {}).get("rooms", ()):
            await sio.enter_room(sid, room)
        for room in (auth or {}).get("leave", ()):
            await sio.leave_room(sid, room)
        if (auth or {}).get("refuse"):
            raise ConnectRefused("no more")

    @sio.event
    def disconnect(sid: str, reason: str) -> None:
        happened.append(("disconnect", sid, reason))

    return sio


@asynccontextmanager
async def place(url: str, prefix: str, *, prepare: Any = None, **options: Any) -> AsyncIterator[Place]:
    """A server that serves; ``prepare`` gets it before it starts."""
    sio = make(url, prefix, **options)
    if prepare is not None:
        prepare(sio)
    await sio.start()
    async with serving(sio, native=True) as port:
        yield Place(sio, port)


async def gone(at: Place, client: Raw) -> None:
    """Cut the client off and return when its server knows."""
    client.cut()
    await until(lambda: not at.sio.is_connected(client.ids["sid"]))


@pytest.fixture(autouse=True)
async def connections() -> AsyncIterator[None]:
    """Close what the test has opened."""
    yield
    opened, Raw.opened[:] = list(Raw.opened), []
    for raw in opened:
        raw.cut()
        await raw.connection.wait_closed()


@pytest.fixture
async def one(valkey_url: str, unique: str) -> AsyncIterator[Place]:
    """A server of the test's own prefix."""
    async with place(valkey_url, unique) as made:
        yield made


@pytest.fixture
async def two(valkey_url: str, unique: str) -> AsyncIterator[Place]:
    """Another one of the same cluster."""
    async with place(valkey_url, unique) as made:
        yield made
