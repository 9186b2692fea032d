"""PostgreSQL: a bounded pool over psycopg 3 connections, and a server of our own for development."""

from __future__ import annotations

from flotta.postgres.embedded import EmbeddedPostgres

__all__ = ["EmbeddedPostgres"]
