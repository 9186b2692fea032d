"""Programs that stand in the documentation, run as a reader would run them."""

from __future__ import annotations

import asyncio
import os
import sys

__all__ = ["run_program"]

_TIMEOUT_S = 30.0


async def run_program(program: str, redis_url: str) -> str:
    """What ``program`` prints, run by itself with warnings as errors. Fails with what it complained of."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program,
        env={**os.environ, "REDIS_URL": redis_url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
    assert process.returncode == 0, err.decode()
    return out.decode()
