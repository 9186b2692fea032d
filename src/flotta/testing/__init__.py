"""What tests of a service on Flotta may use too: a proxy that makes the network fail on purpose."""

from __future__ import annotations

from flotta.testing.faults import Direction, FaultProxy

__all__ = ["Direction", "FaultProxy"]
