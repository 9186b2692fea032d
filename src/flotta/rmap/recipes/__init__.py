"""Ready uses of a map: feature flags, a rate limit of the whole fleet, who is there, a cache that all share."""

from __future__ import annotations

from flotta.rmap.recipes.cache import Cache
from flotta.rmap.recipes.flags import FeatureFlags, Flag
from flotta.rmap.recipes.members import Members
from flotta.rmap.recipes.rate import Decision, RateLimit

__all__ = ["Cache", "Decision", "FeatureFlags", "Flag", "Members", "RateLimit"]
