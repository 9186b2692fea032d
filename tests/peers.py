"""Tools that a test needs and a machine may lack: Go with the Pulse module, Node, a browser.

A test that misses its tool skips and says why. Where ``FLOTTA_REQUIRE`` names the tool (a comma-separated list of
``go``, ``node``, ``browser``: the continuous integration sets it), it fails instead, so that a missing tool cannot hide
a fault.
"""

from __future__ import annotations

import os
from typing import Literal, NoReturn

import pytest

__all__ = ["missing"]


def missing(tool: Literal["go", "node", "browser"], reason: str) -> NoReturn:
    """Skip the test that asks, or fail it where ``tool`` is required."""
    if tool in os.environ.get("FLOTTA_REQUIRE", "").split(","):
        pytest.fail(f"{tool} is required here (FLOTTA_REQUIRE): {reason}", pytrace=False)
    pytest.skip(reason)
