"""PostgreSQL: a bounded pool over psycopg 3 connections, and a server of our own for development.

::

    async with Pool("postgresql://app:secret@db/app") as pool:
        async with pool.connection() as connection:  # one transaction
            await connection.execute("INSERT INTO ships (mmsi) VALUES (%s)", [257123456])
        rows = await pool.fetch("SELECT mmsi FROM ships")

Only this package imports the driver.
"""

from __future__ import annotations

from flotta.postgres.embedded import EmbeddedPostgres
from flotta.postgres.options import PoolOptions, PoolStats
from flotta.postgres.pool import Pool
from flotta.postgres.target import application_name

__all__ = ["EmbeddedPostgres", "Pool", "PoolOptions", "PoolStats", "application_name"]
