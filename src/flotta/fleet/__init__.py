"""Fleet: the one object that a service uses.

``_fleet`` wires the parts, ``_lifecycle`` owns the order of start and stop, ``_background`` the supervised tasks,
``_health`` the checks, ``_sync`` the facade for threads.
"""

from __future__ import annotations

from flotta.fleet._fleet import Fleet, in_loop_of, registered, use_settings
from flotta.fleet._health import Check, Health, Readiness
from flotta.fleet._lifecycle import FleetState
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
