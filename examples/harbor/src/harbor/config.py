"""What Harbor itself can be told, by ``HARBOR_*`` variables. Redis, PostgreSQL and the rest are Flotta's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flotta.errors import ConfigError

__all__ = ["HarborConfig"]

_SECRET_LENGTH_MIN = 32
_DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HarborConfig:
    """Times in seconds, speeds in knots, sizes in bytes. Raises `ConfigError` for what cannot work."""

    secret: bytes = field(repr=False)
    """Signs sessions; the same on all instances. ``HARBOR_SECRET``, at least 32 characters."""
    token_ttl_s: float = 900.0
    """How long a session token lives before it must be renewed."""
    session_max_s: float = 43_200.0
    """How long a session can be renewed after signing in."""
    demo: bool = False
    """Offer the demo viewer on the page. ``HARBOR_DEMO=1``."""
    demo_gateway_token: str | None = field(default=None, repr=False)
    """The gateway token of the demo fleet, made anew at each start of the demonstration. ``HARBOR_DEMO_TOKEN``."""
    age_max_s: float = 7 * _DAY_S
    """Older positions are refused. ``HARBOR_AGE_MAX_DAYS``."""
    future_max_s: float = 60.0
    """How far a device's clock may be ahead. ``HARBOR_FUTURE_MAX_DAYS``; no day after the year 9999 is accepted."""
    speed_kn_max: float = 70.0
    """A device that would have had to move faster since its last position has reported nonsense."""
    ack_grace_s: float = 10.0
    """When positions that a dead instance had taken to store come to another one. ``HARBOR_ACK_GRACE_S``."""
    worker_ttl_s: float = 10.0
    """How long an instance that is dead or hangs keeps the jobs that watch vessels. ``HARBOR_WORKER_TTL_S``."""
    silent_s: float = 1_800.0
    """A vessel that has not reported for so long is not watched any more. ``HARBOR_SILENT_S``."""
    batch_max: int = 500
    """Positions or devices in one request."""
    body_bytes_max: int = 262_144

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> HarborConfig:
        """From the environment. Raises `ConfigError` naming the variable."""
        secret = environ.get("HARBOR_SECRET", "")
        if len(secret) < _SECRET_LENGTH_MIN:
            shown = None if not secret else f"{len(secret)} characters"
            raise ConfigError("HARBOR_SECRET", shown, f"at least {_SECRET_LENGTH_MIN} random characters")
        demo = environ.get("HARBOR_DEMO", "0")
        if demo not in {"0", "1"}:
            raise ConfigError("HARBOR_DEMO", demo, "0 or 1")
        return cls(
            secret=secret.encode(),
            demo=demo == "1",
            demo_gateway_token=environ.get("HARBOR_DEMO_TOKEN") or None,
            age_max_s=_number(environ, "HARBOR_AGE_MAX_DAYS", 7.0) * _DAY_S,
            future_max_s=_number(environ, "HARBOR_FUTURE_MAX_DAYS", 60 / _DAY_S) * _DAY_S,
            ack_grace_s=_number(environ, "HARBOR_ACK_GRACE_S", 10.0),
            worker_ttl_s=_number(environ, "HARBOR_WORKER_TTL_S", 10.0),
            silent_s=_number(environ, "HARBOR_SILENT_S", 1_800.0),
            token_ttl_s=_number(environ, "HARBOR_TOKEN_TTL_S", 900.0),
        )


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
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
