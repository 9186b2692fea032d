"""Tokens: who signed in, when, and until when the token holds, signed with HMAC-SHA256. Pure: time comes in.

``quay1.<claims>.<signature>``. There is one algorithm and one key, so a token has nothing to say about either.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec

__all__ = ["Claims", "TokenError", "read_token", "sign_token"]

_PREFIX = "quay1"
_LENGTH_MAX = 512


class TokenError(Exception):
    """The token is not ours, was changed, or holds no longer."""


class Claims(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Times in seconds since 1970."""

    user_id: int
    signed_in_s: float
    ends_s: float


def sign_token(claims: Claims, secret: bytes) -> str:
    """The token that says ``claims``."""
    said = f"{_PREFIX}.{_text(msgspec.json.encode(claims))}"
    return f"{said}.{_text(_signature(said, secret))}"


def read_token(token: str, secret: bytes, *, now_s: float) -> Claims:
    """What a token says. Raises `TokenError`."""
    said, _, signature = token.rpartition(".")
    prefix, _, claims = said.partition(".")
    if prefix != _PREFIX or len(token) > _LENGTH_MAX:
        raise TokenError("no token of ours")
    try:
        if not hmac.compare_digest(_bytes(signature), _signature(said, secret)):
            raise TokenError("the signature is wrong")
        read = msgspec.json.decode(_bytes(claims), type=Claims)
    except ValueError as error:  # base64, UTF-8 and msgspec's errors are
        raise TokenError("no token of ours") from error
    if now_s >= read.ends_s:
        raise TokenError("it has ended")
    return read


def _signature(said: str, secret: bytes) -> bytes:
    return hmac.digest(secret, said.encode(), hashlib.sha256)


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
