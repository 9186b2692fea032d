"""Passwords are kept as scrypt hashes (RFC 7914), 32 MiB and three passes each, with a salt of their own."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets

__all__ = ["PASSWORD_LENGTH_MAX", "PASSWORD_LENGTH_MIN", "hash_password", "password_matches"]

PASSWORD_LENGTH_MIN = 10
PASSWORD_LENGTH_MAX = 200
_N, _R, _P = 2**15, 8, 3
_MEMORY_MAX = 128 * _N * _R * 2
_AT_ONCE = asyncio.Semaphore(2)
"""Hashing takes memory and a core: a flood of sign-ins waits instead of taking the whole machine."""


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=_MEMORY_MAX, dklen=32)


async def _in_thread(password: str, salt: bytes, n: int = _N, r: int = _R, p: int = _P) -> bytes:
    async with _AT_ONCE:
        return await asyncio.to_thread(_scrypt, password, salt, n, r, p)


async def hash_password(password: str) -> str:
    """``scrypt$n$r$p$salt$hash``."""
    salt = secrets.token_bytes(16)
    hashed = await _in_thread(password, salt)
    return "$".join(["scrypt", str(_N), str(_R), str(_P), _text(salt), _text(hashed)])


async def password_matches(password: str, stored: str | None) -> bool:
    """Whether it is the one. An account that does not exist (None) or has no password takes as long to answer."""
    parts = stored.split("$") if stored is not None else []
    if len(parts) != 6 or parts[0] != "scrypt":
        await _in_thread(password, b"\0" * 16)
        return False
    n, r, p = (int(part) for part in parts[1:4])
    hashed = await _in_thread(password, _bytes(parts[4]), n, r, p)
    return hmac.compare_digest(hashed, _bytes(parts[5]))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text)
