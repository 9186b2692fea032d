"""Session tokens: small, signed, short-lived. Pure: time comes in as a number.

``h1.<claims>.<HMAC-SHA256 of both>``, all base64url. One algorithm and one key, so there is nothing to choose and
nothing to confuse; a general token library would bring exactly that choice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass

__all__ = ["Claims", "TokenError", "read_token", "sign_token"]

_VERSION = "h1"
_LENGTH_MAX = 1_000


class TokenError(Exception):
    """The token is not ours, was changed, or has ended."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says: which account, since when it is signed in, until when the token holds (seconds since 1970)."""

    account_id: int
    signed_in_s: float
    ends_s: float


def sign_token(claims: Claims, secret: bytes) -> str:
    """The token for ``claims``."""
    values = [claims.account_id, claims.signed_in_s, claims.ends_s]
    body = f"{_VERSION}.{_text(json.dumps(values, separators=(',', ':')).encode())}"
    return f"{body}.{_text(_sign(body, secret))}"


def read_token(token: str, secret: bytes, *, now_s: float) -> Claims:
    """The claims of a valid token. Raises `TokenError`."""
    body, _, signature = token[:_LENGTH_MAX].rpartition(".")
    version, _, text = body.partition(".")
    try:
        if version != _VERSION or not hmac.compare_digest(_bytes(signature), _sign(body, secret)):
            raise TokenError("not signed by us")
        account_id, signed_in_s, ends_s = json.loads(_bytes(text))
    except (binascii.Error, ValueError) as error:
        raise TokenError("no token") from error
    if now_s >= ends_s:
        raise TokenError("it has ended")
    return Claims(account_id=account_id, signed_in_s=signed_in_s, ends_s=ends_s)


def _sign(body: str, secret: bytes) -> bytes:
    return hmac.digest(secret, body.encode(), hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
