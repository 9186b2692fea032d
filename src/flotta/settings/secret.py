"""Removes secrets from text that people will read.

Two rules, both applied to finished text, so that it does not matter how a secret got into it: every value that is known
to be secret disappears in each of the spellings it can have (plain, percent-encoded, escaped by JSON or ``repr``), and
what looks like a credential (``scheme://user:password@``, ``?token=...``) disappears even when the value is unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final, final
from urllib.parse import quote, quote_plus, unquote, urlsplit

__all__ = ["MASK", "Redactor", "password_of", "redact_url"]

MASK: Final = "***"

SECRET_LENGTH_MIN: Final = 3
"""Shorter values are not replaced everywhere: masking each "a" in a log would hide the log, not the secret."""

# The password reaches to the *last* @ before the path: an unencoded @ inside a password is a common mistake.
_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<user>[^\s:/@\"'\[]*):(?P<password>[^\s/\"']*)@")
_PARAMETER = re.compile(
    r"(?P<key>[?&;\s\"'](?:[a-z_-]*(?:token|password|passwd|secret|api_?key|signature)|auth|sslpassword)=)"
    r"(?P<value>[^&\s\"';]+)",
    re.IGNORECASE,
)


_WHOLE_USERINFO = re.compile(r"(?P<head>://[^:/@]*:).*@", re.DOTALL)


def redact_url(url: str) -> str:
    """``url`` without its password and secret parameters. Text that is no URL comes back as ``***``, since nobody
    knows which part of it is the secret. A password may hold anything here, also what a URL would have to quote:
    everything up to the last @ is taken for it."""
    if "://" not in url:
        return MASK
    return _PARAMETER.sub(rf"\g<key>{MASK}", _WHOLE_USERINFO.sub(rf"\g<head>{MASK}@", url, count=1))


def password_of(url: str) -> str | None:
    """The password inside ``url``, decoded; None if there is none or the URL cannot be read."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return None
    return unquote(password) if password else None


@final
class Redactor:
    """Callable ``text -> text`` that knows a set of secrets. Cheap where nothing is secret: one search per line."""

    __slots__ = ("_known",)

    def __init__(self, secrets: Iterable[str | None] = ()) -> None:
        spellings = {spelling for secret in secrets if secret for spelling in _spellings(secret)}
        # The longest first, or a short secret inside a long one would leave the rest of the long one standing.
        ordered = sorted(spellings, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(MASK, text)
        if "://" in text:
            text = _USERINFO.sub(rf"\g<scheme>\g<user>:{MASK}@", text)
        if "=" in text:
            text = _PARAMETER.sub(rf"\g<key>{MASK}", text)
        return text

    def __repr__(self) -> str:
        return "Redactor(...)"


def _spellings(secret: str) -> set[str]:
    """Each way in which ``secret`` may stand in text."""
    variants = {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        repr(secret.encode())[2:-1],
    }
    return {variant for variant in variants if len(variant) >= SECRET_LENGTH_MIN}
