"""Short tasks: run once by any worker, with retries, delays, priorities and results."""

from __future__ import annotations

__all__: list[str] = []
