"""Fleet: the one object that a service uses.

``_fleet`` wires the parts, ``_declaring`` is how a service names them, ``_declared`` keeps their handles,
``_lifecycle`` owns the order of start and stop, ``_connections`` Redis and PostgreSQL, ``_schema`` the migrations,
``_background`` the supervised tasks, ``_health`` the checks, ``_sync`` the facade for threads, ``_registry`` the fleets
of the process.
"""

from __future__ import annotations

from flotta.fleet._fleet import Fleet
from flotta.fleet._health import Check, Health, Readiness
from flotta.fleet._lifecycle import FleetState
from flotta.fleet._registry import in_loop_of, registered, use_settings
from flotta.fleet._sync import SyncFleet, SyncProxy

__all__ = [
    "Check",
    "Fleet",
    "FleetState",
    "Health",
    "Readiness",
    "SyncFleet",
    "SyncProxy",
    "in_loop_of",
    "registered",
    "use_settings",
]
