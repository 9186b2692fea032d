"""Whether a server recovers connections, and with what."""

from __future__ import annotations

from typing import Any

from flotta.realtime.adapters import Adapter
from flotta.realtime.adapters.streams import StreamsAdapter
from flotta.realtime.delivery import Delivery
from flotta.realtime.options import ServerOptions
from flotta.realtime.recovery.keeper import Keeper, Users
from flotta.realtime.recovery.store import Store

__all__ = ["make_keeper"]


def make_keeper(
    adapter: Adapter, options: ServerOptions, delivery: Delivery, people: Users, logger: Any
) -> Keeper | None:
    """The keeper, not started; None: connections are not recovered."""
    if not isinstance(adapter, StreamsAdapter) or options.recovery_s is None:
        return None
    store = Store(adapter.redis, key_prefix=adapter.redis.key(options.recovery_key_prefix), stream=adapter.stream)
    return Keeper(
        adapter.redis,
        adapter,
        store=store,
        channel=f"{adapter.prefix}-claimed#",
        delivery=delivery,
        people=people,
        window_s=options.recovery_s,
        skips_connect=options.recovery_skips_connect,
        pace_bytes=min(options.volatile_bytes_max, options.send_bytes_max // 2),
        logger=logger,
    )
