"""Posts to Harbor as a gateway does: in batches, repeating a request until it is answered.

Invariant: a batch is given up only if the service refuses it; a lost answer, a killed instance or a busy service mean
the same request again. Repeating is harmless: Harbor takes the same fix for a duplicate.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, final

import httpx

__all__ = ["Gateway", "Refused"]

TIMEOUT_S = 5.0
RETRY_S_MIN, RETRY_S_MAX = 0.05, 2.0
BATCH_MAX = 250


class Refused(Exception):
    """The service does not accept the request, and would not accept it again."""


@final
class Gateway:
    """One connection pool to the service. ``async with``."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=TIMEOUT_S, trust_env=False
        )
        self.accepted = 0
        self.duplicates = 0
        self.rejected = 0
        self.repeated = 0

    async def __aenter__(self) -> Gateway:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def register(self, devices: Sequence[dict[str, Any]]) -> None:
        """Tells the service about the devices. Raises `Refused`."""
        for start in range(0, len(devices), BATCH_MAX):
            await self._stubbornly("PUT", "/api/devices", {"devices": list(devices[start : start + BATCH_MAX])})

    async def report(self, positions: Sequence[dict[str, Any]]) -> None:
        """Reports positions. Raises `Refused`."""
        for start in range(0, len(positions), BATCH_MAX):
            body = {"positions": list(positions[start : start + BATCH_MAX])}
            answer = await self._stubbornly("POST", "/api/positions/batch", body)
            self.accepted += answer["accepted"]
            self.duplicates += answer["duplicates"]
            self.rejected += len(answer["rejected"])

    async def newest_s(self) -> float | None:
        """The newest time that any device of the account has told."""
        answer = await self._stubbornly("GET", "/api/devices", None)
        times = [device["last_ms"] for device in answer["devices"] if device.get("last_ms") is not None]
        return max(times) / 1_000 if times else None

    async def _stubbornly(self, method: str, path: str, body: Any) -> Any:
        pause_s = RETRY_S_MIN
        while True:
            try:
                response = await self._client.request(method, path, json=body)
            except httpx.TransportError:
                pass  # the instance is gone, or its answer: another one takes the same request
            else:
                if response.is_success:
                    return response.json()
                if response.status_code < 500 and response.status_code != 429:
                    raise Refused(f"{method} {path}: {response.status_code} {response.text[:300]}")
            self.repeated += 1
            await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311 - jitter is no secret
            pause_s = min(RETRY_S_MAX, pause_s * 2)
