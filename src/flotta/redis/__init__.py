"""Redis (or Valkey) for a whole process: a multiplexed link, the ordinary client over it, subscriptions, scripts."""

from __future__ import annotations

from flotta.redis.client import Redis
from flotta.redis.connection import Arg
from flotta.redis.effects import Effect
from flotta.redis.endpoint import Endpoint
from flotta.redis.hub import Hub, Kind, Listener, Subscription
from flotta.redis.link import Link, LinkObserver, LinkOptions, LinkStats
from flotta.redis.plain import PlainRedis
from flotta.redis.scripts import Script

__all__ = [
    "Arg",
    "Effect",
    "Endpoint",
    "Hub",
    "Kind",
    "Link",
    "LinkObserver",
    "LinkOptions",
    "LinkStats",
    "Listener",
    "PlainRedis",
    "Redis",
    "Script",
    "Subscription",
]
