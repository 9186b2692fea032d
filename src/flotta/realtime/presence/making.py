"""Which registry a server gets: in Redis if it has one, else in this process."""

from __future__ import annotations

from typing import Any

from flotta.realtime.options import ServerOptions
from flotta.realtime.presence.local import LocalRegistry
from flotta.realtime.presence.registry import Registry
from flotta.realtime.presence.shared import SharedRegistry
from flotta.redis import Redis

__all__ = ["make_registry"]


def make_registry(redis: Redis | None, options: ServerOptions, *, instance: str, logger: Any) -> Registry:
    """The registry that ``options`` ask for, not started. Sockets are written down only where somebody asks for it."""
    keeps = options.presence or options.connections_per_user_max is not None
    if redis is None:
        return LocalRegistry(keeps=keeps)
    return SharedRegistry(
        redis,
        # The braces are a hash tag: a script touches many keys, which must lie in one slot.
        prefix=redis.key(f"{{{options.channel_prefix}}}:people:"),
        instance=instance,
        keeps=keeps,
        ttl_s=options.presence_ttl_s,
        logger=logger,
    )
