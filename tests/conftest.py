"""Servers and names that every test may use. Real servers only: Valkey and PostgreSQL come from wheels."""

from __future__ import annotations

import secrets

import pytest

from postgres_fixtures import database_url, postgres_folder, postgres_server

__all__ = ["database_url", "postgres_folder", "postgres_server", "unique"]


@pytest.fixture
def unique() -> str:
    """A short text that no other test uses: put it into the names of keys, maps, streams and tables."""
    return secrets.token_hex(4)
