"""Who belongs to a pool: leases and heartbeats, the slot table, and the coordinator that looks after both."""

from __future__ import annotations

__all__: list[str] = []
