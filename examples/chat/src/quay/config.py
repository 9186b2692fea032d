"""What Quay itself can be told, by ``QUAY_*`` variables. Redis, PostgreSQL and the rest are Flotta's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast, get_args

from flotta.errors import ConfigError
from flotta.realtime.options import AdapterName

__all__ = ["Config"]

_SECRET_LENGTH_MIN = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Times in seconds. Raises `ConfigError` for what cannot work."""

    secret: bytes = field(repr=False)
    """Signs tokens; the same on all instances. ``QUAY_SECRET``, at least 32 characters."""
    token_ttl_s: float = 900.0
    """How long a token holds before it must be renewed. ``QUAY_TOKEN_TTL_S``."""
    session_max_s: float = 43_200.0
    """How long after signing in a token can be renewed."""
    demo: bool = False
    """Let everybody in as one of the seeded users. ``QUAY_DEMO=1``."""
    adapter: AdapterName = "classic"
    """How broadcasts travel between instances: ``classic``, ``sharded`` or ``streams``. ``QUAY_ADAPTER``."""

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Config:
        """From the environment. Raises `ConfigError` naming the variable."""
        secret = environ.get("QUAY_SECRET", "")
        if len(secret) < _SECRET_LENGTH_MIN:
            shown = f"{len(secret)} characters" if secret else None
            raise ConfigError("QUAY_SECRET", shown, f"at least {_SECRET_LENGTH_MIN} random characters")
        demo = environ.get("QUAY_DEMO", "0")
        if demo not in {"0", "1"}:
            raise ConfigError("QUAY_DEMO", demo, "0 or 1")
        return cls(
            secret=secret.encode(),
            token_ttl_s=_seconds(environ, "QUAY_TOKEN_TTL_S", 900.0),
            demo=demo == "1",
            adapter=_adapter(environ.get("QUAY_ADAPTER", "classic")),
        )


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(name, text, "a number above 0")
    return value


def _adapter(name: str) -> AdapterName:
    if name not in get_args(AdapterName):
        raise ConfigError("QUAY_ADAPTER", name, f"one of {get_args(AdapterName)}")
    return cast("AdapterName", name)
