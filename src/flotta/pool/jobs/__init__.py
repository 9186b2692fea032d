"""Keyed jobs: their records in Redis, the callers that wait for them, and their life on a worker."""

from __future__ import annotations

__all__: list[str] = []
