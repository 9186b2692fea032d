"""The clock by which a process judges its own leases: it never goes back, and it also counts while the machine sleeps.

Why not ``time.monotonic``: on Linux that stands still in suspend. A laptop or virtual machine that wakes up would trust
a lease that ended long ago. Elsewhere (macOS, where monotonic counts on) it is the best there is.
"""

from __future__ import annotations

import time

__all__ = ["boottime_s"]

_CLOCK_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)

if _CLOCK_BOOTTIME is None:
    boottime_s = time.monotonic
else:

    def boottime_s() -> float:
        """Seconds since the machine was started."""
        assert _CLOCK_BOOTTIME is not None
        return time.clock_gettime(_CLOCK_BOOTTIME)
