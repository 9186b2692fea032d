"""Which adapter a server with a Redis gets: `ServerOptions.adapter` decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from flotta.errors import ConfigError
from flotta.realtime.adapters import Adapter
from flotta.realtime.adapters.classic import ClassicAdapter
from flotta.realtime.adapters.sharded import ShardedAdapter
from flotta.realtime.adapters.streams import StreamsAdapter
from flotta.realtime.options import AdapterName, ServerOptions
from flotta.realtime.recovery.plan import keep_s_of
from flotta.redis import Redis

__all__ = ["kind_of", "make_adapter"]

_Make: TypeAlias = Callable[[Redis, ServerOptions, Any], Adapter]


def make_adapter(redis: Redis, options: ServerOptions, logger: Any) -> Adapter:
    """The adapter that ``options`` name, not started."""
    make = _MAKERS.get(options.adapter)
    if make is None:
        raise ConfigError("adapter", options.adapter, f"one of {tuple(_MAKERS)}", source="realtime.ServerOptions")
    return make(redis, options, logger)


def kind_of(options: ServerOptions) -> str:
    """What every server of a cluster must say alike."""
    beside = {"sharded": f", {options.sharded_mode}", "streams": f", stream {options.stream_name}"}
    return options.adapter + beside.get(options.adapter, "")


def _classic(redis: Redis, options: ServerOptions, logger: Any) -> Adapter:
    return ClassicAdapter(
        redis,
        prefix=redis.key(options.channel_prefix),
        in_flight_max=options.publish_in_flight_max,
        logger=logger,
    )


def _sharded(redis: Redis, options: ServerOptions, logger: Any) -> Adapter:
    return ShardedAdapter(
        redis,
        prefix=redis.key(options.channel_prefix),
        mode=options.sharded_mode,
        in_flight_max=options.publish_in_flight_max,
        logger=logger,
    )


def _streams(redis: Redis, options: ServerOptions, logger: Any) -> Adapter:
    keep_s = None
    if options.recovery_s is not None:
        keep_s = keep_s_of(
            options.recovery_s, ping_interval_s=options.ping_interval_s, ping_timeout_s=options.ping_timeout_s
        )
    return StreamsAdapter(redis, options, keep_s=keep_s, logger=logger)


_MAKERS: dict[AdapterName, _Make] = {
    "classic": _classic,
    "sharded": _sharded,
    "streams": _streams,
}
