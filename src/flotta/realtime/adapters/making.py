"""Which adapter a server with a Redis gets: `ServerOptions.adapter` decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from flotta.errors import ConfigError
from flotta.realtime.adapters import Adapter
from flotta.realtime.adapters.classic import ClassicAdapter
from flotta.realtime.options import AdapterName, ServerOptions
from flotta.redis import Redis

__all__ = ["make_adapter"]

_Make: TypeAlias = Callable[[Redis, ServerOptions, Any], Adapter]


def make_adapter(redis: Redis, options: ServerOptions, logger: Any) -> Adapter:
    """The adapter that ``options`` name, not started."""
    make = _MAKERS.get(options.adapter)
    if make is None:
        raise ConfigError("adapter", options.adapter, f"one of {tuple(_MAKERS)}", source="realtime.ServerOptions")
    return make(redis, options, logger)


def _classic(redis: Redis, options: ServerOptions, logger: Any) -> Adapter:
    return ClassicAdapter(
        redis,
        prefix=redis.key(options.channel_prefix),
        in_flight_max=options.publish_in_flight_max,
        logger=logger,
    )


_MAKERS: dict[AdapterName, _Make] = {
    "classic": _classic,
}
