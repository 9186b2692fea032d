"""What tests of a service on Flotta may use too: a network that fails on purpose, a worker pool on a stage, a clock
that is turned by hand."""

from __future__ import annotations

from flotta.testing.clock import FakeClock
from flotta.testing.faults import Direction, FaultProxy
from flotta.testing.pool import PoolStage, StageWorker

__all__ = ["Direction", "FakeClock", "FaultProxy", "PoolStage", "StageWorker"]
