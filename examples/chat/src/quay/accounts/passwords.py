"""Passwords are stored as scrypt hashes (RFC 7914) with a salt of their own: ``scrypt:<cost>:<salt>:<hash>``, base64.

The cost is what a well-kept method asks for today (32 MiB, three passes) and stands in each hash, so it can be raised
for new ones. Hashing runs in threads, a few at a time: a flood of sign-ins waits instead of taking the machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from base64 import b64decode, b64encode

__all__ = ["hash_password", "is_password"]

COST = (2**15, 8, 3)
"""n, r, p."""
HASHES_AT_ONCE = 2
_SALT_BYTES = 16

_turn = asyncio.Semaphore(HASHES_AT_ONCE)


async def hash_password(password: str) -> str:
    """What to store."""
    salt = os.urandom(_SALT_BYTES)
    cost = "-".join(map(str, COST))
    return f"scrypt:{cost}:{b64encode(salt).decode()}:{b64encode(await _hash(password, salt, COST)).decode()}"


async def is_password(password: str, stored: str | None) -> bool:
    """Whether ``stored`` was made from it. Where there is no such user (None) or no password it takes as long."""
    if stored is None or not stored.startswith("scrypt:"):
        await _hash(password, bytes(_SALT_BYTES), COST)
        return False
    _, cost, salt, expected = stored.split(":")
    n, r, p = (int(number) for number in cost.split("-"))
    return hmac.compare_digest(await _hash(password, b64decode(salt), (n, r, p)), b64decode(expected))


async def _hash(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost

    def work() -> bytes:
        return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)

    async with _turn:
        return await asyncio.to_thread(work)
