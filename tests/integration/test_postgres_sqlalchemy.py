"""The documented way to use SQLAlchemy over the pool: its engine borrows, commits, rolls back and gives back."""

from __future__ import annotations

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from flotta.postgres import Pool, PoolOptions


async def test_engine_borrows_from_the_pool_and_gives_back(database_url: str):
    async with Pool(database_url, options=PoolOptions(size_max=3)) as pool:
        engine = create_async_engine("postgresql+psycopg://", poolclass=NullPool, async_creator=pool.borrow)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE ships (mmsi int)"))
            await connection.execute(text("INSERT INTO ships VALUES (:mmsi)"), {"mmsi": 1})
        async with engine.connect() as connection:
            await connection.execute(text("INSERT INTO ships VALUES (2)"))  # never committed

        async def count() -> int:
            async with engine.connect() as connection:
                return (await connection.execute(text("SELECT count(*) FROM ships"))).scalar_one()

        assert await asyncio.gather(*(count() for _ in range(20))) == [1] * 20
        await engine.dispose()
        stats = pool.stats
        assert (stats.in_use, stats.waiting, stats.broken) == (0, 0, 0)
        assert 1 <= stats.connects <= 3
